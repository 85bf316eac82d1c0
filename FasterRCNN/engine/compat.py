"""What tensorpack 0.11 needs on TensorFlow 2.21: every patch with its reason; the tests say when one has had its day.

Import this module before any other that imports TensorFlow; call `apply()` before building a graph for a trainer.
"""

import functools
import logging
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only; 0 shows all. Read once, at TensorFlow's import

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow.compat.v1 as tf  # noqa: E402
from tensorpack.callbacks import monitor  # noqa: E402
from tensorpack.train import trainers  # noqa: E402


@functools.cache
def apply():
    """Applies every patch; calling it again does nothing."""
    build_graphs()
    mend_failure_log()
    mend_image_summary()
    mend_horovod_trainer()
    quieten()


def build_graphs():
    """Turns eager execution off: tensorpack's input queue and variables exist in graphs only."""
    tf.disable_eager_execution()


def mend_failure_log():
    """Completes tensorpack's line "Training failed at global_step=".

    `Trainer.main_loop` hands the step over without a place for it in the text, so that logging prints a traceback of
    its own (TypeError: not all arguments converted) above the real error.
    """
    logging.getLogger("tensorpack").addFilter(_complete_failure_record)


def _complete_failure_record(record: logging.LogRecord) -> bool:
    if record.args and record.msg == "Training failed at global_step=":
        record.msg += "%s"
    return True


def mend_image_summary():
    """Replaces tensorpack's maker of TensorBoard pictures, which calls `ndarray.tostring`: gone since NumPy 2.3."""
    monitor.create_image_summary = image_summary


def image_summary(name: str, images: np.ndarray) -> tf.Summary:
    """A TensorBoard summary of N×H×W×C pictures (C = 1, or 3 in RGB order; 0..255): `name`, or `name/k` when N > 1."""
    summary = tf.Summary()
    for k, image in enumerate(images.astype(np.uint8)):
        png = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
        height, width, channels = image.shape
        value = tf.Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=png)
        summary.value.add(tag=name if len(images) == 1 else f"{name}/{k}", image=value)
    return summary


def mend_horovod_trainer():
    """Gives `HorovodTrainer` the TensorFlow 1 interface: it asks TensorFlow 2 for `tf.global_variables`."""
    trainers.tf = tf


def quieten():
    """Keeps tensorpack's and TensorFlow's warnings and errors, and drops their running commentary.

    tensorpack announces each internal step at INFO ("Training was stopped by exception" at a normal end among them);
    TensorFlow marks as deprecated the very functions that a tensorpack model must call.
    """
    logging.getLogger("tensorpack").setLevel(logging.WARNING)
    tf.logging.set_verbosity(tf.logging.ERROR)
