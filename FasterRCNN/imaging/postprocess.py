"""From the network's frame to the photo's: masks pasted there as bitmaps or RLE.

A mask of M × M cells covers its box; its cells' centres lie at the fractions (i + ½) / M of the box's width and height.
The value at an image pixel is the bilinear interpolation between those centres, taken at the pixel's own centre
(x + ½, y + ½), with a ring of zeros around the mask. No coordinate is rounded on the way, so masks are not shifted;
work and memory follow the box, not the image.

The `padded` way is that of Detectron, maskrcnn-benchmark and torchvision: the mask with its ring of zeros is resized to
the pixels from ⌊x1⌋ to ⌊x2⌋, both included, of the box enlarged by as much, and a pixel is set above the threshold.

D: detections, M: mask side.
"""

import math
from collections.abc import Iterable

import numpy as np
import pycocotools.mask as coco_mask

__all__ = ["paste_mask", "paste_masks_to_rle"]


def paste_mask(
    mask: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float = 0.5, *, padded: bool = False
) -> np.ndarray:
    """Bitmap, uint8 height × width, of where `mask`, float M × M, pasted into `box` reaches `threshold` (above 0)."""
    columns, left, top = _paste(mask, box, height, width, threshold, padded)
    image = np.zeros((height, width), np.uint8)
    image[top : top + columns.shape[1], left : left + columns.shape[0]] = columns.T
    return image


def paste_masks_to_rle(
    masks: Iterable[np.ndarray],
    boxes: np.ndarray,
    height: int,
    width: int,
    threshold: float = 0.5,
    *,
    padded: bool = False,
) -> list[dict]:
    """D compressed RLEs, counts as bytes, of what `paste_mask` gives, without making bitmaps of the full size.

    masks: float D × M × M; boxes: float D × 4, in the photo's pixels.
    """
    return [
        _encode_columns(*_paste(mask, box, height, width, threshold, padded), height, width)
        for mask, box in zip(masks, boxes, strict=True)
    ]


def _paste(
    mask: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float, padded: bool
) -> tuple[np.ndarray, int, int]:
    """The part of the image that a mask reaches, bool columns × rows, and its left and top; empty for an empty box."""
    interpolate = _resize if padded else _interpolate
    # Detectron's way cuts fractions off, which are to be those of its own float32.
    x1, y1, x2, y2 = np.asarray(box, np.float32 if padded else np.float64)
    # Not a product of matrices: BLAS would take threads for it, which wait in busy loops beside the network's.
    ringed = np.zeros(np.add(mask.shape, 2), np.float32)
    ringed[1:-1, 1:-1] = mask
    along_y, top = interpolate(ringed, y1, y2, height)
    columns, left = interpolate(np.ascontiguousarray(along_y.T), x1, x2, width)
    return columns > threshold if padded else columns >= threshold, left, top


def _interpolate(padded: np.ndarray, start: float, stop: float, limit: int) -> tuple[np.ndarray, int]:
    """Linear interpolation between the rows of a padded mask, whose cells cover [start, stop], at pixel centres.

    Returns float32 pixels × … of the pixels of [0, limit] that the mask reaches, and the first of them.
    """
    if not (np.isfinite(start) and np.isfinite(stop) and start < stop):
        return np.zeros((0, *padded.shape[1:]), np.float32), 0
    cells = len(padded) - 2
    cell = (stop - start) / cells
    first = min(max(math.ceil(start - 0.5 * cell - 0.5), 0), limit)
    end = min(max(math.floor(stop + 0.5 * cell + 0.5), first), limit)
    positions = (np.arange(first, end) + 0.5 - start) / cell + 0.5
    return _between_rows(padded, positions), first


def _resize(padded: np.ndarray, start: np.float32, stop: np.float32, limit: int) -> tuple[np.ndarray, int]:
    """As `_interpolate`, between whole pixels: those from ⌊start⌋ to ⌊stop⌋ once [start, stop] covers the ring too."""
    if not (np.isfinite(start) and np.isfinite(stop)):
        return np.zeros((0, *padded.shape[1:]), np.float32), 0
    centre, half = (stop + start) * np.float32(0.5), (stop - start) * np.float32(0.5)
    half *= np.float32(len(padded) / (len(padded) - 2))
    start, stop = int(centre - half), int(centre + half)
    count = max(stop - start + 1, 1)
    first = min(max(start, 0), limit)
    end = min(max(start + count, first), limit)
    positions = (np.arange(first, end) - start + 0.5) * (len(padded) / count) - 0.5
    return _between_rows(padded, np.clip(positions, 0, len(padded) - 1)), first


def _between_rows(rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The values at positions between rows (0 the first), linearly interpolated, float32 positions × …."""
    below = np.minimum(positions.astype(np.int64), len(rows) - 2)
    values = (rows[1:] - rows[:-1])[below]
    values *= (positions - below).astype(np.float32)[:, None]
    values += rows[below]
    return values


def _encode_columns(columns: np.ndarray, left: int, top: int, height: int, width: int) -> dict:
    """RLE of a height × width image that is zero but for `columns` (bool, columns × rows) at (left, top)."""
    # With a zero before each column and after the last, every run starts and ends within its own column.
    stride = columns.shape[1] + 1
    bordered = np.zeros(len(columns) * stride + 1, bool)
    bordered[1:].reshape(-1, stride)[:, :-1] = columns
    edges = np.flatnonzero(bordered[1:] != bordered[:-1])
    edges += left * height + top + edges // stride * (height - stride)
    # Where a run reaches the image's bottom and the next begins at its top, COCO sees one run.
    borders = np.concatenate([[-1], edges, [-1]])
    edges = edges[(edges != borders[:-2]) & (edges != borders[2:])]
    counts = np.diff(edges, prepend=0, append=height * width)
    if counts[-1] == 0:
        counts = counts[:-1]
    return coco_mask.frPyObjects({"counts": counts.tolist(), "size": [height, width]}, height, width)
