"""Reads COCO's instances format: polygons, compressed and uncompressed RLE, crowd regions, any category ids."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils

from FasterRCNN.structures import Categories, Dataset, ImageRecord, PackedRecords

__all__ = ["load_coco"]

logger = logging.getLogger(__name__)


def load_coco(
    annotation_file: str | Path,
    image_dir: str | Path,
    *,
    name: str,
    absolute_coord: bool = True,
    with_ground_truth: bool = True,
    with_masks: bool = True,
    categories: Categories | None = None,
) -> Dataset:
    """The data set of a COCO instances file whose images lie in `image_dir`, in the file's order.

    Boxes are clipped to the image, and objects left without area dropped with one counted warning.
    absolute_coord=False: boxes and polygons are fractions of the image's size. categories: label as in this other
    (training) set, matched by id and name, or by name where all the names agree; without it labels follow the order of
    the ids. Raises FileNotFoundError for a missing file or folder, ValueError for content out of format, for categories
    that differ from the given ones and, with_masks, for an object without segmentation.
    """
    annotation_file, image_dir = Path(annotation_file), Path(image_dir)
    content = _read(annotation_file, with_ground_truth)
    if not image_dir.is_dir():
        raise FileNotFoundError(f"{image_dir}: no such image folder (for {annotation_file})")
    own = _categories(content, annotation_file)
    reader = _Reader(
        annotation_file=annotation_file,
        image_dir=image_dir,
        categories=own if categories is None else _align(own, categories, annotation_file),
        absolute_coord=absolute_coord,
        with_masks=with_masks,
    )
    annotations = content["annotations"] if with_ground_truth else []
    records = PackedRecords.from_iterable(reader.records(content["images"], annotations))
    reader.warn()
    return Dataset(name=name, records=records, categories=reader.categories, annotation_file=str(annotation_file))


def _read(annotation_file: Path, with_ground_truth: bool) -> dict:
    try:
        content = json.loads(annotation_file.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{annotation_file}: no such annotation file") from None
    except ValueError as error:
        raise ValueError(f"{annotation_file}: not a JSON file ({error})") from None
    wanted = ["images", "categories"] + ["annotations"] * with_ground_truth
    missing = [key for key in wanted if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        raise ValueError(f"{annotation_file}: no list {missing[0]!r}; a COCO instances file has the lists {wanted}")
    return content


def _categories(content: dict, annotation_file: Path) -> Categories:
    entries = content["categories"]
    pairs = sorted((_get(entry, "id", annotation_file), _get(entry, "name", annotation_file)) for entry in entries)
    try:
        return Categories(names=[name for _, name in pairs], ids=[category_id for category_id, _ in pairs])
    except ValueError as error:
        raise ValueError(f"{annotation_file}: {error}") from None


def _align(own: Categories, wanted: Categories, annotation_file: Path) -> Categories:
    """`wanted`'s names in its order, with the ids that they have in this file."""
    if own.by_id.items() <= wanted.by_id.items():
        return wanted
    id_of_name = {name: category_id for category_id, name in own.by_id.items()}
    if len(id_of_name) == len(own) and sorted(own.names) == sorted(wanted.names):
        return Categories(names=wanted.names, ids=[id_of_name[name] for name in wanted.names])
    raise ValueError(
        f"{annotation_file}: its categories differ from the training set's (here / in training): "
        f"{'; '.join(own.differences(wanted))}. Use the same ids and names in both files"
    )


@dataclass
class _Reader:
    annotation_file: Path
    image_dir: Path
    categories: Categories
    absolute_coord: bool
    with_masks: bool
    dropped: list[str] = field(default_factory=list)
    homeless: list[str] = field(default_factory=list)

    def records(self, images: list[dict], annotations: list[dict]) -> Iterator[ImageRecord]:
        by_image = defaultdict(list)
        for annotation in annotations:
            by_image[_get(annotation, "image_id", self.annotation_file)].append(annotation)
        seen = set()
        for image in images:
            record = self._image(image)
            if record.image_id in seen:
                raise ValueError(f"{self.annotation_file}: image id {record.image_id!r} occurs more than once")
            seen.add(record.image_id)
            self._add_objects(record, by_image.get(record.image_id, ()))
            yield record
        self.homeless = [
            f"image id {image_id!r}, annotation id {annotation.get('id')}"
            for image_id in by_image.keys() - seen
            for annotation in by_image[image_id]
        ]

    def warn(self) -> None:
        """One counted warning for each kind of objects left out."""
        reasons = {
            "whose box or mask has no area inside the image or is not made of finite numbers": self.dropped,
            "of images that the file does not list": self.homeless,
        }
        for reason, places in reasons.items():
            if places:
                logger.warning(
                    "%s: left out %d objects %s; the first: %s", self.annotation_file, len(places), reason, places[0]
                )

    def _image(self, image: dict) -> ImageRecord:
        image_id, file_name, height, width = (
            _get(image, key, self.annotation_file) for key in ("id", "file_name", "height", "width")
        )
        if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
            raise ValueError(
                f"{self.annotation_file}, image id {image_id!r}: width {width!r} and height {height!r} must be whole "
                "numbers of pixels"
            )
        return ImageRecord(image_id, str(self.image_dir / str(file_name)), height, width)

    def _add_objects(self, record: ImageRecord, annotations: Iterable[dict]) -> None:
        boxes, labels, is_crowd, ids, segmentations = [], [], [], [], []
        for annotation in annotations:
            place = f"image id {record.image_id!r}, annotation id {annotation.get('id')}"
            where = f"{self.annotation_file}, {place}"
            label = self._label(annotation, where)
            crowd = bool(annotation.get("iscrowd", 0))
            box = self._box(_get(annotation, "bbox", where), record)
            segmentation = self._segmentation(annotation, record, where) if self.with_masks else None
            if box is None or segmentation == []:
                self.dropped.append(place)
                continue
            if self.with_masks and segmentation is None and not crowd:
                raise ValueError(f"{where}: the object has no segmentation; for boxes alone set MODE_MASK=False")
            boxes.append(box)
            labels.append(label)
            is_crowd.append(crowd)
            annotation_id = annotation.get("id")
            ids.append(annotation_id if isinstance(annotation_id, int) else -1)
            segmentations.append(segmentation)
        record.boxes = np.array(boxes, np.float32).reshape(-1, 4)
        record.labels = np.array(labels, np.int32)
        record.is_crowd = np.array(is_crowd, bool)
        record.annotation_ids = np.array(ids, np.int64)
        record.segmentations = segmentations

    def _label(self, annotation: dict, where: str) -> int:
        try:
            return self.categories.label_of_id(_get(annotation, "category_id", where))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def _box(self, bbox: list[float], record: ImageRecord) -> tuple[float, float, float, float] | None:
        """(x1, y1, x2, y2) clipped to the image; None when malformed or without area there."""
        xywh = finite_box(bbox)
        if xywh is None:
            return None
        x, y, w, h = xywh
        if not self.absolute_coord:
            x, y, w, h = x * record.width, y * record.height, w * record.width, h * record.height
        x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, record.width), min(y + h, record.height)
        # The comparisons are False for NaN; float32 can round two different edges to one.
        has_area = np.float32(x1) < np.float32(x2) and np.float32(y1) < np.float32(y2)
        return (x1, y1, x2, y2) if has_area else None

    def _segmentation(self, annotation: dict, record: ImageRecord, where: str) -> list[np.ndarray] | dict | None:
        """Polygons N×2 or a compressed RLE; None when there is none, [] when it is malformed or without area."""
        value = nested_polygons(annotation.get("segmentation"))
        if not value:
            return None
        if isinstance(value, dict):
            return _compressed_rle(value, record, where)
        scale = (1, 1) if self.absolute_coord else (record.width, record.height)
        whole = [flat for flat in value if len(flat) >= 6 and len(flat) % 2 == 0]
        polygons = [np.array(flat, np.float32).reshape(-1, 2) * np.float32(scale) for flat in whole]
        return [polygon for polygon in polygons if np.isfinite(polygon).all()]


def finite_box(bbox: object) -> tuple[float, ...] | None:
    """(x, y, w, h) of an annotation's bbox; None when it is not four finite numbers."""
    try:
        x, y, w, h = (float(value) for value in bbox)
    except (TypeError, ValueError):
        return None
    return (x, y, w, h) if math.isfinite(x + y + w + h) else None


def nested_polygons(segmentation: object) -> object:
    """A segmentation whose one polygon, [x, y, …], has no list around it with one; any other as it is."""
    if isinstance(segmentation, list) and segmentation and not isinstance(segmentation[0], list):
        return [segmentation]
    return segmentation


def _compressed_rle(value: dict, record: ImageRecord, where: str) -> dict:
    size, counts = list(_get(value, "size", where)), _get(value, "counts", where)
    if size != [record.height, record.width]:
        image_size = [record.height, record.width]
        raise ValueError(f"{where}: the RLE is of size {size}, its image of {image_size} (height, width)")
    if isinstance(counts, list):
        if sum(counts) != record.height * record.width:
            raise ValueError(f"{where}: the RLE's counts cover {sum(counts)} of {record.height * record.width} pixels")
        counts = mask_utils.frPyObjects({"size": size, "counts": counts}, *size)["counts"]
    return {"size": size, "counts": counts.encode() if isinstance(counts, str) else counts}


def _get(entry: dict, key: str, place: object) -> object:
    try:
        return entry[key]
    except (KeyError, TypeError):
        raise ValueError(f"{place}: no {key!r} in {str(entry)[:100]}") from None
