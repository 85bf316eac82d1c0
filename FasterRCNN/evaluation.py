"""COCO's matching of detections with ground truth, and its precision and recall: pycocotools' COCOeval on arrays.

pycocotools' compiled part gives the IoUs; what it does in Python loops over images, classes, areas and thresholds is
done here for all areas and thresholds at once. The numbers are the same. What Pascal VOC's way has in common with it,
which is everything but the rules of a match and of the average, is `Matcher`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from pycocotools import mask as mask_utils

from FasterRCNN.metrics import Curves

__all__ = ["HIT", "IGNORED", "MISS", "CocoMatcher", "Matcher", "compressed_rle", "numbers_of_classes",
           "twelve_numbers"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AT_IOU = {round(100 * threshold): t for t, threshold in enumerate(IOU_THRESHOLDS)}
RECALL_POINTS = np.linspace(0, 1, 101)
# Square pixels, both ends within. 1e10 is COCO's "any".
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}
MISS, HIT, IGNORED = range(3)
CHUNK = 2000  # detections


class _PackedMasks:
    """Compressed RLEs in one piece of memory, which forked processes share; a Python object looked at is copied."""

    def __init__(self, rles: Sequence[dict]):
        counts = [rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"] for rle in rles]
        self._counts = b"".join(counts)
        self._ends = np.cumsum([0, *map(len, counts)])
        self._sizes = np.array([rle["size"] for rle in rles], np.int32).reshape(-1, 2)

    def __getitem__(self, places: slice) -> list[dict]:
        ends = self._ends[places.start : places.stop + 1].tolist()
        sizes = self._sizes[places].tolist()
        return [{"size": size, "counts": self._counts[i:j]} for size, i, j in zip(sizes, ends, ends[1:])]


class Matcher(ABC):
    """Brings detections, best score first, together with the objects of their image and category, a chunk at a time.

    dataset: images (id, height, width), categories (id) and annotations as of a COCO file, each with image_id,
    category_id, area, iscrowd, is_difficult (False where it is missing), and bbox or segmentation (polygons or
    compressed RLE), which iou_type, "bbox" or "segm", chooses between. results: of these images. What is of other
    categories is left out. Of an image and class the best `most_detections` count, None: all.

    Below, N counts the detections that count, n those of a chunk, K categories by id.
    """

    def __init__(self, dataset: dict, results: Sequence[dict], iou_type: str, most_detections: int | None = None):
        self._num_categories = len(dataset["categories"])
        indices = _index(dataset["images"]), _index(dataset["categories"])
        self._take_truth(dataset, *indices, iou_type)
        self._take_detections(results, *indices, iou_type, most_detections)

    def _take_truth(self, dataset: dict, images: dict, categories: dict, iou_type: str) -> None:
        annotations = [entry for entry in dataset["annotations"] if entry["category_id"] in categories]
        pairs = _pairs(annotations, images, categories)
        order = np.argsort(pairs, kind="stable")
        annotations = [annotations[i] for i in order]
        self._truth_pairs = pairs[order]
        self._is_crowd = np.array([bool(entry["iscrowd"]) for entry in annotations], bool)
        self._is_difficult = np.array([entry.get("is_difficult", False) for entry in annotations], bool)
        self._truth_areas = np.array([entry["area"] for entry in annotations], np.float64)
        if iou_type == "bbox":
            self._truth = _boxes(annotations)
        else:
            sizes = {image["id"]: (image["height"], image["width"]) for image in dataset["images"]}
            self._truth = [(entry["segmentation"], *sizes[entry["image_id"]]) for entry in annotations]

    def _take_detections(
        self, results: Sequence[dict], images: dict, categories: dict, iou_type: str, most_detections: int | None
    ) -> None:
        known = [place for place, result in enumerate(results) if result["category_id"] in categories]
        self._num_results = len(results)
        results = [results[place] for place in known]
        pairs = _pairs(results, images, categories)
        scores = np.array([result["score"] for result in results], np.float64)
        order = np.lexsort([-scores, pairs])
        ranks = _rank_in_run(pairs[order])
        is_counted = ranks < (len(ranks) if most_detections is None else most_detections)
        order, self._ranks = order[is_counted], ranks[is_counted]
        self._pairs, self._scores = pairs[order], scores[order]
        self._places = np.array(known, np.int64)[order]  # in the results as given
        results = [results[i] for i in order]
        self._found = _boxes(results) if iou_type == "bbox" else _PackedMasks([r["segmentation"] for r in results])
        # No chunk ends between detections of one image and class.
        ends = np.arange(CHUNK, len(order), CHUNK)
        self._bounds = [0, *np.unique(np.searchsorted(self._pairs, self._pairs[ends])), len(order)]

    @property
    def num_detections(self) -> int:
        """N: without those beyond the limit or of other categories."""
        return len(self._scores)

    @property
    def num_chunks(self) -> int:
        """At least 1."""
        return len(self._bounds) - 1

    @abstractmethod
    def match(self, chunk: int) -> list[np.ndarray]:
        """What became of a chunk's detections: [uint8 n x ... of MISS, HIT, IGNORED]; n = 0 behind the last chunk."""

    @abstractmethod
    def numbers(self, outcomes: np.ndarray) -> tuple[dict[str, float | None], dict[str, list[float | None]]]:
        """By name, the numbers of all classes and those of each class, K by id; None: no object.

        outcomes: those of all chunks, N x ....
        """

    @abstractmethod
    def _curve_outcomes(self, outcomes: np.ndarray) -> tuple[tuple[float, ...], np.ndarray]:
        """T IoU thresholds to draw curves at, and the outcomes at them, N x T."""

    def curves(self, outcomes: np.ndarray) -> Curves:
        """Precision over recall of each class, and what became of each result; those that do not count are IGNORED.

        outcomes: as for `numbers`.
        """
        thresholds, outcomes = self._curve_outcomes(outcomes)
        precision = np.full((len(thresholds), self._num_categories, len(RECALL_POINTS)), np.nan)
        is_counted = ~(self._is_crowd | self._is_difficult)
        counts = np.bincount(self._truth_pairs[is_counted] % self._num_categories, minlength=self._num_categories)
        for k, chosen in enumerate(self._detections_of_categories()):
            if counts[k]:
                precision[:, k] = _precision_at_recalls(outcomes[chosen], counts[k])
        of_results = np.full((self._num_results, len(thresholds)), IGNORED, np.uint8)
        of_results[self._places] = outcomes
        return Curves(thresholds, RECALL_POINTS, precision, of_results)

    def _bounds_of(self, chunk: int) -> tuple[int, int]:
        start, stop = self._bounds[chunk : chunk + 2] if chunk < self.num_chunks else (0, 0)
        return start, stop

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Where an image and class has both: its detections, counted from `start`, its objects, and their IoUs D x G.

        The IoU with a crowd is the share of the detection that lies in it.
        """
        found = self._found[start:stop]
        pairs, firsts = np.unique(self._pairs[start:stop], return_index=True)
        lasts = np.append(firsts[1:], stop - start)
        truth_firsts, truth_lasts = (np.searchsorted(self._truth_pairs, pairs, side) for side in ("left", "right"))
        for i in np.flatnonzero(truth_firsts < truth_lasts):
            own, objects = slice(firsts[i], lasts[i]), slice(truth_firsts[i], truth_lasts[i])
            truth = self._truth[objects]
            regions = truth if isinstance(truth, np.ndarray) else [compressed_rle(*entry) for entry in truth]
            yield own, objects, mask_utils.iou(found[own], regions, self._is_crowd[objects])

    def _detections_of_categories(self) -> list[np.ndarray]:
        """The places of each category's detections, best score first."""
        categories = self._pairs % self._num_categories
        order = np.lexsort([-self._scores, categories])
        bounds = np.searchsorted(categories[order], np.arange(self._num_categories + 1))
        return [order[start:stop] for start, stop in zip(bounds, bounds[1:])]


class CocoMatcher(Matcher):
    """COCO's rules, see `Matcher`. detection_limits: the numbers of detections of an image and class to count.

    T = 10 IoU thresholds, A = 4 areas, R = 101 recall points, M detection limits. A difficult object is to be ignored,
    as a crowd is, but can be found once only.
    """

    def __init__(self, dataset: dict, results: Sequence[dict], iou_type: str, detection_limits: Sequence[int]):
        super().__init__(dataset, results, iou_type, detection_limits[-1])
        self._detection_limits = detection_limits
        is_ignored = self._is_crowd | self._is_difficult
        self._is_ignored_truth = is_ignored[:, None] | _is_outside(self._truth_areas)  # objects x A

    def match(self, chunk: int) -> list[np.ndarray]:
        """Outcomes n x A x T."""
        start, stop = self._bounds_of(chunk)
        found = self._found[start:stop]
        is_boxes = isinstance(found, np.ndarray)
        # One at a time: of more than 255 masks NumPy 2 makes mask_utils.area an error.
        areas = found[:, 2] * found[:, 3] if is_boxes else np.array([mask_utils.area(mask) for mask in found], float)
        outcomes = np.where(_is_outside(areas), IGNORED, MISS).astype(np.uint8)
        outcomes = np.repeat(outcomes[:, :, None], len(IOU_THRESHOLDS), axis=2)
        for own, objects, ious in self._overlaps(start, stop):
            _mark_matches(outcomes[own], ious, self._is_crowd[objects], self._is_ignored_truth[objects].T)
        return [outcomes]

    def numbers(self, outcomes: np.ndarray) -> tuple[dict[str, float | None], dict[str, list[float | None]]]:
        """COCO's twelve, and the APs of each class."""
        precision, recall = self.precision_recall(outcomes)
        return twelve_numbers(precision, recall, self._detection_limits), numbers_of_classes(precision)

    def _curve_outcomes(self, outcomes: np.ndarray) -> tuple[tuple[float, ...], np.ndarray]:
        return (0.5, 0.75), outcomes[:, 0, [AT_IOU[50], AT_IOU[75]]]

    def precision_recall(self, outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Precision T x R x K x A at the greatest detection limit, and recall T x K x A x M; -1 where no object counts.

        outcomes: those of all chunks, N x A x T.
        """
        shape = len(IOU_THRESHOLDS), self._num_categories, len(AREAS)
        precision = np.full((shape[0], len(RECALL_POINTS), *shape[1:]), -1.0)
        recall = np.full((*shape, len(self._detection_limits)), -1.0)
        for k, chosen in enumerate(self._detections_of_categories()):
            objects = ~self._is_ignored_truth[self._truth_pairs % self._num_categories == k]
            for a, num_objects in enumerate(objects.sum(axis=0)):
                if num_objects:
                    area_outcomes = outcomes[chosen, a]
                    precision[:, :, k, a] = _precision_at_recalls(area_outcomes, num_objects)
                    for m, limit in enumerate(self._detection_limits):
                        hits = area_outcomes[self._ranks[chosen] < limit] == HIT
                        recall[:, k, a, m] = hits.sum(axis=0) / num_objects
        return precision, recall


def twelve_numbers(
    precision: np.ndarray, recall: np.ndarray, detection_limits: Sequence[int]
) -> dict[str, float | None]:
    """AP, AP50, AP75, AP of each area (s, m, l), AR at each detection limit and AR of each area; None: no object."""
    letters = {name[0]: a for a, name in enumerate(AREAS) if name != "all"}
    return {
        **_six_precisions(precision),
        **{f"AR{limit}": _mean_of_known(recall[:, :, 0, m]) for m, limit in enumerate(detection_limits)},
        **{f"AR{letter}": _mean_of_known(recall[:, :, a, -1]) for letter, a in letters.items()},
    }


def numbers_of_classes(precision: np.ndarray) -> dict[str, list[float | None]]:
    """AP, AP50, AP75, APs, APm and APl of each category, by id; None: no object."""
    by_class = [_six_precisions(precision[:, :, k : k + 1]) for k in range(precision.shape[2])]
    return {name: [numbers[name] for numbers in by_class] for name in _six_precisions(precision)}


def _six_precisions(precision: np.ndarray) -> dict[str, float | None]:
    """precision: T x R x K x A."""
    return {
        "AP": _mean_of_known(precision[..., 0]),
        "AP50": _mean_of_known(precision[AT_IOU[50], ..., 0]),
        "AP75": _mean_of_known(precision[AT_IOU[75], ..., 0]),
        **{f"AP{name[0]}": _mean_of_known(precision[..., a]) for a, name in enumerate(AREAS) if name != "all"},
    }


def _mean_of_known(values: np.ndarray) -> float | None:
    values = values[values > -1]
    return float(values.mean()) if values.size else None


def _index(entries: Sequence[dict]) -> dict:
    """Id to its place among the sorted ids."""
    return {entry_id: i for i, entry_id in enumerate(sorted(entry["id"] for entry in entries))}


def _pairs(entries: Sequence[dict], images: dict, categories: dict) -> np.ndarray:
    """One number for each entry's image and category: ordered by image, and by category % their count."""
    count = len(categories)
    pairs = [images[entry["image_id"]] * count + categories[entry["category_id"]] for entry in entries]
    return np.array(pairs, np.int64)


def _boxes(entries: Sequence[dict]) -> np.ndarray:
    return np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4)


def _rank_in_run(values: np.ndarray) -> np.ndarray:
    """[5, 5, 7, 7, 7] -> [0, 1, 0, 1, 2]"""
    return np.arange(len(values)) - np.searchsorted(values, values)


def _is_outside(areas: np.ndarray) -> np.ndarray:
    """N -> bool N x A"""
    low, high = np.array(list(AREAS.values())).T
    return (areas[:, None] < low) | (areas[:, None] > high)


def compressed_rle(segmentation: list | dict, height: int, width: int) -> dict:
    """The compressed RLE, of the image's size, of COCO's polygons [[x, y, ...], ...]; of one, itself."""
    if isinstance(segmentation, dict):
        return segmentation
    return mask_utils.merge(mask_utils.frPyObjects(segmentation, height, width))


def _mark_matches(outcomes: np.ndarray, ious: np.ndarray, is_crowd: np.ndarray, is_ignored: np.ndarray) -> None:
    """Sets the outcomes, D x A x T, of detections that find an object. ious: D x G, is_crowd: G, is_ignored: A x G.

    The detections, in order of score, choose among the objects that are free: one that counts before one to be ignored,
    then the greater IoU, then the later in the file. Crowds stay free.
    """
    num_objects = ious.shape[1]
    is_taken = np.zeros((*outcomes.shape[1:], num_objects), bool)  # A x T x G
    preference = np.argsort(np.argsort(ious, axis=1, kind="stable"), axis=1)
    for d in np.flatnonzero(ious.max(axis=1) >= IOU_THRESHOLDS[0]):
        may_take = (ious[d] >= IOU_THRESHOLDS[:, None]) & ~is_taken
        values = np.where(may_take, (preference[d] + num_objects * ~is_ignored)[:, None], -1)
        a, t = np.nonzero(may_take.any(axis=2))
        best = values[a, t].argmax(axis=1)
        is_taken[a, t, best] = ~is_crowd[best]
        outcomes[d, a, t] = np.where(is_ignored[a, best], IGNORED, HIT)


def _precision_at_recalls(outcomes: np.ndarray, num_objects: int) -> np.ndarray:
    """The best precision, T x R, at no less than each recall, 0 where that is not reached. outcomes: n x T by score."""
    hits = np.cumsum(outcomes == HIT, axis=0)
    precision = hits / (hits + np.cumsum(outcomes == MISS, axis=0) + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at_recalls = np.zeros((outcomes.shape[1], len(RECALL_POINTS)))
    for t, recall in enumerate((hits / num_objects).T):
        places = np.searchsorted(recall, RECALL_POINTS)
        places = places[places < len(recall)]
        at_recalls[t, : len(places)] = precision[places, t]
    return at_recalls
