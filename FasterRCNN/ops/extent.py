"""Which cells of a padded batch belong to each image.

Images of different sizes share one tensor. Convolutions with a border would read what lies beyond an image, and biases
make that differ from the zeros that the image meets alone; so the cells beyond an image are cleared wherever a
neighbourhood is read. A batch of one image, or of images of one size, needs none of this and pays nothing.
"""
import tensorflow.compat.v1 as tf


class BatchExtent:
    """The part of each feature map that belongs to each image of a batch.

    image_size: int32 B×2 (h, w in pixels). multiple: the size each image is padded to, also when it runs alone.
    canvas: int32 2, the batch's H and W. halves_up: maps round up at every halving, not at that to P6 alone.
    without_branches: clear whether it is needed or not, as a compiler wants it, and of one image too, whose canvas may
    then be larger.
    """

    def __init__(self, image_size, multiple, canvas, *, halves_up=False, without_branches=False):
        self._halves_up = halves_up
        self._alone = image_size.shape[0] == 1 and not without_branches
        self._own = -(-image_size // multiple) * multiple
        # Of int32, which is in the host's memory: a bool for each image would be made on the GPU and awaited.
        self._fills_canvas = None if without_branches else tf.equal(tf.reduce_max(canvas - self._own), 0)

    def cells(self, stride):
        """Return int32 B×2: rows and columns of each image on the map of `stride` (pixels a cell)."""
        if self._halves_up:
            return -(-self._own // stride)
        # Halving rounds down up to stride 32; P6 keeps every second cell of P5, which rounds up.
        return self._own // stride if stride <= 32 else -(-(self._own // 32) * 32 // stride)

    def at(self, stride):
        """Return the LevelExtent of the map of `stride` (pixels a cell)."""
        return LevelExtent(self.cells(stride), alone=self._alone, fills_canvas=self._fills_canvas)


class LevelExtent:
    """A BatchExtent seen at one stride. cells: int32 B×2; fills_canvas: bool, or None where none may ask."""

    def __init__(self, cells, *, alone, fills_canvas):
        self._cells, self._alone, self._fills_canvas = cells, alone, fills_canvas

    def num_cells(self):
        """Return float32 B: the number of cells of each image."""
        return tf.cast(tf.reduce_prod(self._cells, axis=1), tf.float32)

    def own_sizes(self, x):
        """Return rows and columns of each image's part of a map, one at least: B×h×w×C -> int32 B×2, or 1×2 for all."""
        return tf.shape(x)[None, 1:3] if self._alone else tf.maximum(self._cells, 1)

    def clear(self, x):
        """Zero the cells beyond each image: B×h×w×C -> B×h×w×C."""
        def cleared():
            rows = tf.sequence_mask(self._cells[:, 0], tf.shape(x)[1], x.dtype)
            columns = tf.sequence_mask(self._cells[:, 1], tf.shape(x)[2], x.dtype)
            return x * (rows[:, :, None] * columns[:, None, :])[..., None]
        return self._unless_needless(x, cleared)

    def extend_edge(self, x):
        """Repeat each image's last row and column over the cells beyond it: B×h×w×C -> B×h×w×C."""
        def extended():
            rows = tf.minimum(tf.range(tf.shape(x)[1])[None], self._cells[:, :1] - 1)
            columns = tf.minimum(tf.range(tf.shape(x)[2])[None], self._cells[:, 1:] - 1)
            batch, height, width = tf.unstack(tf.shape(x)[:3])
            first = tf.range(batch) * height
            cells = (first[:, None] + rows)[:, :, None] * width + columns[:, None, :]
            return tf.gather(tf.reshape(x, [-1, x.shape[-1]]), tf.cast(cells, tf.int64))
        return self._unless_needless(x, extended)

    def clear_samples(self, samples, boxes, image_index):
        """Zero the samples more than half a cell beyond each image's map, as beyond the edge of an image alone.

        samples R×r×c×C, taken at the centres of the r×c parts of boxes R×4 (cells); image_index int32 R.
        """
        def cleared():
            rows, columns = (tf.cast(size, tf.float32) for size in tf.unstack(tf.shape(samples)[1:3]))
            limits = tf.cast(tf.gather(self._cells, image_index), tf.float32) + 0.5
            x = boxes[:, 0:1] + (boxes[:, 2:3] - boxes[:, 0:1]) * ((tf.range(columns) + 0.5) / columns)
            y = boxes[:, 1:2] + (boxes[:, 3:4] - boxes[:, 1:2]) * ((tf.range(rows) + 0.5) / rows)
            inside = (y <= limits[:, 0:1])[:, :, None] & (x <= limits[:, 1:2])[:, None, :]
            return samples * tf.cast(inside, samples.dtype)[..., None]
        return self._unless_needless(samples, cleared)

    def mask(self, shape):
        """Return bool B×h×w, true on each image's own cells; `shape` is (h, w)."""
        rows = tf.sequence_mask(self._cells[:, 0], shape[0])
        columns = tf.sequence_mask(self._cells[:, 1], shape[1])
        return tf.logical_and(rows[:, :, None], columns[:, None, :])

    def _unless_needless(self, x, change):
        if self._alone:
            return x
        y = change() if self._fills_canvas is None else tf.cond(self._fills_canvas, lambda: tf.identity(x), change)
        y.set_shape(x.shape)
        return y
