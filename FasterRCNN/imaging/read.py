"""Reads photos from files, and refuses the ones that OpenCV would silently complete with grey."""

from pathlib import Path

import cv2
import numpy as np

__all__ = ["read_image"]

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG", b"IEND"


def read_image(file_name: str | Path) -> np.ndarray:
    """The photo as BGR uint8 H×W×3, turned as its EXIF data say.

    Raises FileNotFoundError for a missing file, ValueError for one that is truncated or no image; both name the file.
    """
    try:
        data = Path(file_name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{file_name}: no such image file") from None
    except OSError as error:
        raise ValueError(f"{file_name}: cannot be read ({error.strerror})") from None
    if _is_truncated(data):
        raise ValueError(f"{file_name}: the image file is truncated after {len(data)} bytes; fetch or write it again")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    if image is None:
        raise ValueError(f"{file_name}: not an image that OpenCV can decode ({len(data)} bytes)")
    return image


def _is_truncated(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end; decoders fill the missing part up and only print a warning."""
    if data.startswith(_JPEG_START):
        # Neither marker can occur inside a scan, and an EXIF thumbnail's end lies before the photo's own scan.
        return data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN)
    if data.startswith(_PNG_START):
        return data.rfind(_PNG_END) < 0
    return False
