"""From the network's frame to the photo's: masks pasted there as bitmaps or RLE.

A mask of M × M cells covers its box; its cells' centres lie at the fractions (i + ½) / M of the box's width and height.
The value at an image pixel is the bilinear interpolation between those centres, taken at the pixel's own centre
(x + ½, y + ½), with a ring of zeros around the mask. No coordinate is rounded on the way, so masks are not shifted;
work and memory follow the box, not the image.

D: detections, M: mask side.
"""

import math
from collections.abc import Iterable

import numpy as np
import pycocotools.mask as coco_mask

__all__ = ["paste_mask", "paste_masks_to_rle"]


def paste_mask(mask: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float = 0.5) -> np.ndarray:
    """Bitmap, uint8 height × width, of where `mask`, float M × M, pasted into `box` reaches `threshold` (above 0)."""
    columns, left, top = _paste(mask, box, height, width, threshold)
    image = np.zeros((height, width), np.uint8)
    image[top : top + columns.shape[1], left : left + columns.shape[0]] = columns.T
    return image


def paste_masks_to_rle(
    masks: Iterable[np.ndarray], boxes: np.ndarray, height: int, width: int, threshold: float = 0.5
) -> list[dict]:
    """D compressed RLEs, counts as bytes, of what `paste_mask` gives, without making bitmaps of the full size.

    masks: float D × M × M; boxes: float D × 4, in the photo's pixels.
    """
    return [
        _encode_columns(*_paste(mask, box, height, width, threshold), height, width)
        for mask, box in zip(masks, boxes, strict=True)
    ]


def _paste(mask: np.ndarray, box: np.ndarray, height: int, width: int, threshold: float) -> tuple[np.ndarray, int, int]:
    """The part of the image that a mask reaches, bool columns × rows, and its left and top; empty for an empty box."""
    x1, y1, x2, y2 = np.asarray(box, np.float64)
    # Not a product of matrices: BLAS would take threads for it, which wait in busy loops beside the network's.
    padded = np.zeros(np.add(mask.shape, 2), np.float32)
    padded[1:-1, 1:-1] = mask
    along_y, top = _interpolate(padded, y1, y2, height)
    columns, left = _interpolate(np.ascontiguousarray(along_y.T), x1, x2, width)
    return columns >= threshold, left, top


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
    below = np.minimum(positions.astype(np.int64), cells)
    values = (padded[1:] - padded[:-1])[below]
    values *= (positions - below).astype(np.float32)[:, None]
    values += padded[below]
    return values, first


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
