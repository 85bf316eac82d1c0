"""Reads COCO's instances format: polygons, compressed and uncompressed RLE, crowd regions, any category ids."""

from __future__ import annotations

import gc
import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils

from FasterRCNN.structures import Categories, Dataset, ImageRecord, PackedRecords

__all__ = ["CocoObject", "Oddities", "finite_box", "load_coco", "objects_by_image", "read_categories", "read_instances",
           "read_json"]

logger = logging.getLogger(__name__)


# What the entries of each list must have: key -> (check, what is wanted).
_Check = tuple[Callable[[object], bool], str]
_ANY: _Check = (lambda value: True, "")
_TEXT: _Check = (lambda value: isinstance(value, str), "text")
_NUMBER: _Check = (lambda value: isinstance(value, int), 'a whole number (1, not "1")')
_IMAGE_ID: _Check = (lambda value: isinstance(value, (int, str)), "a whole number or text")
_PIXELS: _Check = (
    lambda value: isinstance(value, (int, float)) and value > 0 and value % 1 == 0, "a whole number of pixels"
)
_KEYS: dict[str, dict[str, _Check]] = {
    "images": {"id": _IMAGE_ID, "file_name": _TEXT, "height": _PIXELS, "width": _PIXELS},
    "categories": {"id": _NUMBER, "name": _ANY},
    "annotations": {"image_id": _IMAGE_ID, "category_id": _NUMBER, "bbox": _ANY},
}

_NO_AREA = "left out %d objects whose box or mask has no area inside the image or is not made of finite numbers"
_NO_IMAGE = "left out %d objects of images that the file does not list"
_FLAT = "took the flat list [x, y, ...] that %d objects have as segmentation for one polygon"


def load_coco(
    annotation_file: str | Path,
    image_dir: str | Path,
    *,
    name: str,
    absolute_coord: bool = True,
    with_ground_truth: bool = True,
    with_masks: bool = True,
    masks_required: bool = False,
    categories: Categories | None = None,
) -> Dataset:
    """The data set of a COCO instances file whose images lie in `image_dir`, in the file's order.

    Boxes are clipped to the image, and objects left without area dropped with one counted warning.
    absolute_coord=False: boxes and polygons are fractions of the image's size. masks_required: an object without
    segmentation is an error, as training needs. An annotation id that is no whole number becomes -1. categories: label
    as in this other (training) set, matched by id and name, or by name where all the names agree; without it labels
    follow the order of the ids. Raises FileNotFoundError for a missing file or folder, ValueError for content out of
    format and for categories that differ from the given ones.
    """
    annotation_file, image_dir = Path(annotation_file), Path(image_dir)
    content = read_instances(annotation_file, with_ground_truth=with_ground_truth)
    if not image_dir.is_dir():
        raise FileNotFoundError(f"{image_dir}: no such image folder (for {annotation_file})")
    own = read_categories(content, annotation_file)
    aligned = own if categories is None else _align(own, categories, annotation_file)
    oddities = Oddities(annotation_file)
    pairs = objects_by_image(content, oddities, absolute_coord=absolute_coord, with_masks=with_masks)
    records = PackedRecords.from_iterable(
        _record(image, image_dir, _with_sound_masks(objects, oddities, masks_required), aligned, annotation_file)
        for image, objects in pairs
    )
    oddities.warn()
    return Dataset(name=name, records=records, categories=aligned, annotation_file=str(annotation_file))


# ---------------------------------------------------------------- the file, for evaluation too


def read_json(path: str | Path) -> object:
    """A JSON file's content; ValueError, naming the file, when it is none."""
    is_collecting = gc.isenabled()
    gc.disable()  # it would look through the millions of objects of a large file again and again
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    finally:
        if is_collecting:
            gc.enable()


def read_instances(annotation_file: str | Path, *, with_ground_truth: bool = True) -> dict:
    """A COCO instances file's content, whose lists and their entries' ids and sizes are as they should be.

    The boxes and segmentations are `objects_by_image`'s to check. Raises FileNotFoundError for a missing file,
    ValueError naming file and entry.
    """
    if not Path(annotation_file).is_file():
        raise FileNotFoundError(f"{annotation_file}: no such annotation file; check DATA.BASEDIR, DATA.TRAIN, DATA.VAL")
    content = read_json(annotation_file)
    wanted = [part for part in _KEYS if with_ground_truth or part != "annotations"]
    for part in wanted:
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise ValueError(f"{annotation_file}: no list {part!r}; a COCO instances file has the lists {wanted}")
        for number, entry in enumerate(entries):
            _check_entry(entry, _KEYS[part], annotation_file, f"{part}[{number}]")
    image_ids = [image["id"] for image in content["images"]]
    if len({isinstance(image_id, str) for image_id in image_ids}) > 1:
        raise ValueError(f"{annotation_file}: some image ids are numbers, others text; use one kind")
    if len(set(image_ids)) < len(image_ids):
        twice = next(image_id for image_id, count in Counter(image_ids).items() if count > 1)
        raise ValueError(f"{annotation_file}: image id {twice!r} occurs more than once")
    return {part: content[part] for part in wanted}


def _check_entry(entry: object, checks: dict[str, _Check], annotation_file: str | Path, place: str) -> None:
    for key, (is_right, wanted) in checks.items():
        if not isinstance(entry, dict) or key not in entry:
            raise ValueError(f"{annotation_file}, {place}: no {key!r} in {str(entry)[:100]}")
        if not is_right(entry[key]):
            raise ValueError(f"{annotation_file}, {place}: {key} is {str(entry[key])[:100]!r}, not {wanted}")


def read_categories(content: dict, annotation_file: str | Path) -> Categories:
    """The categories of a file's content in the order of their ids; ValueError when an id occurs twice."""
    pairs = sorted((entry["id"], str(entry["name"])) for entry in content["categories"])
    try:
        return Categories(names=[name for _, name in pairs], ids=[category_id for category_id, _ in pairs])
    except ValueError as error:
        raise ValueError(f"{annotation_file}: {error}") from None


class Oddities:
    """Collects what is odd about the objects of a file, to be told in one counted warning of each kind."""

    def __init__(self, annotation_file: str | Path):
        self.annotation_file = annotation_file
        self._places: dict[str, list[str]] = defaultdict(list)

    def note(self, kind: str, place: str) -> None:
        """kind: a sentence with %d for the count."""
        self._places[kind].append(place)

    def warn(self) -> None:
        """Logs a warning of each kind with its first place."""
        for kind, places in self._places.items():
            logger.warning("%s: " + kind + "; the first: %s", self.annotation_file, len(places), places[0])


@dataclass
class CocoObject:
    """An annotation whose box has area inside the image; coordinates in pixels.

    bbox: x, y, width, height as annotated; box: x1, y1, x2, y2 clipped to the image. segmentation: list of float64 N×2
    polygons, a compressed RLE, None where there is none (or none is wanted), [] where it is malformed or has no area.
    """

    annotation: dict
    place: str
    is_crowd: bool
    bbox: tuple[float, ...]
    box: tuple[float, ...]
    segmentation: list[np.ndarray] | dict | None


def objects_by_image(
    content: dict, oddities: Oddities, *, absolute_coord: bool = True, with_masks: bool = True
) -> Iterator[tuple[dict, list[CocoObject]]]:
    """Each image of `read_instances`' content with its objects; what is left out goes into `oddities`.

    absolute_coord=False: the file's boxes and polygons are fractions of the image's size. Raises ValueError for an RLE
    of another size than its image.
    """
    by_image = {image["id"]: [] for image in content["images"]}
    for annotation in content.get("annotations", ()):
        if annotation["image_id"] in by_image:
            by_image[annotation["image_id"]].append(annotation)
        else:
            oddities.note(_NO_IMAGE, _place(annotation))
    for image in content["images"]:
        width, height = int(image["width"]), int(image["height"])
        scale = (1, 1) if absolute_coord else (width, height)
        objects = []
        for annotation in by_image[image["id"]]:
            bbox = finite_box(annotation["bbox"], scale)
            box = bbox and _clip(bbox, height, width)
            if not box:
                oddities.note(_NO_AREA, _place(annotation))
                continue
            segmentation = _segmentation(annotation, height, width, scale, oddities) if with_masks else None
            is_crowd = bool(annotation.get("iscrowd"))
            objects.append(CocoObject(annotation, _place(annotation), is_crowd, bbox, box, segmentation))
        yield image, objects


def _place(annotation: dict) -> str:
    return f"image id {annotation['image_id']!r}, annotation id {annotation.get('id')}"


def finite_box(bbox: object, scale: tuple[float, float] = (1, 1)) -> tuple[float, ...] | None:
    """(x, y, w, h) of a bbox in JSON, times the scale in x and y; None when it is not a list of four finite numbers."""
    try:
        x, y, w, h = (float(value) for value in bbox)
    except (TypeError, ValueError, OverflowError):
        return None
    if isinstance(bbox, str) or not math.isfinite(x + y + w + h):
        return None
    return x * scale[0], y * scale[1], w * scale[0], h * scale[1]


def _clip(bbox: tuple[float, ...], height: int, width: int) -> tuple[float, ...] | None:
    """(x1, y1, x2, y2) inside the image; None without area there."""
    x, y, w, h = bbox
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    # float32 can round two different edges to one.
    return (x1, y1, x2, y2) if np.float32(x1) < np.float32(x2) and np.float32(y1) < np.float32(y2) else None


def _segmentation(
    annotation: dict, height: int, width: int, scale: tuple[float, float], oddities: Oddities
) -> list[np.ndarray] | dict | None:
    """See CocoObject."""
    value = annotation.get("segmentation")
    if not value:
        return None
    if isinstance(value, dict):
        return _compressed_rle(value, height, width, f"{oddities.annotation_file}, {_place(annotation)}")
    if not isinstance(value, list):
        return []
    if isinstance(value[0], (int, float)):
        oddities.note(_FLAT, _place(annotation))
        value = [value]
    return [polygon * scale for polygon in map(_polygon, value) if polygon is not None]


def _polygon(flat: object) -> np.ndarray | None:
    """[x, y, ...] as float64 N×2; None when it is not made of three or more finite points."""
    try:
        points = np.asarray(flat, np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        return None
    return points if len(points) >= 3 and np.isfinite(points).all() else None


def _compressed_rle(value: dict, height: int, width: int, where: str) -> dict:
    size, counts = value.get("size"), value.get("counts")
    if size != [height, width]:
        raise ValueError(f"{where}: the RLE is of size {size}, its image of {[height, width]} (height, width)")
    if isinstance(counts, str):
        return {"size": [height, width], "counts": counts.encode()}
    if not isinstance(counts, list) or not all(isinstance(count, int) and count >= 0 for count in counts):
        raise ValueError(f"{where}: the RLE's counts {str(counts)[:60]} are neither text nor a list of whole numbers")
    if sum(counts) != height * width:
        raise ValueError(f"{where}: the RLE's counts cover {sum(counts)} of {height * width} pixels")
    return mask_utils.frPyObjects({"size": [height, width], "counts": counts}, height, width)


# ---------------------------------------------------------------- records


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


def _with_sound_masks(objects: list[CocoObject], oddities: Oddities, masks_required: bool) -> list[CocoObject]:
    for entry in objects:
        if masks_required and entry.segmentation is None and not entry.is_crowd:
            raise ValueError(
                f"{oddities.annotation_file}, {entry.place}: the object has no segmentation; for boxes alone set "
                "MODE_MASK=False"
            )
        if entry.segmentation == []:
            oddities.note(_NO_AREA, entry.place)
    return [entry for entry in objects if entry.segmentation != []]


def _record(
    image: dict, image_dir: Path, objects: list[CocoObject], categories: Categories, annotation_file: Path
) -> ImageRecord:
    ids = [entry.annotation.get("id") for entry in objects]
    return ImageRecord(
        image_id=image["id"],
        file_name=str(image_dir / image["file_name"]),
        height=int(image["height"]),
        width=int(image["width"]),
        boxes=np.array([entry.box for entry in objects], np.float32).reshape(-1, 4),
        labels=np.array([_label(entry, categories, annotation_file) for entry in objects], np.int32),
        is_crowd=np.array([entry.is_crowd for entry in objects], bool),
        annotation_ids=np.array([number if isinstance(number, int) else -1 for number in ids], np.int64),
        segmentations=[entry.segmentation for entry in objects],
    )


def _label(entry: CocoObject, categories: Categories, annotation_file: Path) -> int:
    try:
        return categories.label_of_id(entry.annotation["category_id"])
    except ValueError as error:
        raise ValueError(f"{annotation_file}, {entry.place}: {error}") from None
