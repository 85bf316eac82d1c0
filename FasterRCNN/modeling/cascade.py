"""Box heads in a row, each on the boxes of the one before it (Cascade R-CNN, Cai & Vasconcelos 2018).

Fast R-CNN is the row of one.
"""
from collections.abc import Callable
from dataclasses import dataclass

import tensorflow.compat.v1 as tf

from ..ops.boxes import area, clip_boxes, decode_boxes
from .box_head import expand, labelled_rois, match_objects, with_one_filled
from .losses import box_head_losses
from .metrics import box_metrics, named


@dataclass(frozen=True)
class BoxStage:
    """One box head and the meaning of its deltas.

    name: of its losses. head(R×h×w×C) -> (logits R×(K+1), deltas R×(K+1 or 1)×4). foreground_thresh: IoU from which its
    RoIs are foreground. weights: what the deltas are multiplied by; max_log_scale: the greatest tw and th; keep_pixel:
    as `clip_boxes`.
    """

    name: str
    head: Callable
    foreground_thresh: float
    weights: tuple[float, float, float, float]
    max_log_scale: float
    keep_pixel: bool = False

    def decode(self, boxes, deltas, image_size):
        """Apply every class's deltas to the RoIs and clip: B×P×4, B×P×C×4, int32 B×2 -> B×P×C×4 pixels."""
        decoded = decode_boxes(deltas / tf.constant(self.weights, tf.float32), boxes[:, :, None, :], self.max_log_scale)
        shape = tf.shape(decoded)
        clipped = clip_boxes(tf.reshape(decoded, [shape[0], -1, 4]), image_size, keep_pixel=self.keep_pixel)
        return tf.reshape(clipped, shape)

    def refine(self, boxes, deltas, image_size):
        """Return the boxes of the next stage: B×P×4, class-agnostic deltas B×P×1×4, int32 B×2 -> B×P×4 pixels."""
        return tf.stop_gradient(self.decode(boxes, deltas, image_size)[:, :, 0])


def score_boxes(stages, pool, boxes, valid, image_size):
    """Run the stages for prediction: boxes B×P×4 (pixels), valid bool B×P.

    pool(boxes, filled) -> features R×h×w×C of the filled slots. Returns the boxes that the last stage saw, B×P×4, its
    deltas B×P×(K+1 or 1)×4, and class probabilities B×P×(K+1), the mean of the stages' (section 4.2).
    """
    filled, scores = with_one_filled(valid), []
    for stage in stages:
        logits, deltas = stage.head(pool(boxes, filled))
        deltas = expand(deltas, filled)
        scores.append(expand(tf.nn.softmax(logits), filled))
        if stage is not stages[-1]:
            boxes = stage.refine(boxes, deltas, image_size)
    return boxes, deltas, tf.add_n(scores) / len(scores)


def train_boxes(stages, pool, rois, image_size, gt_boxes, gt_labels):
    """Run the stages for training; returns (losses, metrics, features R×h×w×C of the first RoIs, those of `rois`).

    The gradient into the pooled features is divided by the number of stages, so that it is as strong as that of one.
    """
    losses, metrics, first_features = {}, {}, None
    for stage, following in zip(stages, [*stages[1:], None]):
        filled = with_one_filled(rois.is_chosen)
        features = pool(rois.boxes, filled)
        if first_features is None:
            first_features = features
        logits, deltas = (expand(x, filled) for x in stage.head(scale_gradient(features, 1 / len(stages))))
        losses[f"{stage.name}/loss_cls"], losses[f"{stage.name}/loss_box"] = box_head_losses(
            logits, deltas, rois, gt_boxes, weights=stage.weights)
        metrics.update(named(stage.name, box_metrics(logits, rois)))
        if following:
            refined = stage.refine(rois.boxes, deltas, image_size)
            rois = relabel_rois(rois, refined, gt_boxes, gt_labels, following.foreground_thresh)
    return losses, metrics, first_features


def scale_gradient(x, factor):
    """Return x, whose gradient is multiplied by `factor`."""
    return x if factor == 1 else tf.custom_gradient(lambda y: (tf.identity(y), lambda dy: dy * factor))(x)


def relabel_rois(rois, boxes, gt_boxes, gt_labels, foreground_thresh):
    """Return the RoISample of the same slots with other boxes, B×S×4 pixels; boxes without area are left out."""
    chosen = rois.is_chosen & (area(boxes) > 0)
    is_foreground, matched = match_objects(boxes, gt_boxes, gt_labels, foreground_thresh)
    return labelled_rois(boxes, matched, is_foreground & chosen, chosen, gt_labels)
