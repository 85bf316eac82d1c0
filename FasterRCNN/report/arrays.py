"""A data set's truth and the results of a model as arrays.

G objects, N results, I images in the order of the set, K classes by id; boxes are x, y, width, height in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from FasterRCNN.datasets.annotations import Annotations, sound_objects
from FasterRCNN.datasets.problems import Problems

__all__ = ["Found", "Truth", "by_image", "found_of", "truth_of"]


@dataclass
class Truth:
    """image_ids: I; sizes: I x 2 (w, h); of the objects that count: images, classes: int G; boxes: G x 4; areas: G."""

    image_ids: list[int | str]
    sizes: np.ndarray
    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)


@dataclass
class Found:
    """images, classes: int N, a class of -1 is none of the set's; boxes: N x 4; scores: N."""

    images: np.ndarray
    classes: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, chosen: np.ndarray) -> Found:
        return Found(self.images[chosen], self.classes[chosen], self.boxes[chosen], self.scores[chosen])


def truth_of(annotations: Annotations, *, with_masks: bool) -> Truth:
    """The objects that count in an evaluation: what can be used, without crowds and difficult ones."""
    problems = Problems(annotations.source)  # the evaluation has told them
    places = _places_by_id(annotations)
    image_ids, sizes, rows, boxes, areas = [], [], [], [], []
    for image in annotations.read_images(problems):
        for entry in sound_objects(image, annotations.categories, problems, with_masks=with_masks):
            if not entry.raw.is_crowd and not entry.raw.is_difficult:
                rows.append((len(image_ids), places[entry.raw.category_id]))
                boxes.append(entry.bbox)
                areas.append(entry.raw.area if isinstance(entry.raw.area, (int, float)) else np.nan)
        image_ids.append(image.image_id)
        sizes.append((image.width, image.height))
    images, classes = np.array(rows, np.int64).reshape(-1, 2).T
    boxes, areas = np.array(boxes, np.float64).reshape(-1, 4), np.array(areas, np.float64)
    areas = np.where(np.isfinite(areas), areas, boxes[:, 2] * boxes[:, 3])
    return Truth(image_ids, np.array(sizes, np.int64).reshape(-1, 2), images, classes, boxes, areas)


def found_of(results: Sequence[dict], annotations: Annotations, truth: Truth) -> Found:
    """COCO results of the images of `truth`."""
    images = {image_id: i for i, image_id in enumerate(truth.image_ids)}
    places = _places_by_id(annotations)
    return Found(
        images=np.array([images[result["image_id"]] for result in results], np.int64),
        classes=np.array([places.get(result["category_id"], -1) for result in results], np.int64),
        boxes=np.array([result["bbox"] for result in results], np.float64).reshape(-1, 4),
        scores=np.array([result["score"] for result in results], np.float64),
    )


def by_image(truth: Truth, found: Found) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each image that has both, the places of its results, best score first, and of its objects."""
    truth_order = np.argsort(truth.images, kind="stable")
    found_order = np.lexsort([-found.scores, found.images])
    edges = np.arange(len(truth.image_ids) + 1)
    truth_bounds = np.searchsorted(truth.images[truth_order], edges)
    found_bounds = np.searchsorted(found.images[found_order], edges)
    for i in np.flatnonzero((np.diff(truth_bounds) > 0) & (np.diff(found_bounds) > 0)):
        yield (
            found_order[found_bounds[i] : found_bounds[i + 1]],
            truth_order[truth_bounds[i] : truth_bounds[i + 1]],
        )


def _places_by_id(annotations: Annotations) -> dict[int, int]:
    return {category_id: k for k, category_id in enumerate(sorted(annotations.categories.ids))}
