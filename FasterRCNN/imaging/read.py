"""Reads photos from files, and refuses the ones that OpenCV would silently complete with grey."""

from pathlib import Path

import cv2
import numpy as np

from FasterRCNN.structures import ImageRecord

__all__ = ["IMAGE_SUFFIXES", "JPEG_START", "decode_image", "read_image", "read_record_image", "to_8_bits"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif")

JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Bytes unlike the zeros that decoders fill in, without 0xff, which begins a marker, but for every restart marker: a
# decoder may be waiting for one.
_VARIED = bytes((90 + 37 * n) % 255 for n in range(255))
_JPEG_FILLER = b"".join(_VARIED + bytes([0xFF, 0xD0 + n]) for n in range(8)) + _VARIED
_PNG_START, _PNG_END = b"\x89PNG", b"IEND"


def read_record_image(record: ImageRecord) -> np.ndarray:
    """The record's photo, turned by its EXIF data unless it was annotated unturned; ValueError when of another size."""
    image, annotated = read_image(record.file_name), (record.height, record.width)
    if image.shape[:2] == annotated[::-1] != annotated:
        image = read_image(record.file_name, turn=False)
    if image.shape[:2] != annotated:
        raise ValueError(
            f"{record.file_name} is {image.shape[1::-1]} pixels (width, height), but annotated as {annotated[::-1]}"
        )
    return image


def read_image(file_name: str | Path, *, turn: bool = True) -> np.ndarray:
    """The photo as BGR uint8 H×W×3, turned as its EXIF data say (turn=False: as it is stored).

    Grey and palette become BGR, transparency is left out. Pixels of more than 8 bits are scaled so that the photo's own
    largest value becomes 255: cameras of 10 or 12 bits write 16. Raises FileNotFoundError for a missing file,
    ValueError for one that is truncated or no image; both name the file.
    """
    try:
        data = Path(file_name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{file_name}: no such image file") from None
    except OSError as error:
        raise ValueError(f"{file_name}: cannot be read ({error.strerror})") from None
    image, is_whole = decode_image(data, turn=turn)
    if not is_whole:
        raise ValueError(f"{file_name}: the image file is truncated after {len(data)} bytes; fetch or write it again")
    if image is None:
        raise ValueError(f"{file_name}: not an image that OpenCV can decode ({len(data)} bytes)")
    return image


def decode_image(data: bytes, *, turn: bool = True) -> tuple[np.ndarray | None, bool]:
    """(BGR uint8 H×W×3, whether the file was whole) of an image file's bytes; None when it is no image.

    A picture of a file that was not whole is partly made up: decoders fill a missing part and only print a warning.
    """
    image, is_whole = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION * (not turn))
    return (image if image is None or image.dtype == np.uint8 else to_8_bits(image)), is_whole


def _decode(data: bytes, flags: int) -> tuple[np.ndarray | None, bool]:
    if data.startswith(_PNG_START):
        return _imdecode(data, flags), _PNG_END in data
    if not data.startswith(JPEG_START) or data.endswith(_JPEG_END):
        return _imdecode(data, flags), True
    # Phones append data of their own, and some writers leave the end marker out. Pixels are missing only if what
    # follows the file's last byte changes the picture. A last 0xff would make a marker of the first byte added.
    start = data.rstrip(b"\xff")
    image, filled = _imdecode(start + _JPEG_END, flags), _imdecode(start + _JPEG_FILLER + _JPEG_END, flags)
    return image, image is not None and np.array_equal(image, filled)


def _imdecode(data: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:  # such as more pixels than OpenCV allows
        return None


def to_8_bits(image: np.ndarray) -> np.ndarray:
    """An image of any depth as uint8, its own largest value at 255."""
    peak = max(float(image.max()), 1e-9)
    return np.clip(np.round(image * (255 / peak)), 0, 255).astype(np.uint8)
