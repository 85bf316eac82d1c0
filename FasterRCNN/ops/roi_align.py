"""ROIAlign of a batch over one or several feature maps (Mask R-CNN, section 3)."""
from functools import partial

import tensorflow.compat.v1 as tf

from .kernels import library
from .machine import has_gpu
from .pooling_kernel import pool_by_kernel
from .pooling_matrix import pool_by_matrix
from .rows import permute_rows

# In C++, for processors; by TensorFlow's own operations, for processors and for GPUs.
FORMS = ("kernel", "matrix", "crops")
MOST_SAMPLES = 1 << 12  # in a bin, along one axis; more than any RoI within an image takes


def crop_bilinear(maps, boxes, map_index, size):
    """Sample each box bilinearly at the centres of its rows×columns cells; zero beyond the map.

    maps: n×h×w×C, boxes: R×4 in cells of the map (cell (0, 0) covers [0,1]×[0,1]), map_index: int32 R, size: (rows,
    columns) or one number for both -> R×rows×columns×C. `tf.image.crop_and_resize` spans a box's corners from the
    centre of the first to the centre of the last cell and counts from cell centres; the boxes given to it are corrected
    for both.
    """
    rows, columns = size if isinstance(size, tuple) else (size, size)
    x1, y1, x2, y2 = tf.unstack(boxes, axis=1)
    limit = tf.cast(tf.shape(maps)[1:3] - 1, tf.float32)

    def span(low, high, count, last):
        count = tf.cast(count, tf.float32) if tf.is_tensor(count) else count
        cell = (high - low) / count
        first = low + cell / 2 - 0.5
        return first / last, (first + cell * (count - 1)) / last

    top, bottom = span(y1, y2, rows, limit[0])
    left, right = span(x1, x2, columns, limit[1])
    return tf.image.crop_and_resize(maps, tf.stack([top, left, bottom, right], axis=1),
                                    box_indices=tf.cast(map_index, tf.int32), crop_size=[rows, columns])


@tf.custom_gradient
def repeat_edge(x):
    """Repeat the first and last row and column: N×h×w×C -> N×(h+2)×(w+2)×C. Faster than a symmetric `tf.pad`."""
    def gradient(dy):  # that of the concatenations would make several copies of the whole map
        return tf.raw_ops.MirrorPadGrad(input=dy, paddings=[[0, 0], [1, 1], [1, 1], [0, 0]], mode="SYMMETRIC")

    y = tf.concat([x[:, :, :1], x, x[:, :, -1:]], axis=2)
    return tf.concat([y[:, :1], y, y[:, -1:]], axis=1), gradient


def form_for_this_machine():
    """Return which of FORMS is the fastest here."""
    form = portable_form()
    return "kernel" if form == "matrix" and library() else form


def portable_form(machine=None):
    """Return which of FORMS any TensorFlow can run and suits a "cpu" or "gpu"; by default what this machine has."""
    machine = machine or ("gpu" if has_gpu() else "cpu")
    return {"cpu": "matrix", "gpu": "crops"}[machine]


def roi_align(feature, boxes, image_index, size, stride, extent=None, *, samples=2, aligned=True, inclusive=False,
              form=None):
    """Pool boxes (pixels) from one map: B×h×w×C, R×4, int32 R -> R×size×size×C.

    Each bin is the mean of samples×samples values at the centres of its parts; the map is extended by one repeated
    cell, and samples beyond that are zero. samples 0: as many as the bin spans cells, rounded up. aligned, inclusive:
    see `boxes_in_cells`. `extent` (a LevelExtent) ends each image's map at its own cells; `feature` must then repeat
    their edge. form: one of FORMS, by default this machine's.
    """
    form = form or form_for_this_machine()
    cells = boxes_in_cells(boxes, stride, aligned=aligned, inclusive=inclusive)
    if form == "kernel":
        return pool_by_kernel([feature], cells, tf.zeros_like(image_index), image_index, size, samples,
                              [map_sizes(feature, extent)])
    pool = matrix_pooler(feature, extent) if form == "matrix" else crop_pooler(feature, extent)
    if samples:
        pooled = pool(cells, image_index, size, (samples, samples))
    else:
        pooled = pool_every_cell(pool, cells, image_index, size, feature.shape[-1])
    return tf.cast(pooled, feature.dtype)


def map_sizes(feature, extent):
    """Return rows and columns of each image's part of a map B×h×w×C: int32 B×2, or 1×2 for all. extent: LevelExtent."""
    return extent.own_sizes(feature) if extent is not None else tf.shape(feature)[None, 1:3]


def matrix_pooler(feature, extent):
    """Return pool(boxes, image_index, size, samples), of `pool_by_matrix`."""
    return partial(pool_by_matrix, feature, map_sizes=map_sizes(feature, extent))


def crop_pooler(feature, extent):
    """Return pool(boxes, image_index, size, samples) -> float32 R×size×size×C, the mean of samples by `crop_bilinear`.

    The form for GPUs.
    """
    # TensorFlow samples into float32, and not from bfloat16.
    padded = tf.cast(repeat_edge(feature), tf.float32)

    def pool(boxes, image_index, size, samples):
        rows, columns = samples
        values = crop_bilinear(padded, boxes + 1.0, image_index, (size * rows, size * columns))
        if extent is not None:
            values = extent.clear_samples(values, boxes, image_index)
        if isinstance(rows, int):
            return tf.nn.avg_pool2d(values, samples, samples, "VALID")
        return tf.reduce_mean(tf.reshape(values, [-1, size, rows, size, columns, feature.shape[-1]]), axis=[2, 4])

    return pool


def boxes_in_cells(boxes, stride, *, aligned=True, inclusive=False):
    """Return RoIs as parts of the map, whose cell (0, 0) covers [0,1]×[0,1]: R×4 pixels -> R×4 cells.

    aligned: they lie where they lie on the image. Otherwise half a cell further right and down, and at least one cell
    wide and high (Detectron's ROIAlign, and all that followed it). inclusive: they end at the last pixel's first edge.
    """
    if inclusive:
        boxes -= tf.constant([0.0, 0.0, 1.0, 1.0])
    cells = boxes / stride
    if aligned:
        return cells
    corner, size = cells[:, :2] + 0.5, tf.maximum(cells[:, 2:] - cells[:, :2], 1.0)
    return tf.concat([corner, corner + size], axis=1)


def pool_every_cell(pool, boxes, image_index, size, channels):
    """Pool boxes (cells) with ⌈h⌉×⌈w⌉ samples in a bin of h×w cells: R×4, int32 R -> float32 R×size×size×channels.

    pool(boxes, image_index, size, (rows, columns)) -> r×size×size×channels. RoIs that take equally many samples are
    pooled together.
    """
    counts = tf.math.ceil((boxes[:, 2:] - boxes[:, :2]) / size)
    # Of a box that is no number, one; of a huge one not what is left of it in an integer.
    counts = tf.cast(tf.minimum(tf.where(counts > 1.0, counts, tf.ones_like(counts)), MOST_SAMPLES), tf.int32)
    kinds, kind_of_box = tf.unique(counts[:, 1] * (MOST_SAMPLES + 1) + counts[:, 0])
    num_kinds = tf.size(kinds)

    def pool_kind(i, pooled):
        chosen = tf.where(tf.equal(kind_of_box, i))[:, 0]
        samples = kinds[i] // (MOST_SAMPLES + 1), kinds[i] % (MOST_SAMPLES + 1)
        return i + 1, pooled.write(i, pool(tf.gather(boxes, chosen), tf.gather(image_index, chosen), size, samples))

    # One more than kinds, and empty, so that there is something to join without any box.
    pooled = tf.TensorArray(tf.float32, num_kinds + 1, element_shape=[None, size, size, channels], infer_shape=False)
    _, pooled = tf.while_loop(lambda i, _: i < num_kinds, pool_kind, [0, pooled], parallel_iterations=1)
    pooled = pooled.write(num_kinds, tf.zeros([0, size, size, channels])).concat()
    return permute_rows(pooled, tf.cast(tf.argsort(kind_of_box, stable=True), tf.int64))


def fpn_level(boxes, num_levels):
    """Return each box's index among P2.., float32 …: floor(4 + log2(√area / 224 + 1e-6)) − 2 (FPN, eq. 1)."""
    size = tf.sqrt(tf.maximum((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]), 0.0))
    level = tf.floor(4.0 + tf.math.log(size / 224.0 + 1e-6) / tf.math.log(2.0)) - 2.0
    # Of a box that is no number, too, a level.
    return tf.where(level > 0.0, tf.minimum(level, num_levels - 1.0), tf.zeros_like(level))


def multilevel_roi_align(features, boxes, image_index, size, strides, extent=None, *, samples=2, aligned=True,
                         inclusive=False, form=None):
    """Pool each box from the map of its size: list of B×h×w×C, R×4 pixels, int32 R -> R×size×size×C.

    extent: a BatchExtent, where samples may lie beyond an image's own cells; the rest as `roi_align`.
    """
    level, form = fpn_level(boxes, len(features)), form or form_for_this_machine()
    extents = [extent and extent.at(stride) for stride in strides]
    if form == "kernel":
        level = tf.cast(level, tf.int64)
        own_stride = tf.gather(tf.constant(strides, tf.float32), level)[:, None]
        cells = boxes_in_cells(boxes, own_stride, aligned=aligned, inclusive=inclusive)
        result = pool_by_kernel(features, cells, level, image_index, size, samples,
                                [map_sizes(*of_level) for of_level in zip(features, extents)])
    else:
        members = [tf.where(tf.equal(level, float(i)))[:, 0] for i in range(len(features))]
        pooled = [roi_align(feature, tf.gather(boxes, chosen), tf.gather(image_index, chosen), size, stride,
                            level_extent, samples=samples, aligned=aligned, inclusive=inclusive, form=form)
                  for feature, stride, level_extent, chosen in zip(features, strides, extents, members)]
        result = permute_rows(tf.concat(pooled, axis=0), tf.concat(members, axis=0))
    result.set_shape([boxes.shape[0], size, size, features[0].shape[-1]])
    return result
