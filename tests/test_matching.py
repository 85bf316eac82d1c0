"""Matching of anchors with objects against a plain NumPy table of every pair."""

import numpy as np
import pytest
from tiny import evaluate

from FasterRCNN.ops.matching import CHUNK, match_anchors, share_inside


def random_boxes(count, seed):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 80, [count, 2])
    return np.concatenate([corner, corner + random.uniform(4, 50, [count, 2])], axis=1).astype(np.float32)


def intersections(a, b):
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=2)


def areas(boxes):
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def ious(a, b):
    common = intersections(a, b)
    return common / (areas(a)[:, None] + areas(b)[None] - common)


def match(anchors, gt_boxes, is_object, takes_part=None):
    if takes_part is None:
        takes_part = np.ones([len(gt_boxes), len(anchors)], bool)
    return evaluate(match_anchors, anchors, gt_boxes, is_object, takes_part)


def test_anchors_that_do_not_take_part_leave_the_best_to_others():
    anchors = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60]], np.float32)
    gt_boxes = np.array([[[0, 0, 10, 10]] * 8], np.float32)
    is_object = np.arange(8)[None] == 0
    takes_part = np.array([[False, True, True]])
    best_iou, _, is_best = match(anchors, gt_boxes, is_object, takes_part)
    assert best_iou[0] == pytest.approx([0, 0.8, 0]) and is_best[0].tolist() == [False, True, False]


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, 40])
def test_best_objects_match_numpy(count):
    anchors = random_boxes(200, 0)
    gt_boxes = np.stack([random_boxes(count, 1), random_boxes(count, 2)])
    is_object = np.random.default_rng(3).uniform(size=[2, count]) < 0.7
    is_object[:, 0] = True
    best_iou, best_index, is_best = match(anchors, gt_boxes, is_object)
    for i in range(2):
        table = ious(anchors, gt_boxes[i]) * is_object[i]
        assert best_iou[i] == pytest.approx(table.max(axis=1), abs=1e-5)
        hit = table.max(axis=1) > 0
        assert table[np.arange(200), best_index[i]][hit] == pytest.approx(table.max(axis=1)[hit], abs=1e-5)
        expected = np.zeros(200, bool)
        expected[table[:, is_object[i]].argmax(axis=0)] = True
        assert np.array_equal(is_best[i], expected)


def test_ties_are_all_best_and_the_first_object_wins():
    anchors = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [0, 10, 10, 20]], np.float32)
    gt_boxes = np.zeros([1, 16, 4], np.float32)
    gt_boxes[0, [0, 1, 12]] = [0, 5, 10, 15]  # the same object in two chunks, as near to two anchors
    is_object = gt_boxes[..., 3] > 0
    best_iou, best_index, is_best = match(anchors, gt_boxes, is_object)
    assert best_iou[0] == pytest.approx([1 / 3, 0, 1 / 3])
    assert best_index[0, [0, 2]].tolist() == [0, 0]
    assert is_best[0].tolist() == [True, False, True]


@pytest.mark.parametrize("slots", [0, 8])
def test_no_objects(slots):
    gt_boxes, is_object = np.zeros([2, slots, 4], np.float32), np.zeros([2, slots], bool)
    best_iou, best_index, is_best = match(random_boxes(10, 0), gt_boxes, is_object)
    assert best_iou.shape == best_index.shape == is_best.shape == (2, 10)
    assert not best_iou.any() and not is_best.any()


def test_an_object_without_overlap_has_no_best_anchor():
    gt_boxes, is_object = np.full([1, 8, 4], 500, np.float32), np.ones([1, 8], bool)
    gt_boxes[..., 2:] += 20
    assert not match(random_boxes(10, 0), gt_boxes, is_object)[2].any()


def test_no_anchors():
    none = np.zeros([0, 4], np.float32)
    results = match(none, random_boxes(8, 0)[None], np.ones([1, 8], bool))
    assert [x.shape for x in results] == [(1, 0)] * 3


@pytest.mark.parametrize("count", [1, 40])
def test_share_inside_a_crowd_matches_numpy(count):
    anchors, gt_boxes = random_boxes(100, 4), random_boxes(count, 5)
    is_crowd = np.arange(count) % 3 == 0
    share = evaluate(share_inside, anchors, gt_boxes[None], is_crowd[None])
    expected = (intersections(anchors, gt_boxes) / areas(anchors)[:, None])[:, is_crowd].max(axis=1)
    assert share[0] == pytest.approx(expected, abs=1e-5)
    assert not evaluate(share_inside, anchors, gt_boxes[None], np.zeros([1, count], bool)).any()
