"""Why a score is low: what was found matched against the truth as it is, and as it would be after common mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as mask_utils

from FasterRCNN.evaluation import HIT, IGNORED
from FasterRCNN.metrics import Metrics
from FasterRCNN.report.arrays import Found, Truth, by_image

__all__ = ["Diagnosis", "diagnose"]

LOW_SCORE = 0.05  # of the main number, below which a cause is looked for
SAMPLED_IMAGES, SAMPLED_RESULTS = 200, 100  # images, and results of each
NEAR = 0.5  # IoU
MUCH_BETTER, WORTH_NAMING = 2.0, 0.3  # a mistake explains a score if its correction finds so many times, and so much
SCALES = np.geomspace(1 / 4, 4, 49)


@dataclass(frozen=True)
class Diagnosis:
    """causes: why the score is low or missing, the likeliest first, none where it is not; facts: name to value."""

    causes: list[str]
    facts: dict[str, str]


def diagnose(
    truth: Truth, found: Found, outcomes: np.ndarray, metrics: Metrics, names: Sequence[str], score_threshold: float
) -> Diagnosis:
    """The likeliest causes of a score below 0.05, and what speaks for them. outcomes: N, at IoU 0.5 of boxes."""
    kind, number = metrics.main
    score = metrics.overall()[kind][number]
    sample = _sample(truth, found)
    found_of_any_class = _share_found(truth, found, sample)
    facts = _facts(truth, found, outcomes, names, found_of_any_class)
    if score is not None and score >= LOW_SCORE:
        return Diagnosis([], facts)
    if not len(truth):
        return Diagnosis(["There is no object to find in this set, so that there is nothing to measure."], facts)
    if not len(found):
        return Diagnosis(["Nothing was detected: the model is hardly trained, its weights were not loaded, or "
                          "TEST.RESULT_SCORE_THRESH is too high."], facts)
    causes = [
        *_other_images(truth, found),
        *_other_coordinates(truth, found, sample, found_of_any_class),
        *_other_classes(truth, found, outcomes, names, sample, found_of_any_class),
        *_low_scores(found, score_threshold),
    ]
    if found_of_any_class < WORTH_NAMING:
        causes.append(
            f"The boxes do not lie on the objects: of any class, {found_of_any_class:.0%} of the objects have one with "
            "an IoU of 0.5 or more. The model is hardly trained, or its weights do not belong to this data."
        )
    return Diagnosis(causes or ["The objects are found, but among many wrong detections of higher scores."], facts)


def _facts(
    truth: Truth, found: Found, outcomes: np.ndarray, names: Sequence[str], found_of_any_class: float
) -> dict[str, str]:
    num_images = len(truth.image_ids)
    with_objects, with_results = np.unique(truth.images), np.unique(found.images)
    silent = [names[k] for k in np.unique(truth.classes) if not (found.classes == k).any()]
    facts = {
        "images with detections": f"{len(with_results):,} of {num_images:,}",
        "images with objects but no detection": f"{len(np.setdiff1d(with_objects, with_results)):,}",
        "classes never detected": ", ".join(silent[:5]) + (f" and {len(silent) - 5} more" if len(silent) > 5 else "")
        or "none",
        "objects with a box of any class on them": f"{found_of_any_class:.0%}" if len(truth) else "n/a",
        "detections that count neither way": f"{int((outcomes == IGNORED).sum()):,}",
    }
    if len(found):
        low, median, high = np.percentile(found.scores, [0, 50, 100])
        facts["scores"] = f"{low:.3f} to {high:.3f}, median {median:.3f}"
    return facts


# ---------------------------------------------------------------- causes


def _other_images(truth: Truth, found: Found) -> Iterator[str]:
    with_objects = np.unique(truth.images)
    reached = np.isin(with_objects, found.images).sum()
    if reached < len(with_objects) / 2:
        yield (
            f"Only {reached:,} of the {len(with_objects):,} images with objects have any detection: the results are of "
            "a part of the set, or their image ids are not those of this file."
        )


def _other_coordinates(
    truth: Truth, found: Found, sample: list[tuple[np.ndarray, np.ndarray]], as_they_are: float
) -> Iterator[str]:
    """The mistake whose correction finds most objects, if it finds many more than the boxes as they are."""
    shares = {
        text: _share_found(truth, found, sample, correct) for text, correct in _corrections(truth, sample).items()
    }
    shares["The image ids are one off: the boxes fit the image before or after theirs."] = max(
        _share_found(truth, _moved(truth, found, step)) for step in (-1, 1)
    )
    # Of equal shares the first, so that a scale is not named where a plainer mistake explains as much.
    text, share = max(shares.items(), key=lambda item: item[1])
    if share >= WORTH_NAMING and share >= MUCH_BETTER * as_they_are:
        yield f"{text} So corrected, {share:.0%} of the objects have a box on them, instead of {as_they_are:.0%}."


def _corrections(
    truth: Truth, sample: list[tuple[np.ndarray, np.ndarray]]
) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """A mistake in words, to what corrects boxes N x 4 of an image of size (w, h)."""
    corrections = {
        "The boxes are corners x1, y1, x2, y2, not x, y, width, height.": lambda boxes, size: np.hstack(
            [boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).clip(0)]
        ),
        "The boxes are fractions of the image, not pixels.": lambda boxes, size: boxes * np.tile(size, 2),
        "x and y are exchanged in the boxes.": lambda boxes, size: boxes[:, [1, 0, 3, 2]],
        "The boxes are mirrored left to right.": lambda boxes, size: np.column_stack(
            [size[0] - boxes[:, 0] - boxes[:, 2], boxes[:, 1:]]
        ),
    }
    for scale in SCALES[SCALES != 1]:
        text = f"The boxes are in another scale, about {1 / scale:.2f} times that of the annotations."
        corrections[text] = lambda boxes, size, scale=scale: boxes * scale
    return corrections


def _moved(truth: Truth, found: Found, step: int) -> Found:
    """The results as if they were of the next image of the set."""
    return Found((found.images + step) % len(truth.image_ids), found.classes, found.boxes, found.scores)


def _other_classes(
    truth: Truth,
    found: Found,
    outcomes: np.ndarray,
    names: Sequence[str],
    sample: list[tuple[np.ndarray, np.ndarray]],
    of_any_class: float,
) -> Iterator[str]:
    hits = np.bincount(found.classes[outcomes == HIT], minlength=len(names)).sum()
    if of_any_class < WORTH_NAMING or hits / len(truth) * MUCH_BETTER > of_any_class:
        return
    taken_for: dict[int, Counter] = {}
    for own, objects in sample:
        ious = _ious(found.boxes[own], truth.boxes[objects])
        for d, g in enumerate(ious.argmax(axis=1)):
            if ious[d, g] >= NEAR:
                taken_for.setdefault(truth.classes[objects[g]], Counter())[found.classes[own[d]]] += 1
    pairs = [(k, counter.most_common(1)[0][0]) for k, counter in sorted(taken_for.items())]
    wrong = [f"{names[k]} as {names[other]}" for k, other in pairs if other != k and other >= 0]
    if wrong:
        some = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        yield (
            f"The classes are permuted: of any class, {of_any_class:.0%} of the objects have a box on them, but mostly "
            f"under another name: {some}. Compare the order of the classes and the category ids of training with those "
            "of this file."
        )


def _low_scores(found: Found, score_threshold: float) -> Iterator[str]:
    if found.scores.max() < score_threshold:
        yield (
            f"Every score is low, the highest {found.scores.max():.3f}: the model is hardly trained, or its weights "
            "were not loaded."
        )


# ---------------------------------------------------------------- boxes of any class


def _sample(truth: Truth, found: Found) -> list[tuple[np.ndarray, np.ndarray]]:
    """The best results and the objects of some images that have both, spread over the set."""
    pairs = [(own[:SAMPLED_RESULTS], objects) for own, objects in by_image(truth, found)]
    return pairs[:: -(-len(pairs) // SAMPLED_IMAGES)] if pairs else []


def _share_found(
    truth: Truth,
    found: Found,
    sample: list[tuple[np.ndarray, np.ndarray]] | None = None,
    correct: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> float:
    """The share of the sampled objects that some box, of any class and after its correction, overlaps enough."""
    reached = total = 0
    for own, objects in _sample(truth, found) if sample is None else sample:
        boxes = found.boxes[own]
        if correct:
            boxes = correct(boxes, truth.sizes[truth.images[objects[0]]])
        reached += int((_ious(boxes, truth.boxes[objects]).max(axis=0) >= NEAR).sum())
        total += len(objects)
    return reached / total if total else 0.0


def _ious(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    return mask_utils.iou(np.ascontiguousarray(boxes), others, np.zeros(len(others), bool))
