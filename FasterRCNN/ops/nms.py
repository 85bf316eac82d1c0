"""Non-maximum suppression of many sets of boxes at once."""
import tensorflow.compat.v1 as tf

from .kernels import built_library
from .rows import map_rows


def batched_nms(boxes, scores, iou_threshold, max_output, *, by_kernel=False):
    """Suppress within each row: boxes N×k×4 (pixels), scores N×k (−inf = empty slot).

    Returns (indices int64 N×max_output into the k, valid bool N×max_output), by descending score. by_kernel: by the
    operation in C++ (kernels/suppress.cc), with the same results for finite boxes.
    """
    if by_kernel:
        indices = built_library().suppress_rows(
            boxes=boxes, scores=scores, iou_threshold=iou_threshold, max_output=max_output)
        return tf.maximum(indices, 0), indices >= 0

    def one(row):
        # The public function runs a loop of small operations; this is the kernel.
        kept = tf.raw_ops.NonMaxSuppressionV4(
            boxes=row[0], scores=row[1], max_output_size=max_output, iou_threshold=iou_threshold,
            score_threshold=tf.float32.min, pad_to_max_output_size=True)
        indices, count = (tf.cast(value, tf.int64) for value in kept)
        return [tf.where(tf.range(max_output, dtype=tf.int64) < count, indices, -tf.ones([max_output], tf.int64))]

    (indices,) = map_rows(one, [boxes, scores], [tf.int64])
    indices = tf.reshape(indices, [-1, max_output])
    return tf.maximum(indices, 0), indices >= 0


def separate_by_label(boxes, labels, num_labels):
    """Move boxes of different labels apart, so that one suppression of all of them acts within labels only.

    boxes …×4 (pixels, not negative), labels int32 … in 0..num_labels−1. Labels lie on a square grid, rather than in a
    line, to keep the coordinates small: float32 then resolves about a thousandth of a pixel.
    """
    side = int(num_labels ** 0.5) + 1
    extent = tf.reduce_max(boxes) + 1.0
    column, row = tf.cast(labels % side, tf.float32), tf.cast(labels // side, tf.float32)
    offset = tf.stack([column, row, column, row], axis=-1) * extent
    return boxes + offset
