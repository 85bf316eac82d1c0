"""1×1 convolution and its gradient against products of matrices in NumPy."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import evaluate

from FasterRCNN.modeling.fpn import upsample_nearest
from FasterRCNN.ops.conv1x1 import conv1x1


@pytest.mark.parametrize("dtype, tolerance", [(tf.float32, 1e-5), (tf.bfloat16, 1e-2)])
@pytest.mark.parametrize("stride, height, width", [(1, 4, 5), (2, 4, 6), (2, 5, 7), (2, 1, 4)])
def test_convolution_and_gradients(stride, height, width, dtype, tolerance):
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=[2, height, width, 16]), random.normal(size=[1, 1, 16, 8])
    own = x[:, ::stride, ::stride]
    upstream = random.normal(size=[*own.shape[:3], 8])

    def build(x, kernel, upstream):
        x, kernel, upstream = (tf.cast(value, dtype) for value in (x, kernel, upstream))
        y = conv1x1(x, kernel, stride)
        return [tf.cast(value, tf.float32) for value in (y, *tf.gradients(y, [x, kernel], upstream))]

    y, of_x, of_kernel = evaluate(build, *(value.astype(np.float32) for value in (x, kernel, upstream)))
    wanted_of_x = np.zeros(x.shape)
    wanted_of_x[:, ::stride, ::stride] = upstream @ kernel[0, 0].T
    wanted_of_kernel = np.tensordot(own, upstream, axes=([0, 1, 2], [0, 1, 2]))[None, None]
    for found, wanted in ((y, own @ kernel[0, 0]), (of_x, wanted_of_x), (of_kernel, wanted_of_kernel)):
        np.testing.assert_allclose(found, wanted, atol=tolerance * np.abs(wanted).max())


def test_its_gradient_in_bfloat16_has_no_convolution_of_the_kernel():
    def types(dtype):
        with tf.Graph().as_default() as graph:
            x, kernel = tf.zeros([1, 4, 4, 16], dtype), tf.zeros([1, 1, 16, 8], dtype)
            tf.gradients(conv1x1(x, kernel), kernel)
            return {op.type for op in graph.get_operations()}

    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    assert ("Conv2DBackpropFilter" in types(tf.bfloat16)) == on_gpu
    assert "Conv2DBackpropFilter" in types(tf.float32)


@pytest.mark.parametrize("count", [0, 1])
def test_no_image_gives_a_gradient_of_0(count):
    def build(x, kernel):
        x, kernel = tf.cast(x, tf.bfloat16), tf.cast(kernel, tf.bfloat16)
        return [tf.cast(gradient, tf.float32) for gradient in tf.gradients(conv1x1(x, kernel, 2), [x, kernel])]

    of_x, of_kernel = evaluate(build, np.zeros([count, 4, 4, 16], np.float32), np.zeros([1, 1, 16, 8], np.float32))
    assert of_x.shape == (count, 4, 4, 16) and of_kernel.shape == (1, 1, 16, 8) and not of_kernel.any()


def test_gradient_of_upsampling_is_the_sum_of_the_four_cells():
    upstream = np.random.default_rng(1).normal(size=[2, 6, 4, 3]).astype(np.float32)

    def build(x, upstream):
        return tf.gradients(upsample_nearest(x), x, upstream)[0]

    found = evaluate(build, np.zeros([2, 3, 2, 3], np.float32), upstream)
    np.testing.assert_allclose(found, upstream.reshape(2, 3, 2, 2, 2, 3).sum(axis=(2, 4)), atol=1e-6)
