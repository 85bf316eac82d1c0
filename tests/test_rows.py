"""Gathers and loops over the images of a batch, beside TensorFlow's own."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import evaluate

from FasterRCNN.ops.rows import SIDE_BY_SIDE, gather_rows, map_rows, permute_rows

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(2, 5), (3, 5, 4), (1, 1, 2, 2)])
@pytest.mark.parametrize("count", [0, 6])
def test_rows_and_their_gradient_are_those_of_a_batched_gather(shape, count):
    x, indices = RANDOM.normal(size=shape).astype(np.float32), RANDOM.integers(0, shape[1], (shape[0], count))

    def build(x, indices):
        results = [gather_rows(x, indices), tf.gather(x, indices, batch_dims=1)]
        return [(y, tf.gradients(tf.reduce_sum(tf.square(y)), x)[0]) for y in results]

    (own, own_gradient), (expected, gradient) = evaluate(build, x, indices)
    assert own.shape == (shape[0], count, *shape[2:]) and np.array_equal(own, expected)
    np.testing.assert_allclose(own_gradient, gradient, rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_rows_are_put_into_their_places(count):
    x, weights = RANDOM.normal(size=(2, count, 3))
    places = RANDOM.permutation(count)

    def build(x, weights, places):
        y = permute_rows(x, places)
        return y, tf.gradients(tf.reduce_sum(y * weights), x)[0]

    y, gradient = evaluate(build, x, weights, places)
    assert np.array_equal(y[places], x) and np.array_equal(gradient, weights[places])


@pytest.mark.parametrize("count", [1, 4, SIDE_BY_SIDE + 1])
def test_a_function_is_mapped_over_rows(count):
    x, y = RANDOM.normal(size=(count, 3)), np.arange(count)
    sums, products = evaluate(
        lambda x, y: map_rows(lambda row: (tf.reduce_sum(row[0]), row[0] * tf.cast(row[1], tf.float64)), [x, y],
                              [tf.float64, tf.float64]), x, y)
    np.testing.assert_allclose(sums, x.sum(axis=1))
    np.testing.assert_allclose(products, x * y[:, None])
