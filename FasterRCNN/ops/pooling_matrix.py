"""ROIAlign as a product with a sparse matrix: a row for each bin, with the weights of the cells that it reads.

The form for processors. `tf.image.crop_and_resize` writes every sample out before they are averaged; and in its
gradient TensorFlow's threads add to the same cell at once, which loses some of the sums: several percent of the
gradient on two cores. Each row of a product is made by one thread, in a fixed order, and so is each of a product with
the transposed matrix, which gives the gradient.
"""
import tensorflow.compat.v1 as tf


def pool_by_matrix(feature, boxes, image_index, size, samples, map_sizes):
    """Return the means of rows×columns samples in each bin: B×h×w×C, R×4 cells, int32 R -> float32 R×size×size×C.

    samples: (rows, columns). A sample less than a cell beyond the outermost centres of its image's map takes the
    nearest of them, one further out is zero. map_sizes: int32 B×2, rows and columns of the images' maps, or 1×2.
    """
    own_sizes = map_sizes if map_sizes.shape[0] == 1 else tf.gather(map_sizes, image_index)
    x1, y1, x2, y2 = tf.unstack(boxes, axis=1)
    rows, row_weights = bins_of_axis(y1, y2, size, samples[0], own_sizes[:, 0])
    columns, column_weights = bins_of_axis(x1, x2, size, samples[1], own_sizes[:, 1])
    height, width = tf.unstack(tf.shape(feature, out_type=tf.int64)[1:3])
    rows += (tf.cast(image_index, tf.int64) * height)[:, None, None]
    num_rois = tf.shape(boxes, out_type=tf.int64)[0]
    bin_rows = tf.reshape(tf.range(num_rois * size) * size, [-1, size])
    # (bin, cell) is a sum of what a row and a column give: joined along each axis, while they are few.
    along_y = joined(bin_rows[:, :, None], rows * width)
    along_x = joined(tf.range(size, dtype=tf.int64)[None, :, None], columns)
    along_y = tf.tile(along_y, [1, 1, 1, tf.shape(columns)[2]])[:, :, None]
    along_x = tf.reshape(along_x, [-1, 1, size, 1, 2 * tf.shape(columns)[2]])
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    pooled = sparse_product(tf.reshape(along_y + along_x, [-1, 2]), tf.reshape(weights, [-1]),
                            tf.reshape(tf.cast(feature, tf.float32), [-1, feature.shape[-1]]),
                            num_rois * size * size)
    return tf.reshape(pooled, [-1, size, size, feature.shape[-1]])


def joined(first, second):
    """Return pairs of both, `first` repeated as `second` is: broadcastable to …, … -> …×2."""
    return tf.stack([tf.broadcast_to(first, tf.shape(second)), second], axis=-1)


def bins_of_axis(low, high, size, samples, num_cells):
    """Return int64 cells and float32 weights, R×size×2·samples, of the bins of boxes along one axis.

    low, high: R, in cells; num_cells: int32 R or 1, of the map.
    """
    count, last = size * samples, tf.cast(num_cells, tf.float32)[:, None] - 1.0
    step = ((high - low) / tf.cast(count, tf.float32))[:, None]
    index = low[:, None] + step * (tf.cast(tf.range(count), tf.float32) + 0.5) - 0.5
    is_read = (index >= -1.0) & (index <= last + 1.0)
    # Of a box that is no number, too, a cell within the map.
    index = tf.where(is_read, tf.clip_by_value(index, 0.0, last), tf.zeros_like(index))
    cell = tf.floor(index)
    cells = tf.stack([cell, tf.minimum(cell + 1.0, last)], axis=-1)
    share = tf.cast(is_read, tf.float32) / tf.cast(samples, tf.float32)
    weights = tf.stack([cell + 1.0 - index, index - cell], axis=-1) * share[..., None]
    shape = [-1, size, 2 * samples]
    return tf.cast(tf.reshape(cells, shape), tf.int64), tf.reshape(weights, shape)


@tf.custom_gradient
def sparse_product(indices, values, dense, num_rows):
    """Return the product of a sparse and a dense matrix: int64 E×2 (row, column), float32 E, float32 N×C -> num_rows×C.

    `indices` are sorted by row. The gradient is that of `dense` alone: RoIs are found and sampled without one.
    """
    def matrix(least_rows):
        return tf.raw_ops.SparseTensorToCSRSparseMatrix(
            indices=indices, values=values,
            dense_shape=tf.stack([tf.maximum(num_rows, least_rows), tf.shape(dense, out_type=tf.int64)[0]]))

    def gradient(dy):
        # The matrix is made again, as loops do not carry one to their gradient.
        transposed = tf.raw_ops.SparseMatrixTranspose(input=matrix(0), type=tf.float32)
        return None, None, tf.raw_ops.SparseMatrixMatMul(a=transposed, b=dy), None

    # TensorFlow's product divides by the number of rows.
    return tf.raw_ops.SparseMatrixMatMul(a=matrix(1), b=dense)[:num_rows], gradient
