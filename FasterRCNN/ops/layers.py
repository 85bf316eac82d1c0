"""Every layer that owns variables, under the names of tensorpack's checkpoints.

Feature maps are N×h×w×C (channels last); kernels are kh×kw×C_in×C_out. Variables and statistics are float32; a layer
computes in the type of its input, float32, bfloat16 or float16.
"""
from contextlib import contextmanager

import tensorflow.compat.v1 as tf

from .amx import amx_conv2d, amx_matmul, is_for_amx
from .conv1x1 import conv1x1
from .grouped_conv import grouped_conv2d

NORM_EPSILON = 1e-5
GROUPS = 32
BATCH_NORM_MOMENTUM = 0.9  # of the moving averages; tensorpack's
MOVING_AVERAGES = "moving_averages"  # collection of (variable, its value after the step)

HE_NORMAL_FAN_OUT = tf.variance_scaling_initializer(2.0, mode="fan_out", distribution="untruncated_normal")
FAN_IN = tf.variance_scaling_initializer(1.0, mode="fan_in")


def normal(stddev):
    """Return the initializer that draws from a normal distribution around 0."""
    return tf.random_normal_initializer(stddev=stddev)


@contextmanager
def frozen_variables(select=lambda name: True):
    """Create the variables whose name `select` accepts as not trainable."""
    def create(getter, name, *args, **kwargs):
        if select(name):
            kwargs["trainable"] = False
        return getter(name, *args, **kwargs)

    with tf.variable_scope(tf.get_variable_scope(), custom_getter=create, auxiliary_name_scope=False):
        yield


def conv2d(x, channels, kernel_size, scope, *, stride=1, padding="SAME", groups=1, norm="bias", activation=None,
           initializer=HE_NORMAL_FAN_OUT, gamma_initializer=None, extent=None):
    """Convolve, normalise and activate: N×h×w×C -> N×h'×w'×channels.

    norm: 'FreezeBN', 'GN', 'bias' (no normalisation but a bias), 'None' (neither), or a function of x,
    gamma_initializer and extent. `padding` is 'SAME', 'VALID' (of a 1×1 kernel the same) or ((top, bottom), (left,
    right)). `extent` (a LevelExtent) tells a normalisation which cells belong to each image.
    """
    x, padding = pad_input(x, padding)
    with tf.variable_scope(scope):
        shape = [kernel_size, kernel_size, x.shape[-1] // groups, channels]
        kernel, bias = tf.get_variable("W", shape, initializer=initializer), None
        if norm == "FreezeBN":
            # On the kernel rather than on the output: less to compute and to remember in training, and for inference,
            # with variables frozen, a constant.
            scale, bias = frozen_batch_norm(channels, gamma_initializer)
            kernel = kernel * scale
        elif norm == "bias":
            bias = tf.get_variable("b", [channels], initializer=tf.zeros_initializer())
        kernel, normalizes = tf.cast(kernel, x.dtype), norm == "GN" or callable(norm)
        x = _convolve(x, kernel, bias, groups=groups, stride=stride, padding=padding,
                      activation=None if normalizes else activation)
        if norm == "GN":
            x = group_norm(x, "gn", gamma_initializer=gamma_initializer, extent=extent)
        elif normalizes:
            x = norm(x, gamma_initializer=gamma_initializer, extent=extent)
        return activation(x) if normalizes and activation else x


def _convolve(x, kernel, bias, *, groups, stride, padding, activation):
    """Convolve, add the bias (or None) and activate (or None)."""
    if is_for_amx(x, kernel, groups=groups, stride=stride, padding=padding):
        return amx_conv2d(x, kernel, bias, activation=activation)
    if kernel.shape[:2] == [1, 1] and groups == 1:
        x = conv1x1(x, kernel, stride)
    else:
        x = grouped_conv2d(x, kernel, groups, stride=stride, padding=padding)
    if bias is not None:
        x = add_bias(x, bias)
    return activation(x) if activation else x


def conv1x1_side_by_side(x, channels_of_scopes, *, initializer):
    """Run several 1×1 layers on the same input as one, which reads it once: N×h×w×C -> list of N×h×w×channels.

    channels_of_scopes: scope to channels, one layer each, with a bias.
    """
    kernels, biases = [], []
    for scope, channels in channels_of_scopes.items():
        with tf.variable_scope(scope):
            kernels.append(tf.get_variable("W", [1, 1, x.shape[-1], channels], initializer=initializer))
            biases.append(tf.get_variable("b", [channels], initializer=tf.zeros_initializer()))
    x = conv1x1(x, tf.cast(tf.concat(kernels, axis=3), x.dtype))
    return tf.split(add_bias(x, tf.concat(biases, axis=0)), list(channels_of_scopes.values()), axis=3)


def conv1x1_own_class(x, labels, num_classes, scope, *, initializer):
    """Compute, of a 1×1 convolution to a map for each class, each RoI's own alone: R×n×C, int64 R -> float32 R×n.

    n: the cells of a RoI. labels: 1..K; background, 0, gets the map of the first class.
    """
    with tf.variable_scope(scope):
        kernel = tf.get_variable("W", [1, 1, x.shape[-1], num_classes], initializer=initializer)
        bias = tf.get_variable("b", [num_classes], initializer=tf.zeros_initializer())
    own = tf.maximum(labels - 1, 0)
    x = tf.linalg.matvec(x, tf.cast(tf.gather(tf.transpose(kernel[0, 0]), own), x.dtype))
    # Not of the variable itself: its gradient would not be a tensor.
    return tf.cast(x, tf.float32) + tf.gather(bias[:, None], own)


def add_bias(x, bias):
    """Return x + bias in the type of x: …×C, float32 C -> …×C."""
    return tf.nn.bias_add(x, tf.cast(bias, x.dtype))


def pad_input(x, padding):
    """Return (x, padding), x zero-padded by ((top, bottom), (left, right)) and padding 'VALID' if amounts are given.

    As an operation of its own: oneDNN has no gradient for convolutions and pools with amounts of padding.
    """
    if isinstance(padding, str):
        return x, padding
    return tf.pad(x, [[0, 0], padding[0], padding[1], [0, 0]]), "VALID"


def batch_norm_variables(channels, gamma_initializer=None):
    """Return (gamma, beta, mean, variance) of a batch normalisation, each of C; the last two are moving averages."""
    with tf.variable_scope("bn"):
        gamma = tf.get_variable("gamma", [channels], initializer=gamma_initializer or tf.ones_initializer())
        beta = tf.get_variable("beta", [channels], initializer=tf.zeros_initializer())
        mean = tf.get_variable("mean/EMA", [channels], initializer=tf.zeros_initializer(), trainable=False)
        variance = tf.get_variable("variance/EMA", [channels], initializer=tf.ones_initializer(), trainable=False)
    return gamma, beta, mean, variance


def frozen_batch_norm(channels, gamma_initializer=None):
    """Return (scale, shift), each of C, of a batch normalisation that uses its stored statistics."""
    gamma, beta, mean, variance = batch_norm_variables(channels, gamma_initializer)
    scale = gamma * tf.math.rsqrt(variance + NORM_EPSILON)
    return scale, beta - mean * scale


def sync_batch_norm(x, *, sum_over_devices, gamma_initializer=None, extent=None):
    """Normalise by the statistics of all images of a training step: N×h×w×C -> N×h×w×C (Peng et al. 2018, section 3.2).

    sum_over_devices(vector, name) adds up a vector over the devices of the step, in both directions. With `extent`,
    only each image's own cells count. What the moving averages become goes into the collection MOVING_AVERAGES.
    """
    channels = x.shape[-1]
    gamma, beta, *averages = batch_norm_variables(channels, gamma_initializer)
    own = tf.cast(extent.clear(x) if extent else x, tf.float32)
    cells = tf.reduce_sum(extent.num_cells()) if extent else tf.cast(tf.reduce_prod(tf.shape(x)[:3]), tf.float32)
    sums = [tf.reshape(spatial_sum(y, [0, 1, 2]), [-1]) for y in (own, tf.square(own))] + [cells[None]]
    sums = sum_over_devices(tf.concat(sums, axis=0), gamma.op.name)
    mean, mean_square = sums[:channels] / sums[-1], sums[channels:-1] / sums[-1]
    variance = tf.maximum(mean_square - tf.square(mean), 0.0)
    for average, value in zip(averages, (mean, variance)):
        after = BATCH_NORM_MOMENTUM * average + (1 - BATCH_NORM_MOMENTUM) * tf.stop_gradient(value)
        tf.add_to_collection(MOVING_AVERAGES, (average, after))
    scale = gamma * tf.math.rsqrt(variance + NORM_EPSILON)
    return x * tf.cast(scale, x.dtype) + tf.cast(beta - mean * scale, x.dtype)


def deconv2d(x, channels, scope, *, activation=None):
    """Double the resolution with a 2×2 transposed convolution of stride 2: N×h×w×C -> N×h×w×4×channels.

    The four are the cells (0, 0), (0, 1), (1, 0), (1, 1) that a cell becomes. `depth_to_space` puts them into place;
    what works on each cell alone is better done before.
    """
    with tf.variable_scope(scope):
        kernel = tf.get_variable("W", [2, 2, channels, x.shape[-1]], initializer=HE_NORMAL_FAN_OUT)
        bias = tf.get_variable("b", [channels], initializer=tf.zeros_initializer())
        # The windows do not overlap: a convolution with a kernel of one cell, to which TensorFlow fuses what follows.
        kernel = tf.reshape(tf.transpose(kernel, [3, 0, 1, 2]), [1, 1, x.shape[-1], 4 * channels])
        x = add_bias(conv1x1(x, tf.cast(kernel, x.dtype)), tf.tile(bias, [4]))
        x = activation(x) if activation else x
        return tf.reshape(x, [-1, *x.shape[1:3], 4, channels])


def fully_connected(x, channels, scope, *, activation=None, initializer=FAN_IN):
    """Multiply by a matrix and add a bias: N×C or N×h×w×C -> N×channels.

    The rows of W for a feature map are in (channel, row, column) order, as in tensorpack's checkpoints.
    """
    with tf.variable_scope(scope):
        size = x.shape[1:].num_elements()
        weights = tf.get_variable("W", [size, channels], initializer=initializer)
        bias = tf.get_variable("b", [channels], initializer=tf.zeros_initializer())
        if x.shape.rank == 4:
            h, w, c = x.shape[1:].as_list()
            # Reordering the weights instead of the features costs nothing once they are constants.
            weights = tf.reshape(tf.transpose(tf.reshape(weights, [c, h, w, channels]), [1, 2, 0, 3]), [size, channels])
            x = tf.reshape(x, [-1, size])
        weights = tf.cast(weights, x.dtype)
        if is_for_amx(x, weights):
            return amx_matmul(x, weights, bias, activation=activation)
        x = add_bias(tf.matmul(x, weights), bias)
        return activation(x) if activation else x


def group_norm(x, scope, *, groups=GROUPS, gamma_initializer=None, extent=None):
    """Normalise groups of channels of each image: N×h×w×C -> N×h×w×C (Wu & He 2018, section 3.1).

    With `extent`, statistics are taken over each image's own cells, so that padding does not change them.
    """
    with tf.variable_scope(scope):
        channels = x.shape[-1]
        gamma = tf.get_variable("gamma", [channels], initializer=gamma_initializer or tf.ones_initializer())
        beta = tf.get_variable("beta", [channels], initializer=tf.zeros_initializer())
    shape = tf.shape(x)
    if extent is None:
        own, cells = x, tf.fill([shape[0]], tf.cast(shape[1] * shape[2], tf.float32))
    else:
        own, cells = extent.clear(x), extent.num_cells()
    own = tf.cast(own, tf.float32)
    values = cells[:, None] * (channels // groups)

    def per_group(y):
        sums = tf.reshape(spatial_sum(y, [1, 2]), [-1, groups, channels // groups])
        return tf.reduce_sum(sums, axis=2, keepdims=True) / values[..., None]

    def per_channel(z):
        return tf.cast(tf.reshape(z, [-1, 1, 1, channels]), x.dtype)

    mean = per_group(own)
    variance = per_group(tf.square(own)) - tf.square(mean)
    inverse = tf.math.rsqrt(tf.maximum(variance, 0.0) + NORM_EPSILON)
    scale = inverse * tf.reshape(gamma, [groups, -1])
    shift = tf.reshape(beta, [groups, -1]) - mean * scale
    return x * per_channel(scale) + per_channel(shift)


def spatial_sum(x, axis):
    """Sum over `axis`, whose dimensions stay: without them the gradient computes shapes on the GPU."""
    return tf.reduce_sum(x, axis=axis, keepdims=True)
