"""Box head (Fast R-CNN): sampling of RoIs, the heads' networks, and the selection of final detections.

RoIs of all images run through the heads as one list of R boxes with the index of each one's image; empty slots of the
B×S arrays are left out of it (`compact`) and filled in again afterwards (`expand`). The list is never empty
(`with_one_filled`).
"""
from dataclasses import dataclass

import tensorflow.compat.v1 as tf

from ..ops.boxes import pairwise_iou
from ..ops.layers import conv2d, fully_connected, group_norm, normal
from ..ops.nms import separate_by_label
from ..ops.rows import gather_rows, map_rows
from ..ops.sampling import sample_foreground_background, uniform_rows

ROI_STREAM = [0, 64]  # added to an image's seed: the anchors of level l are drawn from [0, l]


def with_one_filled(valid, among=None):
    """Return `valid` with one slot filled if none is, the first of `among` (default: of all): bool B×S -> bool B×S.

    Of an empty batch oneDNN's convolutions return the shape of their input (seen with TensorFlow 2.21).
    """
    candidates = tf.ones_like(valid) if among is None else among
    first = tf.argmax(tf.cast(tf.reshape(candidates, [-1]), tf.float32))
    slot = tf.reshape(tf.equal(tf.range(tf.size(valid, out_type=tf.int64)), first), tf.shape(valid))
    return valid | (slot & ~tf.reduce_any(valid))


def compact(x, valid):
    """Drop the empty slots: B×S×…, bool B×S -> R×…."""
    rows = tf.reshape(x, tf.concat([[-1], tf.shape(x)[valid.shape.rank:]], axis=0))
    return tf.gather(rows, tf.where(tf.reshape(valid, [-1]))[:, 0])


def expand(x, valid):
    """Undo `compact`, with zeros in the empty slots: R×…, bool B×S -> B×S×…."""
    shape = tf.concat([tf.shape(valid), tf.shape(x)[1:]], axis=0)
    result = tf.scatter_nd(tf.cast(tf.where(valid), tf.int32), x, shape)
    result.set_shape(valid.shape.concatenate(x.shape[1:]))
    return result


def image_indices(valid):
    """Return the image of each filled slot: bool B×S -> int64 R."""
    return tf.where(valid)[:, 0]


@dataclass(frozen=True)
class RoISample:
    """The RoIs of a batch that are trained, S of each image, foreground first.

    boxes: float32 B×S×4; labels: int64 B×S, 0 background; matched: int64 B×S into G; is_foreground, is_chosen: bool
    B×S.
    """

    boxes: tf.Tensor
    labels: tf.Tensor
    matched: tf.Tensor
    is_foreground: tf.Tensor
    is_chosen: tf.Tensor


def sample_rois(proposals, gt_boxes, gt_labels, image_seeds, *, total, foreground_ratio, foreground_thresh):
    """Choose the RoIs to train from the proposals and the objects' own boxes.

    gt_boxes B×G×4, gt_labels int32 B×G (0 empty, −1 crowd). Foreground: IoU with some object ≥ `foreground_thresh`.
    """
    boxes = tf.concat([proposals.boxes, gt_boxes], axis=1)
    valid = tf.concat([proposals.valid, gt_labels > 0], axis=1)
    is_foreground, best_index = match_objects(boxes, gt_boxes, gt_labels, foreground_thresh)
    keys = uniform_rows(image_seeds + ROI_STREAM, tf.shape(boxes)[1])
    indices, foreground, chosen = sample_foreground_background(
        is_foreground & valid, ~is_foreground & valid, total, int(total * foreground_ratio), keys)
    matched = gather_rows(best_index, indices)
    return labelled_rois(gather_rows(boxes, indices), matched, foreground, chosen, gt_labels)


def labelled_rois(boxes, matched, is_foreground, is_chosen, gt_labels):
    """Return the RoISample of boxes B×S×4: foreground has the label of the object that it is matched with."""
    labels = tf.where(is_foreground, gather_rows(tf.cast(gt_labels, tf.int64), matched), tf.zeros_like(matched))
    return RoISample(tf.stop_gradient(boxes), labels, matched, is_foreground, is_chosen)


def match_objects(boxes, gt_boxes, gt_labels, foreground_thresh):
    """Return (IoU with some object ≥ `foreground_thresh`, bool B×P; the best object, int64 B×P into G)."""
    iou = pairwise_iou(boxes, gt_boxes) * tf.cast(gt_labels > 0, tf.float32)[:, None, :]
    return tf.reduce_max(iou, axis=2) >= foreground_thresh, tf.argmax(iou, axis=2)


def two_fc_head(x, *, fc_dim, norm=None, norm_before_relu=False, **_):
    """Return features of RoIs by two fully-connected layers: R×7×7×C -> R×fc_dim (FPN, section 4.2).

    norm, norm_before_relu: as `normalized_convs`.
    """
    relu_last = norm == "GN" and norm_before_relu
    for i in (6, 7):
        x = fully_connected(x, fc_dim, f"fc{i}", activation=None if relu_last else tf.nn.relu)
        if norm == "GN":
            x = group_norm(x[:, None, None], f"gn{i}")[:, 0, 0]
        if relu_last:
            x = tf.nn.relu(x)
    return x


def normalized_convs(x, channels, number, scope, *, norm=None, norm_before_relu=False):
    """Run 3×3 convolutions scope0, scope1, … with ReLU and, norm 'GN', group normalisation: N×h×w×C -> N×h×w×channels.

    The reference activates inside the convolution, before the normalisation; norm_before_relu: after it.
    """
    for i in range(number):
        relu_last = norm == "GN" and norm_before_relu
        x = conv2d(x, channels, 3, f"{scope}{i}", activation=None if relu_last else tf.nn.relu)
        if norm == "GN":
            x = group_norm(x, f"gn{i}")
        if relu_last:
            x = tf.nn.relu(x)
    return x


def four_conv_one_fc_head(x, *, conv_dim, fc_dim, norm=None, norm_before_relu=False):
    """Return features of RoIs by four convolutions and one layer: R×7×7×C -> R×fc_dim (Wu & He 2018, section 5.2)."""
    x = normalized_convs(x, conv_dim, 4, "conv", norm=norm, norm_before_relu=norm_before_relu)
    return fully_connected(x, fc_dim, "fc", activation=tf.nn.relu)


def box_outputs(x, num_classes, *, class_agnostic=False):
    """Return (class logits R×(K+1), deltas R×(K+1)×4 or R×1×4), float32: R×C features."""
    x = tf.cast(x, tf.float32)
    logits = fully_connected(x, num_classes + 1, "class", initializer=normal(0.01))
    groups = 1 if class_agnostic else num_classes + 1
    deltas = fully_connected(x, 4 * groups, "box", initializer=normal(0.001))
    return logits, tf.reshape(deltas, [-1, groups, 4])


@dataclass(frozen=True)
class FinalBoxes:
    """boxes float32 B×D×4 (pixels), scores float32 B×D by descending value, labels int32 B×D, count int32 B."""

    boxes: tf.Tensor
    scores: tf.Tensor
    labels: tf.Tensor
    count: tf.Tensor


def select_detections(boxes, deltas, scores, valid, image_size, *, decode, score_thresh, nms_thresh, max_detections,
                      min_size=0.0):
    """Keep the best detections: class-wise suppression, then the best of all classes.

    boxes B×P×4, deltas B×P×(K+1 or 1)×4, scores B×P×(K+1) (probabilities), valid bool B×P -> FinalBoxes. decode: that
    of the BoxStage which gave the deltas. Boxes with a side below `min_size` (pixels) are left out. One greedy pass in
    score order over boxes moved apart by class gives the same as a pass for each class.
    """
    num_classes = scores.shape[-1] - 1
    class_agnostic = deltas.shape[2] == 1

    def one(image):
        roi_boxes, roi_deltas, roi_scores, roi_valid, size = image
        candidates = tf.where((roi_scores[:, 1:] > score_thresh) & roi_valid[:, None])
        roi, label = candidates[:, 0], candidates[:, 1] + 1
        candidate_deltas = tf.gather_nd(roi_deltas, tf.stack([roi, tf.zeros_like(roi) if class_agnostic else label], 1))
        candidate_scores = tf.gather_nd(roi_scores, tf.stack([roi, label], axis=1))
        # Only candidates are decoded: of P·K pairs few pass the threshold.
        decoded = decode(tf.gather(roi_boxes, roi)[None], candidate_deltas[None, :, None], size[None])[0, :, 0]
        if min_size > 0:
            large = tf.where(tf.reduce_all(decoded[:, 2:] - decoded[:, :2] >= min_size, axis=1))[:, 0]
            decoded, candidate_scores, label = (tf.gather(x, large) for x in (decoded, candidate_scores, label))
        apart = separate_by_label(decoded, label - 1, num_classes)
        keep = tf.image.non_max_suppression(apart, candidate_scores, max_detections, iou_threshold=nms_thresh)
        kept = tf.gather(decoded, keep)
        count = tf.shape(kept)[0]
        missing = max_detections - count
        return (tf.pad(kept, [[0, missing], [0, 0]]), tf.pad(tf.gather(candidate_scores, keep), [[0, missing]]),
                tf.pad(tf.cast(tf.gather(label, keep), tf.float32), [[0, missing]]), tf.cast(count, tf.int64))

    size = tf.cast(image_size, tf.float32)
    kept_boxes, kept_scores, kept_labels, count = map_rows(
        one, [boxes, deltas, scores, valid, size], [tf.float32, tf.float32, tf.float32, tf.int64])
    return FinalBoxes(tf.reshape(kept_boxes, [-1, max_detections, 4]), tf.reshape(kept_scores, [-1, max_detections]),
                      tf.cast(tf.reshape(kept_labels, [-1, max_detections]), tf.int64), count)
