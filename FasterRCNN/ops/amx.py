"""Layers in bfloat16 on the matrix unit of Intel's processors (AMX), by operations in C++ (kernels/amx.cc).

On large maps a convolution takes five sixths of oneDNN's time, a product with long rows two thirds. They have no
gradient and pack their kernel, which costs nothing once that is a constant: for prediction.
"""
from contextlib import contextmanager
from contextvars import ContextVar

import tensorflow.compat.v1 as tf

from .kernels import built_library, has_amx
from .machine import has_gpu

MULTIPLE = 32  # of channels
COLUMNS = 16  # of a map, computed at once
MOST_CHANNELS = 256  # the kernel of more does not stay in a core's cache, and oneDNN's convolution is faster
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
    fits = _ALLOWED.get() and x.dtype == tf.bfloat16 and channels % MULTIPLE == outputs % MULTIPLE == 0
    if not size:
        return fits
    return (fits and size == [3, 3] and max(channels, outputs) <= MOST_CHANNELS
            and groups == stride == 1 and padding == "SAME" and not _is_narrow(x.shape[2]))


def _is_narrow(width):
    """Tell whether a tenth or more of the columns computed would lie beyond the map, as with RoIs'; None: unknown."""
    return width is not None and 0.9 * -(-width // COLUMNS) * COLUMNS >= width


def amx_conv2d(x, kernel, bias=None, *, relu=False):
    """Convolve at stride 1 with zeros around, add the bias, activate: bfloat16 N×h×w×C, k×k×C×C' -> N×h×w×C'.

    bias: float32 C'. C and C' are multiples of MULTIPLE, k is odd.
    """
    return built_library().amx_convolution(map=x, kernel=_pack(kernel), bias=_or_zeros(bias, kernel), relu=relu)


def amx_matmul(x, weights, bias=None, *, relu=False):
    """Multiply by a matrix, add the bias, activate: bfloat16 R×C, C×C' -> R×C'.

    bias: float32 C'. C and C' are multiples of MULTIPLE.
    """
    return built_library().amx_product(matrix=x, kernel=_pack(weights[None, None]), bias=_or_zeros(bias, weights),
                                       relu=relu)


def _or_zeros(bias, kernel):
    return tf.zeros([kernel.shape[-1]]) if bias is None else bias


def _pack(kernel):
    """Return the kernel in the order in which it is read: k×k×C×C' -> (C'/32)×k×k×(C/32)×1024.

    The last are two tiles of 16 rows, of a pair of input channels each, and 16 columns, of an output channel each.
    """
    height, width, channels, outputs = kernel.shape.as_list()
    kernel = tf.reshape(kernel, [height, width, channels // 32, 16, 2, outputs // 32, 2, 16])
    kernel = tf.transpose(kernel, [5, 0, 1, 2, 6, 3, 7, 4])
    return tf.reshape(kernel, [outputs // 32, height, width, channels // 32, 1024])
