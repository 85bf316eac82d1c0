"""The report of an evaluation: what lies behind its numbers, as a page, as JSON and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from FasterRCNN.datasets.annotations import Annotations
from FasterRCNN.metrics import Metrics
from FasterRCNN.report.analysis import analyse
from FasterRCNN.report.page import write_report
from FasterRCNN.report.pictures import draw_worst

__all__ = ["make_report"]


def make_report(
    results: Sequence[dict],
    annotations: Annotations,
    metrics: Metrics,
    folder: str | Path,
    *,
    score_threshold: float = 0.5,
    with_pictures: bool = True,
) -> Path:
    """Analyses an evaluation and writes its report into a folder; returns the page's path.

    results, annotations, metrics: what `evaluate` took and gave. score_threshold: of the confusion matrix, of precision
    and recall, and of what is drawn. with_pictures=False: no photo is read; one that cannot be read is told there.
    """
    analysis = analyse(results, annotations, metrics, score_threshold=score_threshold)
    pictures = draw_worst(analysis, results, annotations) if with_pictures else None
    return write_report(analysis, folder, pictures)
