"""Which anchors fit a data set's boxes: the recall of given ones, and better ones.

Recall is that of the anchors as training lays them out, for the boxes as the network sees them (N of them).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate

from FasterRCNN.datasets.statistics import DatasetStatistics

__all__ = ["AnchorFit", "best_anchor_iou", "fit_of_anchors", "format_anchor_fits", "suggest_anchors"]

IOUS = (0.5, 0.7)  # a box is found from an anchor of 0.5; 0.7 makes one foreground (RPN.POSITIVE_ANCHOR_THRESH)
_WEIGHTS = (1.0, 0.5)  # of the recalls in the score: a box that no anchor comes near to is lost
_MEAN_WEIGHT = 0.1  # and of the mean IoU, which tells apart what is equal in both
_CANDIDATES = np.unique(np.round(4 * 2 ** (np.arange(65) / 8)).astype(int))  # sizes tried, 4 to 1024 pixels
_LADDER_STEPS = (8, 4, 6, 7, 5, 3, 2, 1)  # sizes of consecutive levels, in candidates: x2 first, so that it wins a draw
_SAMPLE = 4_000  # boxes looked at in the search
_LEAST_GAIN = 5e-4  # of the score; less is chance


@dataclass(frozen=True)
class AnchorFit:
    """Anchors and how well they fit: the shares of boxes whose best anchor has an IoU of IOUS or more, and its mean."""

    sizes: tuple[int, ...]
    ratios: tuple[float, ...]
    recalls: tuple[float, ...]
    mean_iou: float


def best_anchor_iou(
    boxes: np.ndarray, canvases: np.ndarray, *, sizes: Sequence[float], ratios: Sequence[float], strides: Sequence[int]
) -> np.ndarray:
    """The greatest IoU of each box with the anchors that are trained: those wholly inside its image; float32 N.

    boxes, canvases: see DatasetStatistics. strides: of each size, the distance of its anchors in pixels: FPN has one
    size on each level, C4 all sizes at one stride. Anchors of size s (root of area) and ratio r (height / width) are
    centred at (column·stride, row·stride).
    """
    best = np.zeros(len(boxes), np.float32)
    for size, stride in zip(sizes, strides, strict=True):
        for ratio in ratios:
            width = size / np.sqrt(ratio)
            height = ratio * width
            # The overlap is a product over the axes, so the best column and the best row make the best position.
            overlap = _best_overlap(boxes[:, 0], boxes[:, 2], canvases[:, 1], width, stride)
            overlap = overlap * _best_overlap(boxes[:, 1], boxes[:, 3], canvases[:, 0], height, stride)
            areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
            np.maximum(best, overlap / (areas + width * height - overlap), out=best)
    return best


def _best_overlap(start: np.ndarray, stop: np.ndarray, extent: np.ndarray, length: float, stride: int) -> np.ndarray:
    """The longest overlap of [start, stop] with an interval of `length`, centred at k·stride, inside 0..extent."""
    first, last = np.ceil(length / 2 / stride), np.floor((extent - length / 2) / stride)
    centre = np.clip(np.round((start + stop) / 2 / stride), first, last) * stride
    overlap = np.minimum(stop, centre + length / 2) - np.maximum(start, centre - length / 2)
    return np.where(last < first, 0, np.maximum(overlap, 0))


def fit_of_anchors(
    statistics: DatasetStatistics, *, sizes: Sequence[int], ratios: Sequence[float], strides: Sequence[int]
) -> AnchorFit:
    """How well given anchors fit the boxes, see `best_anchor_iou`; ValueError when there are none."""
    if not len(statistics.boxes):
        raise ValueError(_nothing_to_fit(statistics))
    ious = best_anchor_iou(statistics.boxes, statistics.canvases, sizes=sizes, ratios=ratios, strides=strides)
    recalls = tuple(float((ious >= threshold).mean()) for threshold in IOUS)
    return AnchorFit(tuple(sizes), tuple(ratios), recalls, float(ious.mean()))


def _nothing_to_fit(statistics: DatasetStatistics) -> str:
    return f"{statistics.name}: no objects, so there is nothing that anchors could fit"


def suggest_anchors(
    statistics: DatasetStatistics, *, ratios: Sequence[float], strides: Sequence[int]
) -> tuple[AnchorFit, AnchorFit]:
    """Anchors that fit the boxes best: (with these ratios, with ratios of their own), sizes increasing.

    As many sizes as strides (see `best_anchor_iou`), as many ratios as given. Geometric ladders of sizes are improved
    one size at a time on up to 4,000 boxes; the result follows from the boxes alone. ValueError when there are none.
    """
    if not len(statistics.boxes):
        raise ValueError(_nothing_to_fit(statistics))
    own_ratios = _typical_ratios(statistics.aspect_ratios, len(ratios))
    fits = [
        fit_of_anchors(statistics, sizes=_best_sizes(statistics, chosen, strides), ratios=chosen, strides=strides)
        for chosen in (tuple(ratios), own_ratios)
    ]
    return fits[0], fits[1]


def _typical_ratios(aspect_ratios: np.ndarray, number: int) -> tuple[float, ...]:
    """The middles of equal parts of the boxes; two decimals, apart by at least a fifth where that can be."""
    middles = np.exp(np.quantile(np.log(aspect_ratios), (np.arange(number) + 0.5) / number))
    for i in range(1, number):
        middles[i] = max(middles[i], 1.2 * middles[i - 1])
    return tuple(float(f"{ratio:.2g}") for ratio in middles)


def _best_sizes(statistics: DatasetStatistics, ratios: Sequence[float], strides: Sequence[int]) -> tuple[int, ...]:
    chosen = np.linspace(0, len(statistics.boxes) - 1, min(_SAMPLE, len(statistics.boxes))).astype(int)
    boxes, canvases = statistics.boxes[chosen], statistics.canvases[chosen]
    # By stride and candidate, the boxes' greatest IoU; that of several sizes is the greatest of theirs.
    ious = {
        stride: np.stack([
            best_anchor_iou(boxes, canvases, sizes=[size], ratios=ratios, strides=[stride]) for size in _CANDIDATES
        ])
        for stride in set(strides)
    }

    def score(picked: Sequence[int]) -> float:
        best = np.max([ious[stride][candidate] for stride, candidate in zip(strides, picked, strict=True)], axis=0)
        recalls = [(best >= threshold).mean() for threshold in IOUS]
        return float(np.dot(_WEIGHTS, recalls) + _MEAN_WEIGHT * best.mean())

    # The best ladder of each step is improved: from one alone the search ends where a size finds no boxes to gain.
    starts = [
        max((range(first, first + step * len(strides), step) for first in firsts), key=score)
        for step in _LADDER_STEPS
        if (firsts := range(len(_CANDIDATES) - step * (len(strides) - 1)))
    ]
    improved = [_improve(list(start), score, len(_CANDIDATES)) for start in starts]
    return tuple(_CANDIDATES[max(improved, key=score)].tolist())


def _improve(picked: list[int], score: Callable[[Sequence[int]], float], num_candidates: int) -> list[int]:
    """Moves one number at a time between its neighbours to where the score is greatest, until that gains nothing."""
    current, is_better = score(picked), True
    while is_better:
        is_better = False
        for i in range(len(picked)):
            low = picked[i - 1] + 1 if i else 0
            high = picked[i + 1] if i + 1 < len(picked) else num_candidates
            moved = [[*picked[:i], candidate, *picked[i + 1 :]] for candidate in range(low, high)]
            best = max(moved, key=score)
            if score(best) > current + _LEAST_GAIN:
                picked, current, is_better = best, score(best), True
    return picked


def format_anchor_fits(current: AnchorFit, suggested: Sequence[AnchorFit]) -> str:
    """A table of the current anchors and the suggested ones, and what to paste for the latter."""
    fits = [("as configured", current), *zip(("other sizes", "other sizes and ratios"), suggested, strict=False)]
    rows = [
        (title, " ".join(map(str, fit.sizes)), " ".join(f"{ratio:g}" for ratio in fit.ratios),
         *(f"{recall:.1%}" for recall in fit.recalls), fit.mean_iou)
        for title, fit in fits
    ]
    headers = ["anchors", "sizes", "ratios", *(f"boxes with IoU >= {threshold}" for threshold in IOUS), "mean IoU"]
    table = tabulate(rows, headers=headers, floatfmt=".3f", disable_numparse=[1, 2])
    lines, best = [], [current]
    for title, fit in fits[1:]:
        if all(_is_gain(fit, other) for other in best):
            lines.append(f"{title}: {_assignments(fit, current)}")
            best.append(fit)
    return "\n".join([table, "", *(lines or ["No anchors fit clearly better than the configured ones: keep them."])])


def _is_gain(fit: AnchorFit, other: AnchorFit) -> bool:
    """By a hundredth of the boxes, at either IoU, without a loss at the lower: less is not worth a change."""
    gains = np.subtract(fit.recalls, other.recalls)
    return bool(gains.max() >= 0.01 and gains[0] >= -0.001)


def _assignments(fit: AnchorFit, current: AnchorFit) -> str:
    sizes = f"RPN.ANCHOR_SIZES=[{','.join(map(str, fit.sizes))}]"
    ratios = f" RPN.ANCHOR_RATIOS=[{','.join(f'{ratio:g}' for ratio in fit.ratios)}]"
    return sizes + (ratios if fit.ratios != current.ratios else "")
