"""Layers in bfloat16 on the matrix unit of Intel's processors (AMX), by operations in C++ (kernels/amx.cc).

On large maps and in the box head's first layer they take a sixth less time than oneDNN's, or better. They have no
gradient and pack their kernel, which costs nothing once that is a constant: for prediction.
"""
from contextlib import contextmanager
from contextvars import ContextVar

import tensorflow.compat.v1 as tf

from .kernels import built_library, has_amx
from .machine import has_gpu

TILE = 16  # columns of a map, or output channels, that the unit takes at once
MULTIPLE = 2 * TILE  # of channels
MOST_CHANNELS = 256  # of a convolution: a kernel of more does not stay in a core's cache, and oneDNN's is faster
LEAST_DEPTH = 2048  # of a product: shorter rows gain nothing
_ALLOWED = ContextVar("_ALLOWED", default=False)


@contextmanager
def amx_layers(allowed=True):
    """Let the layers made within use AMX, where this machine has it, the operations are built and there is no GPU."""
    token = _ALLOWED.set(allowed and has_amx() and not has_gpu())
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def is_for_amx(x, kernel, *, groups=1, stride=1, padding="SAME"):
    """Tell whether a layer made here is to be `amx_conv2d` or `amx_matmul`: of the input x and its kernel or matrix."""
    *size, channels, outputs = kernel.shape.as_list()
    if not (_ALLOWED.get() and x.dtype == tf.bfloat16 and channels % MULTIPLE == outputs % MULTIPLE == 0):
        return False
    if not size:
        return channels >= LEAST_DEPTH
    return (size == [3, 3] and max(channels, outputs) <= MOST_CHANNELS and groups == stride == 1 and padding == "SAME"
            and not _is_narrow(x.shape[2]))


def _is_narrow(width):
    """Tell whether a tenth or more of the columns computed would lie beyond the map, as with RoIs'; None: unknown."""
    return width is not None and 0.9 * -(-width // TILE) * TILE >= width


def amx_conv2d(x, kernel, bias=None, *, activation=None):
    """Convolve at stride 1 with zeros around, add the bias, activate: bfloat16 N×h×w×C, k×k×C×C' -> N×h×w×C'.

    bias: float32 C'. C and C' are multiples of MULTIPLE, k is odd.
    """
    return _run(built_library().amx_convolution, x, kernel, bias, activation)


def amx_matmul(x, weights, bias=None, *, activation=None):
    """Multiply by a matrix, add the bias, activate: bfloat16 R×C, C×C' -> R×C'.

    bias: float32 C'. C and C' are multiples of MULTIPLE.
    """
    return _run(built_library().amx_product, x, weights[None, None], bias, activation)


def _run(operation, x, kernel, bias, activation):
    bias = tf.zeros([kernel.shape[3]]) if bias is None else bias
    relu = activation is tf.nn.relu
    x = operation(x, _pack(kernel), bias, relu=relu)
    return activation(x) if activation and not relu else x


def _pack(kernel):
    """Return the kernel in the order in which it is read: k×k×C×C' -> (C'/32)×k×k×(C/32)×1024.

    The last are two tiles of 16 rows, of a pair of input channels each, and 16 columns, of an output channel each.
    """
    height, width, channels, outputs = kernel.shape.as_list()
    steps, blocks = channels // MULTIPLE, outputs // MULTIPLE
    kernel = tf.reshape(kernel, [height, width, steps, TILE, 2, blocks, 2, TILE])
    return tf.reshape(tf.transpose(kernel, [5, 0, 1, 2, 6, 3, 7, 4]), [blocks, height, width, steps, MULTIPLE ** 2])
