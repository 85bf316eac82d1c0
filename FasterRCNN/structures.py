"""What travels on the host: categories, image records, detections and data sets (NumPy only).

Boxes are float32 (x1, y1, x2, y2) in continuous pixel coordinates: pixel (0, 0) covers [0, 1] x [0, 1] and the width
is x2 - x1. Labels are contiguous, 1..K; 0 is background. G objects of an image, D detections, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgpack
import numpy as np


@dataclass(frozen=True)
class Categories:
    """The classes of a data set: label l (1..K) is named names[l - 1] and has the annotation file's id ids[l - 1].

    Raises ValueError when names and ids differ in number or an id occurs twice.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        object.__setattr__(self, "ids", tuple(int(i) for i in self.ids))
        if len(self.names) != len(self.ids):
            raise ValueError(f"{len(self.names)} category names but {len(self.ids)} category ids: give one id per name")
        if len(set(self.ids)) != len(self.ids):
            repeated = sorted({i for i in self.ids if self.ids.count(i) > 1})
            raise ValueError(f"category ids occur more than once: {repeated}")

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def by_id(self) -> dict[int, str]:
        """Names by the annotation file's category ids."""
        return dict(zip(self.ids, self.names, strict=True))

    @cached_property
    def _labels(self) -> dict[int, int]:
        return {category_id: label for label, category_id in enumerate(self.ids, start=1)}

    def label_of_id(self, category_id: int) -> int:
        """Label 1..K of an annotation file's category id; ValueError for an unknown id."""
        try:
            return self._labels[category_id]
        except KeyError:
            raise ValueError(f"unknown category id {category_id}: the categories have the ids {self.ids}") from None

    def id_of_label(self, label: int) -> int:
        """The annotation file's category id of a label 1..K; ValueError outside that range."""
        return self.ids[self._index(label)]

    def name_of_label(self, label: int) -> str:
        """The name of a label 1..K; ValueError outside that range."""
        return self.names[self._index(label)]

    def _index(self, label: int) -> int:
        if not 1 <= label <= len(self):
            raise ValueError(f"label {label} is outside 1..{len(self)}")
        return int(label) - 1

    def differences(self, other: Categories) -> list[str]:
        """One phrase per id that the two do not give the same name; empty when they hold the same categories."""
        return [
            f"id {category_id}: {self.by_id.get(category_id, '-')} / {other.by_id.get(category_id, '-')}"
            for category_id in sorted(self.by_id.keys() | other.by_id.keys())
            if self.by_id.get(category_id) != other.by_id.get(category_id)
        ]


@dataclass
class ImageRecord:
    """One image with its ground truth; boxes are clipped to the image.

    boxes float32 G x 4, labels int32 G (1..K, of crowds too), is_crowd bool G, annotation_ids int64 G; segmentations
    holds per object a list of float32 N x 2 polygons, a compressed RLE {"size": [h, w], "counts": bytes}, or None.
    """

    image_id: int | str
    file_name: str
    height: int
    width: int
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    is_crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    annotation_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    segmentations: list = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass
class Detections:
    """What was found in one photo, in its own pixels.

    boxes float32 D x 4, scores float32 D, labels int32 D; masks: D compressed RLEs (pycocotools, counts as bytes) of
    the photo's full size, or None without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: list[dict] | None = None

    def __len__(self) -> int:
        return len(self.boxes)


class PackedRecords(Sequence):
    """A read-only sequence of ImageRecords in one byte buffer, decoded on access.

    Forked loader processes share the buffer's memory pages: Python objects would be copied, page by page, as their
    reference counts change.
    """

    def __init__(self, buffer: np.ndarray, offsets: np.ndarray):
        """buffer: uint8 bytes; offsets: int64, one more than records; record i is buffer[offsets[i]:offsets[i + 1]]."""
        self._buffer = buffer
        self._offsets = offsets

    @classmethod
    def from_iterable(cls, records: Iterable[ImageRecord]) -> PackedRecords:
        """Packs records one by one, so that they need not all exist at once."""
        buffer, offsets = bytearray(), [0]
        for record in records:
            buffer += _pack(record)
            offsets.append(len(buffer))
        return cls(np.frombuffer(buffer, np.uint8), np.array(offsets, np.int64))

    @classmethod
    def concat(cls, parts: Sequence[PackedRecords]) -> PackedRecords:
        """Joins several in order."""
        starts = np.cumsum([0] + [len(part._buffer) for part in parts])
        offsets = [part._offsets[:-1] + start for part, start in zip(parts, starts[:-1], strict=True)]
        buffers = [part._buffer for part in parts]
        return cls(
            np.concatenate([np.zeros(0, np.uint8), *buffers]),
            np.concatenate([*offsets, starts[-1:]]).astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> ImageRecord:
        index = range(len(self))[index]
        start, stop = self._offsets[index], self._offsets[index + 1]
        return _unpack(self._buffer[start:stop])

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return self._buffer.nbytes + self._offsets.nbytes


@dataclass
class Dataset:
    """A named set of image records with its categories; annotation_file is None when there is no ground truth file."""

    name: str
    records: Sequence[ImageRecord]
    categories: Categories
    annotation_file: str | None = None

    def __len__(self) -> int:
        return len(self.records)


def _pack(record: ImageRecord) -> bytes:
    return msgpack.packb(
        [
            record.image_id,
            record.file_name,
            int(record.height),
            int(record.width),
            np.asarray(record.boxes, np.float32).tobytes(),
            np.asarray(record.labels, np.int32).tobytes(),
            np.asarray(record.is_crowd, bool).tobytes(),
            np.asarray(record.annotation_ids, np.int64).tobytes(),
            [_pack_segmentation(segmentation) for segmentation in record.segmentations],
        ]
    )


def _unpack(packed: np.ndarray) -> ImageRecord:
    image_id, file_name, height, width, boxes, labels, is_crowd, annotation_ids, segmentations = msgpack.unpackb(
        packed.data
    )
    # Copies, because np.frombuffer of bytes is read-only and a record is the caller's to change.
    return ImageRecord(
        image_id=image_id,
        file_name=file_name,
        height=height,
        width=width,
        boxes=np.frombuffer(boxes, np.float32).reshape(-1, 4).copy(),
        labels=np.frombuffer(labels, np.int32).copy(),
        is_crowd=np.frombuffer(is_crowd, bool).copy(),
        annotation_ids=np.frombuffer(annotation_ids, np.int64).copy(),
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
