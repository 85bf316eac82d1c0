"""Photos to the network's input size inside a graph, to the pixels of imaging/resize.py, in plain operators."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow.compat.v1 as tf

# Bilinear weights of uint8 images are whole numbers of so many bits: OpenCV's, and Pillow's.
WEIGHT_BITS = 11
PILLOW_WEIGHT_BITS = 22


@dataclass(frozen=True)
class Resizing:
    """How photos are resized; the fields are the arguments of `resize_image` in imaging/resize.py."""

    short_edge: int
    max_size: int
    method: str = "opencv"
    rounding: str = "nearest"

    @property
    def dtype(self) -> tf.DType:
        """The type of resized photos."""
        return tf.float32 if self.method == "float" else tf.uint8

    def new_size(self, size: tf.Tensor) -> tf.Tensor:
        """`resized_shape` of imaging/resize.py: int32 2 (h, w) -> int32 2."""
        exact = tf.cast(size, tf.float64)
        short, long = tf.reduce_min(exact), tf.reduce_max(exact)
        if self.rounding == "short":
            fitting = tf.maximum(tf.round(self.max_size * short / long), 1.0)
            edge = tf.where(long / short * self.short_edge > self.max_size, fitting, float(self.short_edge))
            scaled = tf.where(tf.equal(exact, short), edge * tf.ones_like(exact), edge * exact / short)
        else:
            scale = tf.minimum(self.short_edge / short, self.max_size / long)
            scaled = exact * scale + (0.5 if self.rounding == "nearest" else 0.0)
        return tf.maximum(1, tf.cast(scaled, tf.int32))

    def resize(self, image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        """`resize_image` of imaging/resize.py: uint8 …×h×w×3, int32 2 (h, w) -> …×h'×w'×3."""
        functions = {"opencv": resize_as_opencv, "float": resize_bilinear, "pillow": resize_as_pillow}
        return functions[self.method](image, size)


def resize_bilinear(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """cv2.resize of a float image with INTER_LINEAR: …×h×w×3, int32 2 (h, w) -> float32 …×h'×w'×3."""
    axis = image.shape.rank - 3
    left, right, along_x = _neighbours(tf.shape(image)[axis + 1], size[1])
    top, bottom, along_y = _neighbours(tf.shape(image)[axis], size[0])
    image = tf.cast(image, tf.float32)

    def blend(values: tf.Tensor, first: tf.Tensor, second: tf.Tensor, share: tf.Tensor, axis: int) -> tf.Tensor:
        return tf.gather(values, first, axis=axis) * (1 - share) + tf.gather(values, second, axis=axis) * share

    lines = blend(image, left, right, along_x[:, None], axis + 1)
    return blend(lines, top, bottom, along_y[:, None, None], axis)


def resize_as_opencv(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """cv2.resize with INTER_LINEAR, to the bit: uint8 …×h×w×3, int32 2 (h, w) -> uint8 …×h'×w'×3.

    OpenCV adds along x, then along y, in whole numbers, and drops bits where it does (imgproc/src/resize.cpp, the
    vectorised `VResizeLinear` of 8 bits).
    """
    axis = image.shape.rank - 3
    left, right, along_x = _neighbours(tf.shape(image)[axis + 1], size[1])
    top, bottom, along_y = _neighbours(tf.shape(image)[axis], size[0])

    def parts(share: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.round(share * 2.0**WEIGHT_BITS), tf.int32)

    def column(index: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.gather(image, index, axis=axis + 1), tf.int32) * parts(share)[:, None]

    def row(index: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
        return tf.bitwise.right_shift(tf.gather(lines, index, axis=axis) * parts(share)[:, None, None], 16)

    lines = tf.bitwise.right_shift(column(left, 1 - along_x) + column(right, along_x), 4)
    total = row(top, 1 - along_y) + row(bottom, along_y)
    return tf.cast(tf.bitwise.right_shift(total + 2, 2), tf.uint8)


def _neighbours(old: tf.Tensor, new: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """(index before, index after, share of the latter), int32 and float32, of `new` pixels along one axis."""
    scale = 1.0 / (tf.cast(new, tf.float64) / tf.cast(old, tf.float64))
    position = tf.cast((tf.cast(tf.range(new), tf.float64) + 0.5) * scale - 0.5, tf.float32)
    before = tf.floor(position)
    first = tf.cast(before, tf.int32)
    return (*(tf.minimum(tf.maximum(index, 0), old - 1) for index in (first, first + 1)), position - before)


def resize_as_pillow(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Pillow's Image.resize with BILINEAR: uint8 …×h×w×3, int32 2 (h, w) -> uint8 …×h'×w'×3.

    Each pixel is a mean over a triangle as wide as a new pixel, or an old one where that is wider; along x, then y,
    whole grey values after each (libImaging/Resample.c).
    """
    axis = image.shape.rank - 3
    lines = _mean_along(tf.cast(image, tf.float64), size[1], axis + 1)
    return tf.cast(_mean_along(lines, size[0], axis), tf.uint8)


def _mean_along(image: tf.Tensor, new: tf.Tensor, axis: int) -> tf.Tensor:
    old = tf.shape(image)[axis]
    scale = tf.cast(old, tf.float64) / tf.cast(new, tf.float64)
    centres = (tf.cast(tf.range(new), tf.float64) + 0.5) * scale
    positions = tf.cast(tf.range(old), tf.float64) + 0.5
    weights = tf.maximum(1 - tf.abs(positions - centres[:, None]) / tf.maximum(scale, 1.0), 0.0)
    one = 2.0**PILLOW_WEIGHT_BITS
    weights = tf.floor(weights * (1.0 / tf.reduce_sum(weights, axis=1, keepdims=True)) * one + 0.5)  # exact in float64
    outer = [i for i in range(image.shape.rank) if i != axis]
    moved = tf.transpose(image, [axis, *outer])
    rest = tf.shape(moved)[1:]
    mean = tf.reshape(tf.matmul(weights, tf.reshape(moved, [old, -1])), tf.concat([[new], rest], axis=0))
    places = [*range(1, axis + 1), 0, *range(axis + 1, image.shape.rank)]
    return tf.floor(tf.transpose(mean, places) / one + 0.5)
