"""Matching of anchors and boxes with the ground truth, in memory that does not grow with the number of objects."""
import tensorflow.compat.v1 as tf

from .boxes import area, pairwise_intersection, pairwise_iou

CHUNK = 8  # objects compared at a time: the loader pads G to a multiple of it


def match_anchors(anchors, gt_boxes, is_object, takes_part):
    """Find the best object of every anchor of every image.

    anchors A×4, gt_boxes B×G×4 (pixels), is_object bool B×G (false: empty slot or crowd), takes_part bool B×A.
    Returns (best_iou float32 B×A, best_index int64 B×A into G, is_best bool B×A: no anchor that takes part overlaps
    some object more). Anchors that do not take part overlap nothing.
    """
    batch, num_anchors = gt_boxes.shape[0], tf.shape(anchors)[0]
    # Boxes without area overlap nothing: cheaper than masks of A×G.
    anchors = anchors[None] * tf.cast(takes_part, tf.float32)[..., None]
    gt_boxes = gt_boxes * tf.cast(is_object, tf.float32)[..., None]
    state = (tf.constant(0), tf.zeros([batch, num_anchors]), tf.zeros([batch, num_anchors], tf.int64),
             tf.zeros([batch, num_anchors], tf.bool))

    def compare(start, best_iou, best_index, is_best):
        iou = pairwise_iou(anchors, gt_boxes[:, start:start + CHUNK])
        objects_best = tf.reduce_max(iou, axis=1, keepdims=True)
        ties = tf.reduce_any(tf.logical_and(tf.equal(iou, objects_best), iou > 0), axis=2)
        chunk_iou, chunk_index = tf.reduce_max(iou, axis=2), tf.argmax(iou, axis=2) + tf.cast(start, tf.int64)
        better = chunk_iou > best_iou
        return (start + CHUNK, tf.where(better, chunk_iou, best_iou), tf.where(better, chunk_index, best_index),
                tf.logical_or(is_best, ties))

    _, best_iou, best_index, is_best = tf.while_loop(
        lambda start, *_: start < tf.shape(gt_boxes)[1], compare, state, back_prop=False, parallel_iterations=1,
        shape_invariants=(tf.TensorShape([]),) + (tf.TensorShape([batch, None]),) * 3)
    return best_iou, best_index, is_best


def share_inside(anchors, gt_boxes, is_crowd):
    """Return the greatest share of each anchor's area that lies in one crowd box: A×4, B×G×4, bool B×G -> B×A."""
    batch = gt_boxes.shape[0]
    anchor_area = area(anchors)[None, :, None]

    def compare(start, share):
        inside = pairwise_intersection(anchors[None], gt_boxes[:, start:start + CHUNK]) / anchor_area
        inside *= tf.cast(is_crowd[:, start:start + CHUNK], tf.float32)[:, None, :]
        return start + CHUNK, tf.maximum(share, tf.reduce_max(inside, axis=2))

    return tf.while_loop(
        lambda start, _: start < tf.shape(gt_boxes)[1], compare, (0, tf.zeros([batch, tf.shape(anchors)[0]])),
        back_prop=False, parallel_iterations=1,
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([batch, None])))[1]
