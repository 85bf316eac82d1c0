"""Boxes in the graph: float32 …×4 (x1, y1, x2, y2) in continuous pixel coordinates, width = x2 − x1."""
import tensorflow.compat.v1 as tf


def area(boxes):
    """Return the areas (pixels²) of boxes: …×4 -> …."""
    x1, y1, x2, y2 = tf.unstack(boxes, axis=-1)
    return (x2 - x1) * (y2 - y1)


def pairwise_intersection(boxes1, boxes2):
    """Return the common areas (pixels²) of every pair: …×M×4, …×N×4 -> …×M×N."""
    x1, y1, x2, y2 = (boxes1[..., :, None, i] for i in range(4))
    other_x1, other_y1, other_x2, other_y2 = (boxes2[..., None, :, i] for i in range(4))
    width = tf.maximum(tf.minimum(x2, other_x2) - tf.maximum(x1, other_x1), 0.0)
    height = tf.maximum(tf.minimum(y2, other_y2) - tf.maximum(y1, other_y1), 0.0)
    return width * height


def pairwise_iou(boxes1, boxes2):
    """Return the IoU of every pair, 0 where both are empty: …×M×4, …×N×4 -> …×M×N."""
    intersection = pairwise_intersection(boxes1, boxes2)
    union = area(boxes1)[..., :, None] + area(boxes2)[..., None, :] - intersection
    return tf.math.divide_no_nan(intersection, union)


def clip_boxes(boxes, image_size, *, keep_pixel=False):
    """Clip the boxes of each image to it: B×N×4 pixels, image_size int32 B×2 (h, w) -> B×N×4.

    keep_pixel: at least the image's first or last pixel is left of a box, wherever it lies (Detectron).
    """
    height_width = tf.cast(image_size, tf.float32)
    limit = tf.stack([height_width[:, 1], height_width[:, 0]] * 2, axis=-1)[:, None]
    least = 0.0
    if keep_pixel:
        least, limit = tf.constant([0.0, 0.0, 1.0, 1.0]), limit - tf.constant([1.0, 1.0, 0.0, 0.0])
    return tf.minimum(tf.maximum(boxes, least), limit)


def encode_boxes(boxes, anchors):
    """Return the deltas (tx, ty, tw, th) that lead from anchors to boxes: …×4, …×4 -> …×4 (Faster R-CNN, eq. 2).

    Defined, with no meaning, for empty boxes too, so that unused slots stay finite.
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    box_size = boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., 2:] + boxes[..., :2] - anchors[..., 2:] - anchors[..., :2]) * 0.5
    safe_anchor = tf.where(anchor_size > 0, anchor_size, tf.ones_like(anchor_size))
    safe_box = tf.where(box_size > 0, box_size, tf.ones_like(box_size))
    return tf.concat([shift / safe_anchor, tf.math.log(safe_box / safe_anchor)], axis=-1)


def decode_boxes(deltas, anchors, max_log_scale):
    """Apply deltas (tx, ty, tw, th) to anchors: …×4, …×4 -> …×4; tw and th are clipped at `max_log_scale`."""
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    anchor_centre = (anchors[..., 2:] + anchors[..., :2]) * 0.5
    half_size = tf.exp(tf.minimum(deltas[..., 2:], max_log_scale)) * anchor_size * 0.5
    centre = deltas[..., :2] * anchor_size + anchor_centre
    return tf.concat([centre - half_size, centre + half_size], axis=-1)
