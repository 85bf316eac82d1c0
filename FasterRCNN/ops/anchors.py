"""Anchors of a feature map, in pixels of the input image."""
import numpy as np
import tensorflow.compat.v1 as tf


def cell_anchors(sizes, ratios):
    """Return the anchors around (0, 0), float32 (sizes·ratios)×4, the size being the outer loop.

    Of size s (√area, pixels) and ratio r (height / width): w = s/√r, h = r·w.
    """
    widths = np.outer(sizes, 1.0 / np.sqrt(ratios))
    heights = widths * np.asarray(ratios)[None, :]
    half = np.stack([widths, heights], axis=-1).reshape(-1, 2) / 2
    return np.concatenate([-half, half], axis=1).astype(np.float32)


def grid_anchors(height, width, stride, sizes, ratios):
    """Return the anchors of an h×w map, float32 (h·w·a)×4, centred at (column·stride, row·stride)."""
    x = tf.cast(tf.range(width) * stride, tf.float32)
    y = tf.cast(tf.range(height) * stride, tf.float32)
    grid_x, grid_y = tf.meshgrid(x, y)
    centres = tf.stack([grid_x, grid_y, grid_x, grid_y], axis=-1)
    return tf.reshape(centres[:, :, None, :] + cell_anchors(sizes, ratios), [-1, 4])
