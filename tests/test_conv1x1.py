"""1×1 convolution and its gradient against products of matrices in NumPy."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import evaluate

from FasterRCNN.ops.compiled import compiled
from FasterRCNN.ops.conv1x1 import conv1x1


@pytest.mark.parametrize("dtype, tolerance, by_xla", [
    (tf.float32, 1e-5, False), (tf.bfloat16, 1e-2, False), (tf.bfloat16, 1e-2, True)])
@pytest.mark.parametrize("stride, height, width", [(1, 4, 5), (2, 4, 6), (2, 5, 7), (2, 1, 4)])
def test_convolution_and_gradients(stride, height, width, dtype, tolerance, by_xla):
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=[2, height, width, 16]), random.normal(size=[1, 1, 16, 8])
    own = x[:, ::stride, ::stride]
    upstream = random.normal(size=[*own.shape[:3], 8])

    def build(x, kernel, upstream):
        x, kernel, upstream = (tf.cast(value, dtype) for value in (x, kernel, upstream))
        with compiled(by_xla):
            y = conv1x1(x, kernel, stride)
        return [tf.cast(value, tf.float32) for value in (y, *tf.gradients(y, [x, kernel], upstream))]

    y, of_x, of_kernel = evaluate(build, *(value.astype(np.float32) for value in (x, kernel, upstream)))
    wanted_of_x = np.zeros(x.shape)
    wanted_of_x[:, ::stride, ::stride] = upstream @ kernel[0, 0].T
    wanted_of_kernel = np.tensordot(own, upstream, axes=([0, 1, 2], [0, 1, 2]))[None, None]
    for found, wanted in ((y, own @ kernel[0, 0]), (of_x, wanted_of_x), (of_kernel, wanted_of_kernel)):
        np.testing.assert_allclose(found, wanted, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize("dtype, gpus, is_own", [
    (tf.bfloat16, [], True), (tf.float32, [], False), (tf.bfloat16, ["GPU"], False)])
def test_its_own_gradient_is_that_of_bfloat16_on_processors(monkeypatch, dtype, gpus, is_own):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    with tf.Graph().as_default() as graph:
        kernel = tf.zeros([1, 1, 16, 8], dtype)
        tf.gradients(conv1x1(tf.zeros([1, 4, 4, 16], dtype), kernel), kernel)
        types = {op.type for op in graph.get_operations()}
    assert ("MatMul" in types, "Conv2DBackpropFilter" in types) == (is_own, not is_own)


def test_no_image_gives_a_gradient_of_0():
    def build(x, kernel):
        x, kernel = tf.cast(x, tf.bfloat16), tf.cast(kernel, tf.bfloat16)
        return [tf.cast(gradient, tf.float32) for gradient in tf.gradients(conv1x1(x, kernel, 2), [x, kernel])]

    of_x, of_kernel = evaluate(build, np.zeros([0, 4, 4, 16], np.float32), np.ones([1, 1, 16, 8], np.float32))
    assert of_x.shape == (0, 4, 4, 16) and of_kernel.shape == (1, 1, 16, 8) and not of_kernel.any()
