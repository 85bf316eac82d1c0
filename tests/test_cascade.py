"""The cascade of box heads against one written in NumPy, with heads that are matrices."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import evaluate

from FasterRCNN.modeling.box_head import RoISample, compact
from FasterRCNN.modeling.cascade import BoxStage, relabel_rois, scale_gradient, score_boxes, train_boxes

IOUS = (0.5, 0.6, 0.7)
WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
CLASSES, MAX_LOG_SCALE = 3, np.log(1333 / 16)
SIZE = np.array([[90, 120], [70, 100]], np.int32)  # h, w
GT_BOXES = np.array([[[10, 10, 50, 60], [60, 20, 110, 80]], [[5, 30, 40, 65], [0, 0, 0, 0]]], np.float32)
GT_LABELS = np.array([[2, 3], [1, 0]], np.int32)
_random = np.random.default_rng(0)
LOGIT_KERNELS = _random.normal(0, 0.02, [3, 4, CLASSES + 1]).astype(np.float32)
DELTA_KERNELS = _random.normal(0, 0.02, [3, 4, 4]).astype(np.float32)


def stages(count=3):
    """Stages whose features are the boxes themselves and whose heads multiply them by a matrix."""
    def head(i):
        return lambda x: (x @ tf.constant(LOGIT_KERNELS[i]), tf.reshape(x @ tf.constant(DELTA_KERNELS[i]), [-1, 1, 4]))
    return tuple(BoxStage(f"box/stage{i + 1}", head(i), IOUS[i], WEIGHTS[i], MAX_LOG_SCALE) for i in range(count))


def some_boxes(count, seed):
    random = np.random.default_rng(seed)
    corner = random.uniform(0, 40, [2, count, 2])
    return np.concatenate([corner, corner + random.uniform(5, 40, [2, count, 2])], axis=2).astype(np.float32)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def refine(boxes, stage, image):
    """Boxes N×4 after the deltas of a stage, clipped to the image."""
    deltas = boxes @ DELTA_KERNELS[stage] / WEIGHTS[stage]
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + size / 2 + deltas[:, :2] * size
    half = size * np.exp(np.minimum(deltas[:, 2:], MAX_LOG_SCALE)) / 2
    height, width = SIZE[image]
    return np.clip(np.concatenate([centre - half, centre + half], axis=1), 0, [width, height, width, height])


def iou(box, other):
    width, height = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    common = max(width, 0) * max(height, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return common / (sum(areas) - common)


def deltas_between(target, box):
    size, target_size = box[2:] - box[:2], target[2:] - target[:2]
    return np.concatenate([((target[:2] + target[2:]) - (box[:2] + box[2:])) / 2 / size, np.log(target_size / size)])


def test_prediction_refines_twice_and_averages_the_scores():
    boxes, valid = some_boxes(5, seed=1), np.array([[True] * 5, [True, True, False, True, False]])
    last, deltas, scores = evaluate(
        lambda boxes, valid, size: score_boxes(stages(), compact, boxes, valid, size), boxes, valid, SIZE)
    for image in range(2):
        own, expected = boxes[image][valid[image]], 0
        for stage in range(3):
            expected = expected + softmax(own @ LOGIT_KERNELS[stage]) / 3
            final_deltas, before = own @ DELTA_KERNELS[stage], own
            own = refine(own, stage, image)
        assert scores[image][valid[image]] == pytest.approx(expected, rel=1e-4)
        assert last[image][valid[image]] == pytest.approx(before, rel=1e-4, abs=1e-3)
        assert deltas[image][valid[image]][:, 0] == pytest.approx(final_deltas, rel=1e-3, abs=1e-4)


def test_a_single_stage_leaves_boxes_alone():
    boxes, valid = some_boxes(3, seed=2), np.ones([2, 3], bool)
    last, _, scores = evaluate(
        lambda boxes, valid, size: score_boxes(stages(1), compact, boxes, valid, size), boxes, valid, SIZE)
    assert np.array_equal(last, boxes)
    assert scores == pytest.approx(softmax(boxes @ LOGIT_KERNELS[0]), rel=1e-4)


def test_prediction_of_no_box():
    last, deltas, scores = evaluate(
        lambda boxes, valid, size: score_boxes(stages(), compact, boxes, valid, size),
        some_boxes(2, seed=3), np.zeros([2, 2], bool), SIZE)
    assert last.shape == (2, 2, 4) and deltas.shape == (2, 2, 1, 4) and scores.shape == (2, 2, CLASSES + 1)
    assert all(np.isfinite(x).all() for x in (last, deltas, scores))


def first_sample(boxes):
    """A RoISample in NumPy: the best object of each box at IoU 0.5."""
    overlap = np.array([[[iou(box, gt) if label > 0 else 0 for gt, label in zip(GT_BOXES[i], GT_LABELS[i])]
                         for box in boxes[i]] for i in range(2)])
    matched, foreground = overlap.argmax(2), overlap.max(2) >= IOUS[0]
    labels = np.where(foreground, np.take_along_axis(GT_LABELS, matched, 1), 0).astype(np.int64)
    chosen = np.ones(foreground.shape, bool)
    chosen[1, -1] = foreground[1, -1] = False
    labels[1, -1] = 0
    return RoISample(boxes, labels, matched, foreground, chosen)


def as_tensors(sample):
    return RoISample(*(tf.constant(x) for x in vars(sample).values()))


def jittered(seed):
    """Boxes B×6×4 around the objects of each image."""
    random = np.random.default_rng(seed)
    objects = np.stack([GT_BOXES[0][[0, 0, 0, 1, 1, 1]], GT_BOXES[1][[0] * 6]])
    return (objects + random.uniform(-4, 4, objects.shape)).astype(np.float32)


def expected_losses(sample):
    """(classification, box) losses of the three stages: means over an image's chosen RoIs, averaged over images."""
    losses = np.zeros([3, 2])
    for image in range(2):
        boxes = sample.boxes[image][sample.is_chosen[image]].astype(np.float64)
        for stage in range(3):
            boxes = boxes[np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) > 0]
            objects = [gt for gt, label in zip(GT_BOXES[image], GT_LABELS[image]) if label > 0]
            for box in boxes:
                overlaps = [iou(box, gt) for gt in objects]
                best = int(np.argmax(overlaps))
                label = GT_LABELS[image][best] if overlaps[best] >= IOUS[stage] else 0
                losses[stage, 0] -= np.log(softmax(box @ LOGIT_KERNELS[stage])[label]) / len(boxes) / 2
                if label:
                    target = deltas_between(objects[best], box) * WEIGHTS[stage]
                    losses[stage, 1] += np.abs(box @ DELTA_KERNELS[stage] - target).sum() / len(boxes) / 2
            boxes = refine(boxes, stage, image)
    return losses


def test_training_relabels_what_each_stage_refined():
    sample = first_sample(jittered(seed=4))

    def build(size, gt_boxes, gt_labels):
        rois = as_tensors(sample)
        return train_boxes(stages(), compact, rois, size, gt_boxes, gt_labels)

    losses, metrics, features = evaluate(build, SIZE, GT_BOXES, GT_LABELS)
    for stage, (class_loss, box_loss) in enumerate(expected_losses(sample), start=1):
        assert losses[f"box/stage{stage}/loss_cls"] == pytest.approx(class_loss, rel=1e-4)
        assert losses[f"box/stage{stage}/loss_box"] == pytest.approx(box_loss, rel=1e-3)
        assert 0 <= metrics[f"box/stage{stage}/accuracy"] <= 1
    assert np.array_equal(features, sample.boxes[sample.is_chosen])


def test_boxes_that_lose_their_area_leave_training():
    sample = first_sample(jittered(seed=5))
    boxes = sample.boxes.copy()
    boxes[0, 0, 2] = boxes[0, 0, 0]

    def build(boxes, gt_boxes, gt_labels):
        rois = relabel_rois(as_tensors(sample), boxes, gt_boxes, gt_labels, 0.7)
        return rois.labels, rois.is_foreground, rois.is_chosen

    labels, foreground, chosen = evaluate(build, boxes, GT_BOXES, GT_LABELS)
    assert not chosen[0, 0] and not foreground[0, 0] and labels[0, 0] == 0
    assert chosen[0, 1:].all() and chosen[1, :-1].all() and not chosen[1, -1]


def test_crowds_and_empty_slots_match_nothing():
    sample = first_sample(jittered(seed=6))
    labels = np.array([[-1, 3], [0, 0]], np.int32)

    def build(boxes, gt_boxes, gt_labels):
        rois = relabel_rois(as_tensors(sample), boxes, gt_boxes, gt_labels, 0.1)
        return rois.labels

    found = evaluate(build, sample.boxes, GT_BOXES, labels)
    assert set(found[0]) == {0, 3} and not found[1].any()


@pytest.mark.parametrize("count", [1, 3])
def test_the_gradient_into_the_features_is_divided_by_the_number_of_stages(count):
    sample = first_sample(jittered(seed=7))

    def build(size, gt_boxes, gt_labels):
        rois = as_tensors(sample)
        pooled = []

        def pool(boxes, filled):
            pooled.append(compact(boxes, filled))
            return pooled[-1]

        row = stages(count)
        losses, _, _ = train_boxes(row, pool, rois, size, gt_boxes, gt_labels)
        first = [losses["box/stage1/loss_cls"], losses["box/stage1/loss_box"]]
        alone, _, _ = train_boxes(row[:1], pool, rois, size, gt_boxes, gt_labels)
        return tf.gradients(first, pooled[0])[0], tf.gradients(list(alone.values()), pooled[-1])[0]

    scaled, whole = evaluate(build, SIZE, GT_BOXES, GT_LABELS)
    assert np.abs(whole).max() > 1e-3
    assert scaled == pytest.approx(whole / count, rel=1e-5, abs=1e-8)


def test_no_gradient_passes_through_boxes_to_the_stage_before():
    sample = first_sample(jittered(seed=8))

    def build(size, gt_boxes, gt_labels):
        rois = as_tensors(sample)
        scale = tf.ones([])
        first = BoxStage("box/stage1", lambda x: tuple(scale * y for y in stages()[0].head(x)), IOUS[0], WEIGHTS[0],
                         MAX_LOG_SCALE)
        losses, _, _ = train_boxes((first, *stages()[1:]), compact, rois, size, gt_boxes, gt_labels)
        later = [loss for name, loss in losses.items() if "stage1" not in name]
        assert tf.gradients(later, scale) == [None]
        return tf.gradients(losses["box/stage1/loss_box"], scale)[0]

    assert evaluate(build, SIZE, GT_BOXES, GT_LABELS) != 0


def test_scaling_a_gradient_leaves_the_value():
    value, gradient = evaluate(lambda x: ((y := scale_gradient(x, 0.25)), tf.gradients(y * y, x)[0]),
                               np.array([1.0, -3.0], np.float32))
    assert np.array_equal(value, [1, -3]) and gradient == pytest.approx(np.array([0.5, -1.5]))
