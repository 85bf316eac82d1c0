"""What an evaluation's numbers are made of: numbers only, for the page, for JSON and for CSV.

K classes by id, N results, IoU 0.5 of boxes unless told otherwise. True and false positives are those of the
evaluation, so crowds, difficult objects and what it ignores count neither way here as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from FasterRCNN.datasets.annotations import Annotations
from FasterRCNN.evaluation import AREAS, HIT, IGNORED, MISS
from FasterRCNN.metrics import Curves, Metrics
from FasterRCNN.report.arrays import Found, Truth, found_of, truth_of
from FasterRCNN.report.confusion import confusion_matrix, find_partners
from FasterRCNN.report.diagnosis import Diagnosis, diagnose

__all__ = ["ERRORS", "Analysis", "ClassRow", "ImageErrors", "OperatingPoint", "SizeRow", "analyse"]

NUM_SCORE_BINS = 20
ERRORS = ("false positives", "misses", "wrong classes")


@dataclass(frozen=True)
class OperatingPoint:
    """Detections of at least the score `threshold`: right ones, wrong ones, and objects not found."""

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def precision(self) -> float | None:
        """The share of detections that are right; None without detections."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """The share of objects that are found; None without objects."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall; None with neither objects nor detections."""
        hits = 2 * self.true_positives
        return _ratio(hits, hits + self.false_positives + self.false_negatives)


@dataclass(frozen=True)
class ClassRow:
    """A class. numbers: "bbox" or "segm" to name to value; chosen: at the score threshold; best: where F1 is greatest.

    best is None where nothing is hit.
    """

    name: str
    num_objects: int
    num_detections: int
    numbers: dict[str, dict[str, float | None]]
    chosen: OperatingPoint
    best: OperatingPoint | None


@dataclass(frozen=True)
class SizeRow:
    """Objects of COCO's small, medium or large area. aps: "bbox" or "segm" to AP, none by VOC's rules."""

    name: str
    num_objects: int
    num_found: int
    aps: dict[str, float | None]


@dataclass(frozen=True)
class ImageErrors:
    """An image that is shown for its errors of one kind. counts: of each of ERRORS; details: the gravest, in words."""

    image_id: int | str
    kind: str
    counts: dict[str, int]
    details: list[str]


@dataclass
class Analysis:
    """See the module. score_threshold: of `chosen`, of the confusion matrix and of the errors.

    overall: as of Metrics; total, best: of all classes together; bin_edges, true_scores, false_scores: histograms of
    the scores of right and wrong detections; confusion: see `confusion_matrix`.
    """

    name: str
    metric: str
    score_threshold: float
    num_images: int
    num_objects: int
    num_detections: int
    overall: dict[str, dict[str, float | None]]
    classes: list[ClassRow]
    total: OperatingPoint
    best: OperatingPoint | None
    sizes: list[SizeRow]
    curves: dict[str, Curves]
    bin_edges: np.ndarray
    true_scores: np.ndarray
    false_scores: np.ndarray
    confusion: np.ndarray
    diagnosis: Diagnosis
    worst: list[ImageErrors] = field(default_factory=list)


def analyse(
    results: Sequence[dict],
    annotations: Annotations,
    metrics: Metrics,
    *,
    score_threshold: float = 0.5,
    images_per_error: int = 4,
) -> Analysis:
    """What lies behind the metrics that `evaluate` gave for these results and annotations.

    score_threshold: as one would set it in use. images_per_error: how many images to name for each kind of error.
    """
    truth = truth_of(annotations, with_masks=bool(metrics.segm))
    found = found_of(results, annotations, truth)
    outcomes = metrics.curves["bbox"].outcomes[:, 0]
    names = list(metrics.num_objects)
    counts = np.bincount(truth.classes, minlength=len(names))

    is_chosen = (found.scores >= score_threshold) & (outcomes != IGNORED)
    chosen = found[is_chosen]
    partners = find_partners(truth, chosen, outcomes[is_chosen], last_of_equals=metrics.metric == "coco")
    confusion = confusion_matrix(truth, chosen, partners, len(names))
    edges = np.linspace(0, 1, NUM_SCORE_BINS + 1)
    scores = found.scores.clip(0, 1)
    return Analysis(
        name=annotations.name,
        metric=metrics.metric,
        score_threshold=score_threshold,
        num_images=len(truth.image_ids),
        num_objects=len(truth),
        num_detections=len(found),
        overall=metrics.overall(),
        classes=_class_rows(metrics, found, outcomes, counts, score_threshold),
        total=_point_at(found.scores, outcomes, len(truth), score_threshold),
        best=_best_point(found.scores, outcomes, len(truth)),
        sizes=_size_rows(metrics, truth, chosen, partners),
        curves=metrics.curves,
        bin_edges=edges,
        true_scores=np.histogram(scores[outcomes == HIT], edges)[0],
        false_scores=np.histogram(scores[outcomes == MISS], edges)[0],
        confusion=confusion,
        diagnosis=diagnose(truth, found, outcomes, metrics, names, score_threshold),
        worst=_worst_images(truth, chosen, partners, names, images_per_error),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


# ---------------------------------------------------------------- classes and sizes


def _class_rows(
    metrics: Metrics, found: Found, outcomes: np.ndarray, counts: np.ndarray, score_threshold: float
) -> list[ClassRow]:
    order = np.argsort(found.classes, kind="stable")
    bounds = np.searchsorted(found.classes[order], np.arange(len(counts) + 1))
    rows = []
    for k, name in enumerate(metrics.num_objects):
        own = order[bounds[k] : bounds[k + 1]]
        points = found.scores[own], outcomes[own], int(counts[k])
        rows.append(
            ClassRow(
                name=name,
                num_objects=int(counts[k]),
                num_detections=len(own),
                numbers={
                    kind: {number: values[name] for number, values in tables.items()}
                    for kind, tables in metrics.per_class.items()
                },
                chosen=_point_at(*points, score_threshold),
                best=_best_point(*points),
            )
        )
    return rows


def _point_at(scores: np.ndarray, outcomes: np.ndarray, num_objects: int, threshold: float) -> OperatingPoint:
    counts = np.bincount(outcomes[scores >= threshold], minlength=IGNORED + 1)
    hits = int(counts[HIT])
    return OperatingPoint(float(threshold), hits, int(counts[MISS]), num_objects - hits)


def _best_point(scores: np.ndarray, outcomes: np.ndarray, num_objects: int) -> OperatingPoint | None:
    """The point of the greatest F1, of equals the one of the highest score; None where nothing is hit."""
    is_counted = outcomes != IGNORED
    scores, is_hit = scores[is_counted], outcomes[is_counted] == HIT
    if not is_hit.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(is_hit[order])
    # Detections of one score are taken together.
    ends = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    f1 = 2 * hits[ends] / (ends + 1 + num_objects)
    return _point_at(scores, np.where(is_hit[order], HIT, MISS), num_objects, scores[ends[f1.argmax()]])


def _size_rows(metrics: Metrics, truth: Truth, chosen: Found, partners: np.ndarray) -> list[SizeRow]:
    """Found: by a detection of the right class."""
    is_found = np.zeros(len(truth), bool)
    has_partner = partners >= 0
    own = partners[has_partner]
    is_found[own] = truth.classes[own] == chosen.classes[has_partner]
    rows, is_left = [], np.ones(len(truth), bool)
    for name, (_, high) in AREAS.items():
        if name != "all":
            is_own = is_left & (truth.areas <= high)
            is_left &= ~is_own
            aps = {
                kind: numbers[f"AP{name[0]}"]
                for kind, numbers in metrics.overall().items()
                if f"AP{name[0]}" in numbers
            }
            rows.append(SizeRow(name, int(is_own.sum()), int(is_found[is_own].sum()), aps))
    return rows


# ---------------------------------------------------------------- images


def _worst_images(
    truth: Truth, chosen: Found, partners: np.ndarray, names: Sequence[str], images_per_error: int
) -> list[ImageErrors]:
    """For each kind of error the images with most of it, each image once; sure errors weigh more than unsure ones."""
    is_missed = np.ones(len(truth), bool)
    is_missed[partners[partners >= 0]] = False
    false = np.flatnonzero(partners < 0)
    is_wrong = truth.classes[partners] != chosen.classes if len(truth) else np.zeros(len(chosen), bool)
    wrong = np.flatnonzero((partners >= 0) & is_wrong)
    missed = np.flatnonzero(is_missed)

    def name_of(d: int) -> str:
        return names[chosen.classes[d]]

    words = {
        "false positives": lambda d: f"{name_of(d)} {chosen.scores[d]:.2f}",
        "misses": lambda g: names[truth.classes[g]],
        "wrong classes": lambda d: f"{names[truth.classes[partners[d]]]} taken for {name_of(d)} {chosen.scores[d]:.2f}",
    }
    entries = dict(zip(ERRORS, (false, missed, wrong), strict=True))
    images = dict(zip(ERRORS, (chosen.images[false], truth.images[missed], chosen.images[wrong]), strict=True))
    weights = dict(zip(ERRORS, (chosen.scores[false], np.ones(len(missed)), chosen.scores[wrong]), strict=True))
    num_images = len(truth.image_ids)
    counts = {kind: np.bincount(images[kind], minlength=num_images) for kind in ERRORS}
    is_shown, worst = np.zeros(num_images, bool), []
    for kind in ERRORS:
        weight = np.bincount(images[kind], weights[kind], minlength=num_images)
        ranked = np.argsort(-weight, kind="stable")
        for i in ranked[(counts[kind][ranked] > 0) & ~is_shown[ranked]][:images_per_error]:
            is_shown[i] = True
            own = np.flatnonzero(images[kind] == i)
            own = own[np.argsort(-weights[kind][own], kind="stable")]
            details = [words[kind](entry) for entry in entries[kind][own]]
            own_counts = {name: int(counts[name][i]) for name in ERRORS}
            worst.append(ImageErrors(truth.image_ids[i], kind, own_counts, details))
    return worst
