"""What `./data.py --check` finds odd about objects that can be used, one by one and about the boxes of a set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from FasterRCNN.datasets.annotations import RawImage, RawObject, SoundObject, finite_box, is_area, mask_extent
from FasterRCNN.datasets.problems import Problems

__all__ = ["BoxHabits", "check_objects"]

# How far a mask may leave its box: tools round, and draw boxes by hand.
MASK_TOLERANCE, MASK_TOLERANCE_SHARE = 1.0, 0.02  # pixels; and of the box's side
ENOUGH_BOXES, ENOUGH_BEYOND = 10, 0.1  # to tell how boxes are written; share of them that leaves the image
TINY = 1.0  # pixels a side


def check_objects(image: RawImage, sound: Sequence[SoundObject], found: Problems) -> None:
    """Adds warnings of the image's objects; sound: those that can be used."""

    def note(kind: str, raw: RawObject, detail: str) -> None:
        place = {"file": image.annotation_file, "image_id": image.image_id, "annotation_id": raw.annotation_id}
        found.add(kind, **place, detail=detail)

    for raw in image.objects:
        if raw.area is not None and not is_area(raw.area):
            note("odd_area", raw, f"area {raw.area!r}")
    first: dict[tuple, RawObject] = {}
    for entry in sound:
        x1, y1, x2, y2 = entry.box
        if min(x2 - x1, y2 - y1) < TINY:
            note("tiny_box", entry.raw, f"{x2 - x1:.3g} x {y2 - y1:.3g} pixels (width x height) inside the image")
        twin = first.setdefault((entry.raw.category_id, entry.raw.is_crowd, entry.bbox), entry.raw)
        if twin is not entry.raw:
            note("repeated_object", entry.raw, f"class and box are those of annotation id {twin.annotation_id!r}")
        if entry.segmentation is not None and (detail := _beyond_box(entry)):
            note("mask_beyond", entry.raw, detail)


def _beyond_box(entry: SoundObject) -> str:
    """How far a mask leaves its box, in words; "" where it does not."""
    x, y, w, h = entry.bbox
    extent, box, side = mask_extent(entry.segmentation), np.array([x, y, x + w, y + h]), np.array([w, h])
    beyond = np.maximum(box[:2] - extent[:2], extent[2:] - box[2:])
    if not (beyond > MASK_TOLERANCE + MASK_TOLERANCE_SHARE * side).any():
        return ""
    return f"by {beyond.max():.4g} pixels: mask within {_corners(extent)}, box {_corners(box)} (x1, y1, x2, y2)"


def _corners(box: np.ndarray) -> str:
    return "[" + ", ".join(f"{value:.5g}" for value in box) + "]"


class BoxHabits:
    """Tells from all the boxes of a set when they are written in another form than x, y, width, height in pixels."""

    def __init__(self) -> None:
        self._num = self._num_beyond = 0
        self._farthest = 0.0
        self._may_be_corners = True

    def add(self, image: RawImage) -> None:
        """Looks at the boxes of an image, the unusable ones too."""
        for bbox in filter(None, (finite_box(entry.bbox) for entry in image.objects)):
            x, y, w, h = bbox
            self._num += 1
            self._num_beyond += x + w > image.width + 1 or y + h > image.height + 1
            self._farthest = max(self._farthest, x + w, y + h)
            self._may_be_corners &= x < w <= image.width + 1 and y < h <= image.height + 1

    def oddities(self) -> Iterator[tuple[str, str]]:
        """Kinds of problems, with details."""
        if self._num and 0 < self._farthest <= 1:
            yield "fraction_boxes", f"none of the {self._num:,} boxes reaches beyond pixel {self._farthest:g}"
        if self._num >= ENOUGH_BOXES and self._may_be_corners and self._num_beyond >= ENOUGH_BEYOND * self._num:
            yield "corner_boxes", (
                f"{self._num_beyond:,} of {self._num:,} boxes leave their image as x, y, width, height; none would as "
                "x1, y1, x2, y2"
            )
