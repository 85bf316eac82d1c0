"""Suppression against the greedy loop in NumPy, over boxes with and without labels."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import evaluate

from FasterRCNN.ops.nms import batched_nms, separate_by_label


def clustered_boxes(count, seed):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 60, [count, 2])
    boxes = np.concatenate([corner, corner + random.uniform(15, 40, [count, 2])], axis=1).astype(np.float32)
    return boxes, random.permutation(count).astype(np.float32) / count


def iou(a, b):
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = size.prod() if (size > 0).all() else 0.0
    return common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common)


def greedy(boxes, scores, threshold, most):
    kept = []
    for i in np.argsort(-scores):
        if len(kept) < most and scores[i] > -np.inf and all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("threshold, most", [(0.3, 40), (0.7, 40), (0.5, 5), (1.0, 40), (0.5, 60)])
def test_rows_match_the_greedy_loop(threshold, most):
    rows = [clustered_boxes(40, seed) for seed in range(3)]
    rows[1][1][::4] = -np.inf
    rows[2][1][:] = -np.inf
    boxes, scores = (np.stack(x) for x in zip(*rows))
    indices, valid = evaluate(lambda b, s: batched_nms(b, s, threshold, most), boxes, scores)
    assert indices.shape == valid.shape == (3, most)
    for i, row in enumerate(rows):
        expected = greedy(*row, threshold, most)
        assert indices[i][valid[i]].tolist() == expected
        assert valid[i].tolist() == [True] * len(expected) + [False] * (most - len(expected))


def test_very_low_logits_are_not_empty_slots():
    boxes, scores = np.array([[[0, 0, 1, 1], [5, 5, 6, 6]]], np.float32), np.array([[-1e6, -np.inf]], np.float32)
    assert evaluate(lambda b, s: batched_nms(b, s, 0.5, 2), boxes, scores)[1].tolist() == [[True, False]]


def test_rows_without_boxes():
    none = np.zeros([2, 0, 4], np.float32), np.zeros([2, 0], np.float32)
    indices, valid = evaluate(lambda b, s: batched_nms(b, s, 0.5, 3), *none)
    assert indices.shape == (2, 3) and not valid.any()


@pytest.mark.parametrize("num_labels", [1, 3, 80])
def test_boxes_moved_apart_are_suppressed_within_labels_only(num_labels):
    boxes, scores = clustered_boxes(60, 7)
    labels = np.random.default_rng(8).integers(0, num_labels, 60).astype(np.int32)

    def build(boxes, scores, labels):
        apart = separate_by_label(boxes, labels, num_labels)
        return tf.image.non_max_suppression(apart, scores, 60, iou_threshold=0.4)

    expected = []
    for label in range(num_labels):
        members = np.flatnonzero(labels == label)
        expected += members[greedy(boxes[members], scores[members], 0.4, 60)].tolist()
    assert sorted(evaluate(build, boxes, scores, labels).tolist()) == sorted(expected)


def test_moving_apart_keeps_sizes_at_the_scale_of_photos():
    boxes, _ = clustered_boxes(80, 9)
    boxes += 1250
    apart = evaluate(lambda b, label: separate_by_label(b, label, 80), boxes, np.arange(80, dtype=np.int32))
    assert apart[:, 2:] - apart[:, :2] == pytest.approx(boxes[:, 2:] - boxes[:, :2], abs=2e-3)


def test_no_boxes_to_move_apart():
    none = np.zeros([0, 4], np.float32), np.zeros([0], np.int32)
    assert evaluate(lambda b, label: separate_by_label(b, label, 5), *none).shape == (0, 4)
