"""Reads photos from files, and refuses the ones that OpenCV would silently complete with grey."""

from pathlib import Path

import cv2
import numpy as np

from FasterRCNN.structures import ImageRecord

__all__ = ["read_image", "read_record_image"]

_JPEG_START, _JPEG_END = b"\xff\xd8", b"\xff\xd9"
# Bytes unlike the zeros that decoders fill in, without 0xff, which begins a marker, but for every restart marker: a
# decoder may be waiting for one.
_VARIED = bytes((90 + 37 * n) % 255 for n in range(255))
_JPEG_FILLER = b"".join(_VARIED + bytes([0xFF, 0xD0 + n]) for n in range(8)) + _VARIED
_PNG_START, _PNG_END = b"\x89PNG", b"IEND"


def read_record_image(record: ImageRecord) -> np.ndarray:
    """The record's photo, as `read_image` reads it; ValueError also when it is not of the annotated size."""
    image = read_image(record.file_name)
    found, annotated = image.shape[1::-1], (record.width, record.height)
    if found != annotated:
        is_turned = found == annotated[::-1]
        raise ValueError(
            f"{record.file_name} is {found} pixels (width, height), but annotated as {annotated}"
            + ". Was it annotated unturned? Photos are turned as their EXIF orientation says" * is_turned
        )
    return image


def read_image(file_name: str | Path) -> np.ndarray:
    """The photo as BGR uint8 H×W×3, turned as its EXIF data say.

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
    image, is_whole = _decode(data)
    if not is_whole:
        raise ValueError(f"{file_name}: the image file is truncated after {len(data)} bytes; fetch or write it again")
    if image is None:
        raise ValueError(f"{file_name}: not an image that OpenCV can decode ({len(data)} bytes)")
    return image if image.dtype == np.uint8 else _to_8_bits(image)


def _decode(data: bytes) -> tuple[np.ndarray | None, bool]:
    """(image, whether the file was whole); decoders fill a missing part up and only print a warning."""
    if data.startswith(_PNG_START):
        return _imdecode(data), _PNG_END in data
    if not data.startswith(_JPEG_START) or data.endswith(_JPEG_END):
        return _imdecode(data), True
    # Phones append data of their own, and some writers leave the end marker out. Pixels are missing only if what
    # follows the file's last byte changes the picture. A last 0xff would make a marker of the first byte added.
    start = data.rstrip(b"\xff")
    image, filled = _imdecode(start + _JPEG_END), _imdecode(start + _JPEG_FILLER + _JPEG_END)
    return image, image is not None and np.array_equal(image, filled)


def _imdecode(data: bytes) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if data else None
    except cv2.error:  # such as more pixels than OpenCV allows
        return None


def _to_8_bits(image: np.ndarray) -> np.ndarray:
    peak = max(float(image.max()), 1e-9)
    return np.clip(np.round(image * (255 / peak)), 0, 255).astype(np.uint8)
