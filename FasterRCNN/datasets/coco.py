"""Reads COCO's instances format: polygons, compressed and uncompressed RLE, crowd regions, any category ids."""

from __future__ import annotations

import gc
import json
import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from FasterRCNN.datasets.annotations import Annotations, RawImage, RawObject
from FasterRCNN.datasets.image_size import measured_size
from FasterRCNN.datasets.problems import Problems
from FasterRCNN.structures import Categories

__all__ = ["read_coco", "read_json"]

# What the entries of each list must have: key -> (check, what is wanted). A key may be missing where None is right.
_Check = tuple[Callable[[object], bool], str]
_NAME: _Check = (lambda value: value is not None, "a name")
_TEXT: _Check = (lambda value: isinstance(value, str), "text")
_LARGEST_ID, _LARGEST_SIDE = 2**63 - 1, 2**31 - 1  # what records and pycocotools hold
_NUMBER: _Check = (
    lambda value: isinstance(value, int) and abs(value) <= _LARGEST_ID, 'a whole number (1, not "1") of up to 63 bits'
)
_IMAGE_ID: _Check = (
    lambda value: isinstance(value, str) or _NUMBER[0](value), "a whole number or text, numbers of up to 63 bits"
)
# None or 0: the size is not annotated.
_PIXELS: _Check = (
    lambda value: value is None or isinstance(value, (int, float)) and 0 <= value <= _LARGEST_SIDE and value % 1 == 0,
    "a whole number of pixels",
)
_ANNOTATION_ID: _Check = (lambda value: not isinstance(value, (list, dict)), "a whole number or text")
_KEYS: dict[str, dict[str, _Check]] = {
    "images": {"id": _IMAGE_ID, "file_name": _TEXT, "height": _PIXELS, "width": _PIXELS},
    "categories": {"id": _NUMBER, "name": _NAME},
    "annotations": {"image_id": _IMAGE_ID, "category_id": _NUMBER, "id": _ANNOTATION_ID},
}


def read_coco(
    annotation_file: str | Path, image_dir: str | Path, *, name: str, absolute_coord: bool = True
) -> Annotations:
    """The annotations of a COCO instances file, in its order, with images in `image_dir`.

    Labels follow the order of the category ids. absolute_coord=False: the file's boxes and polygons are fractions of
    the image's size. Raises FileNotFoundError for a missing file, ValueError for content out of format.
    """
    annotation_file, image_dir = Path(annotation_file), Path(image_dir)
    content, malformed = _read_file(annotation_file)
    return Annotations(
        name=name,
        source=str(annotation_file),
        categories=_read_categories(content, annotation_file),
        read_images=lambda problems: _images(content, malformed, image_dir, absolute_coord, problems),
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


@dataclass(frozen=True)
class _Malformed:
    """An entry out of format. part: the list it is in; detail: its place there and what is wrong with it."""

    part: str
    image_id: int | str | None
    annotation_id: int | str | None
    detail: str


def _read_file(annotation_file: Path) -> tuple[dict, list[_Malformed]]:
    """A COCO file's content, whose entries' ids and sizes are as they should be, and the entries left out of it.

    Boxes and segmentations are `sound_objects`' to check. The list "annotations" may be missing (test sets). Raises
    FileNotFoundError for a missing file, ValueError naming file and entry where none of a list is as it should be, or
    one of the categories is not: without it labels would be others.
    """
    if not annotation_file.is_file():
        raise FileNotFoundError(f"{annotation_file}: no such annotation file; check DATA.BASEDIR, DATA.TRAIN, DATA.VAL")
    content = read_json(annotation_file, object_hook=_with_packed_polygons)
    is_object = isinstance(content, dict)
    wanted = [part for part in _KEYS if part != "annotations" or (is_object and part in content)]
    parts, malformed = {}, []
    for part in wanted:
        entries = content.get(part) if is_object else None
        if not isinstance(entries, list):
            raise ValueError(f"{annotation_file}: no list {part!r}; a COCO instances file has the lists {list(_KEYS)}")
        flaws = {number: flaw for number, entry in enumerate(entries) if (flaw := _flaw(entry, _KEYS[part]))}
        if flaws and (part == "categories" or len(flaws) == len(entries)):
            number, flaw = next(iter(flaws.items()))
            raise ValueError(f"{annotation_file}, {part}[{number}]: {flaw}")
        malformed += [_malformed(part, number, entries[number], flaw) for number, flaw in flaws.items()]
        parts[part] = [entry for number, entry in enumerate(entries) if number not in flaws] if flaws else entries
    if len({isinstance(image["id"], str) for image in parts["images"]}) > 1:
        raise ValueError(f"{annotation_file}: some image ids are numbers, others text; use one kind")
    return parts, malformed


def _with_packed_polygons(entry: dict) -> dict:
    """The entry, its polygons as arrays: lists of Python's numbers are most of the memory that a large file takes."""
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list) and all(isinstance(flat, list) and len(flat) % 2 == 0 for flat in segmentation):
        with suppress(TypeError, OverflowError):
            polygons = [array("d", flat) for flat in segmentation]
            if math.isfinite(sum(map(sum, polygons))):  # else `sound_objects` tells what the file has
                entry["segmentation"] = polygons
    return entry


def _flaw(entry: object, checks: dict[str, _Check]) -> str:
    """What is wrong with an entry's form; "" for nothing."""
    for key, (is_right, wanted) in checks.items():
        if not isinstance(entry, dict) or key not in entry and not is_right(None):
            return f"no {key!r} in {str(entry)[:100]}"
        if not is_right(value := entry.get(key)):
            return f"{key} is {str(value)[:100]!r}, not {wanted}"
    return ""


def _malformed(part: str, number: int, entry: object, flaw: str) -> _Malformed:
    ids = [entry.get(key) if isinstance(entry, dict) else None for key in ("id", "image_id")]
    own_id, image_id = (value if isinstance(value, (int, str)) else None for value in ids)
    detail = f"{part}[{number}]: {flaw}"
    return _Malformed(part, *((own_id, None) if part == "images" else (image_id, own_id)), detail)


def _read_categories(content: dict, annotation_file: Path) -> Categories:
    """The categories in the order of their ids; ValueError when an id occurs twice."""
    pairs = sorted((entry["id"], str(entry["name"])) for entry in content["categories"])
    try:
        return Categories(names=[name for _, name in pairs], ids=[category_id for category_id, _ in pairs])
    except ValueError as error:
        raise ValueError(f"{annotation_file}: {error}") from None


def _images(
    content: dict, malformed: list[_Malformed], image_dir: Path, absolute_coord: bool, problems: Problems
) -> Iterator[RawImage]:
    for entry in malformed:
        ids = {"image_id": entry.image_id, "annotation_id": entry.annotation_id}
        problems.add("malformed_entry", **ids, detail=entry.detail)
    by_image = _objects_by_image(content, problems)
    image_ids, unusable_ids = set(), {entry.image_id for entry in malformed if entry.part == "images"}
    for image in content["images"]:
        if image["id"] in image_ids:
            problems.add("image_id", image_id=image["id"], detail=f"file_name {image['file_name']!r}")
            continue
        image_ids.add(image["id"])
        photo = _photo(image_dir, image["file_name"])
        size = _size(image) or measured_size(photo, partial(problems.add, image_id=image["id"]))
        if size is None:
            continue
        width, height = size
        scale = None if absolute_coord else size
        objects = [_object(annotation, scale) for annotation in by_image[image["id"]]]
        yield RawImage(image["id"], str(photo), height, width, objects)
    for image_id, entries in by_image.items():
        if image_id not in image_ids and image_id not in unusable_ids:
            detail = _same_in_the_other_form(image_id, image_ids)
            for annotation in entries:
                problems.add("unknown_image", image_id=image_id, annotation_id=annotation.get("id"), detail=detail)


def _objects_by_image(content: dict, problems: Problems) -> dict[int | str, list[dict]]:
    by_image: dict[int | str, list[dict]] = defaultdict(list)
    annotation_ids = set()
    for annotation in content.get("annotations", ()):
        by_image[annotation["image_id"]].append(annotation)
        annotation_id = annotation.get("id")
        if annotation_id in annotation_ids:
            problems.add("annotation_id", image_id=annotation["image_id"], annotation_id=annotation_id)
        elif annotation_id is not None:
            annotation_ids.add(annotation_id)
    return by_image


def _same_in_the_other_form(image_id: int | str, image_ids: set[int | str]) -> str:
    """Says so where the id is listed, but as text instead of a number, or the reverse."""
    if isinstance(image_id, int):
        return f"{str(image_id)!r} is listed as text" if str(image_id) in image_ids else ""
    is_listed = image_id.isdecimal() and int(image_id) in image_ids
    return f"{int(image_id)} is listed as a number" if is_listed else ""


def _photo(image_dir: Path, file_name: str) -> Path:
    """The image's file; its name may be a path as Windows writes it."""
    photo = image_dir / file_name
    if "\\" in file_name and not photo.exists():
        other = image_dir / file_name.replace("\\", "/")
        return other if other.exists() else photo
    return photo


def _size(image: dict) -> tuple[int, int] | None:
    """(width, height) as annotated; None where it is not."""
    width, height = (int(image.get(side) or 0) for side in ("width", "height"))
    return (width, height) if width and height else None


def _object(annotation: dict, scale: tuple[int, int] | None) -> RawObject:
    bbox, segmentation = annotation.get("bbox"), annotation.get("segmentation")
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
