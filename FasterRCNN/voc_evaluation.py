"""Pascal VOC's average precision at IoU 0.5, as its development kit computes it, for boxes and for masks.

The rules differ from COCO's. A detection belongs to the one object of its class that it overlaps most, taken or not:
an object's first detection, by score, is right if their IoU is 0.5 or more, every further one is wrong, and one of a
`difficult` object counts neither way. There is no limit to the number of detections. The kit's own numbers are of
boxes; those of masks follow the same rules with the IoU of the masks, as instance segmentation on VOC is usually
scored. VOC has no crowd regions; where a set has some, a detection that would be wrong is ignored if half of it or more
lies in one.
"""

from __future__ import annotations

import numpy as np

from FasterRCNN.evaluation import HIT, IGNORED, MISS, Matcher

__all__ = ["VocMatcher"]

IOU_THRESHOLD = 0.5
RECALL_POINTS = np.linspace(0, 1, 11)


class VocMatcher(Matcher):
    """Pascal VOC's rules, see `Matcher`."""

    def match(self, chunk: int) -> list[np.ndarray]:
        """Outcomes n."""
        start, stop = self._bounds_of(chunk)
        outcomes = np.full(stop - start, MISS, np.uint8)
        for own, objects, ious in self._overlaps(start, stop):
            outcomes[own] = _outcomes(ious, self._is_crowd[objects], self._is_difficult[objects])
        return [outcomes]

    def numbers(self, outcomes: np.ndarray) -> tuple[dict[str, float | None], dict[str, list[float | None]]]:
        """AP50_all, the area under precision over recall (VOC2010 on), and AP50_11point (VOC2007); None: no object.

        outcomes: those of all chunks, N.
        """
        forms = {"AP50_all": _area_under_curve, "AP50_11point": _mean_at_11_points}
        by_category: dict[str, list[float | None]] = {name: [] for name in forms}
        is_counted = ~(self._is_crowd | self._is_difficult)
        counts = np.bincount(self._truth_pairs[is_counted] % self._num_categories, minlength=self._num_categories)
        for num_objects, chosen in zip(counts, self._detections_of_categories(), strict=True):
            own = outcomes[chosen]
            is_hit = own[own != IGNORED] == HIT
            for name, average in forms.items():
                by_category[name].append(average(is_hit, num_objects) if num_objects else None)
        return {name: _mean_of_known(values) for name, values in by_category.items()}, by_category

    def _curve_outcomes(self, outcomes: np.ndarray) -> tuple[tuple[float, ...], np.ndarray]:
        return (IOU_THRESHOLD,), outcomes[:, None]


def _mean_of_known(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _outcomes(ious: np.ndarray, is_crowd: np.ndarray, is_difficult: np.ndarray) -> np.ndarray:
    """What becomes of an image's D detections of a class, by score. ious: D x G; is_crowd, is_difficult: G."""
    overlaps = np.where(is_crowd, -1, ious)
    best = overlaps.argmax(axis=1)  # the first of equals
    near = np.flatnonzero(overlaps.max(axis=1) >= IOU_THRESHOLD)
    _, firsts = np.unique(best[near], return_index=True)
    is_in_crowd = (ious[:, is_crowd] >= IOU_THRESHOLD).any(axis=1)
    outcomes = np.where(is_in_crowd, IGNORED, MISS)
    outcomes[near[firsts]] = HIT
    outcomes[near[is_difficult[best[near]]]] = IGNORED
    return outcomes


def _best_precisions(is_hit: np.ndarray) -> np.ndarray:
    """The best precision at this many detections or more."""
    precision = np.cumsum(is_hit) / np.arange(1, len(is_hit) + 1)
    return np.maximum.accumulate(precision[::-1])[::-1]


def _area_under_curve(is_hit: np.ndarray, num_objects: int) -> float:
    # Each hit raises the recall by 1 / num_objects.
    return float(_best_precisions(is_hit)[is_hit].sum() / num_objects)


def _mean_at_11_points(is_hit: np.ndarray, num_objects: int) -> float:
    places = np.searchsorted(np.cumsum(is_hit) / num_objects, RECALL_POINTS)
    return float(_best_precisions(is_hit)[places[places < len(is_hit)]].sum() / len(RECALL_POINTS))
