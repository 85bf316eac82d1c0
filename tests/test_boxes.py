"""Box arithmetic against loops over pairs in NumPy, and encoding against its inverse."""

from functools import partial

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import evaluate

from FasterRCNN.ops.boxes import area, clip_boxes, decode_boxes, encode_boxes, pairwise_intersection, pairwise_iou


def random_boxes(shape, seed, least=1.0):
    random = np.random.default_rng(seed)
    corner = random.uniform(-20, 80, [*shape, 2])
    return np.concatenate([corner, corner + random.uniform(least, 60, [*shape, 2])], axis=-1).astype(np.float32)


def intersection_of(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def iou_of(a, b):
    common = intersection_of(a, b)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


def test_area():
    assert evaluate(area, np.array([[1, 2, 4, 8], [5, 5, 5, 9]], np.float32)).tolist() == [18, 0]


@pytest.mark.parametrize("function, of_pair", [(pairwise_iou, iou_of), (pairwise_intersection, intersection_of)])
def test_pairs_match_a_loop(function, of_pair):
    boxes, others = random_boxes([2, 7], 0), random_boxes([2, 5], 1)
    others[:, 0] = boxes[:, 0]  # the same box
    others[:, 1] = boxes[:, 1] + 500  # far away
    expected = [[[of_pair(a, b) for b in b_row] for a in a_row] for a_row, b_row in zip(boxes, others)]
    assert evaluate(function, boxes, others) == pytest.approx(np.array(expected), rel=1e-4, abs=1e-4)


def test_iou_of_boxes_that_touch_or_are_empty_is_0():
    boxes = np.array([[0, 0, 10, 10], [3, 3, 3, 3]], np.float32)
    others = np.array([[10, 0, 20, 10], [3, 3, 3, 3], [0, 10, 10, 20]], np.float32)
    assert not evaluate(pairwise_iou, boxes, others).any()


def test_pairs_of_no_boxes():
    none, some = np.zeros([0, 4], np.float32), random_boxes([3], 0)
    assert evaluate(pairwise_iou, none, some).shape == (0, 3)
    assert evaluate(pairwise_iou, some, none).shape == (3, 0)


def test_clip_uses_the_size_of_each_image():
    boxes = np.array([[[-5, -6, 300, 400]], [[50, 60, 90, 70]]], np.float32)
    clipped = evaluate(clip_boxes, boxes, np.array([[100, 200], [65, 80]], np.int32))
    assert clipped.tolist() == [[[0, 0, 200, 100]], [[50, 60, 80, 65]]]


def test_clip_can_leave_a_pixel_of_each_box():
    """As clipping the first and the last pixel of a box, whose number is one less than where it ends, does."""
    boxes = np.random.default_rng(0).uniform(-60, 160, [1, 50, 4]).astype(np.float32)
    last = np.array([0, 0, 1, 1])
    expected = np.clip(boxes - last, 0, [79, 64, 79, 64]) + last
    clipped = evaluate(partial(clip_boxes, keep_pixel=True), boxes, np.array([[65, 80]], np.int32))
    np.testing.assert_allclose(clipped, expected, atol=1e-4)


def test_deltas_of_a_known_pair():
    anchor, box = np.array([[0, 0, 10, 20]], np.float32), np.array([[10, 0, 30, 10]], np.float32)
    expected = [[1.5, -0.25, np.log(2), np.log(0.5)]]
    assert evaluate(encode_boxes, box, anchor) == pytest.approx(np.array(expected), abs=1e-6)


def test_decoding_undoes_encoding():
    boxes, anchors = random_boxes([3, 50], 2), random_boxes([3, 50], 3)
    again = evaluate(lambda b, a: decode_boxes(encode_boxes(b, a), a, 10.0), boxes, anchors)
    assert np.abs(again - boxes).max() < 1e-3


def test_encoding_undoes_decoding():
    deltas = np.random.default_rng(0).normal(0, 0.5, [40, 4]).astype(np.float32)
    again = evaluate(lambda d, a: encode_boxes(decode_boxes(d, a, 10.0), a), deltas, random_boxes([40], 4, least=8.0))
    assert again == pytest.approx(deltas, abs=1e-4)


def test_growth_is_limited():
    anchor = np.array([[10, 10, 20, 30]], np.float32)
    box = evaluate(lambda d, a: decode_boxes(d, a, np.log(4.0)), np.array([[0, 0, 9, -9]], np.float32), anchor)
    assert box == pytest.approx(np.array([[-5, 20, 35, 20]]), abs=2e-3)


def test_encoding_stays_finite_for_empty_slots_and_so_does_its_gradient():
    def build(boxes, anchors):
        deltas = encode_boxes(boxes, anchors)
        return deltas, tf.gradients(deltas, [boxes, anchors])

    boxes = np.array([[0, 0, 0, 0], [5, 5, 9, 9], [0, 0, 0, 0]], np.float32)
    anchors = np.array([[0, 0, 8, 8], [0, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    deltas, gradients = evaluate(build, boxes, anchors)
    assert np.isfinite(deltas).all() and np.isfinite(gradients).all()


def test_no_boxes_to_encode_or_decode():
    none = np.zeros([2, 0, 4], np.float32)
    assert evaluate(encode_boxes, none, none).shape == (2, 0, 4)
    assert evaluate(lambda d, a: decode_boxes(d, a, 1.0), none, none).shape == (2, 0, 4)
    assert evaluate(clip_boxes, none, np.ones([2, 2], np.int32)).shape == (2, 0, 4)
