"""Every option that changes what is built: trained for one step and used for a prediction, tiny."""

from pathlib import Path

import config

import numpy as np
import pytest
from tiny import C4, GN_BACKBONE, TINY, TinyModel, example

# Options that do not touch each other share a model, to save time.
VARIANTS = {
    "box head settings": {
        "FRCNN.BATCH_PER_IM": 9, "FRCNN.FG_RATIO": 1.0, "FRCNN.FG_THRESH": 0.3,
        "FRCNN.BBOX_REG_WEIGHTS": [1.0, 2.0, 3.0, 4.0], "TEST.RESULTS_PER_IM": 7, "TEST.RESULT_SCORE_THRESH": 0.0,
        "TEST.FRCNN_NMS_THRESH": 0.9, "TRAIN.IMS_PER_GPU": 2,
    },
    "group normalisation everywhere": {
        **GN_BACKBONE, "BACKBONE.FREEZE_AT": 1, "BACKBONE.FREEZE_AFFINE": True,
        "FPN.NORM": "GN", "FPN.NUM_CHANNEL": 32, "FPN.FRCNN_HEAD_FUNC": "fastrcnn_4conv1fc_gn_head",
        "FPN.FRCNN_CONV_HEAD_DIM": 32, "FPN.MRCNN_HEAD_FUNC": "maskrcnn_up4conv_gn_head", "MRCNN.HEAD_DIM": 32,
    },
    "no normalisation, no masks": {
        "BACKBONE.NORM": "None", "MODE_MASK": False, "FPN.FRCNN_HEAD_FUNC": "fastrcnn_4conv1fc_head",
        "FPN.FRCNN_FC_HEAD_DIM": 9, "BACKBONE.RESNET_NUM_BLOCKS": [1, 2, 1, 2], "DATA.NUM_CLASS": 5,
    },
    "old weights, frozen": {
        "BACKBONE.TF_PAD_MODE": True, "BACKBONE.STRIDE_1X1": True, "BACKBONE.FREEZE_AT": 2,
        "BACKBONE.FREEZE_AFFINE": True, "PREPROC.PIXEL_MEAN": [0, 0, 0], "PREPROC.PIXEL_STD": [1, 100, 255],
        "PREPROC.MAX_SIZE": 2000,
    },
    "joint proposals": {
        "FPN.PROPOSAL_MODE": "Joint", "RPN.TRAIN_PRE_NMS_TOPK": 100, "RPN.TRAIN_POST_NMS_TOPK": 20,
        "RPN.TEST_PRE_NMS_TOPK": 50, "RPN.TEST_POST_NMS_TOPK": 10, "RPN.MIN_SIZE": 4.0,
        "RPN.CROWD_OVERLAP_THRESH": 0.7, "RPN.PROPOSAL_NMS_THRESH": 0.5, "TRAIN.IMS_PER_GPU": 2,
    },
    "one of everything": {
        "RPN.BATCH_PER_IM": 1, "RPN.TRAIN_PER_LEVEL_NMS_TOPK": 1, "RPN.TEST_PER_LEVEL_NMS_TOPK": 1,
        "FRCNN.BATCH_PER_IM": 1, "TEST.RESULTS_PER_IM": 1,
    },
    "more than there is": {
        "RPN.BATCH_PER_IM": 9000, "RPN.TRAIN_PER_LEVEL_NMS_TOPK": 700, "RPN.TEST_PER_LEVEL_NMS_TOPK": 500,
        "FRCNN.BATCH_PER_IM": 1000, "TEST.RESULTS_PER_IM": 800,
    },
    "cascade": {
        "FPN.CASCADE": True, "CASCADE.IOUS": [0.5, 0.55, 0.65],
        "CASCADE.BBOX_REG_WEIGHTS": [[9.0, 8.0, 4.0, 5.0], [20.0, 20.0, 11.0, 10.0], [30.0, 30.0, 15.0, 16.0]],
    },
    "cascade of convolutions with group normalisation, no masks": {
        "FPN.CASCADE": True, "FPN.FRCNN_HEAD_FUNC": "fastrcnn_4conv1fc_gn_head", "FPN.FRCNN_CONV_HEAD_DIM": 32,
        "MODE_MASK": False, "TRAIN.IMS_PER_GPU": 2,
    },
    "synchronised batch normalisation": {"BACKBONE.NORM": "SyncBN", "BACKBONE.FREEZE_AT": 1, "TRAIN.IMS_PER_GPU": 2},
    "resnext": {
        "BACKBONE.NUM_GROUPS": 4, "BACKBONE.WIDTH_PER_GROUP": 4, "BACKBONE.RESNET_NUM_BLOCKS": [1, 2, 1, 1],
    },
    "c4 of resnext with synchronised batch normalisation": {
        **C4, "BACKBONE.NUM_GROUPS": 2, "BACKBONE.NORM": "SyncBN", "BACKBONE.FREEZE_AFFINE": True,
    },
    "compiled by XLA": {"TRAIN.XLA": True, "TRAIN.IMS_PER_GPU": 2},
    "bfloat16": {"TRAIN.PRECISION": "bf16", "TEST.PRECISION": "bf16", "TRAIN.IMS_PER_GPU": 2},
    "float16, group normalisation": {
        **GN_BACKBONE, "TRAIN.PRECISION": "fp16", "TEST.PRECISION": "fp16", "FPN.NORM": "GN", "FPN.NUM_CHANNEL": 32,
    },
    "c4 in bfloat16, synchronised batch normalisation": {
        **C4, "BACKBONE.NORM": "SyncBN", "TRAIN.PRECISION": "bf16", "TEST.PRECISION": "bf16", "TRAIN.IMS_PER_GPU": 2,
    },
    "c4": {
        **C4, "RPN.HEAD_DIM": 7, "RPN.ANCHOR_SIZES": [20], "RPN.ANCHOR_RATIOS": [1.0, 3.0],
        "RPN.POSITIVE_ANCHOR_THRESH": 0.5, "RPN.NEGATIVE_ANCHOR_THRESH": 0.1, "RPN.FG_RATIO": 1.0,
        "BACKBONE.CHANNELS": 3,
    },
    "c4 with group normalisation, no masks": {
        **C4, **GN_BACKBONE, "MODE_MASK": False, "BACKBONE.STRIDE_1X1": True, "BACKBONE.TF_PAD_MODE": True,
        "BACKBONE.FREEZE_AT": 2, "BACKBONE.FREEZE_AFFINE": True,
    },
    "torchvision's conventions": {
        "RPN.ANCHOR_ROUNDING": "corners", "FRCNN.MAX_SCALE": 62.5, "ROIALIGN.ALIGNED": False, "TRAIN.IMS_PER_GPU": 2,
        "FPN.ROUND_MAX_SIZE": False, "PREPROC.MAX_SIZE": 90, "RPN.FIT_STRIDES": True, "RPN.NUM_CONVS": 2,
        "TEST.RESULT_MIN_SIZE": 0.01, "RPN.MIN_SIZE": 0.001,
    },
    "maskrcnn-benchmark's conventions": {
        "RPN.ANCHOR_ROUNDING": "sides", "RPN.ANCHOR_OFFSET": 0.5, "ROIALIGN.ALIGNED": False, "ROIALIGN.INCLUSIVE": True,
        "FPN.FRCNN_HEAD_FUNC": "fastrcnn_2fc_gn_head",
    },
    "detectron2's conventions": {
        "ROIALIGN.SAMPLES": 0, "TRAIN.IMS_PER_GPU": 2, "BACKBONE.SYMMETRIC_PAD": True, "FPN.NORM_BEFORE_RELU": True,
        "FPN.FRCNN_HEAD_FUNC": "fastrcnn_4conv1fc_gn_head", "FPN.FRCNN_CONV_HEAD_DIM": 32,
        "FPN.MRCNN_HEAD_FUNC": "maskrcnn_up4conv_gn_head", "MRCNN.HEAD_DIM": 32,
    },
    "c4 with detectron2's conventions": {
        **C4, "ROIALIGN.SAMPLES": 0, "BACKBONE.SYMMETRIC_PAD": True, "RPN.NUM_CONVS": 3, "TRAIN.IMS_PER_GPU": 2,
    },
    "c4 of Detectron, stride in the 1x1 convolution": {
        **C4, "BACKBONE.SYMMETRIC_PAD": True, "BACKBONE.STRIDE_1X1": True, "ROIALIGN.ALIGNED": False,
    },
    "c4 without normalisation": {
        **C4, "BACKBONE.NORM": "None", "BACKBONE.FREEZE_AT": 1, "RPN.MIN_SIZE": 8.0, "RPN.CROWD_OVERLAP_THRESH": 0.5,
        "TRAIN.IMS_PER_GPU": 2,
    },
}

# The options that change nothing of the graph, or have no other value yet, and the tests that exercise them.
ELSEWHERE = {
    "test_whole_run": [
        "DATA.BASEDIR", "DATA.TRAIN", "DATA.VAL", "DATA.FILTER_EMPTY_ANNOTATIONS", "DATA.NUM_WORKERS",
        "BACKBONE.WEIGHTS", "TRAIN.SEED", "TRAIN.BASE_LR", "TRAIN.WARMUP", "TRAIN.WARMUP_INIT_LR", "TRAIN.LR_SCHEDULE",
        "TRAIN.LR_DECAY", "TRAIN.MOMENTUM", "TRAIN.WEIGHT_DECAY", "TRAIN.GRADIENT_CLIP", "TRAIN.STEPS_PER_EPOCH",
        "TRAIN.STARTING_EPOCH", "TRAIN.EVAL_PERIOD", "TRAIN.CHECKPOINT_PERIOD", "TRAIN.SUMMARY_PERIOD",
        "PREPROC.TRAIN_SHORT_EDGE_SIZE", "PREPROC.TEST_SHORT_EDGE_SIZE", "MRCNN.PASTE", "TEST.IMS_PER_GPU",
        "TEST.MASK_THRESH", "TEST.RESULT_SCORE_THRESH_VIS", "DATA.CLASS_NAMES", "DATA.CATEGORY_IDS",
        "DATA.ABSOLUTE_COORD", "TRAIN.NUM_GPUS", "PREPROC.RESIZE", "PREPROC.SIZE_ROUNDING",
    ],
    "test_data": ["DATA.ON_ERROR", "DATA.MAX_BAD"],
    "test_your_own_data": ["DATA.CATALOG", "DATA.METRIC", "PREPROC.AUGMENT", "DATA.CACHE"],
    "test_predictor": ["TEST.BATCHES_AT_ONCE"],
    "test_tta": ["TEST.AUGMENT_SCALES", "TEST.AUGMENT_FLIPS"],
    "test_horovod": ["TRAINER", "TRAIN.HALF_ON_WIRE", "TRAIN.ACCUM", "TRAIN.STALL_TIMEOUT"],
    "test_config": [
        "RPN.ANCHOR_STRIDE", "FPN.ANCHOR_STRIDES",  # one value allowed
    ],
}
EXAMPLES = [example(61, 75, 6, seed=1, crowd=True), example(80, 64, 3, seed=2)]


def test_every_option_is_exercised():
    built = set().union(*VARIANTS.values())
    elsewhere = {name for names in ELSEWHERE.values() for name in names}
    nowhere = set(config.KEYS) - built - elsewhere
    assert not nowhere, "put each into a variant here, or name the module that tests it"
    assert not elsewhere - set(config.KEYS)
    for module, names in ELSEWHERE.items():
        text = (Path(__file__).parent / f"{module}.py").read_text()
        assert not [name for name in names if name not in text], module


def test_every_choice_is_exercised():
    """Of options with a list of choices, every value is built somewhere."""
    elsewhere = {name for names in ELSEWHERE.values() for name in names}
    values = {name: {TINY.get(name, key.default)} | {changes[name] for changes in VARIANTS.values() if name in changes}
              for name, key in config.KEYS.items() if key.type is str and key.limit}
    for name, tried in values.items():
        choices = set(config.KEYS[name].limit.words.removeprefix("one of ").split(", "))
        missing = choices - tried
        assert not missing or name in elsewhere, name
    switches = {name for name, key in config.KEYS.items() if key.type is bool} - elsewhere
    for name in switches:
        tried = {changes[name] for changes in VARIANTS.values() if name in changes} | {TINY.get(name, None)}
        assert tried & {True, False} == {True, False} or config.KEYS[name].default not in tried, name


@pytest.mark.parametrize("name", VARIANTS)
def test_one_step_and_a_prediction(name):
    changes = dict(VARIANTS[name])
    batch = changes.get("TRAIN.IMS_PER_GPU", 1)
    model = TinyModel(changes, batch=batch, with_gradients=True)
    check_trainable(model)
    with model.graph.as_default():
        step = [v.assign_sub(1e-4 * model.gradients[v.op.name]) for v in model.trainable]
    before = model.session.run(model.variables)
    losses, gradients = model.run((model.losses, model.gradients), EXAMPLES[:batch])
    heads = ["box/stage1", "box/stage2", "box/stage3"] if model.cfg.FPN.CASCADE else ["box"]
    assert set(losses) == {f"{part}/loss_{kind}" for part in ["rpn", *heads] for kind in ("cls", "box")} | (
        {"mask/loss"} if model.cfg.MODE_MASK else set())
    assert all(np.isfinite(loss) for loss in losses.values()), losses
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    model.run(step, EXAMPLES[:batch])
    after = model.session.run(model.variables)
    changed = {v.op.name for v, a, b in zip(model.variables, before, after) if not np.array_equal(a, b)}
    assert changed <= {v.op.name for v in model.trainable}
    scopes = [f"cascade_rcnn_stage{i}" for i in (1, 2, 3)] if model.cfg.FPN.CASCADE else ["fastrcnn"]
    assert {name.split("/")[0] for name in changed} >= {"rpn", *scopes}
    check_detections(model, model.run(model.detections, EXAMPLES[:batch]), batch)


def check_trainable(model):
    """What is frozen, and only that, is not trained."""
    backbone, trained = model.cfg.BACKBONE, {v.op.name for v in model.trainable}
    frozen = ("conv0/", "group0/")[: backbone.FREEZE_AT]
    for variable in model.variables:
        name = variable.op.name
        in_backbone = name.startswith(("conv0/", "group"))
        affine = in_backbone and name.endswith(("/gamma", "/beta"))
        expected = not (name.endswith("/EMA") or name.startswith(frozen) or (affine and backbone.FREEZE_AFFINE))
        assert (name in trained) == expected, name
    assert set(model.gradients) == trained
    assert not [name for name, gradient in model.gradients.items() if gradient is None]


def check_detections(model, found, batch):
    cfg = model.cfg
    slots = cfg.TEST.RESULTS_PER_IM
    assert found["boxes"].shape == (batch, slots, 4) and found["scores"].shape == (batch, slots)
    assert all(np.isfinite(value).all() for value in found.values())
    assert found["labels"].max() <= cfg.DATA.NUM_CLASS
    assert ("masks" in found) == cfg.MODE_MASK
    if cfg.MODE_MASK:
        side = 28 if cfg.MODE_FPN else 14
        assert found["masks"].shape == (batch, slots, side, side)
        assert 0 <= found["masks"].min() <= found["masks"].max() <= 1
    for count, scores in zip(found["num_detections"], found["scores"]):
        assert (scores[:count] > cfg.TEST.RESULT_SCORE_THRESH).all() and not scores[count:].any()
