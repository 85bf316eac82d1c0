"""The variables of a model of ours with their shapes, from its config and without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]


def variables(keys: Mapping[str, Any], *, num_classes: int = 0, num_anchors: int = 0) -> Shapes:
    """Name -> shape. keys: config keys with dots, as `suggest_config` gives them; without MODE_FPN: the backbone alone.

    num_classes: K, background not counted; num_anchors: of a position.
    """
    shapes = dict(_backbone(keys))
    if "MODE_FPN" not in keys:
        return shapes
    is_fpn = keys["MODE_FPN"]
    top = 32 * keys["BACKBONE.CHANNELS"]
    channels = keys.get("FPN.NUM_CHANNEL", 256)
    if is_fpn:
        shapes |= _pyramid(keys, channels)
    shapes |= _rpn(*((channels, channels) if is_fpn else (top // 2, keys.get("RPN.HEAD_DIM", 1024))), num_anchors,
                   num_convs=keys.get("RPN.NUM_CONVS", 1))
    for scope, outputs, boxes in _box_heads(keys, num_classes):
        width = top
        if is_fpn:
            head, width = _box_head(keys, scope, channels)
            shapes |= head
        shapes |= _biased(f"{outputs}/class", width, num_classes + 1) | _biased(f"{outputs}/box", width, 4 * boxes)
    return shapes | (_mask_head(keys, channels if is_fpn else top, num_classes) if keys.get("MODE_MASK") else {})


def _biased(name: str, *shape: int) -> Shapes:
    return {f"{name}/W": shape, f"{name}/b": shape[-1:]}


def _group_norm(name: str, channels: int) -> Shapes:
    return {f"{name}/gamma": (channels,), f"{name}/beta": (channels,)}


def _backbone(keys: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    channels, groups = keys["BACKBONE.CHANNELS"], keys.get("BACKBONE.NUM_GROUPS", 1)
    width = groups * (keys.get("BACKBONE.WIDTH_PER_GROUP") or channels // groups)
    leaves = {"FreezeBN": ("bn/gamma", "bn/beta", "bn/mean/EMA", "bn/variance/EMA"),
              "GN": ("gn/gamma", "gn/beta")}.get(keys["BACKBONE.NORM"], ())

    def conv(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}/W", shape
        yield from ((f"{name}/{leaf}", shape[-1:]) for leaf in leaves)

    yield from conv("conv0", 7, 7, 3, channels)
    given = channels
    for group, blocks in enumerate(keys["BACKBONE.RESNET_NUM_BLOCKS"]):
        inner, out = width << group, 4 * channels << group
        for block in range(blocks):
            scope = f"group{group}/block{block}"
            yield from conv(f"{scope}/conv1", 1, 1, given, inner)
            yield from conv(f"{scope}/conv2", 3, 3, inner // groups, inner)
            yield from conv(f"{scope}/conv3", 1, 1, inner, out)
            if given != out:
                yield from conv(f"{scope}/convshortcut", 1, 1, given, out)
            given = out


def _pyramid(keys: Mapping[str, Any], channels: int) -> Shapes:
    shapes: Shapes = {}
    for level in range(2, 6):
        shapes |= _biased(f"fpn/lateral_1x1_c{level}", 1, 1, keys["BACKBONE.CHANNELS"] << level, channels)
        shapes |= _biased(f"fpn/posthoc_3x3_p{level}", 3, 3, channels, channels)
        if keys.get("FPN.NORM") == "GN":
            shapes |= _group_norm(f"fpn/gn_c{level}", channels) | _group_norm(f"fpn/gn_p{level}", channels)
    return shapes


def _rpn(given: int, channels: int, num_anchors: int, *, num_convs: int) -> Shapes:
    shapes: Shapes = {}
    for i in range(num_convs):
        shapes |= _biased(f"rpn/conv{i}", 3, 3, channels if i else given, channels)
    return (shapes | _biased("rpn/class", 1, 1, channels, num_anchors)
            | _biased("rpn/box", 1, 1, channels, 4 * num_anchors))


def _box_heads(keys: Mapping[str, Any], num_classes: int) -> list[tuple[str, str, int]]:
    """(scope of the network, scope of its outputs, boxes for each RoI) of every box head."""
    if keys.get("FPN.CASCADE"):
        return [(f"cascade_rcnn_stage{i}/head", f"cascade_rcnn_stage{i}/outputs", 1) for i in (1, 2, 3)]
    return [("fastrcnn", "fastrcnn/outputs" if keys["MODE_FPN"] else "fastrcnn", num_classes + 1)]


def _box_head(keys: Mapping[str, Any], scope: str, channels: int) -> tuple[Shapes, int]:
    """The head's variables, and how many features it gives."""
    kind, width = keys.get("FPN.FRCNN_HEAD_FUNC", "fastrcnn_2fc_head"), keys.get("FPN.FRCNN_FC_HEAD_DIM", 1024)
    if "4conv1fc" not in kind:
        shapes = _biased(f"{scope}/fc6", 49 * channels, width) | _biased(f"{scope}/fc7", width, width)
        if "_gn_" in kind:
            shapes |= _group_norm(f"{scope}/gn6", width) | _group_norm(f"{scope}/gn7", width)
        return shapes, width
    shapes, conv_width = {}, keys.get("FPN.FRCNN_CONV_HEAD_DIM", 256)
    for i in range(4):
        shapes |= _biased(f"{scope}/conv{i}", 3, 3, conv_width if i else channels, conv_width)
        shapes |= _group_norm(f"{scope}/gn{i}", conv_width) if "_gn_" in kind else {}
    return shapes | _biased(f"{scope}/fc", 49 * conv_width, width), width


def _mask_head(keys: Mapping[str, Any], given: int, num_classes: int) -> Shapes:
    channels, shapes = keys.get("MRCNN.HEAD_DIM", 256), {}
    if keys["MODE_FPN"]:
        for i in range(4):
            shapes |= _biased(f"maskrcnn/fcn{i}", 3, 3, channels if i else given, channels)
            is_gn = "_gn_" in keys.get("FPN.MRCNN_HEAD_FUNC", "")
            shapes |= _group_norm(f"maskrcnn/gn{i}", channels) if is_gn else {}
        given = channels
    return shapes | {"maskrcnn/deconv/W": (2, 2, channels, given), "maskrcnn/deconv/b": (channels,)} | _biased(
        "maskrcnn/conv", 1, 1, channels, num_classes)
