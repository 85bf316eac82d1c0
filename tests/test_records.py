"""Records packed into one piece of memory and back."""

import numpy as np
import pytest

from FasterRCNN.datasets.records import PackedRecords
from FasterRCNN.structures import ImageRecord


def make_record(image_id=3, objects=3):
    rng = np.random.default_rng(objects)
    polygons = [rng.random((3, 2)).astype(np.float32), rng.random((5, 2)).astype(np.float32)]
    kinds = [polygons, {"size": [4, 5], "counts": b"\x00\xffabc"}, None]
    return ImageRecord(
        image_id=image_id,
        file_name="a folder/ä.jpg",
        height=4,
        width=5,
        boxes=rng.random((objects, 4)).astype(np.float32),
        labels=np.arange(1, objects + 1, dtype=np.int32),
        is_crowd=np.arange(objects) % 2 == 1,
        is_difficult=np.arange(objects) % 3 == 1,
        source="mine",
        segmentations=[kinds[i % 3] for i in range(objects)],
    )


def assert_same(record, other):
    for name in ("image_id", "file_name", "source", "height", "width"):
        assert getattr(record, name) == getattr(other, name)
    for name in ("boxes", "labels", "is_crowd", "is_difficult"):
        mine, theirs = getattr(record, name), getattr(other, name)
        assert mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    assert len(record.segmentations) == len(other.segmentations)
    for mine, theirs in zip(record.segmentations, other.segmentations, strict=True):
        assert type(mine) is type(theirs)
        if isinstance(mine, list):
            for polygon, same in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(polygon, same)
        else:
            assert mine == theirs


def test_packed_records_come_back_as_they_were():
    records = [make_record(image_id=1), make_record(image_id="b", objects=0), make_record(image_id=2**40, objects=7)]
    packed = PackedRecords.from_iterable(iter(records))
    assert len(packed) == 3
    for record, same in zip(records, packed, strict=True):
        assert_same(record, same)
    assert_same(packed[-1], records[-1])
    with pytest.raises(IndexError):
        packed[3]


def test_a_record_taken_out_is_the_callers_to_change():
    packed = PackedRecords.from_iterable([make_record()])
    packed[0].boxes[:] = 0
    packed[0].segmentations[0][0][:] = 0
    assert_same(packed[0], make_record())


def test_packed_records_join_in_order():
    parts = [PackedRecords.from_iterable([make_record(image_id=i) for i in ids]) for ids in ([1, 2], [], [3])]
    joined = PackedRecords.concat(parts)
    assert [record.image_id for record in joined] == [1, 2, 3]
    assert [joined[i].image_id for i in (0, 2, -1, -3)] == [1, 3, 3, 1]
    assert joined.nbytes == parts[0].nbytes + parts[2].nbytes
    with pytest.raises(IndexError):
        joined[3]
    assert len(PackedRecords.concat([])) == 0
    assert list(PackedRecords.from_iterable([])) == []


def test_joined_records_are_not_copied():
    part = PackedRecords.from_iterable([make_record(image_id=1)])
    joined = PackedRecords.concat([part, part])
    part.buffer.flags.writeable = True
    part.buffer[:] = np.frombuffer(PackedRecords.from_iterable([make_record(image_id=2)]).buffer, np.uint8)
    assert [record.image_id for record in joined] == [2, 2]


def test_packed_records_hold_little_more_than_their_numbers():
    records = [make_record(image_id=i, objects=6) for i in range(50)]
    numbers = 50 * 6 * (16 + 4 + 1 + 8 + 2 * 8 * 8 / 3)
    assert PackedRecords.from_iterable(records).nbytes < 2 * numbers
