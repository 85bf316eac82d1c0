"""What travels on the host: categories, image records and data sets, lists of boxes and of images (no TensorFlow).

Boxes are float32 (x1, y1, x2, y2) in continuous pixel coordinates: pixel (0, 0) covers [0, 1] x [0, 1] and the width
is x2 - x1. Labels are contiguous, 1..K; 0 is background. B images, G objects of an image, N boxes, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from FasterRCNN.masks import Masks


@dataclass(frozen=True)
class Categories:
    """The classes of a data set: label l (1..K) is named names[l - 1] and has the annotation file's id ids[l - 1].

    Raises ValueError when names and ids differ in number or an id occurs twice.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        object.__setattr__(self, "ids", tuple(int(i) for i in self.ids))
        if len(self.names) != len(self.ids):
            raise ValueError(f"{len(self.names)} category names but {len(self.ids)} category ids: give one id per name")
        if len(set(self.ids)) != len(self.ids):
            repeated = sorted({i for i in self.ids if self.ids.count(i) > 1})
            raise ValueError(f"category ids occur more than once: {repeated}")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def by_id(self) -> dict[int, str]:
        """Names by the annotation file's category ids."""
        return dict(zip(self.ids, self.names, strict=True))

    @cached_property
    def _labels(self) -> dict[int, int]:
        return {category_id: label for label, category_id in enumerate(self.ids, start=1)}

    def label_of_id(self, category_id: int) -> int:
        """Label 1..K of an annotation file's category id; ValueError for an unknown id."""
        try:
            return self._labels[category_id]
        except KeyError:
            raise ValueError(f"unknown category id {category_id}: the categories have the ids {self.ids}") from None

    def id_of_label(self, label: int) -> int:
        """The annotation file's category id of a label 1..K; ValueError outside that range."""
        return self.ids[self._index(label)]

    def name_of_label(self, label: int) -> str:
        """The name of a label 1..K; ValueError outside that range."""
        return self.names[self._index(label)]

    def _index(self, label: int) -> int:
        if not 1 <= label <= len(self):
            raise ValueError(f"label {label} is outside 1..{len(self)}")
        return int(label) - 1


@dataclass
class ImageRecord:
    """One image with its ground truth; boxes are clipped to the image.

    boxes float32 G x 4, labels int32 G (1..K, of crowds too), is_crowd bool G (a region of uncounted objects),
    is_difficult bool G (neither trained nor counted: Pascal VOC's flag); segmentations holds per object a list of
    float32 N x 2 polygons, a compressed RLE {"size": [h, w], "counts": bytes}, or None. source: the name of the user's
    own data set whose image number image_id this is; "" when it is read from file_name.
    """

    image_id: int | str
    file_name: str
    height: int
    width: int
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    is_crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    segmentations: list = field(default_factory=list)
    is_difficult: np.ndarray | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if self.is_difficult is None:
            self.is_difficult = np.zeros(len(self.boxes), bool)

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass
class Dataset:
    """A named set of image records with its categories.

    user_datasets: by name, the objects that give the images of records with that `source`: dataset[image_id] -> (image,
    ...). reread: reads the annotations of the set anew (FasterRCNN/datasets/annotations.py), for evaluation; None for
    joined sets.
    """

    name: str
    records: Sequence[ImageRecord]
    categories: Categories
    user_datasets: Mapping[str, Any] = field(default_factory=dict)
    reread: Callable[[], Any] | None = None

    def __len__(self) -> int:
        return len(self.records)


# ---------------------------------------------------------------- boxes

FLIP_LEFT_RIGHT, FLIP_TOP_BOTTOM = 0, 1


class BoxList:
    """The boxes of one image, with fields that follow them: labels, scores, masks, any array or list of N entries.

    boxes: float32 N x 4; in mode "xyxy" x1, y1, x2, y2 with x1 <= x2 and y1 <= y2, in mode "xywh" x, y, width, height.
    image_size: (w, h) in pixels. Each operation gives a new BoxList in the same mode; what does not change is shared.
    Indexing, by an int (one box), a slice, indices or N bools, picks the entries of all fields; a field with a method
    `affine(matrix, size)`, as Masks have it, follows geometry too.
    """

    def __init__(self, boxes: np.ndarray | Sequence, image_size: Sequence[int], mode: str = "xyxy"):
        """Raises ValueError for boxes that are not N x 4, an unknown mode, a size that is not two numbers of pixels."""
        boxes = np.asarray(boxes, np.float32)
        if boxes.shape == (0,):
            boxes = boxes.reshape(0, 4)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"boxes have the shape {boxes.shape}: N x 4 is wanted")
        self.boxes = boxes
        self.image_size = _checked_size(image_size)
        self.mode = _checked_mode(mode)
        self._fields: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        return f"BoxList({len(self)} boxes, image_size={self.image_size}, mode={self.mode!r}, fields={self.fields()})"

    # ---- fields ----

    def add_field(self, name: str, value: Any) -> None:
        """Sets a field: an array, a list, or an object with `affine`, of one entry for each box; else ValueError.

        "masks" may also be bitmaps of the image, N x H x W, or a list of N segmentations, of which it makes Masks.
        """
        value = _as_masks(value, self.image_size) if name == "masks" else _as_field(name, value)
        if len(value) != len(self):
            raise ValueError(f"field {name!r} has {len(value)} entries for {len(self)} boxes")
        self._fields[name] = value

    def get_field(self, name: str) -> Any:
        """The field of that name; ValueError for an unknown one."""
        if name not in self._fields:
            raise ValueError(f"no field {name!r}: there are {self.fields()}")
        return self._fields[name]

    def has_field(self, name: str) -> bool:
        """Whether there is a field of that name."""
        return name in self._fields

    def fields(self) -> list[str]:
        """The names of the fields, in the order they were added."""
        return list(self._fields)

    def copy_with_fields(self, names: str | Sequence[str], skip_missing: bool = False) -> BoxList:
        """The boxes with these fields alone; ValueError for an unknown one, unless `skip_missing`."""
        names = [names] if isinstance(names, str) else names
        kept = {name: self.get_field(name) for name in names if self.has_field(name) or not skip_missing}
        return self._like(self.boxes, fields=kept)

    # ---- entries ----

    def __getitem__(self, index: Any) -> BoxList:
        rows = np.atleast_1d(np.arange(len(self))[index])
        fields = {name: _rows_of(value, rows) for name, value in self._fields.items()}
        return self._like(self.boxes[rows], fields=fields)

    @staticmethod
    def concatenate(parts: Sequence[BoxList]) -> BoxList:
        """The boxes of several in order, in the first one's mode; ValueError unless image size and fields agree."""
        if not parts:
            raise ValueError("there is no BoxList to concatenate")
        first = parts[0]
        for part in parts[1:]:
            if part.image_size != first.image_size:
                raise ValueError(f"cannot concatenate: image sizes {first.image_size} and {part.image_size} (w, h)")
            if set(part.fields()) != set(first.fields()):
                raise ValueError(f"cannot concatenate: fields {first.fields()} and {part.fields()}")
        boxes = np.concatenate([part.convert(first.mode).boxes for part in parts])
        fields = {name: _concatenate_field(name, [part.get_field(name) for part in parts]) for name in first.fields()}
        return first._like(boxes, fields=fields)

    # ---- geometry ----

    def area(self) -> np.ndarray:
        """Square pixels, float32 N."""
        return self._sides().prod(axis=1)

    def convert(self, mode: str) -> BoxList:
        """The same boxes in the mode "xyxy" or "xywh"."""
        if _checked_mode(mode) == self.mode:
            return self._like(self.boxes)
        return self._like(_to_mode(self._corners(), mode), mode=mode)

    def resize(self, size: Sequence[int]) -> BoxList:
        """The boxes in the image resized to `size` (w, h), each axis by its own factor."""
        (width, height), (old_width, old_height) = _checked_size(size), self.image_size
        return self.affine([[width / old_width, 0, 0], [0, height / old_height, 0]], size)

    def transpose(self, method: int) -> BoxList:
        """The boxes in the mirrored image: FLIP_LEFT_RIGHT (0) or FLIP_TOP_BOTTOM (1)."""
        width, height = self.image_size
        if method == FLIP_LEFT_RIGHT:
            return self.affine([[-1, 0, width], [0, 1, 0]], self.image_size)
        if method == FLIP_TOP_BOTTOM:
            return self.affine([[1, 0, 0], [0, -1, height]], self.image_size)
        raise ValueError(f"cannot transpose by {method!r}: FLIP_LEFT_RIGHT (0) or FLIP_TOP_BOTTOM (1) is wanted")

    def crop(self, box: Sequence[int]) -> BoxList:
        """The boxes in the part (x1, y1, x2, y2) of the image, whole pixels, clipped to it.

        No box is removed: those outside are left without area, for `clip_to_image` to remove.
        """
        x1, y1, x2, y2 = _checked_window(box)
        return self.affine([[1, 0, -x1], [0, 1, -y1]], (x2 - x1, y2 - y1)).clip_to_image(remove_empty=False)

    def clip_to_image(self, remove_empty: bool = True) -> BoxList:
        """The boxes cut at the image's edges, without those that have no area there unless told to keep them."""
        clipped = self._like(_to_mode(np.clip(self._corners(), 0, 2 * self.image_size), self.mode))
        return clipped[(clipped._sides() > 0).all(axis=1)] if remove_empty else clipped

    def affine(self, matrix: Sequence, size: Sequence[int]) -> BoxList:
        """The boxes in an image of `size` (w, h) to which `matrix` (2 x 3) takes the points (x, y, 1) of this one.

        Turned by another angle than a multiple of 90 degrees, a box becomes the smallest around its corners.
        """
        size = _checked_size(size)
        x1, y1, x2, y2 = self._corners().T
        old_x, old_y = np.stack([x1, x2, x2, x1]), np.stack([y1, y1, y2, y2])
        x, y = (a * old_x + b * old_y + c for a, b, c in np.asarray(matrix, np.float64))
        corners = np.stack([x.min(axis=0), y.min(axis=0), x.max(axis=0), y.max(axis=0)], axis=1)
        moved = {name: value.affine(matrix, size) for name, value in self._fields.items() if hasattr(value, "affine")}
        return self._like(_to_mode(corners, self.mode), size=size, fields=self._fields | moved)

    def _corners(self) -> np.ndarray:
        """x1, y1, x2, y2 as float64 N x 4, so that an operation rounds once, at its end."""
        boxes = self.boxes.astype(np.float64)
        if self.mode == "xywh":
            boxes[:, 2:] += boxes[:, :2]
        return boxes

    def _sides(self) -> np.ndarray:
        """Widths and heights, float32 N x 2."""
        return self.boxes[:, 2:] - self.boxes[:, :2] if self.mode == "xyxy" else self.boxes[:, 2:]

    def _like(
        self, boxes: np.ndarray, *, size: Sequence | None = None, mode: str | None = None, fields: Mapping | None = None
    ) -> BoxList:
        """Other boxes; size, mode and fields as here where they are not given."""
        made = BoxList(boxes, size or self.image_size, mode or self.mode)
        made._fields = dict(self._fields if fields is None else fields)
        return made


def _to_mode(corners: np.ndarray, mode: str) -> np.ndarray:
    if mode == "xyxy":
        return corners
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _checked_mode(mode: str) -> str:
    if mode not in ("xyxy", "xywh"):
        raise ValueError(f'mode {mode!r} is unknown: "xyxy" or "xywh" is wanted')
    return mode


def _checked_size(size: Sequence[int]) -> tuple[int, int]:
    pixels = _whole_numbers(size)
    if len(pixels) != 2 or min(pixels) < 1:
        raise ValueError(f"image size {size!r}: (width, height) in whole pixels is wanted")
    return pixels


def _checked_window(box: Sequence[int]) -> tuple[int, int, int, int]:
    pixels = _whole_numbers(box)
    if len(pixels) != 4 or pixels[0] >= pixels[2] or pixels[1] >= pixels[3]:
        raise ValueError(f"cannot crop to {box!r}: (x1, y1, x2, y2) of an area in whole pixels is wanted")
    return pixels


def _whole_numbers(values: Sequence[int]) -> tuple[int, ...]:
    """The values as ints; empty when they are anything else than a row of whole numbers."""
    values = np.asarray(values)
    is_row = values.ndim == 1 and values.dtype.kind in "iuf" and np.isfinite(values).all()
    return tuple(values.astype(int).tolist()) if is_row and (values == values.astype(int)).all() else ()


def _as_field(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return list(value)
    if not hasattr(value, "affine"):
        value = np.asarray(value)
        if value.ndim == 0:
            raise ValueError(f"field {name!r} is {value}: an array or a list with an entry for each box is wanted")
    return value


def _as_masks(value: Any, image_size: tuple[int, int]) -> Any:
    """The field "masks" as something that follows geometry."""
    if isinstance(value, (list, tuple)) and not any(isinstance(one, np.ndarray) for one in value):
        return Masks(value, image_size)
    if isinstance(value, Masks) and value.image_size != image_size:
        raise ValueError(f"the masks are of an image of {value.image_size}, the boxes of {image_size} (w, h)")
    if hasattr(value, "affine"):
        return value
    bitmaps = np.asarray(value)
    if bitmaps.ndim != 3 or bitmaps.shape[:0:-1] != image_size:
        raise ValueError(f"masks have the shape {bitmaps.shape}: bitmaps N x h x w of {image_size} (w, h) are wanted")
    return Masks.from_bitmaps(bitmaps)


def _rows_of(value: Any, rows: np.ndarray) -> Any:
    return [value[row] for row in rows] if isinstance(value, list) else value[rows]


def _concatenate_field(name: str, values: list) -> Any:
    if len(kinds := {type(value).__name__ for value in values}) > 1:
        raise ValueError(f"cannot concatenate: field {name!r} is of several kinds, {', '.join(sorted(kinds))}")
    if isinstance(values[0], list):
        return [entry for value in values for entry in value]
    if hasattr(values[0], "affine"):
        return type(values[0]).concatenate(values)
    return np.concatenate(values)


# ---------------------------------------------------------------- images


@dataclass(frozen=True)
class ImageList:
    """Images of different sizes in one array.

    tensors: B x H x W x 3, each image in its top left corner and zeros around it; image_sizes: int32 B x 2, (h, w) of
    each before padding, as the network takes them.
    """

    tensors: np.ndarray
    image_sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.tensors)

    def __getitem__(self, index: int) -> np.ndarray:
        """An image without its padding, h x w x 3."""
        height, width = self.image_sizes[index]
        return self.tensors[index, :height, :width]


def to_image_list(
    images: Sequence[np.ndarray], size_divisible: int = 0, *, min_side: int | Sequence[int] = 1
) -> ImageList:
    """Pads images, each h x w x 3 of one type, to the largest height and width, with zeros at the bottom and right.

    size_divisible: both sides become multiples of it; 0 and 1 leave them. min_side: in pixels, the least that either
    becomes, or the least height and width. Raises ValueError for no images, other shapes, different types.
    """
    images = [np.asarray(image) for image in images]
    for number, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != images[0].dtype:
            given = f"image number {number} is {image.dtype} {image.shape}"
            raise ValueError(f"{given}: h x w x 3 is wanted, of the type of the others")
    if not images:
        raise ValueError("there is no image to pad: an array has a height and a width")
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    multiple = max(1, size_divisible)
    height, width = -(-np.maximum(sizes.max(axis=0), min_side) // multiple) * multiple
    tensors = np.zeros((len(images), height, width, 3), images[0].dtype)
    for padded, image in zip(tensors, images, strict=True):
        padded[: image.shape[0], : image.shape[1]] = image
    return ImageList(tensors, sizes)
