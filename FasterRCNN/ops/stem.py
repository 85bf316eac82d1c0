"""What a ResNet's stem does beside its convolution: pixels become numbers, and the pool.

Each by TensorFlow's operations, or by one in C++ for processors (kernels/stem.cc) that reads and writes once.
"""
import tensorflow.compat.v1 as tf

from .kernels import built_library


def normalize_image(image, image_size, mean, std, dtype, *, by_kernel=False):
    """Turn uint8 or float32 BGR pixels into network input, zero beyond each image: B×H×W×3 -> dtype B×H×W×3.

    image_size: int32 B×2 (h, w); mean, std: three numbers each, in BGR order. dtype: what the network computes in.
    By kernel it has no gradient.
    """
    scale = [1 / s for s in std]
    if by_kernel:
        return built_library().normalize_pixels(image=image, image_size=image_size, mean=mean, scale=scale, To=dtype)
    batch, height, width, _ = tf.unstack(tf.shape(image))

    def along_row(values):
        return tf.tile(tf.constant(values, tf.float32), [width])

    # Pixels of a row one after another: TensorFlow spreads three numbers over the last axis slowly.
    x = tf.cast(tf.reshape(image, [batch, height, 3 * width]), tf.float32) - along_row(mean)
    rows = tf.sequence_mask(image_size[:, 0], height, tf.float32)[:, :, None]
    columns = tf.sequence_mask(3 * image_size[:, 1], 3 * width, tf.float32)[:, None]
    x = x * (along_row(scale) * columns) * rows
    x = tf.reshape(tf.cast(x, dtype), [batch, height, width, 3])
    x.set_shape(image.shape)
    return x


def stem_pool(x, padding, *, by_kernel=False):
    """Take the greatest of 3×3 windows at stride 2 of numbers not below zero: B×h×w×C -> B×h'×w'×C.

    padding: (before, after), rows and columns of zeros around the map.
    """
    if by_kernel:
        return built_library().stem_pool(map=x, before=padding[0], after=padding[1])
    return tf.nn.max_pool2d(tf.pad(x, [[0, 0], padding, padding, [0, 0]]), 3, 2, "VALID")


@tf.RegisterGradient("StemPool")
def _gradient_of_pool(op, of_pooled):
    # Made anew as TensorFlow's: the stem of a detector is seldom trained.
    x, = op.inputs
    return tf.gradients(stem_pool(x, (op.get_attr("before"), op.get_attr("after"))), x, of_pooled)
