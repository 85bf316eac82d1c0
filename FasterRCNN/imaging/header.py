"""What the header of an image file says of how the photo is shown; no pixels are decoded."""

from __future__ import annotations

import os
from typing import IO

from PIL import Image

__all__ = ["PILLOW_ERRORS", "UPRIGHT", "exif_orientation", "shown_size"]

UPRIGHT = 1  # EXIF's orientation of a photo that is shown as it is stored
PILLOW_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
_ORIENTATION_TAG, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)


def exif_orientation(source: str | os.PathLike | IO[bytes]) -> int:
    """1 (upright) to 8 (turned); 1 where nothing, or nothing sensible, is said."""
    try:
        with Image.open(source) as image:
            return _orientation(image)
    except PILLOW_ERRORS:
        return UPRIGHT


def shown_size(file_name: str | os.PathLike) -> tuple[int, int]:
    """(width, height) of an image as its EXIF data turn it; raises one of PILLOW_ERRORS."""
    with Image.open(file_name) as image:
        width, height = image.size
        return (height, width) if _orientation(image) in _QUARTER_TURNS else (width, height)


def _orientation(image: Image.Image) -> int:
    value = image.getexif().get(_ORIENTATION_TAG)
    return value if value in range(1, 9) else UPRIGHT
