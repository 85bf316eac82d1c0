"""Mask head (Mask R-CNN, section 3): its network and its training targets."""
import tensorflow.compat.v1 as tf

from ..ops.layers import conv1x1_own_class, deconv2d, normal
from ..ops.roi_align import crop_bilinear
from .box_head import normalized_convs


def mask_head(x, labels, num_classes, *, num_convs, channels, norm=None, norm_before_relu=False):
    """Return the logits of each RoI's own class, of background any: R×h×w×C, int64 R (0..K) -> float32 R×2h×2w."""
    side = x.shape[1]
    x = normalized_convs(x, channels, num_convs, "fcn", norm=norm, norm_before_relu=norm_before_relu)
    x = deconv2d(x, channels, "deconv", activation=tf.nn.relu)
    x = tf.reshape(x, [-1, side * side * 4, channels])
    x = conv1x1_own_class(x, labels, num_classes, "conv", initializer=normal(0.001))
    x = tf.nn.depth_to_space(tf.reshape(x, [-1, side, side, 4]), 2)
    return tf.ensure_shape(x[..., 0], [None, 2 * side, 2 * side])


def unpack_bits(packed):
    """Undo `numpy.packbits` along the last axis: uint8 …×n -> float32 …×8n of zeros and ones."""
    bits = tf.bitwise.bitwise_and(packed[..., None], tf.constant([128, 64, 32, 16, 8, 4, 2, 1], tf.uint8))
    shape = tf.concat([tf.shape(packed)[:-1], [8 * packed.shape[-1]]], axis=0)
    return tf.reshape(tf.cast(bits > 0, tf.float32), shape)


def gather_bytes(x, indices):
    """Return `tf.gather_nd` of a uint8 tensor …×n×m, n·m a multiple of 8, of which GPUs have no kernel."""
    size = x.shape[-2:].num_elements()
    words = tf.bitcast(tf.reshape(x, tf.concat([tf.shape(x)[:-2], [size // 8, 8]], axis=0)), tf.int64)
    found = tf.bitcast(tf.gather_nd(words, indices), tf.uint8)
    return tf.reshape(found, [-1, *x.shape[-2:]])


def mask_targets(rois, gt_boxes, gt_masks, size):
    """Sample the objects' bitmaps at the bin centres of the RoIs, zero outside the objects' boxes.

    rois, gt_boxes: R×4 pixels; gt_masks: packed bits uint8 R×s×(s/8), the bitmap in the frame of its box.
    Returns float32 R×size×size in [0, 1].
    """
    side = gt_masks.shape[1]
    cell = tf.maximum((gt_boxes[:, 2:] - gt_boxes[:, :2]) / side, 1e-6)
    origin = gt_boxes[:, :2]
    # One empty cell around the bitmap lets its edge fade out as it does on the image.
    in_cells = (rois - tf.tile(origin, [1, 2])) / tf.tile(cell, [1, 2]) + 1.0
    bitmaps = tf.pad(unpack_bits(gt_masks), [[0, 0], [1, 1], [1, 1]])
    return crop_bilinear(bitmaps[..., None], in_cells, tf.range(tf.shape(rois)[0]), size)[..., 0]
