"""What is particular to the files of tensorpack's model zoo: older forms of variables, and what a file's name tells."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

# The first release's -Pad backbones and those of the zoo's folder ResNet/ pad as TensorFlow does.
_TF_PAD_MODE = {r"AlignPadding": False, r"^ImageNet-R\d+-Pad\b": True, r"^ImageNet-ResNet\d+": True}


def plain_name(name: str) -> str:
    """A variable's name without what older releases wrote around it: the first device's scope and ':0'."""
    return name.removeprefix("tower0/").removesuffix(":0")


def with_background_box(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights, with box deltas for the background where there are none.

    Until mid-2018 box heads had 4·K outputs; later ones have 4·(K+1), of which the first four are never read.
    """
    completed = dict(weights)
    for scope in ("fastrcnn", "fastrcnn/outputs"):
        classifier = weights.get(f"{scope}/class/b")
        for name in (f"{scope}/box/W", f"{scope}/box/b"):
            if classifier is None or name not in weights or not weights[name].ndim:
                continue
            value = weights[name]
            if value.shape[-1] == 4 * (classifier.size - 1):
                completed[name] = np.pad(value, [(0, 0)] * (value.ndim - 1) + [(4, 0)])
    return completed


def padding_notice(path: str | Path, tf_pad_mode: bool) -> str | None:
    """What to set when the name of a backbone's file contradicts BACKBONE.TF_PAD_MODE; None when it does not."""
    name = Path(path).name
    for pattern, trained_with in _TF_PAD_MODE.items():
        if re.search(pattern, name) and trained_with != tf_pad_mode:
            return (f"{name} was trained with BACKBONE.TF_PAD_MODE={trained_with}; the configured {tf_pad_mode} shifts "
                    f"its features by a pixel: add BACKBONE.TF_PAD_MODE={trained_with}")
    return None
