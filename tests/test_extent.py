"""What belongs to each image of a padded batch, against slices in NumPy."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import evaluate

from FasterRCNN.ops.extent import BatchExtent

SIZES = np.array([[33, 64], [96, 10], [64, 128]], np.int32)  # (h, w) before padding
OWN = np.array([[64, 64], [96, 32], [64, 128]])  # padded to 32
CANVAS = [96, 128]


def at(stride, sizes=SIZES, multiple=32, canvas=CANVAS):
    return BatchExtent(tf.constant(sizes), multiple, tf.constant(canvas)).at(stride)


def random_map(stride, channels=2):
    shape = [3, -(-CANVAS[0] // stride), -(-CANVAS[1] // stride), channels]
    return np.random.default_rng(stride).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("stride", [2, 4, 32])
def test_clearing_leaves_each_image_its_own_cells(stride):
    x = random_map(stride)
    cleared = evaluate(lambda x: at(stride).clear(x), x)
    for i, (rows, columns) in enumerate(OWN // stride):
        expected = np.zeros_like(x[i])
        expected[:rows, :columns] = x[i, :rows, :columns]
        assert np.array_equal(cleared[i], expected)


def test_mask_and_count_agree_with_clearing():
    cleared, mask, count = evaluate(
        lambda x: (at(8).clear(x), at(8).mask((12, 16)), at(8).num_cells()), np.ones([3, 12, 16, 1], np.float32))
    assert np.array_equal(cleared[..., 0] > 0, mask)
    assert count.tolist() == mask.sum(axis=(1, 2)).tolist() == (OWN // 8).prod(axis=1).tolist()


def test_the_edge_is_extended_to_the_first_cell_beyond():
    x = random_map(8)
    extended = evaluate(lambda x: at(8).extend_edge(x), x)
    for i, (rows, columns) in enumerate(OWN // 8):
        expected = np.pad(x[i, :rows, :columns], [[0, 1], [0, 1], [0, 0]], mode="edge")[:12, :16]
        assert np.array_equal(extended[i, : rows + 1, : columns + 1], expected)


def test_p6_keeps_every_second_cell_of_p5():
    # 64 pixels: 2 cells of P5, 1 of P6; 96: 3 and 2; 128: 4 and 2; 32: 1 and 1.
    cells = evaluate(lambda: BatchExtent(tf.constant(SIZES), 32, tf.constant(CANVAS)).cells(64))
    assert cells.tolist() == [[1, 1], [2, 1], [1, 2]]


@pytest.mark.parametrize("size", [17, 31, 32, 33, 100, 111])
def test_c4_cells_follow_from_halving_with_rounding_down(size):
    cells = evaluate(lambda: BatchExtent(tf.constant([[size, 64]]), 1, tf.constant([size, 64])).cells(16))
    for _ in range(4):
        size //= 2
    assert cells.tolist() == [[size, 4]]


@pytest.mark.parametrize("size", [17, 31, 32, 33, 100, 111])
def test_cells_follow_from_halving_with_rounding_up(size):
    cells = evaluate(
        lambda: BatchExtent(tf.constant([[size, 64]]), 1, tf.constant([size, 64]), halves_up=True).cells(16))
    for _ in range(4):
        size = (size + 1) // 2
    assert cells.tolist() == [[size, 4]]


def test_images_that_fill_the_canvas_are_left_as_they_are():
    x = np.random.default_rng(0).normal(size=[2, 8, 12, 1]).astype(np.float32)
    sizes = np.array([[64, 96], [33, 65]], np.int32)  # both are 64×96 once padded
    for name in ("clear", "extend_edge"):
        assert np.array_equal(evaluate(lambda x: getattr(at(8, sizes, canvas=[64, 96]), name)(x), x), x)  # noqa: B023


def test_one_image_costs_nothing():
    with tf.Graph().as_default() as graph:
        level = BatchExtent(tf.placeholder(tf.int32, [1, 2]), 32, tf.constant([64, 64])).at(8)
        x, before = tf.zeros([1, 8, 8, 3]), len(graph.get_operations())
        assert level.clear(x) is x and level.extend_edge(x) is x
        assert len(graph.get_operations()) == before


def test_shapes_stay_known():
    with tf.Graph().as_default():
        x = tf.placeholder(tf.float32, [3, None, None, 7])
        assert at(8).clear(x).shape.as_list() == at(8).extend_edge(x).shape.as_list() == [3, None, None, 7]
