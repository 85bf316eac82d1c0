"""Losses and mask targets against their formulas in NumPy."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from test_roi_align import bilinear
from tiny import evaluate

from FasterRCNN.modeling.box_head import RoISample
from FasterRCNN.modeling.losses import box_head_losses, huber, mask_loss, rpn_losses
from FasterRCNN.modeling.mask_head import mask_targets, unpack_bits
from FasterRCNN.modeling.rpn import AnchorSample

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def boxes_of(random, *shape):
    corner = random.uniform(0, 60, [*shape, 2])
    return np.concatenate([corner, corner + random.uniform(5, 40, [*shape, 2])], axis=-1).astype(np.float32)


def deltas_of(box, anchor):
    size, anchor_size = box[2:] - box[:2], anchor[2:] - anchor[:2]
    shift = (box[:2] + box[2:] - anchor[:2] - anchor[2:]) / 2
    return np.concatenate([shift / anchor_size, np.log(size / anchor_size)])


def sigmoid_entropy(logit, label):
    probability = 1 / (1 + np.exp(-np.float64(logit)))
    return -np.log(probability if label else 1 - probability)


def test_huber_is_square_inside_and_linear_outside():
    errors = np.array([0, 0.05, -0.05, 0.1, 2, -2], np.float32)
    expected = [0, 0.00125, 0.00125, 0.005, 0.1 * 1.95, 0.1 * 1.95]
    assert evaluate(lambda e: huber(e, 0.1), errors) == pytest.approx(np.array(expected), abs=1e-6)
    slope = evaluate(lambda e: tf.gradients(huber(e, 0.1), e)[0], errors)
    assert slope == pytest.approx(np.clip(errors, -0.1, 0.1), abs=1e-6)


def anchor_sample(random, indices, foreground, chosen, anchors):
    boxes = boxes_of(random, *np.shape(indices))
    return {"indices": np.array(indices, np.int32), "is_foreground": np.array(foreground),
            "is_chosen": np.array(chosen), "boxes": boxes, "anchors": anchors[np.array(indices)]}


def test_rpn_losses_match_the_formula():
    random, total = np.random.default_rng(0), 4
    anchors = boxes_of(random, 9)
    objectness = random.normal(0, 2, [2, 9]).astype(np.float32)
    deltas = random.normal(0, 0.3, [2, 9, 4]).astype(np.float32)
    sample = anchor_sample(random, [[3, 8, 1, 5], [2, 6, 0, 0]], [[True, True, False, False], [True] + [False] * 3],
                           [[True] * 4, [True, True, False, False]], anchors)
    class_loss, box_loss = np.zeros(2), np.zeros(2)
    for i in range(2):
        for slot, anchor in enumerate(sample["indices"][i]):
            if sample["is_chosen"][i, slot]:
                class_loss[i] += sigmoid_entropy(objectness[i, anchor], sample["is_foreground"][i, slot]) / total
            if sample["is_foreground"][i, slot]:
                error = np.abs(deltas[i, anchor] - deltas_of(sample["boxes"][i, slot], anchors[anchor]))
                smooth = np.where(error < 1 / 9, 0.5 * error**2 * 9, error - 0.5 / 9)  # Huber / δ
                box_loss[i] += smooth.sum() / total

    def build(objectness, deltas):
        tensors = {name: tf.constant(value) for name, value in sample.items()}
        return rpn_losses(objectness, deltas, AnchorSample(**tensors), total=total)

    assert evaluate(build, objectness, deltas) == pytest.approx([class_loss.mean(), box_loss.mean()], rel=1e-4)


def roi_sample(random, labels, chosen, objects=3):
    labels = np.array(labels, np.int32)
    return {"boxes": boxes_of(random, *labels.shape), "labels": labels,
            "matched": random.integers(0, objects, labels.shape).astype(np.int32), "is_foreground": labels > 0,
            "is_chosen": np.array(chosen)}


def run_box_losses(logits, deltas, sample, gt_boxes):
    def build(logits, deltas, gt_boxes):
        tensors = {name: tf.constant(value) for name, value in sample.items()}
        losses = box_head_losses(logits, deltas, RoISample(**tensors), gt_boxes, weights=WEIGHTS)
        return losses, tf.gradients(sum(losses), [logits, deltas])

    losses, gradients = evaluate(build, logits, deltas, gt_boxes)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    return losses


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_box_head_losses_match_the_formula(class_agnostic):
    random = np.random.default_rng(1)
    sample = roi_sample(random, [[2, 1, 0, 0], [3, 0, 0, 0]], [[True] * 4, [True, True, True, False]])
    logits = random.normal(0, 2, [2, 4, 4]).astype(np.float32)
    deltas = random.normal(0, 1, [2, 4, 1 if class_agnostic else 4, 4]).astype(np.float32)
    gt_boxes = boxes_of(random, 2, 3)
    class_loss, box_loss = np.zeros(2), np.zeros(2)
    for i in range(2):
        number = sample["is_chosen"][i].sum()
        for slot in np.flatnonzero(sample["is_chosen"][i]):
            label = sample["labels"][i, slot]
            probability = np.exp(logits[i, slot]) / np.exp(logits[i, slot]).sum()
            class_loss[i] -= np.log(probability[label]) / number
            if label > 0:
                target = deltas_of(gt_boxes[i, sample["matched"][i, slot]], sample["boxes"][i, slot]) * WEIGHTS
                box_loss[i] += np.abs(deltas[i, slot, 0 if class_agnostic else label] - target).sum() / number
    ours = run_box_losses(logits, deltas, sample, gt_boxes)
    assert ours == pytest.approx([class_loss.mean(), box_loss.mean()], rel=1e-4)


def test_box_head_losses_of_nothing_are_0():
    random = np.random.default_rng(2)
    sample = roi_sample(random, [[0, 0]], [[False, False]])
    zeros = np.zeros([1, 2, 4], np.float32), np.zeros([1, 2, 4, 4], np.float32), np.zeros([1, 8, 4], np.float32)
    assert tuple(run_box_losses(zeros[0], zeros[1], sample, zeros[2])) == (0, 0)


def test_mask_loss_is_a_mean_within_images_and_over_them():
    random = np.random.default_rng(3)
    logits = random.normal(0, 2, [5, 4, 4]).astype(np.float32)
    targets = (random.uniform(size=[5, 4, 4]) < 0.5).astype(np.float32)
    image_index = np.array([0, 0, 2, 2, 2], np.int32)  # image 1 has none
    entropy = np.vectorize(sigmoid_entropy)(logits, targets)
    expected = (entropy[:2].mean() + 0 + entropy[2:].mean()) / 3
    foreground = np.ones(5, bool)
    assert evaluate(lambda *x: mask_loss(*x, 3), logits, targets, foreground, image_index) == pytest.approx(expected)
    foreground[4] = False
    expected = (entropy[:2].mean() + 0 + entropy[2:4].mean()) / 3
    assert evaluate(lambda *x: mask_loss(*x, 3), logits, targets, foreground, image_index) == pytest.approx(expected)


@pytest.mark.parametrize("count", [0, 1])
def test_mask_loss_without_foreground_is_0_with_a_gradient_of_0(count):
    def build(logits, foreground, index):
        loss = mask_loss(logits, tf.zeros_like(logits), foreground, index, 2)
        return loss, tf.gradients(loss, logits)[0]

    logits, index = np.ones([count, 4, 4], np.float32), np.zeros(count, np.int32)
    loss, gradient = evaluate(build, logits, np.zeros(count, bool), index)
    assert loss == 0 and gradient.shape == (count, 4, 4) and not gradient.any()


def test_unpacked_bits_are_numpy_s():
    packed = np.random.default_rng(5).integers(0, 256, [3, 112, 14], dtype=np.uint8)
    assert np.array_equal(evaluate(unpack_bits, packed), np.unpackbits(packed, axis=-1).astype(np.float32))
    assert evaluate(unpack_bits, packed[:0]).shape == (0, 112, 112)


def numpy_mask_target(roi, box, bitmap, size):
    """Bilinear samples of a bitmap in the frame of `box` at the bin centres of `roi`, fading to 0 around the box."""
    side = len(bitmap)
    padded = np.pad(bitmap.astype(np.float64), 1)
    roi, box = roi.astype(np.float64), box.astype(np.float64)
    target = np.zeros([size, size])
    for row in range(size):
        for column in range(size):
            x = roi[0] + (roi[2] - roi[0]) * (column + 0.5) / size
            y = roi[1] + (roi[3] - roi[1]) * (row + 0.5) / size
            cell_x = (x - box[0]) / (box[2] - box[0]) * side
            cell_y = (y - box[1]) / (box[3] - box[1]) * side
            target[row, column] = bilinear(padded, cell_y + 0.5, cell_x + 0.5)
    return target


@pytest.mark.parametrize(
    "roi", [[10, 20, 50, 60], [5, 12, 33, 71], [30, 30, 34, 33], [-20, -9, 90, 95], [60, 70, 80, 80]])
def test_mask_targets_match_numpy(roi):
    box = np.array([[10, 20, 50, 60]], np.float32)
    bitmap = np.random.default_rng(6).integers(0, 2, [1, 16, 16])
    roi = np.array([roi], np.float32)
    ours = evaluate(lambda r, b, m: mask_targets(r, b, m, 7), roi, box, np.packbits(bitmap.astype(np.uint8), axis=-1))
    assert ours[0] == pytest.approx(numpy_mask_target(roi[0], box[0], bitmap[0], 7), abs=1e-3)


def test_mask_target_of_the_object_s_own_box_at_its_own_resolution_is_the_bitmap():
    bitmap = np.random.default_rng(7).integers(0, 2, [2, 16, 16]).astype(np.uint8)
    boxes = np.array([[3.5, 4.25, 40, 51], [0, 0, 16, 16]], np.float32)
    ours = evaluate(lambda r, m: mask_targets(r, r, m, 16), boxes, np.packbits(bitmap, axis=-1))
    assert ours == pytest.approx(bitmap, abs=1e-3)


def test_mask_targets_of_no_rois():
    none = np.zeros([0, 4], np.float32)
    assert evaluate(lambda r, m: mask_targets(r, r, m, 28), none, np.zeros([0, 112, 14], np.uint8)).shape == (0, 28, 28)
