"""Image records in one piece of memory, which worker processes share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate

import msgpack
import numpy as np

from FasterRCNN.structures import ImageRecord

__all__ = ["JoinedRecords", "PackedRecords"]


class PackedRecords(Sequence):
    """A read-only sequence of ImageRecords in one byte buffer, decoded on access.

    Processes share the buffer's memory pages, whether they were forked or map one file (FasterRCNN/datasets/cache.py):
    Python objects would be copied, page by page, as their reference counts change.
    """

    def __init__(self, buffer: np.ndarray, offsets: np.ndarray):
        """buffer: uint8 bytes; offsets: int64, one more than records; record i is buffer[offsets[i]:offsets[i + 1]]."""
        self.buffer = buffer
        self.offsets = offsets

    @classmethod
    def from_iterable(cls, records: Iterable[ImageRecord]) -> PackedRecords:
        """Packs records one by one, so that they need not all exist at once."""
        buffer, offsets = bytearray(), [0]
        for record in records:
            buffer += _pack(record)
            offsets.append(len(buffer))
        return cls(np.frombuffer(buffer, np.uint8), np.array(offsets, np.int64))

    @staticmethod
    def concat(parts: Sequence[PackedRecords]) -> JoinedRecords:
        """Joins several in order, without copying them."""
        return JoinedRecords(parts)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> ImageRecord:
        index = range(len(self))[index]
        start, stop = self.offsets[index], self.offsets[index + 1]
        return _unpack(self.buffer[start:stop])

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self.buffer.nbytes + self.offsets.nbytes


class JoinedRecords(Sequence):
    """Several PackedRecords in a row; those that lie in a file stay there."""

    def __init__(self, parts: Sequence[PackedRecords]):
        self._parts = [part for part in parts if len(part)]
        self._starts = [0, *accumulate(map(len, self._parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> ImageRecord:
        index = range(len(self))[index]
        number = bisect_right(self._starts, index) - 1
        return self._parts[number][index - self._starts[number]]

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(part.nbytes for part in self._parts)


def _pack(record: ImageRecord) -> bytes:
    return msgpack.packb(
        [
            record.image_id,
            record.file_name,
            record.source,
            int(record.height),
            int(record.width),
            np.asarray(record.boxes, np.float32).tobytes(),
            np.asarray(record.labels, np.int32).tobytes(),
            np.asarray(record.is_crowd, bool).tobytes(),
            np.asarray(record.is_difficult, bool).tobytes(),
            [_pack_segmentation(segmentation) for segmentation in record.segmentations],
        ]
    )


def _unpack(packed: np.ndarray) -> ImageRecord:
    image_id, file_name, source, height, width, *arrays, segmentations = msgpack.unpackb(packed.data)
    # Copies, because np.frombuffer of bytes is read-only and a record is the caller's to change.
    boxes, labels, is_crowd, is_difficult = (
        np.frombuffer(array, dtype).copy()
        for array, dtype in zip(arrays, (np.float32, np.int32, bool, bool), strict=True)
    )
    return ImageRecord(
        image_id=image_id,
        file_name=file_name,
        source=source,
        height=height,
        width=width,
        boxes=boxes.reshape(-1, 4),
        labels=labels,
        is_crowd=is_crowd,
        is_difficult=is_difficult,
        segmentations=[_unpack_segmentation(packed_one) for packed_one in segmentations],
    )


def _pack_segmentation(segmentation: list | dict | None) -> list[bytes] | dict | None:
    if isinstance(segmentation, list):
        return [np.asarray(polygon, np.float32).tobytes() for polygon in segmentation]
    return segmentation


def _unpack_segmentation(packed: list[bytes] | dict | None) -> list | dict | None:
    if isinstance(packed, list):
        return [np.frombuffer(polygon, np.float32).reshape(-1, 2).copy() for polygon in packed]
    return packed
