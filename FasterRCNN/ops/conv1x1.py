"""1×1 convolution, with a gradient of its own where TensorFlow's is slow."""
import tensorflow.compat.v1 as tf

_GRADIENT = "Conv1x1ByProducts"


def conv1x1(x, kernel, stride=1):
    """Multiply the channels of every `stride`-th cell: N×h×w×C, 1×1×C×C' -> N×⌈h/stride⌉×⌈w/stride⌉×C'.

    TensorFlow's convolution. In bfloat16 on a processor its gradient is made of products of matrices: oneDNN's gradient
    of the kernel takes three to four times as long, that of the input with a stride two to four times.
    """
    # 'SAME', which is 'VALID' here, shows TensorFlow that the shapes of a residual sum are equal: it fuses them.
    slow = x.dtype == tf.bfloat16 and not tf.config.list_physical_devices("GPU")
    with tf.get_default_graph().gradient_override_map({"Conv2D": _GRADIENT} if slow else {}):
        return tf.nn.conv2d(x, kernel, stride, "SAME")


@tf.RegisterGradient(_GRADIENT)
def _gradient(op, of_output):
    x, kernel = op.inputs
    stride = op.get_attr("strides")[1]
    # As a pool, which every precision has: TensorFlow's slices with a step take thirty times as long.
    own = x if stride == 1 else tf.nn.max_pool2d(x, 1, stride, "SAME")
    of_kernel = tf.matmul(_rows(own), _rows(of_output), transpose_a=True)
    of_own = tf.nn.conv2d_backprop_input(tf.shape(own), kernel, of_output, [1] * 4, "SAME")
    return of_own if stride == 1 else _spread(of_own, stride, tf.shape(x)), tf.reshape(of_kernel, kernel.shape)


def _rows(x):
    return tf.reshape(x, [-1, x.shape[-1]])


def _spread(x, stride, shape):
    """Return y of `shape` with y[:, ::stride, ::stride] = x, and zero elsewhere."""
    batch, height, width, channels = tf.unstack(tf.shape(x))
    gap = [0, stride - 1]
    x = tf.pad(x[:, :, None, :, None], [[0, 0], [0, 0], gap, [0, 0], gap, [0, 0]])
    return tf.reshape(x, [batch, height * stride, width * stride, channels])[:, :shape[1], :shape[2]]
