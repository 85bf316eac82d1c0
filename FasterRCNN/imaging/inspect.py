"""What can be told of an image file without knowing how it was annotated; for `./data.py --check`."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from FasterRCNN.imaging.read import decode_image

__all__ = ["UPRIGHT", "ImageFacts", "facts_of_pixels", "image_format", "inspect_image", "suffix_format"]

UPRIGHT = 1  # EXIF's orientation of a photo that is shown as it is stored
_ORIENTATION_TAG = 0x0112

_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"%PDF": "PDF",
    b"PK\3\4": "ZIP",
    b"version https://git-lfs": "Git LFS pointer",
}
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"avif": "AVIF"}
_SUFFIXES = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF",
    ".tiff": "TIFF", ".webp": "WebP", ".heic": "HEIC", ".avif": "AVIF",
}


class ImageFacts(NamedTuple):
    """A photo as found, or why it cannot be read.

    problem: a kind of FasterRCNN/datasets/problems.py, or "" for a whole image; detail: of the problem. The rest is of
    a whole image: height and width as shown and as stored (they differ where EXIF data turn the photo by 90°); the EXIF
    orientation, 1 to 8; the format by the file's first bytes, "" where unknown; a digest of the pixels.
    """

    problem: str = ""
    detail: str = ""
    shown: tuple[int, int] = (0, 0)
    stored: tuple[int, int] = (0, 0)
    orientation: int = UPRIGHT
    format: str = ""
    digest: bytes = b""


def inspect_image(file_name: str | Path) -> ImageFacts:
    """Reads and decodes an image file, as training does; never raises for what is wrong with it."""
    try:
        data = Path(file_name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ImageFacts("missing_image")
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return ImageFacts("unreadable_image", getattr(error, "strerror", None) or str(error))
    if not data:
        return ImageFacts("empty_image")
    image, is_whole = decode_image(data)
    if not is_whole:
        return ImageFacts("truncated_image", f"{len(data)} bytes")
    if image is None:
        held = image_format(data)
        return ImageFacts("unreadable_image", f"{len(data)} bytes" + (f", looks like {held}" if held else ""))
    orientation = _exif_orientation(data)
    stored = image if orientation == UPRIGHT else decode_image(data, turn=False)[0]
    if orientation != UPRIGHT and np.array_equal(stored, image):
        orientation = UPRIGHT  # a format in which OpenCV does not look for it, or a symmetric picture
    return facts_of_pixels(image)._replace(
        stored=stored.shape[:2], orientation=orientation, format=image_format(data)
    )


def facts_of_pixels(image: np.ndarray) -> ImageFacts:
    """Size and digest of an image, uint8 H×W×3."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image))
    return ImageFacts(shown=image.shape[:2], stored=image.shape[:2], digest=digest.digest())


def image_format(data: bytes) -> str:
    """The name of a file's format by its first bytes; "" for an unknown one."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        return _BRANDS.get(data[8:12], "")
    if data[:200].lstrip().startswith(b"<"):
        return "HTML or XML"
    return next((name for start, name in _STARTS.items() if data.startswith(start)), "")


def suffix_format(file_name: str | Path) -> str:
    """The format that a file's suffix stands for; "" for an unknown one."""
    return _SUFFIXES.get(Path(file_name).suffix.lower(), "")


def _exif_orientation(data: bytes) -> int:
    """1 (upright) to 8 (turned); 1 where nothing, or nothing sensible, is said."""
    if not any(mark in data for mark in (b"Exif\0\0", b"eXIf", b"EXIF")):  # JPEG, PNG, WebP
        return UPRIGHT
    try:
        # An eighth of the size costs little and finds the data in every format.
        _, kinds, blocks = cv2.imdecodeWithMetadata(
            np.frombuffer(data, np.uint8), flags=cv2.IMREAD_REDUCED_GRAYSCALE_8
        )
    except cv2.error:
        return UPRIGHT
    exif = [np.asarray(block).tobytes() for kind, block in zip(kinds, blocks) if kind == cv2.IMAGE_METADATA_EXIF]
    return _orientation_in(exif[0]) if exif else UPRIGHT


def _orientation_in(exif: bytes) -> int:
    """The orientation in EXIF data: a TIFF header, then entries of tag, type, count and value in 12 bytes each."""
    order = "<" if exif.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == _ORIENTATION_TAG:
                return value if 1 <= value <= 8 else UPRIGHT
    except struct.error:  # shorter than it says
        pass
    return UPRIGHT
