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


@pytest.fixture(params=[True, False], ids=["kernel", "TensorFlow"])
def by_kernel(request):
    return request.param


@pytest.mark.parametrize("threshold, most", [(0.3, 40), (0.7, 40), (0.5, 5), (1.0, 40), (0.5, 60)])
def test_rows_match_the_greedy_loop(threshold, most, by_kernel):
    rows = [clustered_boxes(40, seed) for seed in range(3)]
    rows[1][1][::4] = -np.inf
    rows[2][1][:] = -np.inf
    boxes, scores = (np.stack(x) for x in zip(*rows))
    indices, valid = evaluate(lambda b, s: batched_nms(b, s, threshold, most, by_kernel=by_kernel), boxes, scores)
    assert indices.shape == valid.shape == (3, most)
    for i, row in enumerate(rows):
        expected = greedy(*row, threshold, most)
        assert indices[i][valid[i]].tolist() == expected
        assert valid[i].tolist() == [True] * len(expected) + [False] * (most - len(expected))


def test_very_low_logits_are_not_empty_slots(by_kernel):
    boxes, scores = np.array([[[0, 0, 1, 1], [5, 5, 6, 6]]], np.float32), np.array([[-1e6, -np.inf]], np.float32)
    valid = evaluate(lambda b, s: batched_nms(b, s, 0.5, 2, by_kernel=by_kernel), boxes, scores)[1]
    assert valid.tolist() == [[True, False]]


def test_rows_without_boxes(by_kernel):
    none = np.zeros([2, 0, 4], np.float32), np.zeros([2, 0], np.float32)
    indices, valid = evaluate(lambda b, s: batched_nms(b, s, 0.5, 3, by_kernel=by_kernel), *none)
    assert indices.shape == (2, 3) and not valid.any()


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7, 1.0])
def test_the_kernel_gives_the_very_results_of_tensorflow(threshold):
    """300 boxes: empty ones, equal scores, corners in the other order, scores in and out of order, empty slots."""
    random = np.random.default_rng(9)
    rows = [clustered_boxes(300, seed) for seed in range(10, 14)]
    boxes, scores = (np.stack(x) for x in zip(*rows))
    boxes[:, ::17, 2:] = boxes[:, ::17, :2]
    boxes[:, ::13] = boxes[:, ::13][..., [2, 3, 0, 1]]
    scores[1:] = np.round(scores[1:], 1)
    scores[2:] = -np.sort(-scores[2:], axis=1)
    scores[:, -9:] = -np.inf
    scores[0, random.integers(300, size=5)] = np.nan

    def build(b, s):
        return [x for by_kernel in (True, False) for x in batched_nms(b, s, threshold, 200, by_kernel=by_kernel)]

    indices, valid, *of_tensorflow = evaluate(build, boxes, scores)
    assert np.array_equal(indices, of_tensorflow[0]) and np.array_equal(valid, of_tensorflow[1])
    assert 0 < valid.sum() <= 4 * 200


def test_scores_of_other_boxes_are_refused():
    with tf.Graph().as_default(), tf.Session() as session, pytest.raises(
            tf.errors.InvalidArgumentError, match="boxes must be N×k×4, scores N×k"):
        session.run(batched_nms(np.zeros([1, 3, 4], np.float32), np.zeros([1, 2], np.float32), 0.5, 3, by_kernel=True))


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_iou_is_refused(threshold):
    boxes, scores = np.zeros([1, 3, 4], np.float32), np.zeros([1, 3], np.float32)
    with tf.Graph().as_default(), tf.Session() as session, pytest.raises(
            tf.errors.InvalidArgumentError, match=r"iou_threshold must be in \[0, 1\]"):
        session.run(batched_nms(boxes, scores, threshold, 3, by_kernel=True))


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
