"""What training starts from: the weights of --load or BACKBONE.WEIGHTS, and what they tell of their model."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from config import KEYS, Config, ConfigError, default_config, format_value

import numpy as np

from FasterRCNN.engine.class_layers import copy_classes
from FasterRCNN.engine.npz import read_npz_config

logger = logging.getLogger(__name__)

# Beginnings of the keys that say what a model is, as opposed to what it is trained on and how.
_OF_BACKBONE = ("BACKBONE.", "PREPROC.PIXEL_")
_OF_MODEL = (
    *_OF_BACKBONE, "MODE_", "PREPROC.RESIZE", "PREPROC.SIZE_ROUNDING", "RPN.ANCHOR_", "RPN.HEAD_DIM", "RPN.NUM_CONVS",
    "RPN.FIT_STRIDES", "RPN.MIN_SIZE", "TEST.RESULT_MIN_SIZE", "FRCNN.BBOX_REG_WEIGHTS", "FRCNN.MAX_SCALE", "ROIALIGN.",
    "FPN.", "MRCNN.", "CASCADE.",
)
_OF_TRAINING = ("BACKBONE.WEIGHTS", "BACKBONE.FREEZE_AT", "BACKBONE.FREEZE_AFFINE")


def model_keys(source: str, *, backbone_only: bool) -> dict[str, Any]:
    """The keys, with dots, that tell what model the weights belong to, of the config in an .npz file; none without."""
    source = os.path.expanduser(source)
    stored = read_npz_config(source) if source.endswith(".npz") and os.path.isfile(source) else None
    if stored is None:
        return {}
    carried, defaults = default_config(), default_config()
    carried.update_dict(stored)
    wanted = _OF_BACKBONE if backbone_only else _OF_MODEL
    keys = {key: carried[key] for key in KEYS if key.startswith(wanted) and key not in _OF_TRAINING}
    told = " ".join(f"{key}={format_value(value)}" for key, value in keys.items() if value != defaults[key])
    logger.info("from the config in %s: %s", source, told or "the defaults")
    return keys


def choose_start_weights(
    cfg: Config, load: str | None, *, keep_classes: bool = False
) -> Callable[[Mapping[str, tuple[int, ...]]], dict[str, np.ndarray]] | None:
    """What picks a model's start values: from --load, else from BACKBONE.WEIGHTS; None from scratch.

    keep_classes: the rows of classes of the same name are copied in the heads' last layers. cfg: with the classes.
    """
    from FasterRCNN.engine.weights import read_config, read_weights, select_for_training
    from FasterRCNN.engine.zoo import padding_notice

    source = load or cfg.BACKBONE.WEIGHTS
    if not source:
        return None
    weights = read_weights(source)
    if notice := padding_notice(source, cfg.BACKBONE.TF_PAD_MODE):
        logger.warning("%s", notice)
    if keep_classes:
        names = ((read_config(source) or {}).get("DATA") or {}).get("CLASS_NAMES")
        if not names:
            raise ConfigError(f"--keep-classes: {source} carries no class names; leave it out")
        weights, kept = copy_classes(weights, names, cfg.DATA.CLASS_NAMES, seed=cfg.TRAIN.SEED)
        logger.info("kept from %s: %s; new: %s", source, ", ".join(kept) or "no class",
                    ", ".join(name for name in cfg.DATA.CLASS_NAMES if name not in kept) or "none")

    def select(variables: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        values, report = select_for_training(weights, variables, config=cfg.to_dict(), source=source)
        logger.info("weights from %s:\n%s", source, report.summary())
        return values

    return select
