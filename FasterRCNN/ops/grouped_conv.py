"""Grouped convolution (ResNeXt, Xie et al. 2017)."""
import tensorflow.compat.v1 as tf


def grouped_conv2d(x, kernel, groups, *, stride, padding):
    return tf.nn.conv2d(x, kernel, stride, padding)
