"""Ground-truth masks for training, as small bitmaps in the frame of their own boxes.

A mask crop divides its object's box into MASK_CELLS × MASK_CELLS cells; a cell is set when its centre lies in the
object. The frame moves with the box, so that resizing an image leaves its crops as they are.
"""

import numpy as np

from FasterRCNN.masks import Masks

__all__ = ["MASK_CELLS", "crop_masks", "pack_mask", "unpack_mask"]

MASK_CELLS = 112


def crop_masks(masks: Masks, boxes: np.ndarray) -> np.ndarray:
    """Mask crops, uint8 G×112×112 of 0 and 1, zeros for objects without mask.

    boxes: G×4 with area, x1, y1, x2, y2 in the pixels of the masks' image.
    """
    return masks.crops(boxes, MASK_CELLS)


def pack_mask(crops: np.ndarray) -> np.ndarray:
    """Mask crops …×112×112 as bits, uint8 …×112×14, the leftmost cell of eight in the highest bit."""
    return np.packbits(crops, axis=-1)


def unpack_mask(packed: np.ndarray) -> np.ndarray:
    """Mask crops uint8 …×112×112 of 0 and 1, from `pack_mask`."""
    return np.unpackbits(packed, axis=-1)
