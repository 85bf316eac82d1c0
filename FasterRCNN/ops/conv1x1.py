"""1×1 convolution, with a gradient of its own where oneDNN's is slow."""
import tensorflow.compat.v1 as tf

from .machine import has_gpu
from .resampling import every_nth_cell

_GRADIENT = "Conv1x1ByProducts"


def conv1x1(x, kernel, stride=1):
    """Multiply the channels of every `stride`-th cell: N×h×w×C, 1×1×C×C' -> N×⌈h/stride⌉×⌈w/stride⌉×C'.

    TensorFlow's convolution. In bfloat16 on a processor it has a gradient of its own: that of the kernel is a product
    of matrices, for which oneDNN's takes three to four times as long; that of the input is made at stride 1 and spread,
    for which oneDNN's takes two to four times as long at stride 2.
    """
    # Not tf.custom_gradient: its IdentityN would stand between the convolution and what TensorFlow fuses with it.
    overridden = {"Conv2D": _GRADIENT} if x.dtype == tf.bfloat16 and not has_gpu() else {}
    with tf.get_default_graph().gradient_override_map(overridden):
        # 'SAME', which is 'VALID' here, shows TensorFlow that the shapes of a residual sum are equal: it fuses them.
        return tf.nn.conv2d(x, kernel, stride, "SAME")


@tf.RegisterGradient(_GRADIENT)
def _gradient(op, of_output):
    x, kernel = op.inputs
    stride = op.get_attr("strides")[1]
    own = x if stride == 1 else every_nth_cell(x, stride)
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
