"""Annotations as their files have them, and the one rule for which of them can be used.

The reader of each format (coco, voc, custom) makes Annotations; `sound_objects` keeps what can be used and reports the
rest: for training, for evaluation and for `./data.py --check` alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from FasterRCNN.datasets.problems import Problems
from FasterRCNN.datasets.records import PackedRecords
from FasterRCNN.structures import Categories, Dataset, ImageRecord

__all__ = [
    "Annotations", "RawImage", "RawObject", "SoundObject", "finite_box", "is_area", "mask_extent", "sound_objects",
    "to_dataset",
]

FAR_BEYOND = 1.0  # pixels; labelling tools round


@dataclass(slots=True)
class RawObject:
    """An annotated object as its file has it, but in pixels; nothing in it is checked.

    bbox: x, y, width, height; segmentation: as in COCO, polygons [[x, y, ...], ...] or an RLE, or None; category_id:
    as in Annotations.categories; area: square pixels, None where the file gives none.
    """

    annotation_id: int | str | None
    category_id: int | None
    bbox: object
    segmentation: object = None
    is_crowd: bool = False
    is_difficult: bool = False
    area: object = None


@dataclass(slots=True)
class RawImage:
    """An annotated image: its file, its size in pixels as annotated, its objects.

    annotation_file: the one of this image alone, for messages; None where a file annotates many.
    """

    image_id: int | str
    file_name: str
    height: int
    width: int
    objects: list[RawObject] = field(default_factory=list)
    annotation_file: str | None = None


@dataclass
class Annotations:
    """What a data set's annotation files say.

    name: of the set; source: the annotation file or folder, for messages; categories: the classes, with the ids that
    RawObject.category_id holds; read_images(problems) yields the images anew at each call and adds what is wrong with
    entries as a whole (ids used twice, objects of unknown images, missing annotation files) to `problems`. has_truth:
    False for images without annotations (COCO's test sets). user_dataset: the object that gives the images of a
    user's own data set, dataset[image_id] -> (image, ...); None where they are files. metric: "coco" or "voc", how the
    set is scored by default.
    """

    name: str
    source: str
    categories: Categories
    read_images: Callable[[Problems], Iterator[RawImage]]
    has_truth: bool = True
    user_dataset: Any = None
    metric: str = "coco"


@dataclass(slots=True)
class SoundObject:
    """An object that can be used.

    bbox: x, y, width, height as annotated; box: x1, y1, x2, y2 clipped to the image, with area. segmentation: float64
    N×2 polygons, a compressed RLE, or None where there is none or none is wanted.
    """

    raw: RawObject
    bbox: tuple[float, ...]
    box: tuple[float, ...]
    segmentation: list[np.ndarray] | dict | None


def sound_objects(
    image: RawImage, categories: Categories, problems: Problems, *, with_masks: bool, masks_required: bool = False
) -> list[SoundObject]:
    """The image's objects that can be used; what is wrong with them and the others goes into `problems`.

    with_masks: segmentations are read, and an object whose segmentation is unusable is left out. masks_required: so is
    an object, crowds excepted, that has none.
    """
    sound = []
    for raw in image.objects:
        note = _Note(problems, image, raw)
        if raw.category_id not in categories.by_id:
            named = "no class is named" if raw.category_id is None else f"category id {raw.category_id!r}"
            note("unknown_category", named)
            continue
        if (bbox := finite_box(raw.bbox)) is None:
            note("malformed_box", f"bbox {str(raw.bbox)[:100]}")
            continue
        if (box := _usable_box(bbox, image, note)) is None:
            continue
        segmentation = _segmentation(raw.segmentation, image, note) if with_masks else None
        if segmentation is _UNUSABLE:
            continue
        if segmentation is None and masks_required and not raw.is_crowd:
            note("no_mask")
            continue
        if segmentation is not None and not _mask_meets_box(segmentation, bbox, note):
            continue
        sound.append(SoundObject(raw, bbox, box, segmentation))
    return sound


class _Note:
    """Adds problems of one object."""

    def __init__(self, problems: Problems, image: RawImage, raw: RawObject):
        self._problems, self._image, self._raw = problems, image, raw

    def __call__(self, kind: str, detail: str = "") -> None:
        self._problems.add(
            kind,
            file=self._image.annotation_file,
            image_id=self._image.image_id,
            annotation_id=self._raw.annotation_id,
            detail=detail,
        )


# ---------------------------------------------------------------- boxes


def finite_box(bbox: object) -> tuple[float, ...] | None:
    """(x, y, w, h) of a bbox in JSON; None when it is not a list of four finite numbers."""
    try:
        x, y, w, h = map(float, bbox)
    except (TypeError, ValueError, OverflowError):
        return None
    return (x, y, w, h) if not isinstance(bbox, str) and math.isfinite(x + y + w + h) else None


def is_area(value: object) -> bool:
    """Whether an object can have this area; COCO's rules ignore one of less than 0, which some exporters write."""
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0


def _usable_box(bbox: tuple[float, ...], image: RawImage, note: _Note) -> tuple[float, ...] | None:
    """(x1, y1, x2, y2) inside the image; None, with a note, without area there."""
    x, y, w, h = bbox
    if w < 0 or h < 0:
        return note("negative_box", _words(bbox))
    if w == 0 or h == 0:
        return note("zero_area_box", _words(bbox))
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, image.width), min(y + h, image.height)
    # float32 can round two different edges to one.
    if not (np.float32(x1) < np.float32(x2) and np.float32(y1) < np.float32(y2)):
        is_inside = x1 <= x2 and y1 <= y2 and x1 < image.width and y1 < image.height and x2 > 0 and y2 > 0
        kind = "zero_area_box" if is_inside else "box_outside"
        return note(kind, f"{_words(bbox)}, image {image.width} x {image.height}")
    beyond = max(-x, -y, x + w - image.width, y + h - image.height)
    if beyond > FAR_BEYOND:
        note("box_beyond", f"{_words(bbox)}, {beyond:g} pixels beyond the image of {image.width} x {image.height}")
    return x1, y1, x2, y2


def _words(bbox: tuple[float, ...]) -> str:
    return f"bbox (x, y, width, height) {_numbers(bbox)}"


def _numbers(values: Iterable[float]) -> str:
    return f"[{', '.join(f'{value:g}' for value in values)}]"


# ---------------------------------------------------------------- masks

_UNUSABLE = object()


def _segmentation(value: object, image: RawImage, note: _Note) -> list[np.ndarray] | dict | None | object:
    """See SoundObject; _UNUSABLE, with a note, for one that cannot be used."""
    if not value:
        return None
    if isinstance(value, dict):
        return _compressed_rle(value, image, note)
    if not isinstance(value, (list, tuple)):
        note("malformed_mask", f"segmentation {str(value)[:60]}")
        return _UNUSABLE
    if isinstance(value[0], (int, float)):
        note("flat_polygon")
        value = [value]
    polygons = [polygon for polygon in (_polygon(points, note) for points in value) if polygon is not None]
    return polygons or _UNUSABLE


def _polygon(flat: object, note: _Note) -> np.ndarray | None:
    """[x, y, ...] as float64 N×2; None when it is not made of three or more finite points."""
    try:
        points = np.asarray(flat, np.float64).reshape(-1, 2)
        if not math.isfinite(points.sum()):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        return note("malformed_mask", f"polygon {str(flat)[:60]}")
    return points if len(points) >= 3 else note("short_polygon", f"{len(points)} points")


def _compressed_rle(value: dict, image: RawImage, note: _Note) -> dict | object:
    size, counts = value.get("size"), value.get("counts")
    height, width = image.height, image.width
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        note("rle_size", f"RLE of size {size}, image of {[height, width]} (height, width)")
        return _UNUSABLE
    if isinstance(counts, (str, bytes)):
        rle = {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}
        # pycocotools would take what is not covered from memory that was never written.
        if _pixels_covered(rle["counts"]) != height * width:
            note("malformed_mask", f"the RLE's counts do not cover {height * width} pixels: {str(counts)[:60]}")
            return _UNUSABLE
    elif isinstance(counts, list) and all(isinstance(count, int) and count >= 0 for count in counts):
        if sum(counts) != height * width:
            note("malformed_mask", f"the RLE's counts cover {sum(counts)} of {height * width} pixels")
            return _UNUSABLE
        rle = mask_utils.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    else:
        note("malformed_mask", f"the RLE's counts {str(counts)[:60]} are neither text nor a list of whole numbers")
        return _UNUSABLE
    return rle


def _pixels_covered(counts: bytes) -> int | None:
    """The sum of the runs in an RLE's compressed counts; None where they are malformed.

    Each run is a number of 5 bits a byte, the lowest first, from the fourth on less the run before the last.
    """
    runs, value, shift = [], 0, 0
    for byte in counts:
        digit = byte - 48
        if not 0 <= digit < 64:
            return None
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return sum(runs) if not shift and min(runs, default=0) >= 0 else None


def mask_extent(segmentation: list[np.ndarray] | dict) -> np.ndarray:
    """x1, y1, x2, y2 of polygons or of a compressed RLE, float64."""
    if isinstance(segmentation, dict):
        x, y, w, h = mask_utils.toBbox(segmentation)
        return np.array([x, y, x + w, y + h])
    points = np.concatenate(segmentation)
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _mask_meets_box(segmentation: list[np.ndarray] | dict, bbox: tuple[float, ...], note: _Note) -> bool:
    """Whether a mask has a part in its box; noted where not."""
    x1, y1, x2, y2 = extent = mask_extent(segmentation).tolist()
    if x1 >= x2 or y1 >= y2 or isinstance(segmentation, list) and all(map(_is_line, segmentation)):
        return bool(note("empty_mask"))
    x, y, w, h = bbox
    if x2 <= x or y2 <= y or x1 >= x + w or y1 >= y + h:
        box = _numbers((x, y, x + w, y + h))
        return bool(note("mask_outside", f"mask within {_numbers(extent)}, box {box} (x1, y1, x2, y2)"))
    return True


def _is_line(points: np.ndarray) -> bool:
    """Whether a polygon's points lie on one straight line: mostly told by the first three."""
    (x1, y1), (x2, y2), (x3, y3) = points[:3].tolist()
    is_corner = (x2 - x1) * (y3 - y1) != (x3 - x1) * (y2 - y1)
    return not is_corner and np.linalg.matrix_rank(points - points[0]) < 2


# ---------------------------------------------------------------- records


def to_dataset(
    annotations: Annotations,
    categories: Categories,
    problems: Problems,
    *,
    with_truth: bool = True,
    with_masks: bool = True,
    masks_required: bool = False,
    reread: Callable[[], Annotations] | None = None,
) -> Dataset:
    """The records of all images, with what can be used of their objects; the rest goes into `problems`.

    categories: labels in their order, ids as in `annotations`. with_truth=False: records without objects.
    """
    source = "" if annotations.user_dataset is None else annotations.name

    def records() -> Iterator[ImageRecord]:
        for image in annotations.read_images(problems):
            if not with_truth:
                image.objects = []
            objects = sound_objects(
                image, annotations.categories, problems, with_masks=with_masks, masks_required=masks_required
            )
            yield _record(image, objects, categories, source)

    return Dataset(
        name=annotations.name,
        records=PackedRecords.from_iterable(records()),
        categories=categories,
        user_datasets={source: annotations.user_dataset} if source else {},
        reread=reread,
    )


def _record(image: RawImage, objects: list[SoundObject], categories: Categories, source: str) -> ImageRecord:
    return ImageRecord(
        image_id=image.image_id,
        file_name=image.file_name,
        height=image.height,
        width=image.width,
        boxes=np.array([entry.box for entry in objects], np.float32).reshape(-1, 4),
        labels=np.array([categories.label_of_id(entry.raw.category_id) for entry in objects], np.int32),
        is_crowd=np.array([entry.raw.is_crowd for entry in objects], bool),
        is_difficult=np.array([entry.raw.is_difficult for entry in objects], bool),
        segmentations=[entry.segmentation for entry in objects],
        source=source,
    )
