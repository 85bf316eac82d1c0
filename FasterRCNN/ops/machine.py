"""What the fastest form of an operation depends on."""
import tensorflow.compat.v1 as tf


def has_gpu():
    """Tell whether TensorFlow sees a GPU, which its operations are then placed on."""
    return bool(tf.config.list_physical_devices("GPU"))
