"""The heads' last layers, whose outputs belong to classes: which they are, and how they get other classes.

K: classes, background not counted. No TensorFlow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

CLASS_LAYERS = re.compile(r"((fastrcnn|fastrcnn/outputs|cascade_rcnn_stage\d/outputs)/(class|box)|maskrcnn/conv)/[Wb]")

_SPREAD = {"class": 0.01, "box": 0.001, "conv": 0.001}  # of the start values, as the heads draw them


def copy_classes(
    weights: Mapping[str, np.ndarray], given: Sequence[str], wanted: Sequence[str], *, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The weights of a model of the classes `given` for one of the classes `wanted`, and the names that both have.

    Names are compared without regard to case. Other classes get start values drawn with `seed`; the background stays.
    Raises ValueError when a layer has not as many outputs as there are classes given.
    """
    places = {name.lower(): place for place, name in enumerate(given)}
    kept = [name for name in wanted if name.lower() in places]
    random = np.random.default_rng(seed)
    changed = dict(weights)
    for name, value in weights.items():
        if not CLASS_LAYERS.fullmatch(name) or (name.startswith("cascade") and "/box/" in name):
            continue
        layer, leaf = name.split("/")[-2:]
        background = layer != "conv"
        if value.shape[-1] != (len(given) + background) * (4 if layer == "box" else 1):
            raise ValueError(f"{name} has {value.shape[-1]} outputs, which are not those of {len(given)} classes")
        rows = value.reshape(*value.shape[:-1], len(given) + background, -1)
        shape = (*rows.shape[:-2], len(wanted) + background, rows.shape[-1])
        new = random.normal(0, _SPREAD[layer], shape) if leaf == "W" else np.zeros(shape)
        if background:
            new[..., 0, :] = rows[..., 0, :]
        for place, wanted_name in enumerate(wanted):
            if wanted_name in kept:
                new[..., place + background, :] = rows[..., places[wanted_name.lower()] + background, :]
        changed[name] = new.reshape(*value.shape[:-1], -1).astype(np.float32)
    return changed, kept
