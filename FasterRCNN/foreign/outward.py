"""From our weights to those of torchvision or detectron2: their names and layouts, and what must be set there.

The other way of `convert`; what it writes `convert` reads back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from FasterRCNN.foreign.sources import SOURCES, Source

_NAME = re.compile(r"(.+?)(?:/[bg]n)?/(W|b|gamma|beta|mean/EMA|variance/EMA)")
_LEAVES = {"W": "weight", "b": "bias", "gamma": "weight", "beta": "bias", "mean/EMA": "running_mean",
           "variance/EMA": "running_var"}
# A group normalisation outside the backbone has a name of its own: pattern of it -> the layer before it.
_LAYER_BEFORE = ((r"fpn/gn_c(\d)", r"fpn/lateral_1x1_c\1"), (r"fpn/gn_p(\d)", r"fpn/posthoc_3x3_p\1"),
                 (r"maskrcnn/gn(\d)", r"maskrcnn/fcn\1"), (r"(.+)/gn(\d)", r"\1/conv\2"))


@dataclass(frozen=True)
class Target:
    """A program that weights are written for; `source`: what is read of it, whose layout it shares.

    layers: (pattern of a layer's name here, its name there, what is added to the pattern's numbers).
    norm_of(name): the normalisation after a layer, both as named there; has_groups: it may be one of groups.
    adjustable: our keys that the program has an option for.
    texts: what stands beside the arrays.
    """

    source: str
    layers: tuple[tuple[str, str, tuple[int, ...]], ...]
    norm_of: Callable[[str], str]
    has_groups: bool = False
    adjustable: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


def _torchvision_norm(name: str) -> str:
    return name.replace("downsample.0", "downsample.1") if "downsample" in name else re.sub(r"conv(\d)$", r"bn\1", name)


TARGETS = {target.source: target for target in (
    Target(
        source="torchvision",
        layers=(
            (r"conv0", "backbone.body.conv1", ()),
            (r"group(\d)/block(\d+)/conv(\d)", "backbone.body.layer{}.{}.conv{}", (1, 0, 0)),
            (r"group(\d)/block(\d+)/convshortcut", "backbone.body.layer{}.{}.downsample.0", (1, 0)),
            (r"fpn/lateral_1x1_c(\d)", "backbone.fpn.inner_blocks.{}.0", (-2,)),
            (r"fpn/posthoc_3x3_p(\d)", "backbone.fpn.layer_blocks.{}.0", (-2,)),
            (r"rpn/conv(\d)", "rpn.head.conv.{}.0", (0,)),
            (r"rpn/class", "rpn.head.cls_logits", ()),
            (r"rpn/box", "rpn.head.bbox_pred", ()),
            (r"fastrcnn/fc([67])", "roi_heads.box_head.fc{}", (0,)),
            (r"fastrcnn/conv(\d)", "roi_heads.box_head.{}.0", (0,)),
            (r"fastrcnn/fc", "roi_heads.box_head.5", ()),
            (r"fastrcnn/outputs/class", "roi_heads.box_predictor.cls_score", ()),
            (r"fastrcnn/outputs/box", "roi_heads.box_predictor.bbox_pred", ()),
            (r"maskrcnn/fcn(\d)", "roi_heads.mask_head.{}.0", (0,)),
            (r"maskrcnn/deconv", "roi_heads.mask_predictor.conv5_mask", ()),
            (r"maskrcnn/conv", "roi_heads.mask_predictor.mask_fcn_logits", ()),
        ),
        norm_of=_torchvision_norm,
    ),
    Target(
        source="detectron2",
        layers=(
            (r"conv0", "{body}stem.conv1", ()),
            (r"group([0-2])/block(\d+)/conv(\d)", "{body}res{}.{}.conv{}", (2, 0, 0)),
            (r"group([0-2])/block(\d+)/convshortcut", "{body}res{}.{}.shortcut", (2, 0)),
            (r"group3/block(\d+)/conv(\d)", "{roi_body}res5.{}.conv{}", (0, 0)),
            (r"group3/block(\d+)/convshortcut", "{roi_body}res5.{}.shortcut", (0,)),
            (r"fpn/lateral_1x1_c(\d)", "backbone.fpn_lateral{}", (0,)),
            (r"fpn/posthoc_3x3_p(\d)", "backbone.fpn_output{}", (0,)),
            (r"rpn/conv(\d)", "proposal_generator.rpn_head.{rpn_conv}", (0,)),
            (r"rpn/class", "proposal_generator.rpn_head.objectness_logits", ()),
            (r"rpn/box", "proposal_generator.rpn_head.anchor_deltas", ()),
            (r"fastrcnn/fc([67])", "roi_heads.box_head.fc{}", (-5,)),
            (r"fastrcnn/conv(\d)", "roi_heads.box_head.conv{}", (1,)),
            (r"fastrcnn/fc", "roi_heads.box_head.fc1", ()),
            (r"cascade_rcnn_stage(\d)/head/fc([67])", "roi_heads.box_head.{}.fc{}", (-1, -5)),
            (r"cascade_rcnn_stage(\d)/head/conv(\d)", "roi_heads.box_head.{}.conv{}", (-1, 1)),
            (r"cascade_rcnn_stage(\d)/head/fc", "roi_heads.box_head.{}.fc1", (-1,)),
            (r"fastrcnn/(?:outputs/)?class", "roi_heads.box_predictor.cls_score", ()),
            (r"fastrcnn/(?:outputs/)?box", "roi_heads.box_predictor.bbox_pred", ()),
            (r"cascade_rcnn_stage(\d)/outputs/class", "roi_heads.box_predictor.{}.cls_score", (-1,)),
            (r"cascade_rcnn_stage(\d)/outputs/box", "roi_heads.box_predictor.{}.bbox_pred", (-1,)),
            (r"maskrcnn/fcn(\d)", "roi_heads.mask_head.mask_fcn{}", (1,)),
            (r"maskrcnn/deconv", "roi_heads.mask_head.deconv", ()),
            (r"maskrcnn/conv", "roi_heads.mask_head.predictor", ()),
        ),
        norm_of=lambda name: f"{name}.norm",
        has_groups=True,
        adjustable=("RPN.ANCHOR_OFFSET", "RPN.MIN_SIZE", "ROIALIGN.SAMPLES", "ROIALIGN.ALIGNED",
                    "BACKBONE.STRIDE_1X1"),
        texts={"__author__": "FasterRCNN"},
    ),
)}


def give(weights: Mapping[str, np.ndarray], config: Mapping[str, Any], program: str) -> dict[str, np.ndarray]:
    """The weights under the names and in the layout of `program`, one of TARGETS.

    weights: our names -> float32; config: our keys with dots. Raises ValueError that names what has no place there.
    """
    target = TARGETS[program]
    normalized = {_scope(name)[0] for name in weights if name.endswith("/gamma")}
    given, homeless = {}, []
    for name, value in weights.items():
        scope, leaf = _scope(name)
        layer = _layer(scope, target, is_fpn=config["MODE_FPN"], is_deep_rpn="rpn/conv1/W" in weights)
        if layer is None or ("/gn" in name and not target.has_groups):
            homeless.append(name)
        elif leaf not in ("W", "b"):
            given[f"{target.norm_of(layer)}.{_LEAVES[leaf]}"] = value
        elif leaf == "W" or scope not in normalized:
            given[f"{layer}.{_LEAVES[leaf]}"] = _arrange(value, scope, SOURCES[program])
        elif value.any():  # there a convolution has no bias before a normalisation
            homeless.append(name)
    if homeless:
        shown = ", ".join(homeless[:4]) + (f" and {len(homeless) - 4} more" if len(homeless) > 4 else "")
        raise ValueError(f"{SOURCES[program].title} has no place for {shown}")
    return given


def _scope(name: str) -> tuple[str, str]:
    """(scope of the layer, what of it or of its normalisation) of a variable here."""
    found = _NAME.fullmatch(name)
    if found is None:
        return name, "W"
    scope, leaf = found.groups()
    if leaf in ("gamma", "beta"):
        for pattern, layer in _LAYER_BEFORE:
            scope = re.sub(f"^{pattern}$", layer, scope)
    return scope, leaf


def _layer(scope: str, target: Target, *, is_fpn: bool, is_deep_rpn: bool) -> str | None:
    """What the program calls a layer of ours, or None."""
    for pattern, name, shifts in target.layers:
        if found := re.fullmatch(pattern, scope):
            numbers = [int(group) + shift for group, shift in zip(found.groups(), shifts, strict=True)]
            body = "backbone.bottom_up." if is_fpn else "backbone."
            rpn_conv = f"conv.conv{numbers[0]}" if is_deep_rpn else "conv"
            return name.format(*numbers, body=body, roi_body=body if is_fpn else "roi_heads.", rpn_conv=rpn_conv)
    return None


def _arrange(value: np.ndarray, scope: str, there: Source) -> np.ndarray:
    """A kernel, matrix or bias in the program's layout: outputs first, classes and colours in its order."""
    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    if scope == "conv0" and there.is_rgb and value.ndim == 4:
        return value[:, ::-1]
    if scope.endswith("/class") and scope != "rpn/class" and there.background_last:
        return np.roll(value, -1, axis=0)
    if scope.startswith("fastrcnn/") and scope.endswith("/box") and there.background_last:
        return value[4:]
    if scope == "maskrcnn/conv" and there.mask_background:
        return np.concatenate([np.zeros_like(value[:1]), value])
    return value


def differences(config: Mapping[str, Any], program: str) -> list[str]:
    """A line for each of our keys whose value the program has otherwise, with no option for it."""
    there = SOURCES[program].detector_keys(config["MODE_FPN"])
    return [f"{key}={config[key]}, there {value}" for key, value in there.items()
            if key not in TARGETS[program].adjustable and key in config and config[key] != value]
