"""ROIAlign of a batch over one or several feature maps (Mask R-CNN, section 3)."""
import tensorflow.compat.v1 as tf

from .rows import permute_rows


def crop_bilinear(maps, boxes, map_index, size):
    """Sample each box bilinearly at the centres of its size×size cells; zero beyond the map.

    maps: n×h×w×C, boxes: R×4 in cells of the map (cell (0, 0) covers [0,1]×[0,1]), map_index: int32 R -> R×size×size×C.
    `tf.image.crop_and_resize` spans a box's corners from the centre of the first to the centre of the last cell and
    counts from cell centres; the boxes given to it are corrected for both.
    """
    x1, y1, x2, y2 = tf.unstack(boxes, axis=1)
    limit = tf.cast(tf.shape(maps)[1:3] - 1, tf.float32)

    def span(low, high, last):
        cell = (high - low) / size
        first = low + cell / 2 - 0.5
        return first / last, (first + cell * (size - 1)) / last

    top, bottom = span(y1, y2, limit[0])
    left, right = span(x1, x2, limit[1])
    return tf.image.crop_and_resize(maps, tf.stack([top, left, bottom, right], axis=1),
                                    box_indices=tf.cast(map_index, tf.int32), crop_size=[size, size])


@tf.custom_gradient
def repeat_edge(x):
    """Repeat the first and last row and column: N×h×w×C -> N×(h+2)×(w+2)×C. Faster than a symmetric `tf.pad`."""
    def gradient(dy):  # that of the concatenations would make several copies of the whole map
        return tf.raw_ops.MirrorPadGrad(input=dy, paddings=[[0, 0], [1, 1], [1, 1], [0, 0]], mode="SYMMETRIC")

    y = tf.concat([x[:, :, :1], x, x[:, :, -1:]], axis=2)
    return tf.concat([y[:, :1], y, y[:, -1:]], axis=1), gradient


def roi_align(feature, boxes, image_index, size, stride, extent=None):
    """Pool boxes (pixels) from one map: B×h×w×C, R×4, int32 R -> R×size×size×C.

    Each bin is the mean of 2×2 samples at the centres of its quarters; the map is extended by one repeated cell, and
    samples beyond that are zero. `extent` (a LevelExtent) ends each image's map at its own cells; `feature` must then
    repeat their edge.
    """
    # TensorFlow samples into float32, and not from bfloat16.
    padded = tf.cast(repeat_edge(feature), tf.float32)
    samples = crop_bilinear(padded, boxes / stride + 1.0, image_index, 2 * size)
    if extent is not None:
        samples = extent.clear_samples(samples, boxes / stride, image_index)
    return tf.cast(tf.nn.avg_pool2d(samples, 2, 2, "VALID"), feature.dtype)


def fpn_level(boxes, num_levels):
    """Return each box's index among P2.., float32 …: floor(4 + log2(√area / 224 + 1e-6)) − 2 (FPN, eq. 1)."""
    size = tf.sqrt(tf.maximum((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]), 0.0))
    level = tf.floor(4.0 + tf.math.log(size / 224.0 + 1e-6) / tf.math.log(2.0))
    return tf.clip_by_value(level - 2.0, 0.0, num_levels - 1.0)


def multilevel_roi_align(features, boxes, image_index, size, strides):
    """Pool each box from the map of its size: list of B×h×w×C, R×4 pixels, int32 R -> R×size×size×C."""
    level = fpn_level(boxes, len(features))
    members = [tf.where(tf.equal(level, float(i)))[:, 0] for i in range(len(features))]
    pooled = [roi_align(feature, tf.gather(boxes, chosen), tf.gather(image_index, chosen), size, stride)
              for feature, stride, chosen in zip(features, strides, members)]
    result = permute_rows(tf.concat(pooled, axis=0), tf.concat(members, axis=0))
    result.set_shape([boxes.shape[0], size, size, features[0].shape[-1]])
    return result
