"""Gathers and loops over the images of a batch that a GPU runs without the host.

TensorFlow keeps int32 arithmetic in the host's memory even on a GPU; indices that are computed with are int64.
"""
import tensorflow.compat.v1 as tf

# Those of one image: a row for each level.
SIDE_BY_SIDE = 8


def gather_rows(x, indices):
    """Return x[b, indices[b]]: B×N×…, integer B×S -> B×S×….

    As `tf.gather(x, indices, batch_dims=1)`, whose gradient computes shapes on the GPU.
    """
    shape = tf.shape(x)
    start = tf.cast(tf.range(shape[0]) * shape[1], tf.int64)
    flat = tf.reshape(x, tf.concat([[shape[0] * shape[1]], shape[2:]], axis=0))
    found = tf.gather(flat, tf.cast(indices, tf.int64) + start[:, None])
    found.set_shape(indices.shape.concatenate(x.shape[2:]))
    return found


def permute_rows(x, places):
    """Return y with y[places[i]] = x[i]: N×…, int64 N, a permutation -> N×….

    As `tf.dynamic_stitch`, which wants the places in the host's memory, and faster than `tf.scatter_nd`.
    """
    rows = tf.range(tf.size(places, out_type=tf.int64))
    sources = tf.scatter_nd(places[:, None], rows, tf.shape(rows, out_type=tf.int64))
    return tf.custom_gradient(lambda x: (tf.gather(x, sources), lambda dy: tf.gather(dy, places)))(x)


def map_rows(function, rows, dtypes):
    """Return the stacked results of function(row) of each row: list of N×… -> list of N×…, without gradient.

    A few rows, their number known, go side by side. Else as `tf.map_fn`, whose loop asks the GPU whether to go on.
    """
    known = max(row.shape[0] or 0 for row in rows)
    if 0 < known <= SIDE_BY_SIDE:
        results = [function([row[i] for row in rows]) for i in range(known)]
        return [tf.stack(values) for values in zip(*results)]
    count = tf.shape(rows[0])[0]

    def step(i, *results):
        values = function([row[i] for row in rows])
        return i + 1, *(result.write(i, value) for result, value in zip(results, values))

    start = [tf.TensorArray(dtype, count) for dtype in dtypes]
    _, *results = tf.while_loop(lambda i, *_: i < count, step, (0, *start), back_prop=False)
    return [result.stack() for result in results]
