"""The programs whose weights are read, and how a file's program is recognised."""

from __future__ import annotations

import re

from FasterRCNN.foreign.sources import detectron, detectron2, maskrcnn_benchmark, tensorpack, torchvision
from FasterRCNN.foreign.sources.base import File, Source

__all__ = ["SOURCES", "File", "Source", "choose_source"]

SOURCES: dict[str, Source] = {source.name: source for source in (
    tensorpack.SOURCE, detectron.SOURCE, detectron2.SOURCE, maskrcnn_benchmark.SOURCE, torchvision.DETECTION,
    torchvision.CLASSIFICATION)}


def choose_source(file: File, name: str | None = None) -> Source:
    """The program of the given name, or the one whose names a file has; ValueError if there is none."""
    known = ", ".join(SOURCES)
    if name is not None:
        if name not in SOURCES:
            raise ValueError(f"there is no source {name}: choose one of {known}")
        return SOURCES[name]
    for source in SOURCES.values():
        if all(any(re.fullmatch(mark, held) for held in file.arrays) for mark in source.marks):
            return source
    names = list(file.arrays)
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    raise ValueError(f"these are names of no program known here: {shown or 'none'}. Known are {known}; "
                     "--source chooses one")
