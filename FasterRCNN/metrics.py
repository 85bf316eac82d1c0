"""What an evaluation gives, and how it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from tabulate import tabulate

__all__ = ["MAIN_NUMBER", "TITLES", "Curves", "Metrics", "format_metrics"]

TITLES = {"bbox": "box", "segm": "mask"}
MAIN_NUMBER = {"coco": "AP", "voc": "AP50_all"}
PRINTED_OF_A_CLASS = ("AP", "AP50_all", "AP50_11point")


@dataclass
class Curves:
    """What lies behind an AP, at T of its IoU thresholds: for K classes by id, R recalls and N results.

    iou_thresholds: T; recalls: R; precision: T x K x R, the best at no less than each recall, NaN for a class without
    objects; outcomes: uint8 N x T, what became of each result as it was given, MISS, HIT or IGNORED (evaluation.py).
    """

    iou_thresholds: tuple[float, ...]
    recalls: np.ndarray
    precision: np.ndarray
    outcomes: np.ndarray


@dataclass
class Metrics:
    """COCO's twelve numbers or VOC's two, for boxes and, where masks were scored, for masks, and those of each class.

    bbox, segm: name ("AP", "AP50", ...; of VOC "AP50_all", "AP50_11point") to value; segm is empty without masks.
    per_class: "bbox" or "segm" to name (of COCO the APs alone) to class name to value; each mean over the classes is
    the number of that name. None stands for "no ground truth". num_objects: class name to the objects that count.
    curves: "bbox" or "segm" to what the report draws; not part of what is written.
    """

    metric: str = "coco"
    bbox: dict[str, float | None] = field(default_factory=dict)
    segm: dict[str, float | None] = field(default_factory=dict)
    per_class: dict[str, dict[str, dict[str, float | None]]] = field(default_factory=dict)
    num_objects: dict[str, int] = field(default_factory=dict)
    num_detections: int = 0
    curves: dict[str, Curves] = field(default_factory=dict, repr=False, compare=False)

    @property
    def main(self) -> tuple[str, str]:
        """Kind and name of the number to judge a model by: of masks where they were scored, else of boxes."""
        return "segm" if self.segm else "bbox", MAIN_NUMBER[self.metric]

    def to_dict(self) -> dict[str, object]:
        """All fields but the curves, as JSON holds them."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "curves"}

    def scalars(self) -> dict[str, float]:
        """The numbers that exist, for monitors: {"bbox/AP": 0.5, ...}."""
        named = {f"{kind}/{name}": value for kind, table in self.overall().items() for name, value in table.items()}
        return {name: value for name, value in named.items() if value is not None}

    def overall(self) -> dict[str, dict[str, float | None]]:
        """The numbers of boxes and, where they were scored, of masks."""
        return {kind: table for kind, table in (("bbox", self.bbox), ("segm", self.segm)) if table}


def format_metrics(metrics: Metrics) -> str:
    """Two tables: the numbers, and the objects and numbers of each class."""
    parts = ["Nothing was detected: every AP is 0."] if metrics.num_detections == 0 else []
    overall = {TITLES[kind]: numbers for kind, numbers in metrics.overall().items()}
    parts.append(_table("metric", overall))
    columns: dict[str, Mapping] = {"objects": metrics.num_objects}
    for kind, tables in metrics.per_class.items():
        columns |= {f"{TITLES[kind]} {name}": values for name, values in tables.items() if name in PRINTED_OF_A_CLASS}
    parts.append(_table("class", columns))
    return "\n\n".join(parts)


def _table(heading: str, columns: Mapping[str, Mapping[str, float | None]]) -> str:
    rows = [[name, *(column[name] for column in columns.values())] for name in next(iter(columns.values()))]
    # Only the first column is text: a class may be called "1e5".
    return tabulate(rows, [heading, *columns], floatfmt=".4f", missingval="n/a", disable_numparse=[0])
