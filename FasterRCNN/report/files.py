"""The report's numbers as JSON and CSV."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from FasterRCNN.report.analysis import Analysis, OperatingPoint

__all__ = ["BACKGROUND", "to_dict", "write_files"]

BACKGROUND = "(background)"
DIGITS = 6
POINT = ("threshold", "true_positives", "false_positives", "false_negatives", "precision", "recall", "f1")


def write_files(analysis: Analysis, folder: Path) -> None:
    """Writes report.json, per_class.csv, confusion.csv and curves.csv; None and what is not a number are empty."""
    content = json.dumps(to_dict(analysis), allow_nan=False, ensure_ascii=False)
    (folder / "report.json").write_text(content, encoding="utf-8")
    _write_csv(folder / "per_class.csv", _class_table(analysis))
    _write_csv(folder / "confusion.csv", _confusion_table(analysis))
    _write_csv(folder / "curves.csv", _curve_table(analysis))


def to_dict(analysis: Analysis) -> dict[str, object]:
    """All numbers as JSON holds them, but what became of each result."""
    return {
        "name": analysis.name,
        "metric": analysis.metric,
        "score_threshold": analysis.score_threshold,
        "num_images": analysis.num_images,
        "num_objects": analysis.num_objects,
        "num_detections": analysis.num_detections,
        "overall": analysis.overall,
        "diagnosis": asdict(analysis.diagnosis),
        "at_threshold": point_to_dict(analysis.total),
        "at_best_f1": point_to_dict(analysis.best),
        "sizes": [asdict(row) for row in analysis.sizes],
        "classes": [
            {
                "name": row.name,
                "num_objects": row.num_objects,
                "num_detections": row.num_detections,
                "numbers": row.numbers,
                "at_threshold": point_to_dict(row.chosen),
                "at_best_f1": point_to_dict(row.best),
            }
            for row in analysis.classes
        ],
        "scores": {
            "bin_edges": analysis.bin_edges.round(DIGITS).tolist(),
            "true_positives": analysis.true_scores.tolist(),
            "false_positives": analysis.false_scores.tolist(),
        },
        "confusion": {"classes": [*_names(analysis), BACKGROUND], "counts": analysis.confusion.tolist()},
        "curves": {
            kind: {
                "iou_thresholds": list(curves.iou_thresholds),
                "recalls": curves.recalls.round(DIGITS).tolist(),
                "precision": _rounded(curves.precision.tolist()),
            }
            for kind, curves in analysis.curves.items()
        },
        "worst_images": [asdict(image) for image in analysis.worst],
    }


def point_to_dict(point: OperatingPoint | None) -> dict[str, float | None] | None:
    """Its counts and ratios by name."""
    return None if point is None else {name: getattr(point, name) for name in POINT}


def _names(analysis: Analysis) -> list[str]:
    return [row.name for row in analysis.classes]


def _rounded(values: list | float) -> list | float | None:
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return None if math.isnan(values) else round(values, DIGITS)


# ---------------------------------------------------------------- tables: a heading, then rows


def _class_table(analysis: Analysis) -> Iterable[Sequence]:
    numbers = [(kind, name) for kind, by_name in analysis.classes[0].numbers.items() for name in by_name] if (
        analysis.classes) else []
    yield [
        *("class", "objects", "detections"),
        *(f"{kind}_{name}" for kind, name in numbers),
        *POINT,
        *(f"best_{name}" for name in POINT),
    ]
    for row in analysis.classes:
        best = [None] * len(POINT) if row.best is None else point_to_dict(row.best).values()
        values = (row.numbers[kind][name] for kind, name in numbers)
        yield [row.name, row.num_objects, row.num_detections, *values, *point_to_dict(row.chosen).values(), *best]


def _confusion_table(analysis: Analysis) -> Iterable[Sequence]:
    names = [*_names(analysis), BACKGROUND]
    yield ["truth \\ prediction", *names]
    for name, counts in zip(names, analysis.confusion.tolist(), strict=True):
        yield [name, *counts]


def _curve_table(analysis: Analysis) -> Iterable[Sequence]:
    yield ["kind", "class", "iou", "recall", "precision"]
    for kind, curves in analysis.curves.items():
        for iou, of_classes in zip(curves.iou_thresholds, curves.precision.tolist(), strict=True):
            for name, values in zip(_names(analysis), of_classes, strict=True):
                for recall, value in zip(curves.recalls.tolist(), values, strict=True):
                    if not math.isnan(value):
                        yield [kind, name, iou, round(recall, DIGITS), round(value, DIGITS)]


def _write_csv(path: Path, rows: Iterable[Sequence]) -> None:
    # The mark tells spreadsheets that the file is UTF-8.
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(rows)
