"""Random choice of foreground and background, the same for a given seed however images are batched."""
import tensorflow.compat.v1 as tf

from .rows import gather_rows


def uniform_rows(image_seeds, length):
    """Return uniform numbers in [0, 1), float32 B×length: each row from its own seed (int32 B×2).

    Entry i of a row does not depend on `length`, so slots may be added at the end.
    """
    return tf.stack([tf.random.stateless_uniform([length], seed) for seed in tf.unstack(image_seeds)])


def uniform_grids(image_seeds, shapes, sides, per_cell):
    """Return uniform numbers in [0, 1) for the cells of several maps, float32 B×Σ(h·w·per_cell).

    shapes: list of (h, w); sides: for each map, the length of the square from whose corner the h×w cells are cut. The
    number of a cell then depends on its row and column alone and not on how far the batch is padded.
    """
    rows = []
    for seed in tf.unstack(image_seeds):
        grids = []
        for level, ((height, width), side) in enumerate(zip(shapes, sides)):
            side = tf.maximum(side, tf.maximum(height, width))
            grid = tf.random.stateless_uniform([side, side, per_cell], seed + [0, level])
            grids.append(tf.reshape(grid[:height, :width], [-1]))
        rows.append(tf.concat(grids, axis=0))
    return tf.stack(rows)


def sample_foreground_background(is_foreground, is_background, total, max_foreground, keys):
    """Choose at random up to `max_foreground` foreground items of each image and fill up with background to `total`.

    is_foreground, is_background: bool B×N, disjoint; keys: float32 B×N in [0, 1), random.
    Returns (indices int64 B×total, chosen_foreground bool B×total, chosen bool B×total). Foreground comes first, then
    background, then empty slots (index 0) where the image has too few.
    """
    foreground, num_foreground = _random_indices(is_foreground, keys, max_foreground)
    background, num_background = _random_indices(is_background, keys, total)
    slots = tf.range(total, dtype=tf.int64)[None, :]
    chosen_foreground = slots < num_foreground
    chosen = slots < tf.minimum(num_foreground + num_background, total)
    # Slot s holds the s-th foreground item while there are any, then the background items in turn.
    source = tf.where(chosen_foreground, tf.minimum(slots, max_foreground - 1) + tf.zeros_like(num_foreground),
                      max_foreground + tf.maximum(slots - num_foreground, 0))
    indices = gather_rows(tf.concat([foreground, background], axis=1), source)
    return tf.where(chosen, indices, tf.zeros_like(indices)), chosen_foreground, chosen


def _random_indices(candidates, keys, count):
    """Return (indices int64 B×count, number int64 B×1 of them that are candidates), in random order."""
    available = tf.minimum(count, tf.shape(keys)[1])
    values, indices = tf.math.top_k(tf.where(candidates, keys, -tf.ones_like(keys)), available)
    number = tf.reduce_sum(tf.cast(values >= 0, tf.int64), axis=1, keepdims=True)
    missing = tf.zeros([tf.shape(keys)[0], count - available], tf.int64)
    return tf.concat([tf.cast(indices, tf.int64), missing], axis=1), number
