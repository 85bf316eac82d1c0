"""What there is to say of a program whose weights are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# What is left out of any program's files, and why: pattern of the name -> reason.
COMMON_IGNORED = (
    (r".*num_batches_tracked", "a counter of training"),
    (r".*(momentum|moment_\d|_grad)", "an optimizer's state"),
    (r".*cell_anchors\.\d+", "anchors follow from the config"),
    (r".*keypoint.*|conv_fcn\d_.*|kps_score.*", "keypoints are not predicted here"),
)


def common_conventions(is_fpn: bool) -> dict[str, Any]:
    """Config keys of the conventions that most programs read here share (docs/conventions.md)."""
    of_fpn = {"FPN.ROUND_MAX_SIZE": False, "FPN.NORM_BEFORE_RELU": True} if is_fpn else {}
    return {"BACKBONE.TF_PAD_MODE": False, "BACKBONE.SYMMETRIC_PAD": True, "FRCNN.MAX_SCALE": 62.5,
            "RPN.ANCHOR_OFFSET": 0.0, "RPN.ANCHOR_ROUNDING": "none", "RPN.FIT_STRIDES": False, "RPN.MIN_SIZE": 0.0,
            "TEST.RESULT_MIN_SIZE": 0.0, "ROIALIGN.INCLUSIVE": False, **of_fpn}


@dataclass(frozen=True)
class File:
    """arrays: name -> array; texts: what stands beside them as text."""

    arrays: Mapping[str, np.ndarray]
    texts: Mapping[str, str] = field(default_factory=dict)

    def has(self, pattern: str) -> bool:
        """Whether a name matches the whole pattern."""
        return any(re.fullmatch(pattern, name) for name in self.arrays)


@dataclass(frozen=True)
class Source:
    """A program's names and conventions.

    marks: patterns of names that its files have, each of them. separator: what stands between a layer's name and that
    of its variable, `variables`: the latter -> weight, bias, mean, variance. layers: (pattern of a layer's name,
    scope here, what is added to the pattern's numbers to fill the scope's places); a scope that ends in /norm is the
    normalisation of the layer before it. norms: endings of layers' names -> norm (batch or group), affine or group.
    ignored: (pattern of a variable's name, reason). adapt(file): fields that differ for this file.
    config(file, keys, source): config keys, from those that names and shapes tell; source: this one, adapted.
    conventions(is_fpn): config keys of every detector of the program, besides `common_conventions`.

    is_rgb: the first convolution's input. epsilon: of batch normalisations. background_last: the classifier's row.
    mask_background: masks have a row for the background, the first. ratios_outside: the anchors of a position run over
    the sizes first, then over the ratios.
    """

    name: str
    title: str
    marks: tuple[str, ...]
    separator: str = "."
    variables: Mapping[str, str] = field(default_factory=lambda: {
        "weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "variance"})
    layers: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    norms: tuple[tuple[str, str], ...] = ()
    ignored: tuple[tuple[str, str], ...] = ()
    adapt: Callable[[File], dict[str, Any]] = lambda file: {}
    config: Callable[[File, Mapping, Source], dict[str, Any]] = lambda file, keys, source: {}
    conventions: Callable[[bool], dict[str, Any]] = lambda is_fpn: {}
    is_rgb: bool = False
    epsilon: float = 1e-5
    background_last: bool = False
    mask_background: bool = True
    ratios_outside: bool = False

    def detector_keys(self, is_fpn: bool) -> dict[str, Any]:
        """All config keys of the program's conventions."""
        return common_conventions(is_fpn) | self.conventions(is_fpn)

    def reason_to_ignore(self, name: str) -> str | None:
        """Why a variable is left out, or None."""
        return next((reason for pattern, reason in (*self.ignored, *COMMON_IGNORED) if re.fullmatch(pattern, name)),
                    None)

    def place(self, name: str) -> tuple[str, str, str] | None:
        """(scope here, kind: layer, norm, affine or group, which of its variables) of a name, or None."""
        variable = next((held for held in self.variables if name.endswith(self.separator + held)), None)
        if variable is None:
            return None
        layer, kind = name.removesuffix(self.separator + variable), "layer"
        for ending, of_norm in self.norms:
            if layer.endswith(ending):
                layer, kind = layer.removesuffix(ending), of_norm
        for pattern, scope, shifts in self.layers:
            found = re.fullmatch(pattern, layer)
            if found:
                numbers = [int(group) + shift for group, shift in zip(found.groups(), shifts, strict=True)]
                scope = scope.format(*numbers)
                if scope.endswith("/norm"):
                    scope, kind = scope.removesuffix("/norm"), "norm"
                return scope, kind, self.variables[variable]
        return None
