"""Region proposal network (Faster R-CNN, section 3.1): head, anchors, training targets, proposals.

Objectness and deltas of all levels are concatenated along A, the level outermost, then row, column, anchor of the cell.
"""
from dataclasses import dataclass, field

import tensorflow.compat.v1 as tf

from ..ops.anchors import grid_anchors
from ..ops.boxes import clip_boxes, decode_boxes
from ..ops.layers import conv1x1_side_by_side, conv2d, normal
from ..ops.matching import match_anchors, share_inside
from ..ops.nms import batched_nms
from ..ops.rows import gather_rows
from ..ops.sampling import sample_foreground_background, uniform_grids

EMPTY = float("-inf")  # the objectness of a slot that holds no proposal


@dataclass(frozen=True)
class RPNOutput:
    """What the head says of every anchor. Lists run over the levels.

    objectness: float32 B×A_l logits; deltas: float32 B×A_l×4; anchors: float32 A_l×4 pixels; on_image: bool B×A_l,
    whether the anchor's cell belongs to the image; shapes: (h, w) int32 scalars. anchors_per_cell: the same everywhere.
    """

    anchors_per_cell: int
    objectness: list = field(default_factory=list)
    deltas: list = field(default_factory=list)
    anchors: list = field(default_factory=list)
    on_image: list = field(default_factory=list)
    shapes: list = field(default_factory=list)


@dataclass(frozen=True)
class Proposals:
    """Boxes float32 B×P×4 (pixels), objectness logits float32 B×P by descending value, valid bool B×P."""

    boxes: tf.Tensor
    objectness: tf.Tensor
    valid: tf.Tensor


def rpn_head(levels, extent, *, strides, anchor_sizes, anchor_ratios, channels, num_convs=1, anchor_offset=0.0,
             anchor_rounding="none", fit_strides=False):
    """Score and refine the anchors of every level: list of B×h×w×C -> RPNOutput.

    anchor_sizes: pixels, by level; anchor_offset, anchor_rounding: see `grid_anchors`. fit_strides: anchors stand
    ⌊H / h⌋ pixels apart, which is less than the stride where h was rounded up (torchvision's P6).
    """
    per_cell = len(anchor_sizes[0]) * len(anchor_ratios)
    output = RPNOutput(per_cell)
    for feature, stride, sizes in zip(levels, strides, anchor_sizes):
        level_extent = extent.at(stride)
        with tf.variable_scope("rpn", reuse=tf.AUTO_REUSE):
            hidden = feature
            for i in range(num_convs):
                hidden = conv2d(level_extent.clear(hidden), channels, 3, f"conv{i}", activation=tf.nn.relu,
                                initializer=normal(0.01))
            objectness, deltas = conv1x1_side_by_side(
                hidden, {"class": per_cell, "box": 4 * per_cell}, initializer=normal(0.01))
        batch, height, width = tf.unstack(tf.shape(feature)[:3])
        output.objectness.append(tf.reshape(tf.cast(objectness, tf.float32), [batch, -1]))
        output.deltas.append(tf.reshape(tf.cast(deltas, tf.float32), [batch, -1, 4]))
        steps = None
        if fit_strides:
            steps = tf.unstack(tf.shape(levels[0])[1:3] * strides[0] // tf.stack([height, width]))
        output.anchors.append(grid_anchors(height, width, stride, sizes, anchor_ratios, steps=steps,
                                           offset=anchor_offset, rounding=anchor_rounding))
        on_image = tf.repeat(tf.reshape(level_extent.mask((height, width)), [batch, -1]), per_cell, axis=1)
        output.on_image.append(on_image)
        output.shapes.append((height, width))
    return output


@dataclass(frozen=True)
class AnchorSample:
    """The anchors of a batch that are trained, S of each image.

    indices: int64 B×S into A; is_foreground, is_chosen: bool B×S; boxes: the objects' boxes, float32 B×S×4; anchors:
    B×S×4.
    """

    indices: tf.Tensor
    is_foreground: tf.Tensor
    is_chosen: tf.Tensor
    boxes: tf.Tensor
    anchors: tf.Tensor


def sample_anchors(rpn, image_size, gt_boxes, gt_labels, image_seeds, *, positive_thresh, negative_thresh,
                   crowd_overlap_thresh, total, foreground_ratio, sides):
    """Label the anchors by IoU and choose those to train.

    gt_boxes B×G×4, gt_labels int32 B×G (0 empty, −1 crowd), image_seeds int32 B×2; sides: see `uniform_grids`.
    """
    anchors = tf.concat(rpn.anchors, axis=0)
    inside = inside_image(anchors, image_size) & tf.concat(rpn.on_image, axis=1)
    inside.set_shape([gt_boxes.shape[0], None])
    best_iou, best_index, is_best = match_anchors(anchors, gt_boxes, gt_labels > 0, inside)
    # An object's best anchor below the negative threshold ends as background, as in the reference.
    is_background = best_iou < negative_thresh
    is_foreground = tf.logical_and(tf.logical_or(is_best, best_iou >= positive_thresh), ~is_background)
    if crowd_overlap_thresh <= 1:
        inside &= share_inside(anchors, gt_boxes, gt_labels < 0) <= crowd_overlap_thresh
    keys = uniform_grids(image_seeds, rpn.shapes, sides, rpn.anchors_per_cell)
    indices, chosen_foreground, chosen = sample_foreground_background(
        is_foreground & inside, is_background & inside, total, int(total * foreground_ratio), keys)
    matched = gather_rows(best_index, indices)
    return AnchorSample(indices, chosen_foreground, chosen, gather_rows(gt_boxes, matched),
                        tf.gather(anchors, indices))


def inside_image(anchors, image_size):
    """Return whether each anchor lies wholly inside each image: A×4, int32 B×2 -> bool B×A."""
    height, width = tf.unstack(tf.cast(image_size, tf.float32)[:, :, None], axis=1)
    x1, y1, x2, y2 = tf.unstack(anchors[None], axis=2)
    return (x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height)


def propose(rpn, image_size, *, pre_nms_topk, post_nms_topk, nms_thresh, min_size, max_log_scale, joint,
            keep_pixel=False, by_kernel=False):
    """Turn the head's output into at most `post_nms_topk` proposals an image, without gradient.

    Per level, the best `pre_nms_topk` anchors are decoded, clipped and suppressed, at most `post_nms_topk` kept; then
    the best `post_nms_topk` of all levels by logit. joint: one suppression over all levels together. by_kernel: as
    `batched_nms`.
    """
    groups = list(zip(rpn.objectness, rpn.deltas, rpn.anchors, rpn.on_image))
    if joint:
        objectness, deltas, anchors, on_image = zip(*groups)
        groups = [(tf.concat(objectness, 1), tf.concat(deltas, 1), tf.concat(anchors, 0), tf.concat(on_image, 1))]
    candidates = [best_boxes(*group, image_size, topk=pre_nms_topk, min_size=min_size, max_log_scale=max_log_scale,
                             keep_pixel=keep_pixel)
                  for group in groups]
    boxes = tf.concat([boxes for boxes, _ in candidates], axis=0)
    scores = tf.concat([scores for _, scores in candidates], axis=0)
    indices, valid = batched_nms(boxes, scores, nms_thresh, post_nms_topk, by_kernel=by_kernel)
    scores = tf.where(valid, gather_rows(scores, indices), tf.fill(tf.shape(valid), EMPTY))
    boxes = gather_rows(boxes, indices)
    if len(groups) > 1:
        scores = tf.concat(tf.split(scores, len(groups)), axis=1)
        boxes = tf.concat(tf.split(boxes, len(groups)), axis=1)
        scores, order = tf.math.top_k(scores, post_nms_topk)
        boxes = gather_rows(boxes, order)
    valid = scores > EMPTY
    boxes = tf.where(valid[..., None] & tf.ones_like(boxes, tf.bool), boxes, tf.zeros_like(boxes))
    return Proposals(tf.stop_gradient(boxes), tf.stop_gradient(scores), valid)


def best_boxes(objectness, deltas, anchors, on_image, image_size, *, topk, min_size, max_log_scale,
               keep_pixel=False):
    """Decode the `topk` best anchors of one level: returns boxes B×topk×4 (pixels, clipped) and logits B×topk."""
    objectness = tf.where(on_image, objectness, tf.fill(tf.shape(objectness), EMPTY))
    available = tf.minimum(topk, tf.shape(objectness)[1])
    scores, indices = tf.math.top_k(objectness, available)
    boxes = decode_boxes(gather_rows(deltas, indices), tf.gather(anchors, indices), max_log_scale)
    boxes = clip_boxes(boxes, image_size, keep_pixel=keep_pixel)
    if min_size > 0:  # at 0 the reference keeps even boxes that clipping left without area
        large = tf.reduce_all(boxes[..., 2:] - boxes[..., :2] > min_size, axis=-1)
        scores = tf.where(large, scores, tf.fill(tf.shape(scores), EMPTY))
    missing, batch = topk - available, image_size.shape[0] or -1
    boxes = tf.pad(boxes, [[0, 0], [0, missing], [0, 0]])
    scores = tf.pad(scores, [[0, 0], [0, missing]], constant_values=EMPTY)
    return tf.reshape(boxes, [batch, topk, 4]), tf.reshape(scores, [batch, topk])
