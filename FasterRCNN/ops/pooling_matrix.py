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
    cells = (rows * width)[:, :, None, :, None] + columns[:, None, :, None, :]
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    values = tf.reshape(tf.cast(feature, tf.float32), [-1, feature.shape[-1]])
    return tf.reshape(sparse_product(weights, cells, values), [-1, size, size, feature.shape[-1]])


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
def sparse_product(weights, columns, dense):
    """Return the sums over ty, tx of weights · dense[columns]: float32 and int64 R×S×S×ty×tx, float32 N×C -> R·S·S×C.

    The gradient is that of `dense` alone: RoIs are found and sampled without one.
    """
    sizes = tf.shape(columns, out_type=tf.int64)
    num_rows = tf.reduce_prod(sizes[:3])
    columns = tf.reshape(columns, [num_rows, sizes[3] * sizes[4]])
    rows = tf.broadcast_to(tf.range(num_rows)[:, None], tf.shape(columns))

    def matrix(least_rows):
        return tf.raw_ops.SparseTensorToCSRSparseMatrix(
            indices=tf.reshape(tf.stack([rows, columns], axis=2), [-1, 2]), values=tf.reshape(weights, [-1]),
            dense_shape=tf.stack([tf.maximum(num_rows, least_rows), tf.shape(dense, out_type=tf.int64)[0]]))

    def gradient(dy):
        # The matrix is made again, as loops do not carry one to their gradient.
        transposed = tf.raw_ops.SparseMatrixTranspose(input=matrix(0), type=tf.float32)
        return None, None, tf.raw_ops.SparseMatrixMatMul(a=transposed, b=dy)

    # TensorFlow's product divides by the number of rows.
    return tf.raw_ops.SparseMatrixMatMul(a=matrix(1), b=dense)[:num_rows], gradient
