#!/usr/bin/env python3
"""The configuration: one flat table of keys, changed by KEY=VALUE or YAML files, checked, then read-only.

The keys are tensorpack's, with the defaults of its first release, so that its published commands work as typed.
Values are parsed as Python literals and never evaluated.  `./config.py` prints the table.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import functools
import importlib.util
import logging
import math
import os
import re
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

# Every command imports this module before any package, so that a Python without them is told what to do.
if _absent := [name for name in ("cv2", "numpy", "pycocotools", "tensorflow", "tensorpack", "yaml")
               if importlib.util.find_spec(name) is None]:
    sys.exit(f"error: {sys.executable} lacks {', '.join(_absent)}: run `make setup`, then `source .venv/bin/activate`")

logger = logging.getLogger(__name__)

GN_GROUPS = 32  # of every group normalisation; tensorpack's
FPN_STRIDES = (4, 8, 16, 32, 64)  # P2..P6 of a ResNet
C4_STRIDE = 16


class ConfigError(ValueError):
    """A mistake in the configuration; the message names the key, the value and the way out."""


class UnknownKeyError(ConfigError, AttributeError):
    """A key that does not exist (an AttributeError too, so that hasattr works)."""


@dataclass(frozen=True)
class Limit:
    """What a value, or each item of a list, must be, and how to say it."""

    words: str
    holds: Callable[[Any], bool]


def one_of(*choices: Any) -> Limit:
    """Only these values."""
    return Limit(f"one of {', '.join(map(str, choices))}", lambda x: x in choices)


AT_LEAST_ONE = Limit("at least 1", lambda x: x is None or x >= 1)
NOT_NEGATIVE = Limit("at least 0", lambda x: x is None or x >= 0)
ABOVE_ZERO = Limit("above 0", lambda x: x is None or x > 0)
SHARE = Limit("above 0 and at most 1", lambda x: 0 < x <= 1)
FRACTION = Limit("at least 0 and at most 1", lambda x: 0 <= x <= 1)
BELOW_ONE = Limit("at least 0 and below 1", lambda x: 0 <= x < 1)
PRECISIONS = one_of("fp32", "bf16", "fp16")
NORMS = one_of("FreezeBN", "SyncBN", "GN", "None")
BOX_HEADS = one_of(
    "fastrcnn_2fc_head", "fastrcnn_2fc_gn_head", "fastrcnn_4conv1fc_head", "fastrcnn_4conv1fc_gn_head")
MASK_HEADS = one_of("maskrcnn_up4conv_head", "maskrcnn_up4conv_gn_head")


@dataclass(frozen=True)
class Key:
    """One row of the table; `length` is that of a list."""

    name: str
    default: Any
    type: Any
    help: str
    limit: Limit | None = None
    length: int | None = None


CASCADE_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))

TABLE = (
    # ---- what is built ----
    Key("TRAINER", "replicated", str,
        "replicated: this machine's GPUs; horovod: many machines", one_of("replicated", "horovod")),
    Key("MODE_MASK", True, bool, "predict masks (Mask R-CNN); False: boxes only (Faster R-CNN)"),
    Key("MODE_FPN", False, bool, "feature pyramid; False: the C4 model"),
    # ---- data ----
    Key("DATA.BASEDIR", "", str, "folder with annotations/ and the image folders of the named (coco_*) data sets"),
    Key("DATA.TRAIN", ("coco_train2017",), list[str],
        "training sets, joined: coco_train2017 ..., path/instances.json:path/to/images, voc:DIR:SPLIT, a CATALOG name"),
    Key("DATA.VAL", ("coco_val2017",), list[str], "evaluation sets, each evaluated apart; written as DATA.TRAIN"),
    Key("DATA.NUM_CLASS", 0, int,
        "classes without the background; 0: found from the annotations or CLASS_NAMES", NOT_NEGATIVE),
    Key("DATA.CLASS_NAMES", (), list[str], "class names in label order; filled from the annotations"),
    Key("DATA.CATEGORY_IDS", (), list[int], "the annotations' category ids in label order; filled likewise"),
    Key("DATA.ABSOLUTE_COORD", True, bool, "annotated boxes are in pixels; False: in fractions of the image's sides"),
    Key("DATA.FILTER_EMPTY_ANNOTATIONS", True, bool, "leave images without (non-crowd) objects out of training"),
    Key("DATA.CATALOG", "", str, "your own module of data sets, path/to/my_datasets.py (docs/your_own_data.md)"),
    Key("DATA.METRIC", "auto", str, "evaluate by COCO's or Pascal VOC's numbers; auto: by the set's format",
        one_of("auto", "coco", "voc")),
    Key("DATA.ON_ERROR", "skip", str, "what `data.py --check` calls an error: left out and counted, or stops the run",
        one_of("skip", "stop")),
    Key("DATA.MAX_BAD", 0.05, float, "greatest share of images that cannot be read; each is replaced by another",
        FRACTION),
    Key("DATA.CACHE", "", str, "folder of loaded records, mapped by all processes; '': ~/.cache/fasterrcnn; none: off"),
    Key("DATA.NUM_WORKERS", 10, int,
        "processes that load, and that score in eval.py, at most one per CPU core; 0: all in one process",
        NOT_NEGATIVE),
    # ---- backbone ----
    Key("BACKBONE.WEIGHTS", "", str, "pretrained backbone (.npz or checkpoint); '' and FREEZE_AT=0: from scratch"),
    Key("BACKBONE.RESNET_NUM_BLOCKS", (3, 4, 6, 3), list[int],
        "blocks of the ResNet's four groups; [3,4,23,3] is R101", AT_LEAST_ONE, length=4),
    Key("BACKBONE.CHANNELS", 64, int,
        "channels of the stem; the groups give 4, 8, 16 and 32 times as many", AT_LEAST_ONE),
    Key("BACKBONE.NUM_GROUPS", 1, int, "groups of a block's 3x3 convolution; 32 is ResNeXt", AT_LEAST_ONE),
    Key("BACKBONE.WIDTH_PER_GROUP", None, int | None,
        "channels of each group in the first group of blocks, doubled in each next; None: CHANNELS / NUM_GROUPS",
        AT_LEAST_ONE),
    Key("BACKBONE.NORM", "FreezeBN", str, "normalisation in the backbone", NORMS),
    Key("BACKBONE.FREEZE_AFFINE", False, bool, "do not train the normalisation's gamma and beta"),
    Key("BACKBONE.FREEZE_AT", 2, int, "not trained: 0 nothing, 1 the stem, 2 the stem and group0", one_of(0, 1, 2)),
    Key("BACKBONE.TF_PAD_MODE", False, bool,
        "strided layers pad more at bottom/right ('Pad' weights); False: top/left ('AlignPadding')"),
    Key("BACKBONE.SYMMETRIC_PAD", False, bool,
        "strided layers pad all sides equally, so that maps of odd size round up (Caffe, PyTorch)"),
    Key("BACKBONE.STRIDE_1X1", False, bool,
        "stride in a block's first 1x1 convolution (MSRA/caffe2 weights), not the 3x3"),
    # ---- training ----
    Key("TRAIN.NUM_GPUS", None, int | None, "GPUs to train on; None: all that are found, 0: the CPU", NOT_NEGATIVE),
    Key("TRAIN.IMS_PER_GPU", 1, int, "images per device and step", AT_LEAST_ONE),
    Key("TRAIN.ACCUM", 1, int, "batches of each device whose gradients make one step", AT_LEAST_ONE),
    Key("TRAIN.SEED", 0, int, "seed of the images' order, augmentation, sampling and start values", NOT_NEGATIVE),
    Key("TRAIN.BASE_LR", 1e-2, float, "learning rate for 8 images a step; scaled with the true batch", ABOVE_ZERO),
    Key("TRAIN.WARMUP", 1000, int, "steps of linear warm-up, of 8 images each", NOT_NEGATIVE),
    Key("TRAIN.WARMUP_INIT_LR", 1e-5, float,
        "learning rate at the first warm-up step, for 8 images a step", NOT_NEGATIVE),
    Key("TRAIN.LR_SCHEDULE", "2x", str | list[int],
        "'1x' .. '9x', or steps of 8 images: the rate falls at each but the last, where training ends"),
    Key("TRAIN.LR_DECAY", "step", str,
        "step: x 0.1 at LR_SCHEDULE's steps; cosine: to 0 at its last step", one_of("step", "cosine")),
    Key("TRAIN.MOMENTUM", 0.9, float, "momentum of SGD", BELOW_ONE),
    Key("TRAIN.WEIGHT_DECAY", 1e-4, float, "weight decay of every trained kernel", NOT_NEGATIVE),
    Key("TRAIN.GRADIENT_CLIP", 0.0, float, "largest global norm of the gradient; 0: not clipped", NOT_NEGATIVE),
    Key("TRAIN.PRECISION", "fp32", str,
        "of the network; losses, box deltas and weights stay fp32. fp16 scales the loss", PRECISIONS),
    Key("TRAIN.XLA", False, bool,
        "compile backbone, FPN and RPN by XLA, for GPUs; images are padded to few sizes, each compiled once"),
    Key("TRAIN.HALF_ON_WIRE", False, bool, "horovod: exchange gradients as float16, half the bytes"),
    Key("TRAIN.STALL_TIMEOUT", 600, int,
        "seconds without any progress after which a run ends and names who stalled; 0: never",
        Limit("0 or at least 20", lambda x: x == 0 or x >= 20)),
    Key("TRAIN.STEPS_PER_EPOCH", 500, int, "steps of an epoch, the unit of the periods below", AT_LEAST_ONE),
    Key("TRAIN.STARTING_EPOCH", 1, int, "first epoch", AT_LEAST_ONE),
    Key("TRAIN.EVAL_PERIOD", 50, int, "epochs between evaluations", AT_LEAST_ONE),
    Key("TRAIN.CHECKPOINT_PERIOD", 20, int, "epochs between checkpoints", AT_LEAST_ONE),
    Key("TRAIN.SUMMARY_PERIOD", 20, int, "steps between two points of the written curves", AT_LEAST_ONE),
    # ---- image preprocessing ----
    Key("PREPROC.TRAIN_SHORT_EDGE_SIZE", (800, 800), list[int],
        "training: the shorter side in pixels, drawn from [min,max]", AT_LEAST_ONE, length=2),
    Key("PREPROC.TEST_SHORT_EDGE_SIZE", 800, int, "prediction: the shorter side in pixels", AT_LEAST_ONE),
    Key("PREPROC.MAX_SIZE", 1333, int,
        "largest longer side in pixels (see FPN.ROUND_MAX_SIZE)", AT_LEAST_ONE),
    Key("PREPROC.RESIZE", "opencv", str,
        "bilinear; pillow: averages as it shrinks (detectron2); float: without whole grey values (torchvision)",
        one_of("opencv", "pillow", "float")),
    Key("PREPROC.SIZE_ROUNDING", "nearest", str,
        "sides to whole pixels: both to the nearest, both by floor (torchvision), short first (maskrcnn-benchmark)",
        one_of("nearest", "floor", "short")),
    Key("PREPROC.PIXEL_MEAN", (123.675, 116.28, 103.53), list[float], "subtracted from the pixels, RGB", length=3),
    Key("PREPROC.PIXEL_STD", (58.395, 57.12, 57.375), list[float], "divides the pixels, RGB", ABOVE_ZERO, length=3),
    Key("PREPROC.AUGMENT", ("flip_horizontal",), list[str],
        "what is done to training images, in order, such as 'rotate(degrees=10)' (docs/your_own_data.md)"),
    # ---- region proposals ----
    Key("RPN.ANCHOR_STRIDE", C4_STRIDE, int, "C4: pixels between anchors"),
    Key("RPN.ANCHOR_SIZES", (32, 64, 128, 256, 512), list[int],
        "square roots of the anchors' areas; FPN: one a level", AT_LEAST_ONE),
    Key("RPN.ANCHOR_RATIOS", (0.5, 1.0, 2.0), list[float], "height / width of the anchors", ABOVE_ZERO),
    Key("RPN.ANCHOR_OFFSET", 0.0, float, "where in its cell an anchor is centred, as a share of it; 0.5: mid-cell",
        FRACTION),
    Key("RPN.ANCHOR_ROUNDING", "none", str,
        "to whole pixels: an anchor's corners (torchvision), or the sides of the stride's anchor (Detectron)",
        one_of("none", "corners", "sides")),
    Key("RPN.FIT_STRIDES", False, bool,
        "anchors stand image side // cells pixels apart (torchvision's P6); False: the level's stride"),
    Key("RPN.POSITIVE_ANCHOR_THRESH", 0.7, float, "anchors of this IoU or more are foreground", SHARE),
    Key("RPN.NEGATIVE_ANCHOR_THRESH", 0.3, float, "anchors of less IoU are background", SHARE),
    Key("RPN.CROWD_OVERLAP_THRESH", 9.99, float,
        "anchors with a greater share inside a crowd are ignored; > 1: none", ABOVE_ZERO),
    Key("RPN.BATCH_PER_IM", 256, int, "anchors sampled of an image for the loss", AT_LEAST_ONE),
    Key("RPN.FG_RATIO", 0.5, float, "greatest share of foreground among them", SHARE),
    Key("RPN.MIN_SIZE", 0.0, float, "proposals with a shorter side are dropped", NOT_NEGATIVE),
    Key("RPN.PROPOSAL_NMS_THRESH", 0.7, float, "IoU of the proposals' non-maximum suppression", SHARE),
    Key("RPN.NUM_CONVS", 1, int, "3x3 convolutions of the RPN", AT_LEAST_ONE),
    Key("RPN.HEAD_DIM", 1024, int, "C4: channels of the RPN's 3x3 convolution (FPN: FPN.NUM_CHANNEL)", AT_LEAST_ONE),
    Key("RPN.TRAIN_PRE_NMS_TOPK", 12000, int,
        "C4 and 'Joint', training: best anchors before suppression", AT_LEAST_ONE),
    Key("RPN.TRAIN_POST_NMS_TOPK", 2000, int, "C4 and 'Joint', training: proposals after it", AT_LEAST_ONE),
    Key("RPN.TEST_PRE_NMS_TOPK", 6000, int,
        "C4 and 'Joint', prediction: best anchors before suppression", AT_LEAST_ONE),
    Key("RPN.TEST_POST_NMS_TOPK", 1000, int, "C4 and 'Joint', prediction: proposals after it", AT_LEAST_ONE),
    Key("RPN.TRAIN_PER_LEVEL_NMS_TOPK", 2000, int,
        "FPN, training: anchors a level before suppression, proposals in all after", AT_LEAST_ONE),
    Key("RPN.TEST_PER_LEVEL_NMS_TOPK", 1000, int,
        "FPN, prediction: anchors a level before suppression, proposals in all after", AT_LEAST_ONE),
    # ---- box head ----
    Key("FRCNN.BATCH_PER_IM", 512, int, "RoIs sampled of an image for the loss", AT_LEAST_ONE),
    Key("FRCNN.FG_THRESH", 0.5, float, "RoIs of this IoU or more are foreground", SHARE),
    Key("FRCNN.FG_RATIO", 0.25, float, "greatest share of foreground among the sampled RoIs", SHARE),
    Key("FRCNN.BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0), list[float],
        "weights of the deltas tx, ty, tw, th", ABOVE_ZERO, length=4),
    Key("FRCNN.MAX_SCALE", None, float | None,
        "most times that deltas lengthen a side; None: PREPROC.MAX_SIZE / 16; 62.5 in PyTorch's programs", ABOVE_ZERO),
    Key("ROIALIGN.SAMPLES", 2, int,
        "samples in a bin of an RoI, along each axis; 0: as many as it spans cells", NOT_NEGATIVE),
    Key("ROIALIGN.ALIGNED", True, bool,
        "RoIs lie on the map as on the image; False: half a cell off, at least a cell wide (torchvision, Detectron)"),
    Key("ROIALIGN.INCLUSIVE", False, bool,
        "RoIs end a pixel earlier, at the first edge of their last pixel (maskrcnn-benchmark, Detectron)"),
    # ---- feature pyramid ----
    Key("FPN.ANCHOR_STRIDES", FPN_STRIDES, list[int], "pixels between anchors on P2..P6"),
    Key("FPN.PROPOSAL_MODE", "Level", str,
        "suppression per level, or Joint over all with C4's counts", one_of("Level", "Joint")),
    Key("FPN.NUM_CHANNEL", 256, int, "channels of every level", AT_LEAST_ONE),
    Key("FPN.NORM", "None", str, "normalisation in the pyramid", one_of("None", "GN")),
    Key("FPN.FRCNN_HEAD_FUNC", "fastrcnn_2fc_head", str, "box head", BOX_HEADS),
    Key("FPN.FRCNN_CONV_HEAD_DIM", 256, int, "channels of the box head's convolutions", AT_LEAST_ONE),
    Key("FPN.FRCNN_FC_HEAD_DIM", 1024, int, "width of the box head's fully-connected layers", AT_LEAST_ONE),
    Key("FPN.MRCNN_HEAD_FUNC", "maskrcnn_up4conv_head", str, "mask head", MASK_HEADS),
    Key("FPN.NORM_BEFORE_RELU", False, bool,
        "heads with GN: convolution, GN, ReLU, as all but tensorpack; False: ReLU before GN"),
    Key("FPN.ROUND_MAX_SIZE", True, bool, "round PREPROC.MAX_SIZE up to a multiple of 32"),
    Key("FPN.CASCADE", False, bool, "three box heads in a row (Cascade R-CNN)"),
    # ---- mask head, cascade ----
    Key("MRCNN.HEAD_DIM", 256, int, "channels of the mask head", AT_LEAST_ONE),
    Key("MRCNN.PASTE", "exact", str,
        "paste masks into the boxes as they are, rounded to pixels, or padded and cut to pixels (torchvision)",
        one_of("exact", "rounded", "padded")),
    Key("CASCADE.IOUS", (0.5, 0.6, 0.7), list[float], "foreground IoU of each stage", SHARE),
    Key("CASCADE.BBOX_REG_WEIGHTS", CASCADE_WEIGHTS, list[list[float]], "weights of each stage's deltas"),
    # ---- prediction ----
    Key("TEST.IMS_PER_GPU", 1, int, "images per device and step", AT_LEAST_ONE),
    Key("TEST.BATCHES_AT_ONCE", 2, int,
        "on processors: batches that are in the network together; more photos a second for more memory", AT_LEAST_ONE),
    Key("TEST.PRECISION", "fp32", str, "of the network; bf16 is fast on CPUs with AMX and on GPUs", PRECISIONS),
    Key("TEST.FRCNN_NMS_THRESH", 0.5, float, "IoU of the detections' class-wise non-maximum suppression", SHARE),
    Key("TEST.RESULT_SCORE_THRESH", 0.05, float, "detections of a lower score are dropped", BELOW_ONE),
    Key("TEST.RESULT_MIN_SIZE", 0.0, float,
        "detections with a shorter side, in pixels of the network's image, are dropped", NOT_NEGATIVE),
    Key("TEST.RESULT_SCORE_THRESH_VIS", 0.5, float, "detections of a lower score are not drawn", BELOW_ONE),
    Key("TEST.RESULTS_PER_IM", 100, int, "most detections of an image", AT_LEAST_ONE),
    Key("TEST.MASK_THRESH", 0.5, float, "mask probability from which a pixel belongs to the object", BELOW_ONE),
    Key("TEST.AUGMENT_SCALES", (), list[int],
        "look at each photo with its shorter side at each of these, pixels, and join what is seen; []: one look",
        AT_LEAST_ONE),
    Key("TEST.AUGMENT_FLIPS", (), list[str], "look at each photo mirrored too, at each scale",
        one_of("horizontal", "vertical")),
)

KEYS: dict[str, Key] = {key.name: key for key in TABLE}
GROUPS: dict[str, tuple[str, ...]] = {
    group: tuple(name for name in KEYS if name.startswith(group + "."))
    for group in dict.fromkeys(name.split(".")[0] for name in KEYS if "." in name)
}

# Spellings of tensorpack's first releases: old key -> what it sets, as functions of the value given.
OLD_KEYS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "PREPROC.SHORT_EDGE_SIZE": {
        "PREPROC.TEST_SHORT_EDGE_SIZE": lambda size: size,
        "PREPROC.TRAIN_SHORT_EDGE_SIZE": lambda size: [size, size],
    },
    "BACKBONE.RESNET_NUM_BLOCK": {"BACKBONE.RESNET_NUM_BLOCKS": lambda blocks: blocks},
    "MRCNN.ACCURATE_PASTE": {
        "MRCNN.PASTE": lambda accurate: "exact" if accurate is True else "rounded" if accurate is False else accurate,
    },
    "DATA.NUM_CATEGORY": {"DATA.NUM_CLASS": lambda count: count},
}
# For the error messages of keys whose default is empty.
EXAMPLES = {
    "DATA.BASEDIR": "/path/to/COCO",
    "DATA.CLASS_NAMES": ["cat", "dog"],
    "DATA.CATEGORY_IDS": [17, 18],
    "BACKBONE.WEIGHTS": "/path/to/weights.npz",
    "TEST.AUGMENT_SCALES": [600, 800, 1000],
    "TEST.AUGMENT_FLIPS": ["horizontal"],
}
COMMA = re.compile(r",(?![^()]*\))")  # between items, not between an item's own arguments
OLD_DATASETS = ("train2014", "val2014", "minival2014", "valminusminival2014", "train2017", "val2017")


# ---------------------------------------------------------------- values


def parse_literal(text: str) -> Any:
    """The Python literal that `text` spells, or `text` itself when it spells none."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def format_value(value: Any) -> str:
    """`value` as it is typed on the command line: lists without spaces, text without quotes."""
    if isinstance(value, (list, tuple)):
        quoted = (repr(item) if isinstance(item, str) else format_value(item) for item in value)
        return "[" + ",".join(quoted) + "]"
    return str(value)


def describe_type(kind: Any, length: int | None = None) -> str:
    """`kind` in words, such as "a list of 4 whole numbers"."""
    singular = {bool: "True or False", int: "a whole number", float: "a number", str: "text", type(None): "None"}
    plural = {int: "whole numbers", float: "numbers", str: "texts", list[float]: "lists of numbers"}
    if isinstance(kind, UnionType):
        return " or ".join(describe_type(option, length) for option in get_args(kind))
    if get_origin(kind) is list:
        return f"a list of {f'{length} ' if length else ''}{plural[get_args(kind)[0]]}"
    return singular[kind]


def _coerce(value: Any, kind: Any) -> Any:
    """`value` as `kind` (lists become tuples, so that a frozen config is frozen all through), or TypeError."""
    if isinstance(kind, UnionType):
        for option in get_args(kind):
            try:
                return _coerce(value, option)
            except TypeError:
                continue
        raise TypeError
    if get_origin(kind) is list:
        if not isinstance(value, (list, tuple)):
            raise TypeError
        return tuple(_coerce(item, get_args(kind)[0]) for item in value)
    if kind is float and type(value) is int and abs(value) < 1e300:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise TypeError
    return value


def _read_text(text: str, kind: Any) -> Any:
    """What `text` means for a key of type `kind`: a literal, or the text itself where the key holds text."""
    literal = parse_literal(text)
    if kind is str:
        return literal if isinstance(literal, str) else text
    if kind == list[str]:
        if isinstance(literal, str):
            bare = text.strip()
            brackets = bare[:1] + bare[-1:]
            items = COMMA.split(bare[1:-1] if brackets in ("[]", "()") else literal)
            return [item.strip() for item in items if item.strip()]
        return literal if isinstance(literal, (list, tuple)) else [text]
    if isinstance(kind, UnionType) and str in get_args(kind) and not isinstance(literal, (list, tuple)):
        return literal if isinstance(literal, str) else text
    return literal


def _accept(key: Key, value: Any) -> Any:
    """`value` in the type of `key`; ConfigError when it is of another, or beyond its limit."""
    given = value
    if value is None and key.type is str and key.limit and key.limit.holds("None"):
        value = "None"
    if isinstance(value, str):
        value = _read_text(value, key.type)
    try:
        value = _coerce(value, key.type)
        if key.length is not None and isinstance(value, tuple) and len(value) != key.length:
            raise TypeError
    except TypeError:
        example = format_value(key.default if key.default not in ("", (), None) else EXAMPLES.get(key.name, "1"))
        wanted = describe_type(key.type, key.length)
        raise ConfigError(f"{key.name}={given!r}: wants {wanted}, e.g. {key.name}={example}") from None
    items = value if isinstance(value, tuple) else (value,)
    if key.limit and not all(key.limit.holds(item) for item in items):
        raise ConfigError(f"{key.name}={format_value(value)}: must be {key.limit.words}")
    return value


def nearest_keys(name: str) -> list[str]:
    """Up to three known keys that resemble `name`, the likeliest first."""
    name = name.upper()

    def likeness(key: str) -> float:
        pairs = ((name, key), (name.split(".")[-1], key.split(".")[-1]))
        return max(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return [key for key in sorted(KEYS, key=likeness, reverse=True)[:3] if likeness(key) >= 0.7]


def _unknown(name: str) -> UnknownKeyError:
    nearest = nearest_keys(name)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else "./config.py lists them all"
    return UnknownKeyError(f"unknown config key {name!r}: {hint}")


def _whole_group(name: str) -> ConfigError:
    return ConfigError(f"{name} is a group of keys and takes no value; its keys are {', '.join(GROUPS[name])}")


@functools.cache
def _notice(text: str) -> None:
    """Say `text` once in a process."""
    logger.warning("%s", text)


# ---------------------------------------------------------------- the config


class _Group:
    """The keys of one group of a config: cfg.TRAIN."""

    def __init__(self, config: Config, name: str):
        object.__setattr__(self, "_config", config)
        object.__setattr__(self, "_name", name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._config[f"{self._name}.{name}"]

    def __setattr__(self, name: str, value: Any) -> None:
        self._config[f"{self._name}.{name}"] = value

    def __dir__(self) -> list[str]:
        return [name.split(".")[1] for name in GROUPS[self._name]]

    def __repr__(self) -> str:
        return "\n".join(f"{name}={format_value(self._config[name])}" for name in GROUPS[self._name])


class Config:
    """Every key with its value: cfg.TRAIN.BASE_LR, or cfg["TRAIN.BASE_LR"]. Lists are held as tuples."""

    def __init__(self) -> None:
        values = {key.name: _accept(key, key.default) for key in TABLE}
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "_frozen", False)

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise _unknown(name)
        return self._values[name]

    def __setitem__(self, name: str, value: Any) -> None:
        if self._frozen:
            raise FrozenInstanceError(f"the config is read-only now: {name} cannot be set to {value!r}")
        if name in OLD_KEYS:
            _notice(f"{name} is an old spelling: now {' and '.join(OLD_KEYS[name])}")
            value = parse_literal(value) if isinstance(value, str) else value
            for new_name, convert in OLD_KEYS[name].items():
                self[new_name] = convert(value)
            return
        if name in GROUPS:
            raise _whole_group(name)
        if name not in KEYS:
            raise _unknown(name)
        value = _accept(KEYS[name], value)
        if name in ("DATA.TRAIN", "DATA.VAL"):
            value = tuple(_current_dataset_name(item) for item in value)
        self._values[name] = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Group(self, name) if name in GROUPS else self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __dir__(self) -> list[str]:
        return [*object.__dir__(self), *GROUPS, *(name for name in KEYS if "." not in name)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self._values == other._values

    def __repr__(self) -> str:
        return "\n".join(f"{name}={format_value(value)}" for name, value in self._values.items())

    def freeze(self) -> None:
        """Make the config read-only: from now on setting a key raises FrozenInstanceError."""
        object.__setattr__(self, "_frozen", True)

    def clone(self) -> Config:
        """A copy that can be changed."""
        other = Config()
        other._values.update(self._values)
        return other

    def update_args(self, args: Iterable[str]) -> None:
        """Apply "KEY=VALUE" strings in order; ConfigError names the key, the value and what is wanted."""
        for arg in args:
            name, equals, text = arg.partition("=")
            if not equals:
                raise ConfigError(f"--config takes KEY=VALUE without spaces, not {arg!r}")
            self[name.strip()] = text

    def update_dict(self, values: Mapping[str, Any]) -> None:
        """Apply a dict whose keys are dotted ("TRAIN.BASE_LR") or nested ({"TRAIN": {"BASE_LR": ...}})."""
        for name, value in _flatten(values):
            self[name] = value

    def update_given(self, config_file: str | os.PathLike | None, args: Iterable[str]) -> None:
        """What a command line gives: the keys of --config-file, if any, then those of --config."""
        if config_file:
            self.update_file(config_file)
        self.update_args(args)

    def update_file(self, path: str | os.PathLike) -> None:
        """Apply a YAML file of nested or dotted keys; errors name the file and the key."""
        import yaml

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"config file {path} does not exist")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not readable as YAML: {error}") from None
        if values is None:
            return
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: wants lines of KEY: VALUE, not a {type(values).__name__}")
        try:
            self.update_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The config as a nested dict of plain values (lists for tuples), as JSON and YAML hold it."""
        nested: dict[str, Any] = {}
        for name, value in self._values.items():
            *group, last = name.split(".")
            target = nested.setdefault(group[0], {}) if group else nested
            target[last] = _as_lists(value)
        return nested

    def to_yaml(self) -> str:
        """The config as YAML that `update_file` reads back."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False, default_flow_style=None, allow_unicode=True)


def _current_dataset_name(name: str) -> str:
    if name not in OLD_DATASETS:
        return name
    _notice(f"data set {name} is an old spelling: now coco_{name}")
    return f"coco_{name}"


def _as_lists(value: Any) -> Any:
    return [_as_lists(item) for item in value] if isinstance(value, tuple) else value


def _flatten(values: Mapping[Any, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value and name not in KEYS:
            yield from ((f"{name}.{last}", item) for last, item in value.items())
        else:
            yield str(name), value


def default_config() -> Config:
    """A config of defaults, to be changed and then given to `finalize_configs`."""
    return Config()


# ---------------------------------------------------------------- cross-checks


def finalize_configs(cfg: Config, *, is_training: bool, starts_from_weights: bool = False) -> None:
    """Check that the keys fit each other, fill in what follows from others, and freeze `cfg`.

    `starts_from_weights`: the run is given a whole model (--load, --resume), so BACKBONE.WEIGHTS is not needed.
    Raises ConfigError (FileNotFoundError for missing weights) naming the key, its value and the way out.
    """
    _check_data(cfg)
    _check_rpn(cfg)
    _check_norms(cfg)
    _check_fpn(cfg)
    if is_training:
        _check_training(cfg, starts_from_weights=starts_from_weights)
    _fill_in(cfg, is_training=is_training)
    cfg.freeze()


def _require(condition: bool, cfg: Config, name: str, reason: str) -> None:
    if not condition:
        raise ConfigError(f"{name}={format_value(cfg[name])}: {reason}")


def _check_data(cfg: Config) -> None:
    names, ids, count = cfg.DATA.CLASS_NAMES, cfg.DATA.CATEGORY_IDS, cfg.DATA.NUM_CLASS
    _require(len(ids) in (0, len(names)), cfg, "DATA.CATEGORY_IDS", f"{len(names)} wanted, one for each of CLASS_NAMES")
    _require(
        not names or count in (0, len(names)), cfg, "DATA.NUM_CLASS",
        f"there are {len(names)} class names; leave NUM_CLASS out, it follows from the annotations",
    )
    low, high = cfg.PREPROC.TRAIN_SHORT_EDGE_SIZE
    _require(low <= high, cfg, "PREPROC.TRAIN_SHORT_EDGE_SIZE", f"is [min,max]; did you mean [{high},{low}]?")
    if KEYS["PREPROC.AUGMENT"].default != cfg.PREPROC.AUGMENT:
        from FasterRCNN.imaging.transforms import parse_augmentations

        try:
            parse_augmentations(cfg.PREPROC.AUGMENT)
        except ValueError as error:
            raise ConfigError(f"PREPROC.AUGMENT: {error}") from None


def _check_rpn(cfg: Config) -> None:
    _require(
        cfg.RPN.NEGATIVE_ANCHOR_THRESH <= cfg.RPN.POSITIVE_ANCHOR_THRESH, cfg, "RPN.NEGATIVE_ANCHOR_THRESH",
        f"must not exceed RPN.POSITIVE_ANCHOR_THRESH={cfg.RPN.POSITIVE_ANCHOR_THRESH}",
    )
    for name in ("RPN.ANCHOR_SIZES", "RPN.ANCHOR_RATIOS"):
        _require(len(cfg[name]) > 0, cfg, name, "at least one is needed")
    _require(
        cfg.RPN.ANCHOR_STRIDE == C4_STRIDE, cfg, "RPN.ANCHOR_STRIDE",
        f"the C4 feature map has stride {C4_STRIDE}; leave it at {C4_STRIDE}",
    )


def _check_norms(cfg: Config) -> None:
    _require(
        not (cfg.BACKBONE.FREEZE_AFFINE and cfg.BACKBONE.NORM == "None"), cfg, "BACKBONE.FREEZE_AFFINE",
        "BACKBONE.NORM=None has no gamma and beta to freeze; use FREEZE_AFFINE=False",
    )
    _require(
        not (cfg.BACKBONE.SYMMETRIC_PAD and cfg.BACKBONE.TF_PAD_MODE), cfg, "BACKBONE.SYMMETRIC_PAD",
        "contradicts BACKBONE.TF_PAD_MODE=True, which pads more at bottom/right; set one of them to False",
    )
    groups, width = cfg.BACKBONE.NUM_GROUPS, cfg.BACKBONE.WIDTH_PER_GROUP
    _require(
        width is not None or cfg.BACKBONE.CHANNELS % groups == 0, cfg, "BACKBONE.NUM_GROUPS",
        f"does not divide BACKBONE.CHANNELS={cfg.BACKBONE.CHANNELS}; set BACKBONE.WIDTH_PER_GROUP, 8 in ResNeXt 32x8d",
    )
    _require(
        cfg.BACKBONE.NORM != "GN" or width is None or groups * width % GN_GROUPS == 0, cfg, "BACKBONE.WIDTH_PER_GROUP",
        f"group normalisation needs a multiple of {GN_GROUPS} channels, NUM_GROUPS={groups} times it",
    )
    fpn = cfg.MODE_FPN
    uses_gn = {
        "BACKBONE.CHANNELS": cfg.BACKBONE.NORM == "GN",
        "FPN.NUM_CHANNEL": fpn and cfg.FPN.NORM == "GN",
        "FPN.FRCNN_CONV_HEAD_DIM": fpn and cfg.FPN.FRCNN_HEAD_FUNC == "fastrcnn_4conv1fc_gn_head",
        "FPN.FRCNN_FC_HEAD_DIM": fpn and cfg.FPN.FRCNN_HEAD_FUNC == "fastrcnn_2fc_gn_head",
        "MRCNN.HEAD_DIM": fpn and cfg.MODE_MASK and cfg.FPN.MRCNN_HEAD_FUNC.endswith("_gn_head"),
    }
    for name, used in uses_gn.items():
        divides = cfg[name] % GN_GROUPS == 0
        _require(not used or divides, cfg, name, f"group normalisation needs a multiple of {GN_GROUPS} channels")


def _check_fpn(cfg: Config) -> None:
    if not cfg.MODE_FPN:
        _require(not cfg.FPN.CASCADE, cfg, "FPN.CASCADE", "the cascade needs the pyramid: add MODE_FPN=True")
        idle = [name for name in GROUPS["FPN"] if cfg[name] != KEYS[name].default]
        if idle:
            _notice(f"without MODE_FPN=True nothing comes of {', '.join(idle)}")
        return
    strides = format_value(FPN_STRIDES)
    _require(cfg.FPN.ANCHOR_STRIDES == FPN_STRIDES, cfg, "FPN.ANCHOR_STRIDES", f"P2..P6 have the strides {strides}")
    _require(
        len(cfg.RPN.ANCHOR_SIZES) == len(FPN_STRIDES), cfg, "RPN.ANCHOR_SIZES",
        f"MODE_FPN=True takes one size for each of {len(FPN_STRIDES)} levels, e.g. [32,64,128,256,512]",
    )
    if cfg.FPN.CASCADE:
        ious, weights = cfg.CASCADE.IOUS, cfg.CASCADE.BBOX_REG_WEIGHTS
        _require(len(ious) == 3, cfg, "CASCADE.IOUS", "the cascade has three stages, one IoU for each")
        _require(
            ious[0] == cfg.FRCNN.FG_THRESH, cfg, "CASCADE.IOUS",
            f"the first stage samples at FRCNN.FG_THRESH={cfg.FRCNN.FG_THRESH}; make the two equal",
        )
        _require(
            [len(row) for row in weights] == [4] * len(ious), cfg, "CASCADE.BBOX_REG_WEIGHTS",
            f"wants 4 weights for each of the {len(ious)} stages of CASCADE.IOUS",
        )


def _check_training(cfg: Config, *, starts_from_weights: bool) -> None:
    schedule = cfg.TRAIN.LR_SCHEDULE
    if isinstance(schedule, str):
        valid = re.fullmatch("[1-9]x", schedule) is not None
    else:
        valid = bool(schedule) and all(a < b for a, b in zip((0, *schedule), schedule, strict=False))
    _require(
        valid, cfg, "TRAIN.LR_SCHEDULE",
        "wants 1x .. 9x, or a rising list of steps of 8 images, e.g. [240000,320000,360000]",
    )
    _require(bool(cfg.DATA.TRAIN), cfg, "DATA.TRAIN", "names no data set, e.g. DATA.TRAIN=instances.json:images")
    if starts_from_weights:
        return
    if cfg.BACKBONE.WEIGHTS:
        _check_backbone_weights(cfg)
        return
    _require(
        cfg.BACKBONE.FREEZE_AT == 0, cfg, "BACKBONE.FREEZE_AT",
        "would freeze layers that hold random values, for there are no BACKBONE.WEIGHTS; give "
        "BACKBONE.WEIGHTS=/path/to/weights.npz, or FREEZE_AT=0 to train from scratch",
    )
    if cfg.BACKBONE.NORM == "FreezeBN":
        _notice("BACKBONE.NORM=FreezeBN without weights normalises nothing; GN trains better from scratch")


def _check_backbone_weights(cfg: Config) -> None:
    path = os.path.expanduser(cfg.BACKBONE.WEIGHTS)
    if not os.path.exists(path) and not os.path.exists(path + ".index"):
        raise FileNotFoundError(f"BACKBONE.WEIGHTS={path} does not exist")
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    held = {norm for norm in ("bn", "gn") if any(name.startswith(f"conv0/{norm}/") for name in names)}
    wanted = {"FreezeBN": {"bn"}, "SyncBN": {"bn"}, "GN": {"gn"}, "None": set()}[cfg.BACKBONE.NORM]
    fitting = "GN" if "gn" in held else "FreezeBN" if "bn" in held else "None"
    _require(held == wanted, cfg, "BACKBONE.NORM", f"BACKBONE.WEIGHTS={path} fits BACKBONE.NORM={fitting}")


def _fill_in(cfg: Config, *, is_training: bool) -> None:
    cfg.DATA.BASEDIR = os.path.expanduser(cfg.DATA.BASEDIR)
    cfg.BACKBONE.WEIGHTS = os.path.expanduser(cfg.BACKBONE.WEIGHTS)
    cfg.DATA.NUM_CLASS = len(cfg.DATA.CLASS_NAMES) or cfg.DATA.NUM_CLASS
    if is_training:
        cfg.DATA.NUM_WORKERS = min(cfg.DATA.NUM_WORKERS, os.cpu_count() or 1)
    if cfg.BACKBONE.WIDTH_PER_GROUP is None:
        cfg.BACKBONE.WIDTH_PER_GROUP = cfg.BACKBONE.CHANNELS // cfg.BACKBONE.NUM_GROUPS
    if cfg.MODE_FPN and cfg.FPN.ROUND_MAX_SIZE:
        multiple = FPN_STRIDES[3]  # C5, the coarsest map of the backbone, must be whole
        cfg.PREPROC.MAX_SIZE = -(-cfg.PREPROC.MAX_SIZE // multiple) * multiple


# ---------------------------------------------------------------- commands


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --config-file and --config, the same in every command."""
    parser.add_argument("--config-file", metavar="YAML", help="a file of config keys, applied before --config")
    parser.add_argument(
        "--config", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
        help="config keys, e.g. MODE_FPN=True; ./config.py lists them",
    )


def describe(cfg: Config, words: Iterable[str] = ()) -> str:
    """The keys whose names hold one of `words` (all without words), with value, meaning and limits."""
    words = [word.upper() for word in words]
    defaults = default_config()
    lines = []
    for key in TABLE:
        if words and not any(word in key.name for word in words):
            continue
        changed = cfg[key.name] != defaults[key.name]
        lines.append(f"{key.name}={format_value(cfg[key.name])}")
        limit = f"; {key.limit.words}" if key.limit else ""
        default = f" (default {format_value(key.default)})" if changed else ""
        lines.append(f"    {key.help}{limit}{default}")
    return "\n".join(lines)


def run_command(main: Callable[[], int | None]) -> int:
    """Run a command's `main`; a user's mistake is printed as one line, and the exit status is 2.

    A mistake is a file that cannot be read or written, or a ValueError raised by this project's own code.  One raised
    inside a library is a defect here, and keeps its traceback; TRACEBACK=1 in the environment keeps every traceback.
    """
    if os.environ.get("TRACEBACK"):
        return main() or 0
    try:
        return main() or 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
    except ValueError as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
        project = Path(__file__).resolve().parent
        if not raised_in.is_relative_to(project) or "site-packages" in raised_in.parts:
            raise
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 2


def main() -> int:
    """Print the config keys with their values and meanings."""
    parser = argparse.ArgumentParser(
        description="The config keys, their defaults and what they do.",
        epilog=describe(default_config()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="show only the keys that hold one of these words")
    add_config_arguments(parser)
    parser.add_argument("--yaml", action="store_true", help="print the resulting config as a YAML file")
    args = parser.parse_args()
    cfg = default_config()
    cfg.update_given(args.config_file, args.config)
    print(cfg.to_yaml() if args.yaml else describe(cfg, args.words))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
