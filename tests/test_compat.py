"""Each patch of compat.py is applied, and still needed: one that the library needs no longer makes a test fail."""

import importlib.util
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow
import tensorflow.compat.v1 as tf
from tensorpack.tfutils import summary as tensorpack_summary
from tensorpack.train import base as tensorpack_trainer
from tensorpack.train import trainers as tensorpack_trainers

from FasterRCNN.engine import compat

compat.apply()


def test_apply_again_changes_nothing():
    filters = list(logging.getLogger("tensorpack").filters)
    compat.apply()
    assert logging.getLogger("tensorpack").filters == filters


def failure_record(logger):
    """The record that `Trainer.main_loop` logs when a step fails."""
    args = ("Training failed at global_step=", 12)
    return logger.makeRecord("tensorpack", logging.ERROR, "base.py", 1, args[0], args[1:], None)


def test_failure_log_is_mended():
    logger = logging.getLogger("tensorpack")
    record = failure_record(logger)
    assert logger.filter(record)
    assert record.getMessage() == "Training failed at global_step=12"


def test_failure_log_is_still_broken():
    with open(tensorpack_trainer.__file__, encoding="utf-8") as source:
        assert 'logger.error("Training failed at global_step=", self.loop.global_step)' in source.read()
    with pytest.raises(TypeError, match="not all arguments converted"):
        failure_record(logging.getLogger("tensorpack")).getMessage()


def test_image_summary_is_mended():
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    summary = compat.image_summary("val", np.stack([picture, picture + 100]))
    assert [value.tag for value in summary.value] == ["val/0", "val/1"]
    with tf.Graph().as_default(), tf.Session() as session:
        decoded = session.run(tf.image.decode_png(summary.value[1].image.encoded_image_string))
    np.testing.assert_array_equal(decoded, picture + 100)
    assert compat.image_summary("one", picture[None]).value[0].tag == "one"
    assert compat.monitor.create_image_summary is compat.image_summary


def test_image_summary_is_still_broken():
    with pytest.raises(AttributeError, match="tostring"):
        tensorpack_summary.create_image_summary("val", np.zeros([1, 4, 4, 3], np.uint8))


def test_tensorpack_speaks_from_warnings_on():
    assert logging.getLogger("tensorpack").level == logging.WARNING
    source = importlib.util.find_spec("tensorpack.utils.logger").origin
    with open(source, encoding="utf-8") as file:
        assert "logger.setLevel(logging.INFO)" in file.read()


@pytest.mark.parametrize("patched", [False, True])
def test_eager_execution_and_notes_on_the_processor_are_there_until_patched(patched):
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    patch = "from FasterRCNN.engine import compat; compat.apply(); " if patched else ""
    command = [sys.executable, "-c", patch + "import tensorflow as tf; print(tf.executing_eagerly())"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert result.stdout == f"{not patched}\n"
    assert ("This TensorFlow binary is optimized" in result.stderr) == (not patched)


def test_horovod_s_trainer_has_the_interface_it_needs():
    compat.apply()
    assert tensorpack_trainers.tf is tf and hasattr(tensorpack_trainers.tf, "global_variables")


def test_horovod_s_trainer_still_asks_tensorflow_2():
    with open(tensorpack_trainers.__file__, encoding="utf-8") as file:
        source = file.read()
    assert "\nimport tensorflow as tf\n" in source and "len(tf.global_variables())" in source
    assert not hasattr(tensorflow, "global_variables")
