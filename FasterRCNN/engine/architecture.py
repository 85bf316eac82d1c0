"""What the names and shapes of weights tell of the model that they belong to, in the words of its config.

`shapes` maps a variable's name to its shape, of a file or of a model, under tensorpack's names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

Shapes = Mapping[str, tuple[int, ...]]

_BACKBONE = re.compile(r"(conv0|group\d+)/")
_RPN_KERNEL = re.compile(r"rpn/conv\d+/W")


def is_backbone_variable(name: str) -> bool:
    """Whether a variable belongs to the ResNet, its last group included, which is the head of a C4 model."""
    return _BACKBONE.match(name) is not None


def is_backbone_only(names: Iterable[str]) -> bool:
    """Whether there is a backbone and no part of a detector."""
    names = list(names)
    return any(map(is_backbone_variable, names)) and not any(name.startswith("rpn/") for name in names)


def number_of_classes(shapes: Shapes) -> int | None:
    """K, background not counted, from the shape of the classifier; None when there is none."""
    for name in ("fastrcnn/outputs/class/b", "fastrcnn/class/b", "cascade_rcnn_stage1/outputs/class/b"):
        if name in shapes:
            return shapes[name][0] - 1
    return None


def suggest_config(shapes: Shapes) -> dict[str, object]:
    """The config keys that a model with these variables was built with, as far as names and shapes tell them."""
    if not shapes.get("conv0/W"):
        return {}
    keys = _backbone_keys(shapes)
    if "rpn/conv0/W" not in shapes:
        return keys
    keys["MODE_FPN"] = any(name.startswith("fpn/") for name in shapes)
    keys["RPN.NUM_CONVS"] = sum(bool(_RPN_KERNEL.fullmatch(name)) for name in shapes)
    keys["MODE_MASK"] = any(name.startswith("maskrcnn/") for name in shapes)
    return keys | (_fpn_keys(shapes) if keys["MODE_FPN"] else _widths(shapes, {"RPN.HEAD_DIM": "rpn/conv0/W"})) | (
        _widths(shapes, {"MRCNN.HEAD_DIM": "maskrcnn/deconv/b"}))


def _backbone_keys(shapes: Shapes) -> dict[str, object]:
    norm = "GN" if "conv0/gn/gamma" in shapes else "FreezeBN" if "conv0/bn/gamma" in shapes else "None"
    keys = {"BACKBONE.NORM": norm, "BACKBONE.CHANNELS": shapes["conv0/W"][-1]}
    blocks = [{name.split("/")[1] for name in shapes if name.startswith(f"group{group}/")} for group in range(4)]
    if all(blocks):
        keys["BACKBONE.RESNET_NUM_BLOCKS"] = [len(group) for group in blocks]
    kernel = shapes.get("group0/block0/conv2/W", ())
    if len(kernel) == 4 and kernel[2]:
        # The 3x3 kernel of a grouped convolution has the input channels of one group and the output channels of all.
        keys |= _grouping(kernel[3] // kernel[2], kernel[2], keys["BACKBONE.CHANNELS"])
    return keys


def _grouping(groups: int, width: int | None, channels: int | None) -> dict[str, object]:
    """NUM_GROUPS and WIDTH_PER_GROUP, which is None where it follows from the others, as in a plain ResNet."""
    return {"BACKBONE.NUM_GROUPS": groups,
            "BACKBONE.WIDTH_PER_GROUP": None if width is None or groups * width == channels else width}


def _fpn_keys(shapes: Shapes) -> dict[str, object]:
    is_cascade = "cascade_rcnn_stage1/outputs/class/b" in shapes
    head = "cascade_rcnn_stage1/head" if is_cascade else "fastrcnn"
    has_convs = f"{head}/conv0/W" in shapes
    convs = "4conv1fc" if has_convs else "2fc"
    if {f"{head}/gn0/gamma", f"{head}/gn6/gamma"} & shapes.keys():
        convs += "_gn"
    keys = {"FPN.CASCADE": is_cascade, "FPN.NORM": "GN" if "fpn/gn_c2/gamma" in shapes else "None",
            "FPN.FRCNN_HEAD_FUNC": f"fastrcnn_{convs}_head"}
    if "maskrcnn/deconv/b" in shapes:
        keys["FPN.MRCNN_HEAD_FUNC"] = f"maskrcnn_up4conv{'_gn' if 'maskrcnn/gn0/gamma' in shapes else ''}_head"
    return keys | _widths(shapes, {
        "FPN.NUM_CHANNEL": "fpn/lateral_1x1_c2/W", "FPN.FRCNN_CONV_HEAD_DIM": f"{head}/conv0/W",
        "FPN.FRCNN_FC_HEAD_DIM": f"{head}/fc/W" if has_convs else f"{head}/fc6/W"})


def _widths(shapes: Shapes, names: Mapping[str, str]) -> dict[str, int]:
    return {key: shapes[name][-1] for key, name in names.items() if shapes.get(name)}


def way_out(given: Shapes, wanted: Shapes, config: Mapping | None) -> str:
    """What to change so that weights of the shapes `given` fit a model that was built from `config`, in a line.

    config: nested or with dotted keys; only keys of another value are proposed. wanted: the model's shapes.
    """
    suggested, current = suggest_config(given), _comparable(config or {})
    keys = {key: value for key, value in suggested.items() if key not in current or current[key] != value}
    advice = []
    if keys:
        kind = "ImageNet" if is_backbone_only(given) else "FPN" if suggested.get("MODE_FPN") else "C4"
        literals = (f"{key}={value}".replace(" ", "") for key, value in keys.items())
        advice.append(f"these are {kind} weights: add {' '.join(literals)}")
    classes = number_of_classes(given), number_of_classes(wanted)
    if None not in classes and classes[0] != classes[1]:
        advice.append(f"they tell {classes[0]} classes apart, the model {classes[1]}: "
                      "DATA.TRAIN and DATA.VAL must name data with the classes of the weights")
    return "; ".join(advice) or "use the config that they were trained with"


def _comparable(config: Mapping) -> dict[str, object]:
    """A config's values under dotted keys, as `suggest_config` would tell them from the model's variables."""
    flat = {key: list(value) if isinstance(value, tuple) else value for key, value in _flatten(config)}
    if flat.get("BACKBONE.NORM") == "SyncBN":
        flat["BACKBONE.NORM"] = "FreezeBN"
    flat.setdefault("RPN.NUM_CONVS", 1)  # of models that are older than the key
    return flat | _grouping(flat.get("BACKBONE.NUM_GROUPS", 1), flat.get("BACKBONE.WIDTH_PER_GROUP"),
                            flat.get("BACKBONE.CHANNELS"))


def _flatten(config: Mapping, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
