"""Ground truth for training: flipped boxes, and masks as small bitmaps in the frame of their own boxes.

A mask crop divides its object's box into MASK_CELLS × MASK_CELLS cells; a cell is set when its centre lies in the
object. The frame moves with the box, so that resizing an image leaves its crops as they are, and flipping mirrors them.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as mask_utils

__all__ = ["MASK_CELLS", "crop_masks", "flip_boxes", "flip_masks", "pack_mask", "unpack_mask"]

MASK_CELLS = 112

# fillPoly also paints every pixel that the outline touches, half a pixel too much. On a grid finer by an odd factor
# this is a tenth of a cell, and the centre of a cell is still the centre of a pixel.
_FINER = 5
_FRACTION_BITS = 8
_FARTHEST = 1 << 20  # fine pixels; keeps a sliver of a box under a large polygon within int32


def flip_boxes(boxes: np.ndarray, width: float) -> np.ndarray:
    """Boxes G×4 in an image of `width` pixels that is mirrored left to right."""
    x1, y1, x2, y2 = boxes.T
    return np.stack([width - x2, y1, width - x1, y2], axis=1)


def flip_masks(crops: np.ndarray) -> np.ndarray:
    """Mask crops …×112×112, of the mirrored objects."""
    return crops[..., ::-1]


def crop_masks(segmentations: Sequence, boxes: np.ndarray) -> np.ndarray:
    """Mask crops, uint8 G×112×112 of 0 and 1.

    segmentations: G lists of polygons N×2 (united), compressed RLEs, or None (zeros); boxes: G×4 with area, both in the
    same pixels.
    """
    crops = np.zeros((len(boxes), MASK_CELLS, MASK_CELLS), np.uint8)
    for crop, segmentation, box in zip(crops, segmentations, boxes, strict=True):
        if isinstance(segmentation, dict):
            crop[:] = _crop_rle(segmentation, box)
        elif segmentation is not None:
            crop[:] = _crop_polygons(segmentation, box)
    return crops


def pack_mask(crops: np.ndarray) -> np.ndarray:
    """Mask crops …×112×112 as bits, uint8 …×112×14, the leftmost cell of eight in the highest bit."""
    return np.packbits(crops, axis=-1)


def unpack_mask(packed: np.ndarray) -> np.ndarray:
    """Mask crops uint8 …×112×112 of 0 and 1, from `pack_mask`."""
    return np.unpackbits(packed, axis=-1)


def _crop_polygons(polygons: Sequence[np.ndarray], box: np.ndarray) -> np.ndarray:
    side = MASK_CELLS * _FINER
    fine = np.zeros((side, side), np.uint8)
    corner, extent = box[:2].astype(np.float64), (box[2:] - box[:2]).astype(np.float64)
    for polygon in polygons:
        # OpenCV's whole coordinates are pixel centres.
        points = np.clip((polygon - corner) * (side / extent) - 0.5, -_FARTHEST, _FARTHEST)
        fixed_point = np.round(points * (1 << _FRACTION_BITS)).astype(np.int32)
        cv2.fillPoly(fine, [fixed_point], 1, cv2.LINE_8, _FRACTION_BITS)
    return fine[_FINER // 2 :: _FINER, _FINER // 2 :: _FINER]


def _crop_rle(rle: dict, box: np.ndarray) -> np.ndarray:
    bitmap = mask_utils.decode(rle) * np.uint8(255)
    extent = box[2:] - box[:2]
    # The centre of cell (i, j) lies at corner + (j + 0.5, i + 0.5) * extent / 112; OpenCV counts half a pixel less.
    scale = extent / MASK_CELLS
    offset = box[:2] + scale / 2 - 0.5
    cells_to_pixels = np.array([[scale[0], 0, offset[0]], [0, scale[1], offset[1]]], np.float64)
    crop = cv2.warpAffine(
        bitmap,
        cells_to_pixels,
        (MASK_CELLS, MASK_CELLS),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return (crop > 127).astype(np.uint8)
