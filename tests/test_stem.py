"""Pixels and pool of the stem, by TensorFlow's operations and by those in C++, against NumPy and each other."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import evaluate

from FasterRCNN.ops.kernels import built_library
from FasterRCNN.ops.stem import normalize_image, stem_pool

MEAN, STD = (103.5, 116.25, 123.7), (57.0, 1.0, 58.4)
TYPES = [tf.float32, tf.bfloat16, tf.float16]


def pixels(dtype):
    return np.random.default_rng(0).integers(256, size=[3, 5, 7, 3]).astype(dtype)


@pytest.mark.parametrize("by_kernel", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pixels_are_normalised_and_zero_beyond_each_image(dtype, by_kernel):
    images, sizes = pixels(dtype), np.array([[5, 4], [3, 7], [0, -1]], np.int32)
    found = evaluate(lambda *x: normalize_image(*x, MEAN, STD, tf.float32, by_kernel=by_kernel), images, sizes)
    expected = np.zeros(images.shape)
    for i, (height, width) in enumerate(sizes):
        if width > 0:
            expected[i, :height, :width] = (images[i, :height, :width] - np.array(MEAN)) / STD
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("from_type", [np.uint8, np.float32])
def test_pixels_in_each_type_are_the_same_by_both(from_type, dtype):
    sizes = np.array([[5, 4], [9, 9], [2, 7]], np.int32)

    def build(x, size):
        return [tf.cast(normalize_image(x, size, MEAN, STD, dtype, by_kernel=by_kernel), tf.float32)
                for by_kernel in (False, True)]

    by_tensorflow, by_kernel = evaluate(build, pixels(from_type), sizes)
    assert by_kernel.any() and np.array_equal(by_kernel, by_tensorflow)


def numpy_pool(x, before, after):
    x = np.pad(x, [(0, 0), (before, after), (before, after), (0, 0)])
    rows, columns = ((side - 3) // 2 + 1 for side in x.shape[1:3])
    windows = [x[:, i:i + 2 * rows - 1:2, j:j + 2 * columns - 1:2] for i in range(3) for j in range(3)]
    return np.max(windows, axis=0)


@pytest.mark.parametrize("by_kernel", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [3, 32, 70])
@pytest.mark.parametrize("height, width, before, after", [
    (8, 6, 1, 0), (8, 6, 0, 1), (7, 5, 1, 1), (3, 9, 0, 0), (1, 2, 1, 1), (2, 3, 4, 3)])
def test_pool(height, width, before, after, channels, dtype, by_kernel):
    x = np.random.default_rng(1).normal(size=[2, height, width, channels]).astype(np.float32)

    def build(x):
        rounded = tf.nn.relu(tf.cast(x, dtype))
        pooled = stem_pool(rounded, (before, after), by_kernel=by_kernel)
        return tf.cast(rounded, tf.float32), tf.cast(pooled, tf.float32)

    rounded, pooled = evaluate(build, x)
    assert np.array_equal(pooled, numpy_pool(rounded, before, after))


def test_gradient_of_the_pool_is_tensorflow_s():
    x = np.random.default_rng(2).uniform(size=[2, 8, 6, 40]).astype(np.float32)
    upstream = np.random.default_rng(3).normal(size=[2, 4, 3, 40]).astype(np.float32)

    def build(x, upstream):
        return [tf.gradients(stem_pool(x, (1, 0), by_kernel=by_kernel), x, upstream)[0] for by_kernel in (False, True)]

    by_tensorflow, by_kernel = evaluate(build, x, upstream)
    assert by_kernel.any() and np.array_equal(by_kernel, by_tensorflow)


def test_no_image():
    images, sizes, maps = pixels(np.uint8)[:0], np.zeros([0, 2], np.int32), np.zeros([0, 8, 6, 4], np.float32)
    found = evaluate(lambda *x: normalize_image(*x, MEAN, STD, tf.float32, by_kernel=True), images, sizes)
    assert found.shape == (0, 5, 7, 3)
    assert evaluate(lambda x: stem_pool(x, (1, 0), by_kernel=True), maps).shape == (0, 4, 3, 4)


@pytest.mark.parametrize("height, padding, rows", [(2, (0, 0), 0), (0, (2, 1), 1)])
def test_no_window_on_the_map(height, padding, rows):
    pooled = evaluate(lambda x: stem_pool(x, padding, by_kernel=True), np.ones([1, height, 5, 4], np.float32))
    assert pooled.shape[1] == rows and not pooled.any()


def test_what_is_no_number_is_kept():
    pooled = evaluate(lambda x: stem_pool(x, (1, 0), by_kernel=True), np.full([1, 2, 2, 1], np.nan, np.float32))
    assert np.isnan(pooled).all()


def test_shapes_are_known_when_built():
    with tf.Graph().as_default():
        image = tf.placeholder(tf.uint8, [1, None, 6, 3])
        image = normalize_image(image, tf.constant([[4, 4]]), MEAN, STD, tf.bfloat16, by_kernel=True)
        assert image.shape.as_list() == [1, None, 6, 3] and image.dtype == tf.bfloat16
        assert stem_pool(image, (1, 0), by_kernel=True).shape.as_list() == [1, None, 3, 3]


@pytest.mark.parametrize("image, size, numbers, words", [
    ([1, 4, 4, 1], [1, 2], 3, "image must be B×H×W×3, image_size B×2: got [1,4,4,1] and [1,2]"),
    ([2, 4, 4, 3], [1, 2], 3, "image must be B×H×W×3, image_size B×2: got [2,4,4,3] and [1,2]"),
    ([1, 4, 4, 3], [1, 2], 2, "mean and scale must be three numbers each: got 2 and 2"),
])
def test_what_is_no_image_is_refused(image, size, numbers, words):
    def build(x, size):
        return built_library().normalize_pixels(image=x, image_size=size, mean=[0.0] * numbers, scale=[1.0] * numbers,
                                                To=tf.float32)

    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        evaluate(build, np.zeros(image, np.uint8), np.zeros(size, np.int32))
    assert words in str(error.value)
