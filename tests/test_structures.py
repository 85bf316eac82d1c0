"""Categories between ids, labels and names; records packed and back."""

import numpy as np
import pytest

from FasterRCNN.structures import Categories, Dataset, Detections, ImageRecord, PackedRecords


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
        annotation_ids=np.arange(objects) + 2**40,
        segmentations=[kinds[i % 3] for i in range(objects)],
    )


def assert_same(record, other):
    for name in ("image_id", "file_name", "height", "width"):
        assert getattr(record, name) == getattr(other, name)
    for name in ("boxes", "labels", "is_crowd", "annotation_ids"):
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


def test_categories_keep_arbitrary_ids():
    categories = Categories(names=["cat", "dog", "car"], ids=[0, 7, 90])
    assert len(categories) == 3
    assert [categories.label_of_id(i) for i in (0, 7, 90)] == [1, 2, 3]
    assert [categories.id_of_label(label) for label in (1, 2, 3)] == [0, 7, 90]
    assert categories.name_of_label(3) == "car"
    assert categories == Categories(names=("cat", "dog", "car"), ids=(0, 7, 90))


def test_categories_refuse_what_they_do_not_know():
    categories = Categories(names=("cat",), ids=(5,))
    with pytest.raises(ValueError, match=r"unknown category id 6: the categories have the ids \(5,\)"):
        categories.label_of_id(6)
    for label in (0, 2, -1):
        with pytest.raises(ValueError, match=rf"label {label} is outside 1\.\.1"):
            categories.name_of_label(label)


def test_categories_refuse_a_wrong_number_of_ids_and_repeated_ids():
    with pytest.raises(ValueError, match="2 category names but 1 category ids"):
        Categories(names=("a", "b"), ids=(1,))
    with pytest.raises(ValueError, match=r"more than once: \[4\]"):
        Categories(names=("a", "b", "c"), ids=(4, 1, 4))


def test_differences_name_each_id_that_is_not_shared():
    mine = Categories(names=("cat", "dog", "car"), ids=(1, 2, 3))
    assert mine.differences(mine) == []
    assert mine.differences(Categories(names=("cat", "wolf"), ids=(1, 2))) == ["id 2: dog / wolf", "id 3: car / -"]


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
    assert [record.image_id for record in PackedRecords.concat(parts)] == [1, 2, 3]
    assert len(PackedRecords.concat([])) == 0
    assert list(PackedRecords.from_iterable([])) == []


def test_packed_records_hold_little_more_than_their_numbers():
    records = [make_record(image_id=i, objects=6) for i in range(50)]
    numbers = 50 * 6 * (16 + 4 + 1 + 8 + 2 * 8 * 8 / 3)
    assert PackedRecords.from_iterable(records).nbytes < 2 * numbers


def test_lengths_count_objects_detections_and_images():
    assert len(ImageRecord("a", "a.jpg", 1, 1)) == 0
    assert len(make_record(objects=4)) == 4
    assert len(Detections(np.zeros((2, 4)), np.zeros(2), np.ones(2, int))) == 2
    assert len(Dataset("d", PackedRecords.from_iterable([make_record()]), Categories(("a",), (1,)))) == 1
