"""The size of an image whose annotation does not tell it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from FasterRCNN.imaging.header import PILLOW_ERRORS, shown_size

__all__ = ["SIZE_PROBLEMS", "measured_size"]

# All that `measured_size` notes: whatever is read with one of these follows from the photos too.
SIZE_PROBLEMS = ("no_size", "missing_image", "empty_image", "unreadable_image")


def measured_size(photo: Path, note: Callable[..., None]) -> tuple[int, int] | None:
    """(width, height) of the photo as its EXIF data turn it, with a note; None, with another, when it cannot be read.

    note(kind) or note(kind, file=...) adds a problem.
    """
    try:
        size = shown_size(photo)
    except FileNotFoundError:
        return note("missing_image", file=str(photo))
    except PILLOW_ERRORS:
        is_empty = photo.is_file() and not photo.stat().st_size
        return note("empty_image" if is_empty else "unreadable_image", file=str(photo))
    note("no_size")
    return size
