"""Anchors of a feature map, in pixels of the input image."""
import numpy as np
import tensorflow.compat.v1 as tf


def cell_anchors(sizes, ratios, stride=None, rounding="none"):
    """Return the anchors around (0, 0), float32 (sizes·ratios)×4, the size being the outer loop.

    Of size s (√area, pixels) and ratio r (height / width): w = s/√r, h = r·w. rounding: of the "corners" to whole
    pixels (torchvision), or of the "sides" of an anchor of size `stride`, which then grow with s (Detectron).
    """
    ratios = np.asarray(ratios, np.float64)
    unit_widths = 1 / np.sqrt(ratios)
    unit_heights = unit_widths * ratios
    if rounding == "sides":
        unit_widths = np.round(stride * unit_widths) / stride
        unit_heights = np.round(stride * unit_widths * ratios) / stride
    half = np.stack([np.outer(sizes, unit_widths), np.outer(sizes, unit_heights)], axis=-1).reshape(-1, 2) / 2
    if rounding == "corners":
        half = np.round(half)
    return np.concatenate([-half, half], axis=1).astype(np.float32)


def grid_anchors(height, width, stride, sizes, ratios, *, steps=None, offset=0.0, rounding="none"):
    """Return the anchors of an h×w map, float32 (h·w·a)×4, around ((column + offset)·stride, (row + offset)·stride).

    steps: pixels from row to row and from column to column, if not `stride`. rounding: see `cell_anchors`.
    """
    step_y, step_x = steps or (stride, stride)
    x = tf.cast(tf.range(width) * step_x, tf.float32)
    y = tf.cast(tf.range(height) * step_y, tf.float32)
    if offset:
        x, y = x + offset * stride, y + offset * stride
    grid_x, grid_y = tf.meshgrid(x, y)
    centres = tf.stack([grid_x, grid_y, grid_x, grid_y], axis=-1)
    return tf.reshape(centres[:, :, None, :] + cell_anchors(sizes, ratios, stride, rounding), [-1, 4])
