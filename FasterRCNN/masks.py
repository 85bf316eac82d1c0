"""Masks that follow their image through flips, crops, resizing and rotations without loss.

Masks keeps every object as it was annotated, and one affine matrix that takes it to the present canvas. Polygons are
transformed exactly when they are asked for; an RLE is warped once, from its original bitmap, whatever happened between.
What a canvas has cut off stays off on later, larger canvases: the frame's window remembers it, as the image does.

Coordinates are continuous pixels: pixel (0, 0) covers [0, 1] × [0, 1]. N objects, H×W pixels, M×M cells.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as mask_utils

__all__ = ["Masks"]

_IDENTITY = np.eye(2, 3)
_TOLERANCE = 1e-3  # pixels; what float32 polygons may overshoot an edge without being cut by it


class Masks:
    """The masks of N objects of one image.

    Indexing by an integer, a list, an array, a slice or a boolean mask gives Masks, of one object for an integer;
    np.asarray gives `bitmaps()`.
    """

    def __init__(self, segmentations: Iterable[list[np.ndarray] | dict | None], image_size: tuple[int, int]):
        """segmentations: per object a list of polygons N×2 (united), a compressed RLE {"size": [h, w], "counts":
        bytes}, or None for no mask; image_size: (width, height). Raises ValueError for an RLE of another size.
        """
        self.image_size = int(image_size[0]), int(image_size[1])
        self._shapes = [_Shape(segmentation) for segmentation in segmentations]
        self._frames = [_Frame(_IDENTITY, _corners(self.image_size))] * len(self._shapes)
        for number, shape in enumerate(self._shapes):
            if shape.is_rle and tuple(shape.segmentation["size"]) != self.image_size[::-1]:
                raise ValueError(
                    f"mask {number}: its RLE is of size {list(shape.segmentation['size'])}, "
                    f"the image of {list(self.image_size[::-1])} (height, width)"
                )

    @classmethod
    def from_bitmaps(cls, bitmaps: np.ndarray) -> Masks:
        """Masks of bitmaps, uint8 or bool N×H×W, set where not zero."""
        bitmaps = np.asarray(bitmaps)
        if bitmaps.ndim != 3:
            raise ValueError(f"bitmaps must be N×H×W, not of shape {bitmaps.shape}")
        rles = [mask_utils.encode(np.asfortranarray(bitmap != 0, np.uint8)) for bitmap in bitmaps]
        return cls(rles, bitmaps.shape[:0:-1])

    @classmethod
    def concatenate(cls, parts: Sequence[Masks]) -> Masks:
        """The masks of several of the same image size, in order; ValueError when sizes differ or there is none."""
        if len(sizes := {part.image_size for part in parts}) != 1:
            raise ValueError(f"masks of one image size are wanted, not of {sorted(sizes)} (width, height)")
        shapes = [shape for part in parts for shape in part._shapes]
        return cls._of(shapes, [frame for part in parts for frame in part._frames], sizes.pop())

    @classmethod
    def _of(cls, shapes: list[_Shape], frames: list[_Frame], image_size: tuple[int, int]) -> Masks:
        masks = cls([], image_size)
        masks._shapes, masks._frames = shapes, frames
        return masks

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: Any) -> Masks:
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return self._of([self._shapes[i] for i in chosen], [self._frames[i] for i in chosen], self.image_size)

    def __iter__(self) -> Iterator[Masks]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"Masks({len(self)} objects, image_size={self.image_size})"

    def affine(self, matrix: np.ndarray, size: tuple[int, int]) -> Masks:
        """The masks on a canvas of `size` (width, height) to which `matrix`, 2×3, maps continuous pixel coordinates."""
        matrix = np.asarray(matrix, np.float64)
        size = int(size[0]), int(size[1])
        if size == self.image_size and np.array_equal(matrix, _IDENTITY):
            return self
        shared = {id(frame): frame for frame in self._frames}  # mostly one for all objects
        moved = {key: frame.moved(matrix, size) for key, frame in shared.items()}
        return self._of(self._shapes, [moved[id(frame)] for frame in self._frames], size)

    @property
    def segmentations(self) -> list[list[np.ndarray] | dict | None]:
        """Per object its polygons, RLE or None on the present canvas, the given ones as long as nothing has moved them.

        An object with polygons that a canvas has cut is given as an RLE of the rest.
        """
        return [self._segmentation(shape, frame) for shape, frame in self._pairs()]

    def exist(self) -> np.ndarray:
        """Which objects have a mask, visible or not, bool N."""
        return np.array([bool(shape.segmentation) for shape in self._shapes], bool)

    def boxes(self) -> np.ndarray:
        """Tight boxes, float32 N×4, of what can be seen on the canvas; zeros for objects without."""
        boxes = [shape.visible_box(frame) for shape, frame in self._pairs()]
        return np.array([np.zeros(4) if box is None else box for box in boxes], np.float32).reshape(-1, 4)

    def bitmaps(self) -> np.ndarray:
        """Bitmaps of the canvas, uint8 N×H×W, 1 where a pixel's centre lies in the object."""
        width, height = self.image_size
        bitmaps = np.zeros((len(self), height, width), np.uint8)
        for bitmap, (shape, frame) in zip(bitmaps, self._pairs(), strict=True):
            box = shape.visible_box(frame)
            if box is not None:
                x1, y1, x2, y2 = region = _pixels(box)
                bitmap[y1:y2, x1:x2] = shape.cells(frame, region, (x2 - x1, y2 - y1))
        return bitmaps

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        bitmaps = self.bitmaps()
        return bitmaps if dtype is None else bitmaps.astype(dtype, copy=False)

    def crops(self, boxes: np.ndarray, cells: int) -> np.ndarray:
        """Bitmaps in the frames of boxes N×4 with area, uint8 N×M×M of 0 and 1 for M `cells`; zeros without a mask.

        Each box is divided into M×M cells, which are set when their centre lies in the box's object.
        """
        crops = np.zeros((len(self), cells, cells), np.uint8)
        for crop, (shape, frame), box in zip(crops, self._pairs(), boxes, strict=True):
            crop[:] = shape.cells(frame, box, (cells, cells))
        return crops

    def _pairs(self) -> Iterator[tuple[_Shape, _Frame]]:
        return zip(self._shapes, self._frames, strict=True)

    def _segmentation(self, shape: _Shape, frame: _Frame) -> list[np.ndarray] | dict | None:
        is_unmoved = np.array_equal(frame.matrix, _IDENTITY) and np.array_equal(frame.window, _corners(self.image_size))
        if not shape.segmentation or is_unmoved:
            return shape.segmentation
        if not shape.is_rle and frame.shows(points := shape.points(frame)):
            return np.split(points.astype(np.float32), shape.starts)
        bitmap = self._of([shape], [frame], self.image_size).bitmaps()[0]
        return mask_utils.encode(np.asfortranarray(bitmap))


@dataclass(frozen=True, eq=False)
class _Frame:
    """How objects lie on the canvas: a matrix 2×3 from their own pixels, and the convex polygon K×2 that is visible."""

    matrix: np.ndarray
    window: np.ndarray

    def moved(self, matrix: np.ndarray, size: tuple[int, int]) -> _Frame:
        window = _transform(self.window, matrix)
        for axis, limit in enumerate(size):
            for sign, bound in ((-1, 0), (1, limit)):
                window = _keep_below(window, sign * window[:, axis] - sign * bound)
        linear = matrix[:, :2] @ self.matrix[:, :2]
        # Clipped once more, for what rounding left beyond the edges.
        return _Frame(np.column_stack([linear, _transform(self.matrix[:, 2], matrix)]), np.clip(window, 0, size))

    @cached_property
    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Unit normals K×2 pointing outwards, and K distances: what is visible has normal · point <= distance."""
        following = np.roll(self.window, -1, axis=0)
        along = following - self.window
        area = np.sum(self.window[:, 0] * following[:, 1] - self.window[:, 1] * following[:, 0])
        normals = np.stack([along[:, 1], -along[:, 0]], axis=1) * np.sign(area)
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
        return normals, np.sum(normals * self.window, axis=1)

    def shows(self, points: np.ndarray) -> bool:
        """Whether all of the points P×2 are visible."""
        normals, distances = self._edges
        return len(normals) > 0 and bool((points @ normals.T <= distances + _TOLERANCE).all())


@dataclass(frozen=True, eq=False)
class _Shape:
    """An object as annotated."""

    segmentation: list[np.ndarray] | dict | None

    @property
    def is_rle(self) -> bool:
        return isinstance(self.segmentation, dict)

    @cached_property
    def bitmap(self) -> tuple[np.ndarray, tuple[int, int]]:
        """The RLE's part that is set, uint8 of 0 and 255, with a pixel around it inside the image; its left and top.

        Kept, so that box and crop decode it once; the part alone, for images of many objects.
        """
        x, y, width, height = mask_utils.toBbox(self.segmentation).astype(int)
        left, top = max(x - 1, 0), max(y - 1, 0)
        part = mask_utils.decode(self.segmentation)[top : y + height + 1, left : x + width + 1]
        return np.ascontiguousarray(part) * np.uint8(255), (left, top)

    @property
    def starts(self) -> np.ndarray:
        """Where in `points` the second, third, … polygon begins."""
        return np.cumsum([len(polygon) for polygon in self.segmentation])[:-1]

    def points(self, frame: _Frame) -> np.ndarray:
        """The points of all polygons on the canvas, float64 P×2."""
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in self.segmentation])
        return _transform(points.astype(np.float64), frame.matrix)

    def visible_box(self, frame: _Frame) -> np.ndarray | None:
        """The tight box, (x1, y1, x2, y2), of what is visible; None without area.

        That of the outline where all of it can be seen, otherwise of the pixels whose centres lie in the object.
        """
        points = self._outline(frame)
        if len(points) == 0 or len(frame.window) < 3:
            return None
        box = _intersection(_bounds(points), _bounds(frame.window))
        is_outline_tight = not self.is_rle or np.count_nonzero(frame.matrix[:, :2]) == 2
        if not (is_outline_tight and frame.shows(points)) and box is not None:
            x1, y1, x2, y2 = region = _pixels(box)
            x, y, width, height = cv2.boundingRect(self.cells(frame, region, (x2 - x1, y2 - y1)))
            box = _intersection(box, np.array([x1 + x, y1 + y, x1 + x + width, y1 + y + height]))
        return box

    def _outline(self, frame: _Frame) -> np.ndarray:
        """Points P×2 on the canvas around the object: of its polygons, or the corners of the RLE's box."""
        if not self.segmentation:
            return np.zeros((0, 2))
        if not self.is_rle:
            return self.points(frame)
        x, y, width, height = mask_utils.toBbox(self.segmentation)
        return _transform(_corners((width, height)) + (x, y), frame.matrix)

    def cells(self, frame: _Frame, region: Sequence[float], shape: tuple[int, int]) -> np.ndarray:
        """Which cells have their centre in the visible object: `region` (x1, y1, x2, y2) in columns × rows of them."""
        columns, rows = shape
        corner, extent = np.asarray(region[:2], np.float64), np.subtract(region[2:], region[:2], dtype=np.float64)
        if not self.segmentation or len(frame.window) < 3 or (extent <= 0).any():
            return np.zeros((rows, columns), np.uint8)
        factors = shape / extent
        if self.is_rle:
            bitmap, place = self.bitmap
            offset = (_transform(np.asarray(place), frame.matrix) - corner) * factors
            cells = _warp(bitmap, np.column_stack([frame.matrix[:, :2] * factors[:, None], offset]), shape)
        else:
            cells = _fill(np.split((self.points(frame) - corner) * factors, self.starts), shape)
        if not frame.shows(_corners(extent) + corner):
            cells = cells & _fill([(frame.window - corner) * factors], shape)
        return cells


def _corners(size: Sequence[float]) -> np.ndarray:
    width, height = size
    return np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)


def _bounds(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _intersection(box: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """What two boxes share; None without area."""
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    return np.concatenate([low, high]) if (low < high).all() else None


def _pixels(box: np.ndarray) -> tuple[int, int, int, int]:
    """The box grown to whole pixels."""
    x1, y1, x2, y2 = box
    return math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)


def _transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


def _keep_below(polygon: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """The part of a convex polygon K×2 where the K given heights, linear along its edges, are not above zero."""
    if (heights <= 0).all():
        return polygon
    kept = []
    for i in range(len(polygon)):
        here, before = heights[i], heights[i - 1]
        if (here <= 0) != (before <= 0):
            kept.append(polygon[i] + (polygon[i - 1] - polygon[i]) * (here / (here - before)))
        if here <= 0:
            kept.append(polygon[i])
    return np.reshape(kept, (-1, 2))


def _fill(polygons: Iterable[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """uint8 rows × columns: 1 where a cell's centre lies in one of the polygons, given in cells, by the even-odd rule.

    OpenCV's fillPoly also paints the cells that the outline touches, half a cell too much.
    """
    columns, rows = shape
    filled = np.zeros((columns, rows), np.uint8)
    for polygon in polygons:
        cells, lines = _crossings(polygon, shape)
        parity = np.zeros((columns + 1) * rows, np.uint8)
        np.bitwise_xor.at(parity, cells * rows + lines, np.uint8(1))
        filled |= np.bitwise_xor.accumulate(parity.reshape(columns + 1, rows)[:columns], axis=0)
    return filled.T


def _crossings(polygon: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Where a polygon's edges cross the lines through the cells' centres: the first cell to the right, and the line."""
    columns, rows = shape
    (x1, y1), (x2, y2) = polygon.T, np.roll(polygon, -1, axis=0).T
    first, end = np.clip(np.ceil(np.sort([y1, y2], axis=0) - 0.5), 0, rows).astype(np.int64)
    counts = end - first
    edges = np.repeat(np.arange(len(polygon)), counts)
    lines = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - end, counts)
    x = x1[edges] + (lines + 0.5 - y1[edges]) * ((x2 - x1)[edges] / (y2 - y1)[edges])
    return np.clip(np.ceil(x - 0.5), 0, columns).astype(np.int64), lines


def _warp(bitmap: np.ndarray, matrix: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 rows × columns: 1 where the bitmap, moved by the matrix, is at least half set at a cell's centre."""
    linear = np.linalg.inv(matrix[:, :2])
    # OpenCV counts pixels and cells from their centres.
    offset = linear @ (0.5 - matrix[:, 2]) - 0.5
    warped = cv2.warpAffine(
        bitmap,
        np.column_stack([linear, offset]),
        shape,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,  # zeros would take half a pixel off objects that touch the image's edge
    )
    return (warped > 127).astype(np.uint8)
