"""A tiny Mask R-CNN of fixed arbitrary weights as a file, for tests that load a model as users do."""

from pathlib import Path

import config

import numpy as np
import tensorflow.compat.v1 as tf
from tiny import NUM_CLASSES, TINY, random_image

from FasterRCNN.engine.npz import save_npz
from FasterRCNN.modeling.build import build_detector
from tools.compare_reference import reference_value

CLASS_NAMES = ("circle", "square", "triangle")
PHOTO_SIZES = [(60, 90), (96, 64), (80, 80), (48, 100)]  # height, width


def write_model(path: Path) -> Path:
    """Writes the model as .npz with its config inside; what it finds is arbitrary, and the same each time."""
    cfg = config.default_config()
    cfg.update_dict(TINY | {
        "DATA.CLASS_NAMES": list(CLASS_NAMES),
        "DATA.CATEGORY_IDS": list(range(1, NUM_CLASSES + 1)),
        "PREPROC.TEST_SHORT_EDGE_SIZE": 64,
    })
    config.finalize_configs(cfg, is_training=False)
    with tf.Graph().as_default() as graph:
        build_detector(cfg).detect(tf.placeholder(tf.uint8, [1, None, None, 3]), tf.placeholder(tf.int32, [1, 2]))
        variables = graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)
    values = {v.op.name: reference_value(v.op.name, v.shape.as_list()) for v in variables}
    save_npz(path, values, cfg.to_dict())
    return path


def photos() -> list[np.ndarray]:
    """Photos of various sizes, BGR, and the last one black."""
    return [random_image(height, width, seed) for seed, (height, width) in enumerate(PHOTO_SIZES)] + [
        np.zeros((70, 70, 3), np.uint8)]
