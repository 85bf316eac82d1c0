"""What can be told of an image file without knowing how it was annotated; for `./data.py --check`."""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from FasterRCNN.imaging.header import UPRIGHT, exif_orientation
from FasterRCNN.imaging.read import decode_image

__all__ = ["ImageFacts", "facts_of_pixels", "image_format", "inspect_image", "suffix_format"]

# What libjpeg prints of a picture that it makes up in part. Extraneous bytes alone change nothing.
_DAMAGE = re.compile(r"Corrupt JPEG data: (?!\d+ extraneous bytes).*|Premature end of JPEG file|Invalid SOS.*")

_EXIF_MARKS = (b"Exif\0\0", b"eXIf", b"EXIF")  # of JPEG, PNG, WebP

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
    orientation, 1 to 8; the format by the file's first bytes, "" where unknown; a digest of the pixels; what the
    decoder said of a damaged part, which it made up, "" for none.
    """

    problem: str = ""
    detail: str = ""
    shown: tuple[int, int] = (0, 0)
    stored: tuple[int, int] = (0, 0)
    orientation: int = UPRIGHT
    format: str = ""
    digest: bytes = b""
    damage: str = ""


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
    with _printed_by_decoder() as printed:
        image, is_whole = decode_image(data)
    if not is_whole:
        return ImageFacts("truncated_image", f"{len(data)} bytes")
    if image is None:
        held = image_format(data)
        return ImageFacts("unreadable_image", f"{len(data)} bytes" + (f", looks like {held}" if held else ""))
    has_exif = any(mark in data for mark in _EXIF_MARKS)
    orientation = exif_orientation(io.BytesIO(data)) if has_exif else UPRIGHT
    stored = image if orientation == UPRIGHT else decode_image(data, turn=False)[0]
    if orientation != UPRIGHT and np.array_equal(stored, image):
        orientation = UPRIGHT  # a format in which OpenCV does not look for it, or a symmetric picture
    return facts_of_pixels(image)._replace(
        stored=stored.shape[:2],
        orientation=orientation,
        format=image_format(data),
        # What was printed of a file without an end marker may be of the filler that `decode_image` tried.
        damage=printed[0] if printed and data.endswith(b"\xff\xd9") else "",
    )


def facts_of_pixels(image: np.ndarray) -> ImageFacts:
    """Size and digest of an image, uint8 H×W×3."""
    digest = hashlib.blake2b(repr(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image))
    return ImageFacts(shown=image.shape[:2], stored=image.shape[:2], digest=digest.digest())


@contextmanager
def _printed_by_decoder() -> Iterator[list[str]]:
    """Keeps what C code prints on the standard error in the block from the terminal; signs of damage are listed after.

    libjpeg and libpng tell of them in no other way, and name no file.
    """
    damage: list[str] = []
    sys.stderr.flush()
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield damage
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
        file.seek(0)
        damage += _DAMAGE.findall(file.read().decode(errors="replace"))


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
