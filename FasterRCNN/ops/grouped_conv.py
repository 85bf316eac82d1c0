"""Grouped convolution (Krizhevsky et al. 2012), the middle of ResNeXt's bottlenecks (Xie et al. 2017)."""
import tensorflow.compat.v1 as tf
from tensorflow.python.util import _pywrap_util_port

from .machine import has_gpu

BLOCK_CHANNELS = 32


def grouped_conv2d(x, kernel, groups, *, stride, padding):
    """Convolve each group of channels with its own kernels: N×h×w×C_in, kh×kw×(C_in/groups)×C_out -> N×h'×w'×C_out.

    padding: 'SAME' or 'VALID'. Raises ValueError if `groups` does not divide C_in and C_out, or if the kernel's third
    dimension is not C_in / groups.

    TensorFlow's own form is right and fast on a GPU and with oneDNN, forward and backward; Eigen, which computes on
    processors that oneDNN is off for, has no gradients of it and cannot fuse a bias with it, and gets blocks.
    For 32 groups of 8, 16, 32, 64 channels at strides 4 to 32 of an 800×1344 image, two cores with oneDNN, float32, ms:

                                   forward                gradient of x          gradient of the kernel
        TensorFlow's own           28  19  10   9         33  36  22  23         79  18  36  21
        blocks of 32 channels      45  23  12   –         49  49  22  –          124 60  29  –
        blocks of 64               69  34  19  10         74  72  20  20         179 95  36  21
        products of matrices       177 83  42  23         1093 966 467 229       369 175 113 52
        one dense kernel           211 –   –   –          –                      –
    """
    _check_channels(x.shape[-1], kernel.shape.as_list(), groups)
    if groups == 1 or _has_own_form():
        return tf.nn.conv2d(x, kernel, stride, padding)
    return _conv2d_in_blocks(x, kernel, groups, stride=stride, padding=padding)


def _check_channels(channels, kernel_shape, groups):
    if groups < 1 or channels % groups or kernel_shape[3] % groups:
        raise ValueError(f"{channels} input and {kernel_shape[3]} output channels cannot be convolved in {groups} "
                         "groups: both numbers must be multiples of the number of groups")
    if kernel_shape[2] != channels // groups:
        raise ValueError(f"a kernel of shape {kernel_shape} does not fit {channels} input channels in {groups} groups: "
                         f"its third dimension must be {channels} / {groups} = {channels // groups}")


def _has_own_form():
    """Tell whether tf.nn.conv2d takes groups, with gradients, on this machine."""
    # IsMklEnabled: TensorFlow has no public question for oneDNN, and trying a convolution would start a session, which
    # fixes the process's threads and takes the GPU's memory.
    return has_gpu() or _pywrap_util_port.IsMklEnabled()


def _conv2d_in_blocks(x, kernel, groups, *, stride, padding):
    """Convolve runs of groups, of BLOCK_CHANNELS together if they are smaller, each with one dense kernel."""
    # A convolution of few channels leaves most of a processor's vector unit idle; zeros in the kernel cost less.
    per_group = kernel.shape[2]
    together = max(n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * per_group <= BLOCK_CHANNELS))
    blocks = groups // together
    parts = zip(tf.split(x, blocks, axis=3), tf.split(kernel, blocks, axis=3), strict=True)
    return tf.concat([tf.nn.conv2d(part, _dense_kernel(part_kernel, together), stride, padding)
                      for part, part_kernel in parts], axis=3)


def _dense_kernel(kernel, groups):
    """Return the kernel of an ordinary convolution, zero between groups: kh×kw×c×C_out -> kh×kw×(groups·c)×C_out."""
    height, width, per_group, channels = kernel.shape.as_list()
    kernel = tf.reshape(kernel, [height, width, 1, per_group, groups, channels // groups])
    diagonal = tf.reshape(tf.eye(groups, dtype=kernel.dtype), [groups, 1, groups, 1])
    return tf.reshape(kernel * diagonal, [height, width, groups * per_group, channels])
