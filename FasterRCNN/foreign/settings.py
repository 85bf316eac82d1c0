"""What another program must be told besides the weights, as the text that it takes: a config file, or a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

Config = Mapping[str, Any]  # our keys with dots

_DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
_TORCHVISION_BODIES = ("resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")
# What the models that its functions build have, with no argument for it.
_TORCHVISION_WIDTHS = {"BACKBONE.CHANNELS": 64, "FPN.NUM_CHANNEL": 256, "FPN.FRCNN_FC_HEAD_DIM": 1024,
                       "MRCNN.HEAD_DIM": 256}
_NORMS = {"FreezeBN": "FrozenBN", "SyncBN": "FrozenBN", "GN": "GN", "None": ""}


def detectron2_settings(config: Config, weights: str) -> str:
    """A YAML file for detectron2's `cfg.merge_from_file`; weights: the path of the file that belongs to it."""
    is_fpn = config["MODE_FPN"]
    settings = {"MODEL": {**_detectron2_body(config), **_detectron2_heads(config), "WEIGHTS": weights},
                "INPUT": {"MIN_SIZE_TEST": config["PREPROC.TEST_SHORT_EDGE_SIZE"], "FORMAT": "BGR",
                          "MAX_SIZE_TEST": config["PREPROC.MAX_SIZE"]},
                "TEST": {"DETECTIONS_PER_IMAGE": config["TEST.RESULTS_PER_IM"]}, "VERSION": 2}
    settings["MODEL"]["RPN"] |= {"NMS_THRESH": config["RPN.PROPOSAL_NMS_THRESH"],
                                 "PRE_NMS_TOPK_TEST": config[_count(is_fpn, "PRE")],
                                 "POST_NMS_TOPK_TEST": config[_count(is_fpn, "POST")]}
    return yaml.safe_dump(_plain(settings), sort_keys=False, default_flow_style=None)


def _count(is_fpn: bool, when: str) -> str:
    return "RPN.TEST_PER_LEVEL_NMS_TOPK" if is_fpn else f"RPN.TEST_{when}_NMS_TOPK"


def _detectron2_body(config: Config) -> dict[str, Any]:
    is_fpn, blocks = config["MODE_FPN"], tuple(config["BACKBONE.RESNET_NUM_BLOCKS"])
    if blocks not in _DEPTHS:
        raise ValueError(f"BACKBONE.RESNET_NUM_BLOCKS={list(blocks)}: detectron2 has R50, R101 and R152")
    groups = config["BACKBONE.NUM_GROUPS"]
    sizes = list(config["RPN.ANCHOR_SIZES"])
    return {
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "PIXEL_MEAN": config["PREPROC.PIXEL_MEAN"][::-1], "PIXEL_STD": config["PREPROC.PIXEL_STD"][::-1],
        "BACKBONE": {"NAME": f"build_resnet{'_fpn' if is_fpn else ''}_backbone"},
        "RESNETS": {
            "STEM_OUT_CHANNELS": config["BACKBONE.CHANNELS"], "RES2_OUT_CHANNELS": 4 * config["BACKBONE.CHANNELS"],
            "DEPTH": _DEPTHS[blocks], "NORM": _NORMS[config["BACKBONE.NORM"]], "NUM_GROUPS": groups,
            "WIDTH_PER_GROUP": config["BACKBONE.WIDTH_PER_GROUP"] or config["BACKBONE.CHANNELS"] // groups,
            "STRIDE_IN_1X1": config["BACKBONE.STRIDE_1X1"],
            "OUT_FEATURES": ["res2", "res3", "res4", "res5"] if is_fpn else ["res4"]},
        "FPN": {"IN_FEATURES": ["res2", "res3", "res4", "res5"] if is_fpn else [],
                "NORM": _NORMS[config["FPN.NORM"]], "OUT_CHANNELS": config["FPN.NUM_CHANNEL"]},
        "ANCHOR_GENERATOR": {"SIZES": [[size] for size in sizes] if is_fpn else [sizes],
                             "ASPECT_RATIOS": [config["RPN.ANCHOR_RATIOS"]], "OFFSET": config["RPN.ANCHOR_OFFSET"]},
        "PROPOSAL_GENERATOR": {"MIN_SIZE": config["RPN.MIN_SIZE"]},
        "RPN": {"CONV_DIMS": [config["FPN.NUM_CHANNEL" if is_fpn else "RPN.HEAD_DIM"]] * config["RPN.NUM_CONVS"],
                "IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"] if is_fpn else ["res4"]},
    }


def _detectron2_heads(config: Config) -> dict[str, Any]:
    is_fpn, is_cascade = config["MODE_FPN"], config["FPN.CASCADE"]
    kind, mask_kind = config["FPN.FRCNN_HEAD_FUNC"], config["FPN.MRCNN_HEAD_FUNC"]
    pooler = {"POOLER_SAMPLING_RATIO": config["ROIALIGN.SAMPLES"],
              "POOLER_TYPE": "ROIAlignV2" if config["ROIALIGN.ALIGNED"] else "ROIAlign"}
    name = "CascadeROIHeads" if is_cascade else "StandardROIHeads" if is_fpn else "Res5ROIHeads"
    has_convs = "4conv" in kind
    return {
        "MASK_ON": config["MODE_MASK"],
        "ROI_HEADS": {"NAME": name, "IN_FEATURES": ["p2", "p3", "p4", "p5"] if is_fpn else ["res4"],
                      "NUM_CLASSES": config["DATA.NUM_CLASS"], "SCORE_THRESH_TEST": config["TEST.RESULT_SCORE_THRESH"],
                      "NMS_THRESH_TEST": config["TEST.FRCNN_NMS_THRESH"]},
        "ROI_BOX_HEAD": {
            **pooler, "NAME": "FastRCNNConvFCHead" if is_fpn else "", "NUM_CONV": 4 if has_convs else 0,
            "NUM_FC": (1 if has_convs else 2) if is_fpn else 0, "NORM": "GN" if "_gn_" in kind else "",
            "CONV_DIM": config["FPN.FRCNN_CONV_HEAD_DIM"], "FC_DIM": config["FPN.FRCNN_FC_HEAD_DIM"],
            "POOLER_RESOLUTION": 7 if is_fpn else 14, "CLS_AGNOSTIC_BBOX_REG": is_cascade,
            "BBOX_REG_WEIGHTS": config["FRCNN.BBOX_REG_WEIGHTS"]},
        "ROI_BOX_CASCADE_HEAD": {"IOUS": config["CASCADE.IOUS"],
                                 "BBOX_REG_WEIGHTS": config["CASCADE.BBOX_REG_WEIGHTS"]},
        "ROI_MASK_HEAD": {
            **pooler, "NAME": "MaskRCNNConvUpsampleHead", "NUM_CONV": 4 if is_fpn else 0, "POOLER_RESOLUTION": 14,
            "CONV_DIM": config["MRCNN.HEAD_DIM"], "NORM": "GN" if "_gn_" in mask_kind else ""},
    }


def torchvision_settings(config: Config, weights: str) -> str:
    """The lines of Python that build torchvision's model and load the weights of the file at the given path."""
    kind = "MaskRCNN" if config["MODE_MASK"] else "FasterRCNN"
    for key, width in _TORCHVISION_WIDTHS.items():
        if config[key] != width and (config["MODE_MASK"] or not key.startswith("MRCNN.")):
            raise ValueError(f"{key}={config[key]}: torchvision's models have {width}")
    lines = [
        f"from torchvision.models.detection import {kind}",
        "from torchvision.models.detection.anchor_utils import AnchorGenerator",
        "from torchvision.models.detection.backbone_utils import resnet_fpn_backbone",
        "from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead",
        "from torchvision.models.detection.rpn import RPNHead",
        "",
        f"model = {kind}(",
        f"    resnet_fpn_backbone(backbone_name={_torchvision_body(config)!r}, weights=None),",
        *(f"    {name}={value}," for name, value in _torchvision_options(config).items()),
        ")",
    ]
    if weights.endswith(".pkl"):
        lines += ["import pickle, torch", f"arrays = pickle.load(open({weights!r}, 'rb'))",
                  "model.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})"]
    else:
        lines += ["from safetensors.torch import load_file", f"model.load_state_dict(load_file({weights!r}))"]
    return "\n".join([*lines, "model.eval()  # its images: RGB, 3xHxW, in [0, 1]", ""])


def _torchvision_body(config: Config) -> str:
    blocks, groups = tuple(config["BACKBONE.RESNET_NUM_BLOCKS"]), config["BACKBONE.NUM_GROUPS"]
    width = config["BACKBONE.WIDTH_PER_GROUP"] or config["BACKBONE.CHANNELS"] // groups
    name = f"resnet{_DEPTHS.get(blocks)}" if groups == 1 else f"resnext{_DEPTHS.get(blocks)}_{groups}x{width}d"
    if name not in _TORCHVISION_BODIES:
        raise ValueError(f"BACKBONE.RESNET_NUM_BLOCKS={list(blocks)} in {groups} groups of {width} channels: "
                         f"torchvision has {', '.join(_TORCHVISION_BODIES)}")
    return name


def _torchvision_options(config: Config) -> dict[str, Any]:
    """Names and values, as Python text, of the model's arguments."""
    channels, side = config["FPN.NUM_CHANNEL"], 7
    anchors = [[size] for size in config["RPN.ANCHOR_SIZES"]], [config["RPN.ANCHOR_RATIOS"]] * 5
    options = {
        "num_classes": config["DATA.NUM_CLASS"] + 1,
        "min_size": config["PREPROC.TEST_SHORT_EDGE_SIZE"], "max_size": config["PREPROC.MAX_SIZE"],
        "image_mean": [round(value / 255, 6) for value in config["PREPROC.PIXEL_MEAN"]],
        "image_std": [round(value / 255, 6) for value in config["PREPROC.PIXEL_STD"]],
        "rpn_anchor_generator": f"AnchorGenerator{tuple(_plain(anchors))}",
        "rpn_pre_nms_top_n_test": config["RPN.TEST_PER_LEVEL_NMS_TOPK"],
        "rpn_post_nms_top_n_test": config["RPN.TEST_PER_LEVEL_NMS_TOPK"],
        "rpn_nms_thresh": config["RPN.PROPOSAL_NMS_THRESH"],
        "box_score_thresh": config["TEST.RESULT_SCORE_THRESH"], "box_nms_thresh": config["TEST.FRCNN_NMS_THRESH"],
        "box_detections_per_img": config["TEST.RESULTS_PER_IM"],
        "bbox_reg_weights": tuple(config["FRCNN.BBOX_REG_WEIGHTS"])}
    if config["RPN.NUM_CONVS"] > 1:
        ratios = len(config["RPN.ANCHOR_RATIOS"])
        options["rpn_head"] = f"RPNHead({channels}, {ratios}, conv_depth={config['RPN.NUM_CONVS']})"
    if "4conv" in config["FPN.FRCNN_HEAD_FUNC"]:
        convs, width = [config["FPN.FRCNN_CONV_HEAD_DIM"]] * 4, config["FPN.FRCNN_FC_HEAD_DIM"]
        options["box_head"] = f"FastRCNNConvFCHead(({channels}, {side}, {side}), {convs}, [{width}])"
    return options


def _plain(value: Any) -> Any:
    """The value with lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


SETTINGS = {"torchvision": torchvision_settings, "detectron2": detectron2_settings}
