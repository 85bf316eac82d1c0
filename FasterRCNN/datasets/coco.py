"""Reads COCO's instances format: polygons, compressed and uncompressed RLE, crowd regions, any category ids."""

from __future__ import annotations

import gc
import json
import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from FasterRCNN.datasets.annotations import Annotations, RawImage, RawObject
from FasterRCNN.datasets.problems import Problems
from FasterRCNN.structures import Categories

__all__ = ["read_coco", "read_json"]

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


def read_coco(
    annotation_file: str | Path, image_dir: str | Path, *, name: str, absolute_coord: bool = True
) -> Annotations:
    """The annotations of a COCO instances file, in its order, with images in `image_dir`.

    Labels follow the order of the category ids. absolute_coord=False: the file's boxes and polygons are fractions of
    the image's size. Raises FileNotFoundError for a missing file, ValueError for content out of format.
    """
    annotation_file, image_dir = Path(annotation_file), Path(image_dir)
    content = _read_file(annotation_file)
    return Annotations(
        name=name,
        source=str(annotation_file),
        categories=_read_categories(content, annotation_file),
        read_images=lambda problems: _images(content, image_dir, absolute_coord, problems),
        has_truth="annotations" in content,
    )


def read_json(path: str | Path, object_hook: Callable[[dict], dict] | None = None) -> object:
    """A JSON file's content; ValueError, naming the file, when it is none. object_hook: see json.loads."""
    is_collecting = gc.isenabled()
    gc.disable()  # it would look through the millions of objects of a large file again and again
    try:
        return json.loads(Path(path).read_bytes(), object_hook=object_hook)
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    finally:
        if is_collecting:
            gc.enable()


def _read_file(annotation_file: Path) -> dict:
    """A COCO file's content, whose lists and their entries' ids and sizes are as they should be.

    Boxes and segmentations are `sound_objects`' to check. The list "annotations" may be missing (test sets).
    Raises FileNotFoundError for a missing file, ValueError naming file and entry.
    """
    if not annotation_file.is_file():
        raise FileNotFoundError(f"{annotation_file}: no such annotation file; check DATA.BASEDIR, DATA.TRAIN, DATA.VAL")
    content = read_json(annotation_file, object_hook=_with_packed_polygons)
    is_object = isinstance(content, dict)
    wanted = [part for part in _KEYS if part != "annotations" or (is_object and part in content)]
    for part in wanted:
        entries = content.get(part) if is_object else None
        if not isinstance(entries, list):
            raise ValueError(f"{annotation_file}: no list {part!r}; a COCO instances file has the lists {list(_KEYS)}")
        for number, entry in enumerate(entries):
            _check_entry(entry, _KEYS[part], annotation_file, f"{part}[{number}]")
    if len({isinstance(image["id"], str) for image in content["images"]}) > 1:
        raise ValueError(f"{annotation_file}: some image ids are numbers, others text; use one kind")
    return {part: content[part] for part in wanted}


def _with_packed_polygons(entry: dict) -> dict:
    """The entry, its polygons as arrays: lists of Python's numbers are most of the memory that a large file takes."""
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list) and all(isinstance(flat, list) and len(flat) % 2 == 0 for flat in segmentation):
        with suppress(TypeError, OverflowError):
            polygons = [array("d", flat) for flat in segmentation]
            if math.isfinite(sum(map(sum, polygons))):  # else `sound_objects` tells what the file has
                entry["segmentation"] = polygons
    return entry


def _check_entry(entry: object, checks: dict[str, _Check], annotation_file: str | Path, place: str) -> None:
    for key, (is_right, wanted) in checks.items():
        if not isinstance(entry, dict) or key not in entry:
            raise ValueError(f"{annotation_file}, {place}: no {key!r} in {str(entry)[:100]}")
        if not is_right(entry[key]):
            raise ValueError(f"{annotation_file}, {place}: {key} is {str(entry[key])[:100]!r}, not {wanted}")


def _read_categories(content: dict, annotation_file: Path) -> Categories:
    """The categories in the order of their ids; ValueError when an id occurs twice."""
    pairs = sorted((entry["id"], str(entry["name"])) for entry in content["categories"])
    try:
        return Categories(names=[name for _, name in pairs], ids=[category_id for category_id, _ in pairs])
    except ValueError as error:
        raise ValueError(f"{annotation_file}: {error}") from None


def _images(content: dict, image_dir: Path, absolute_coord: bool, problems: Problems) -> Iterator[RawImage]:
    by_image: dict[int | str, list[dict]] = defaultdict(list)
    annotation_ids = set()
    for annotation in content.get("annotations", ()):
        by_image[annotation["image_id"]].append(annotation)
        annotation_id = annotation.get("id")
        if annotation_id in annotation_ids:
            problems.add("annotation_id", image_id=annotation["image_id"], annotation_id=annotation_id)
        elif annotation_id is not None:
            annotation_ids.add(annotation_id)
    image_ids = set()
    for image in content["images"]:
        if image["id"] in image_ids:
            problems.add("image_id", image_id=image["id"], detail=f"file_name {image['file_name']!r}")
            continue
        image_ids.add(image["id"])
        height, width = int(image["height"]), int(image["width"])
        scale = None if absolute_coord else (width, height)
        objects = [_object(annotation, scale) for annotation in by_image[image["id"]]]
        yield RawImage(image["id"], str(image_dir / image["file_name"]), height, width, objects)
    for image_id in by_image.keys() - image_ids:
        for annotation in by_image[image_id]:
            problems.add("unknown_image", image_id=image_id, annotation_id=annotation.get("id"))


def _object(annotation: dict, scale: tuple[int, int] | None) -> RawObject:
    bbox, segmentation = annotation["bbox"], annotation.get("segmentation")
    return RawObject(
        annotation_id=annotation.get("id"),
        category_id=annotation["category_id"],
        bbox=bbox if scale is None else _scaled(bbox, scale),
        segmentation=segmentation if scale is None else _scaled(segmentation, scale),
        is_crowd=bool(annotation.get("iscrowd")),
        area=annotation.get("area") if scale is None else None,
    )


def _scaled(values: object, scale: tuple[int, int]) -> object:
    """[x, y, x, y, ...], or lists of it, times the scale in x and y; what is not of this form stays as it is."""
    if not isinstance(values, (list, array)):
        return values
    if any(isinstance(value, (list, array)) for value in values):
        return [_scaled(value, scale) for value in values]
    is_number = all(isinstance(value, (int, float)) for value in values)
    return [value * scale[i % 2] for i, value in enumerate(values)] if is_number else values
