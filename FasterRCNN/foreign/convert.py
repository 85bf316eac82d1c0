"""From the weights of another program to ours: names, layouts of arrays, and the config that goes with them.

One engine reads the tables in `sources`. Every variable of the file is used, left out for a reason, or not understood;
every variable of our model is filled or missing; the `Report` says which.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from FasterRCNN.datasets.coco_categories import COCO_CATEGORIES
from FasterRCNN.engine.architecture import number_of_classes, suggest_config
from FasterRCNN.engine.zoo import plain_name, with_background_box
from FasterRCNN.foreign.sources import File, Source
from FasterRCNN.foreign.target import variables

EPSILON = 1e-5  # of our batch normalisations
RATIOS = 3

# A group normalisation outside the backbone stands beside its convolution and not inside: pattern of the latter -> it.
_GROUP_NORMS = ((r"fpn/lateral_1x1_c(\d)", r"fpn/gn_c\1"), (r"fpn/posthoc_3x3_p(\d)", r"fpn/gn_p\1"),
                (r"(.+)/(?:conv|fcn|fc)(\d)", r"\1/gn\2"))
# torchvision's classifier has a row for each of COCO's ids up to 90, of which ten are of no class.
_COCO_NAMES = {len(COCO_CATEGORIES): (COCO_CATEGORIES.names, COCO_CATEGORIES.ids),
               90: ([COCO_CATEGORIES.by_id.get(i, f"unused {i}") for i in range(1, 91)], range(1, 91))}

Names = dict[tuple[str, str], str]  # (kind, variable) -> name in the file


@dataclass
class Report:
    """What became of every variable.

    used: name in the file -> names here. left_out, refused: name in the file -> why; what is refused would change the
    detections. filled: name here -> what it was made from. missing: names here.
    """

    used: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    filled: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether our model is filled and nothing that it would need is left out."""
        return not self.missing and not self.refused

    def lines(self) -> Iterator[str]:
        """A line for each variable of the file, then for each of our model."""
        yield from (f"used      {name} -> {', '.join(targets)}" for name, targets in self.used.items())
        yield from (f"left out  {name}: {reason}" for name, reason in self.left_out.items())
        yield from (f"REFUSED   {name}: {reason}" for name, reason in self.refused.items())
        yield from (f"filled    {name} <- {origin}" for name, origin in self.filled.items())
        yield from (f"MISSING   {name}" for name in self.missing)

    def summary(self) -> str:
        """The counts, in a line."""
        return (f"source: {len(self.used)} variables used, {len(self.left_out)} left out, {len(self.refused)} refused; "
                f"target: {len(self.filled)} filled, {len(self.missing)} missing")


@dataclass(frozen=True)
class Conversion:
    """weights: our names -> float32; config: keys with dots, as far as the file tells them."""

    weights: dict[str, np.ndarray]
    config: dict[str, Any]
    report: Report


def convert(file: File, source: Source) -> Conversion:
    """Give the weights of `file` our names and layout; what is missing or refused stands in the report.

    Raises ValueError when the file holds no ResNet of bottlenecks, as the models here have, or no finite numbers.
    """
    source = dataclasses.replace(source, **source.adapt(file))
    report = Report()
    weights = dict(_own(file, source, report) if not source.layers else _translated(file, source, report))
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise ValueError(f"{report.filled.get(name, name)} gives {name} values that are infinite or no numbers: "
                             "the file is damaged, or the epsilon of its normalisations is another (--epsilon)")
    shapes = {name: value.shape for name, value in weights.items()}
    keys = suggest_config(shapes)
    if "group0/block0/conv3/W" not in shapes or "BACKBONE.RESNET_NUM_BLOCKS" not in keys:
        raise ValueError(f"as weights of {source.title} the file holds no whole ResNet of bottlenecks (R50, R101, "
                         f"ResNeXt): {report.summary()}")
    _compare(shapes, keys, report)
    return Conversion({name: weights[name] for name in report.filled}, _config(file, source, keys, shapes), report)


# ------------------------------------------------------------------------------------------------------------- naming


def _own(file: File, source: Source, report: Report) -> Iterator[tuple[str, np.ndarray]]:
    """The weights of a file that has our names."""
    arrays = {}
    for name, value in file.arrays.items():
        reason = source.reason_to_ignore(name)
        if reason:
            report.left_out[name] = reason
        else:
            arrays[plain_name(name)] = value
            report.used[name], report.filled[plain_name(name)] = [plain_name(name)], name
    yield from ((name, np.asarray(value, np.float32)) for name, value in with_background_box(arrays).items())


def _translated(file: File, source: Source, report: Report) -> Iterator[tuple[str, np.ndarray]]:
    """The weights of another program, layer by layer."""
    scopes = _scopes(file, source, report)
    classes = {scope.removesuffix("class"): len(file.arrays[names["layer", "bias"]]) - 1
               for scope, names in scopes.items() if scope.endswith("outputs/class") and ("layer", "bias") in names}
    for scope, names in scopes.items():
        of_norm = {variable for kind, variable in names if kind != "layer"}
        if of_norm and {"weight", "bias"} ^ of_norm not in (set(), {"mean", "variance"}):
            report.refused |= dict.fromkeys(names.values(), "the normalisation after this layer is not whole")
            continue
        num_classes = classes.get(scope.removesuffix("box"), 0)
        values = {place: _arrange(file.arrays[name], scope, source, num_classes) for place, name in names.items()}
        for target, value, places in _layer(_our_scope(scope, scopes), values, source):
            report.filled[target] = ", ".join(names[place] for place in places) or "a constant, as the source has none"
            for place in places:
                report.used.setdefault(names[place], []).append(target)
            yield target, np.ascontiguousarray(value, np.float32)


def _scopes(file: File, source: Source, report: Report) -> dict[str, Names]:
    """Scope here -> the names in the file that belong to it."""
    scopes: dict[str, Names] = {}
    for name, value in file.arrays.items():
        if reason := source.reason_to_ignore(name):
            report.left_out[name] = reason
        elif not value.ndim:
            report.refused[name] = "a single number, which no layer's variable is"
        elif place := source.place(name):
            scope, kind, variable = place
            held = scopes.setdefault(scope, {}).setdefault((kind, variable), name)
            if held is not name and np.array_equal(file.arrays[held], value):
                report.left_out[name] = f"the same as {held}"
            elif held is not name:
                report.refused[name] = f"of another value than {held}, while there is one such layer here"
        else:
            report.refused[name] = "there is no such layer here"
    return scopes


def _our_scope(scope: str, scopes: Mapping) -> str:
    """A layer's scope in our model, which is named otherwise in C4 models and after convolutions."""
    if scope.startswith("fastrcnn/outputs/") and not any(name.startswith("fpn/") for name in scopes):
        return scope.replace("outputs/", "")
    head, _, layer = scope.rpartition("/")
    return f"{head}/fc" if layer == "fc6" and f"{head}/conv0" in scopes else scope


# ------------------------------------------------------------------------------------------------------------- layout


def _arrange(value: np.ndarray, scope: str, source: Source, num_classes: int) -> np.ndarray:
    """Put an array's rows, still the first axis, or the first convolution's channels into our order."""
    if scope == "conv0" and value.ndim == 4:
        return value[:, ::-1] if source.is_rgb else value
    if scope in ("rpn/class", "rpn/box") and source.ratios_outside:
        return _sizes_outside(value, 4 if scope == "rpn/box" else 1)
    if scope.endswith("outputs/class") and source.background_last:
        return np.roll(value, 1, axis=0)
    if scope.endswith("outputs/box"):
        return _box_rows(value, num_classes, is_cascade=scope.startswith("cascade"))
    return value[1:] if scope == "maskrcnn/conv" and source.mask_background else value


def _sizes_outside(value: np.ndarray, each: int) -> np.ndarray:
    """Reorder the rows, `each` an anchor, from ratio-major to size-major; there are three ratios."""
    sizes = len(value) // (each * RATIOS)
    if len(value) != sizes * each * RATIOS:
        return value
    return value.reshape(RATIOS, sizes, each, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)


def _box_rows(value: np.ndarray, num_classes: int, *, is_cascade: bool) -> np.ndarray:
    """Four rows for each class, background first; a cascade has but four."""
    if is_cascade or len(value) == 4 * (num_classes + 1):
        return value
    if len(value) == 4 * num_classes:  # background's are never read
        return np.concatenate([np.zeros_like(value[:4]), value])
    if len(value) in (4, 8):  # for all classes alike, with or without background
        return np.concatenate([value[-4:]] * (num_classes + 1))
    return value


def _layer(scope: str, values: Mapping, source: Source) -> Iterator[tuple[str, np.ndarray, list]]:
    """(variable here, value, what of the file it is made from) of a layer and of the normalisation after it."""
    norm = {variable: value for (kind, variable), value in values.items() if kind != "layer"}
    kernel, bias = values.get(("layer", "weight")), values.get(("layer", "bias"))
    is_backbone = re.match(r"conv0$|group\d/", scope) is not None
    # Without statistics a normalisation is one of groups, unless the file calls it a scale and a shift.
    is_group = bool(norm) and "mean" not in norm and not any(kind == "affine" for kind, _ in values)
    of_norm = [place for place in values if place[0] != "layer"]
    if norm and not is_group and not is_backbone and kernel is not None:
        yield from _folded(scope, values, norm, source)
        return
    if kernel is not None:
        yield f"{scope}/W", _our_kernel(kernel), [("layer", "weight")]
    if bias is not None:
        yield f"{scope}/b", bias, [("layer", "bias")]
    elif is_group and not is_backbone and kernel is not None:
        yield f"{scope}/b", np.zeros(len(kernel)), []
    if is_group:
        name = f"{scope}/gn" if is_backbone else _group_norm_scope(scope)
        yield from ((f"{name}/{ours}", norm[theirs], [place])
                    for theirs, ours in (("weight", "gamma"), ("bias", "beta"))
                    for place in of_norm if place[1] == theirs)
    elif norm:
        yield from _batch_norm(f"{scope}/bn", norm, {place[1]: place for place in of_norm}, source)


def _our_kernel(value: np.ndarray) -> np.ndarray:
    """Out×in×h×w to h×w×in×out, of a transposed convolution in×out×h×w to h×w×out×in; a matrix is transposed."""
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _group_norm_scope(scope: str) -> str:
    return next((re.sub(pattern, name, scope) for pattern, name in _GROUP_NORMS if re.fullmatch(pattern, scope)),
                f"{scope}/gn")


def _batch_norm(scope: str, norm: Mapping, places: Mapping, source: Source) -> Iterator[tuple[str, np.ndarray, list]]:
    gamma, beta, mean, variance = _statistics(norm, source)
    # What another epsilon makes of the variance, and where that would be negative, of gamma.
    ours = np.maximum(variance - EPSILON, 0)
    with np.errstate(all="ignore"):  # told by `convert`
        gamma = gamma * np.sqrt((ours + EPSILON) / variance)
    for name, value, variable in (("gamma", gamma, "weight"), ("beta", beta, "bias"), ("mean/EMA", mean, "mean"),
                                  ("variance/EMA", ours, "variance")):
        yield f"{scope}/{name}", value, [places[variable]] if variable in places else []


def _statistics(norm: Mapping, source: Source) -> tuple[np.ndarray, ...]:
    """(gamma, beta, mean, variance with epsilon) as float64."""
    gamma, beta = (norm[name].astype(np.float64) for name in ("weight", "bias"))
    if "variance" not in norm:
        return gamma, beta, np.zeros_like(gamma), np.ones_like(gamma)
    return gamma, beta, norm["mean"].astype(np.float64), norm["variance"].astype(np.float64) + source.epsilon


def _folded(scope: str, values: Mapping, norm: Mapping, source: Source) -> Iterator[tuple[str, np.ndarray, list]]:
    """A batch normalisation outside the backbone, where we have none: as part of its convolution."""
    gamma, beta, mean, variance = _statistics(norm, source)
    with np.errstate(all="ignore"):  # told by `convert`
        scale = gamma / np.sqrt(variance)
    bias = values.get(("layer", "bias"), 0.0)
    kernel = values["layer", "weight"]
    yield f"{scope}/W", _our_kernel(kernel * scale[:, None, None, None]), [
        place for place in values if place not in (("layer", "bias"), ("norm", "bias"), ("norm", "mean"))]
    yield f"{scope}/b", beta + (bias - mean) * scale, [place for place in values if place != ("layer", "weight")]


# ------------------------------------------------------------------------------------------------------------- config


def _compare(shapes: Mapping, keys: Mapping, report: Report) -> None:
    """Note what our model has and the file does not, and the other way round."""
    num_anchors = shapes["rpn/class/b"][0] if "rpn/class/b" in shapes else 0
    wanted = variables(keys, num_classes=number_of_classes(shapes) or 0, num_anchors=num_anchors)
    report.missing = [name for name in wanted if name not in shapes]
    for name in [name for name in shapes if wanted.get(name) != shapes[name]]:
        reason = (f"{name} is {_text(shapes[name])}, our model's {_text(wanted[name])}" if name in wanted else
                  f"our model of this architecture has no {name}")
        origins = [held for held, targets in report.used.items() if name in targets] or [name]
        for held in origins:
            report.used.pop(held, None)
            report.refused[held] = reason
        report.filled.pop(name, None)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _config(file: File, source: Source, keys: Mapping, shapes: Mapping) -> dict[str, Any]:
    if not source.layers:
        return {**keys, **source.config(file, keys, source)}
    told = source.config(file, keys, source)
    config = {**keys, "BACKBONE.TF_PAD_MODE": False, "BACKBONE.SYMMETRIC_PAD": True} | told
    if "MODE_FPN" not in keys:
        return config
    config |= {"TEST.RESULT_SCORE_THRESH": 0.05, "TEST.FRCNN_NMS_THRESH": 0.5, "TEST.RESULTS_PER_IM": 100,
               "PREPROC.TEST_SHORT_EDGE_SIZE": 800, "PREPROC.MAX_SIZE": 1333}
    config |= source.detector_keys(keys["MODE_FPN"]) | told
    if not keys["MODE_FPN"] and shapes.get("rpn/class/b", (15,))[0] == 12:
        config["RPN.ANCHOR_SIZES"] = [64, 128, 256, 512]
    num_classes = number_of_classes(shapes)
    config["DATA.NUM_CLASS"] = num_classes
    names, ids = _COCO_NAMES.get(num_classes, ((), ()))
    return config | ({"DATA.CLASS_NAMES": list(names), "DATA.CATEGORY_IDS": list(ids)} if names else {})
