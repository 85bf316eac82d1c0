"""Reading COCO's instances format, compared with pycocotools."""

import json
import logging

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from FasterRCNN.datasets.coco import load_coco
from FasterRCNN.structures import Categories

SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
CATEGORIES = [{"id": 90, "name": "car"}, {"id": 0, "name": "cat"}, {"id": 7, "name": "dog"}]


def annotate(annotation_id=1, **changes):
    usual = {"id": annotation_id, "image_id": 5, "category_id": 7, "bbox": [10, 10, 20, 20], "segmentation": [SQUARE]}
    return {**usual, "iscrowd": 0, **changes}


@pytest.fixture
def write(tmp_path):
    """Writes annotations (and no info or licenses) and returns the arguments of load_coco."""

    def write_file(annotations, categories=CATEGORIES, **changes):
        images = [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 60} for i in (5, 0, 12)]
        content = {"images": images, "annotations": annotations, "categories": categories, **changes}
        (tmp_path / "a.json").write_text(json.dumps(content))
        (tmp_path / "images").mkdir(exist_ok=True)
        return {"annotation_file": tmp_path / "a.json", "image_dir": tmp_path / "images", "name": "mine"}

    return write_file


def rle_of(bitmap, compressed):
    columns = bitmap.T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], columns, [1 - columns[-1]]])))
    counts = np.diff(np.concatenate([[0], edges])).tolist()
    if compressed:
        counts = mask_utils.frPyObjects({"size": list(bitmap.shape), "counts": counts}, *bitmap.shape)[
            "counts"
        ].decode()
    return {"size": list(bitmap.shape), "counts": counts}


def bitmap_of(segmentation, height=40, width=60):
    if isinstance(segmentation, dict):
        return mask_utils.decode(segmentation)
    flat = [polygon.ravel().tolist() for polygon in segmentation]
    return mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(flat, height, width)))


def test_images_keep_their_order_and_ids_become_labels(write, tmp_path):
    arguments = write(
        [annotate(1, category_id=90), annotate(2, category_id=0, image_id=12), annotate(3, category_id=7)]
    )
    dataset = load_coco(**arguments)
    assert dataset.name == "mine"
    assert dataset.annotation_file == str(tmp_path / "a.json")
    assert dataset.categories == Categories(names=("cat", "dog", "car"), ids=(0, 7, 90))
    assert [record.image_id for record in dataset.records] == [5, 0, 12]
    first, empty, last = dataset.records
    assert first.file_name == str(tmp_path / "images" / "5.jpg")
    assert (first.height, first.width) == (40, 60)
    assert first.labels.tolist() == [3, 2]
    assert first.annotation_ids.tolist() == [1, 3]
    assert last.labels.tolist() == [1]
    assert len(empty) == 0 and empty.boxes.shape == (0, 4) and empty.segmentations == []


def test_every_form_of_segmentation_agrees_with_pycocotools(write):
    blob = np.zeros((40, 60), np.uint8)
    blob[12:30, 5:50] = 1
    blob[20:25, 20:30] = 0
    corner = np.zeros((40, 60), np.uint8)
    corner[:3, :4] = 1
    forms = [
        [SQUARE],
        [SQUARE, [40, 5, 50, 5, 45, 20]],
        rle_of(blob, compressed=False),
        rle_of(blob, compressed=True),
        rle_of(corner, compressed=False),
    ]
    arguments = write([annotate(i, segmentation=form, iscrowd=int(i == 3)) for i, form in enumerate(forms, start=1)])
    record = load_coco(**arguments).records[0]
    truth = COCO(str(arguments["annotation_file"]))
    for i, segmentation in enumerate(record.segmentations, start=1):
        np.testing.assert_array_equal(bitmap_of(segmentation), truth.annToMask(truth.anns[i]))
    np.testing.assert_array_equal(bitmap_of(record.segmentations[2]), blob)
    assert record.is_crowd.tolist() == [False, False, True, False, False]


def test_boxes_are_clipped_to_the_image(write):
    record = load_coco(**write([annotate(bbox=[-5, 30.5, 100, 100])])).records[0]
    np.testing.assert_array_equal(record.boxes, np.float32([[0, 30.5, 60, 40]]))


def test_fractions_of_the_image(write):
    arguments = write([annotate(bbox=[0.5, 0.25, 0.25, 0.5], segmentation=[[0, 0, 1, 0, 1, 1]])])
    record = load_coco(**arguments, absolute_coord=False).records[0]
    np.testing.assert_array_equal(record.boxes, np.float32([[30, 10, 45, 30]]))
    np.testing.assert_array_equal(record.segmentations[0][0], np.float32([[0, 0], [60, 0], [60, 40]]))


@pytest.mark.parametrize(
    "bbox",
    [
        [10, 10, 0, 20],
        [10, 10, 20, -3],
        [61, 10, 20, 20],
        [float("nan"), 1, 2, 3],
        [1, 1, float("inf"), 3],
        [1, 2, 3],
        [],
        None,
        "1234",
        [1, 2, 1e-9, 5],
    ],
)
def test_malformed_boxes_are_dropped(write, bbox):
    record = load_coco(**write([annotate(1, bbox=bbox), annotate(2)])).records[0]
    assert record.annotation_ids.tolist() == [2]
    assert len(record.labels) == len(record.is_crowd) == len(record.segmentations) == 1


def test_one_warning_counts_what_is_dropped_and_names_the_first(write, caplog):
    annotations = [annotate(4), annotate(1, bbox=[1, 1, 0, 0]), annotate(2, segmentation=[[1, 1, 2, 2]])]
    arguments = write([*annotations, annotate(3, image_id=99)])
    with caplog.at_level(logging.WARNING):
        assert len(load_coco(**arguments).records[0]) == 1
    homeless, dropped = (record.getMessage() for record in caplog.records)
    assert "a.json: left out 2 objects whose box" in dropped and "image id 5, annotation id 1" in dropped
    assert "left out 1 objects of images that the file does not list" in homeless
    assert "image id 99, annotation id 3" in homeless


@pytest.mark.parametrize("nothing", [None, []])
def test_boxes_alone_need_mode_mask_off(write, nothing):
    arguments = write([annotate(1, iscrowd=1, segmentation=nothing), annotate(8, segmentation=nothing)])
    with pytest.raises(ValueError, match=r"a\.json, image id 5, annotation id 8: .*no segmentation.*MODE_MASK=False"):
        load_coco(**arguments, masks_required=True)
    for with_masks in (True, False):
        assert load_coco(**arguments, with_masks=with_masks).records[0].segmentations == [None, None]


def test_without_ground_truth_no_annotations_are_needed(write):
    arguments = write(None)
    with pytest.raises(ValueError, match="no list 'annotations'"):
        load_coco(**arguments)
    dataset = load_coco(**arguments, with_ground_truth=False)
    assert [len(record) for record in dataset.records] == [0, 0, 0]
    assert len(dataset.categories) == 3


def test_labels_follow_the_training_set_by_id_or_by_name(write):
    training = Categories(names=("dog", "cat", "car"), ids=(1, 2, 3))
    by_name = load_coco(**write([annotate(category_id=7)]), categories=training)
    assert by_name.records[0].labels.tolist() == [1]
    assert by_name.categories == Categories(names=("dog", "cat", "car"), ids=(7, 0, 90))
    fewer = write([annotate(category_id=2)], categories=[{"id": 2, "name": "cat"}])
    by_id = load_coco(**fewer, categories=training)
    assert by_id.records[0].labels.tolist() == [2]
    assert by_id.categories == training


def test_categories_that_differ_are_named(write):
    training = Categories(names=("cat", "wolf", "car"), ids=(0, 7, 90))
    with pytest.raises(ValueError, match=r"a\.json: its categories differ .*: id 7: dog / wolf\. Use the same"):
        load_coco(**write([]), categories=training)


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (annotate(category_id=8), "image id 5, annotation id 1: unknown category id 8"),
        (annotate(segmentation={"size": [60, 40], "counts": [2400]}), r"size \[60, 40\], its image of \[40, 60\]"),
        (annotate(segmentation={"size": [40, 60], "counts": [7]}), "counts cover 7 of 2400 pixels"),
        (annotate(segmentation={"size": [40, 60], "counts": [7, None]}), "neither text nor a list of whole numbers"),
        ({"id": 3}, r"a\.json, annotations\[0\]: no 'image_id' in {'id': 3}"),
        (annotate(category_id="7"), r"a\.json, annotations\[0\]: category_id is '7', not a whole number"),
        (annotate(image_id=[5]), r"annotations\[0\]: image_id is '\[5\]', not a whole number or text"),
        (7, r"annotations\[0\]: no 'image_id' in 7"),
    ],
)
def test_an_annotation_out_of_format_is_named(write, annotation, message):
    with pytest.raises(ValueError, match=message):
        load_coco(**write([annotation]))


def test_a_flat_segmentation_is_one_polygon(write, caplog):
    record = load_coco(**write([annotate(segmentation=SQUARE), annotate(2, segmentation=SQUARE)])).records[0]
    for (polygon,) in record.segmentations:
        np.testing.assert_array_equal(polygon.ravel(), np.float32(SQUARE))
    assert "took the flat list [x, y, ...] that 2 objects have as segmentation for one polygon" in caplog.text
    assert "the first: image id 5, annotation id 1" in caplog.text


@pytest.mark.parametrize("segmentation", [[["a"] * 6], [[1, 2, None, 4, 5, 6]], [5, [1, 2]], "text", [[1, 2, 3]], [{}]])
def test_malformed_segmentations_are_dropped(write, segmentation, caplog):
    arguments = write([annotate(segmentation=segmentation), annotate(2)])
    assert load_coco(**arguments).records[0].annotation_ids.tolist() == [2]
    assert "left out 1 objects" in caplog.text
    assert len(load_coco(**arguments, with_masks=False).records[0]) == 2


def test_annotation_ids_need_not_be_numbers(write):
    record = load_coco(**write([annotate("ann-1"), annotate(None), annotate(3)])).records[0]
    assert record.annotation_ids.tolist() == [-1, -1, 3]


IMAGE = {"id": 5, "file_name": "5.jpg", "height": 40, "width": 60}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [3]}, r"a\.json, images\[0\]: no 'id' in 3"),
        ({"images": [IMAGE | {"width": None}]}, r"a\.json, images\[0\]: width is 'None', not a whole number of pixels"),
        ({"images": [IMAGE | {"height": 0}]}, r"images\[0\]: height is '0', not a whole number of pixels"),
        ({"images": [IMAGE | {"file_name": None}]}, r"images\[0\]: file_name is 'None', not text"),
        ({"images": [IMAGE, IMAGE | {"id": "5"}]}, "some image ids are numbers, others text"),
        ({"categories": ["cat"]}, r"a\.json, categories\[0\]: no 'id' in cat"),
        ({"categories": [*CATEGORIES, {"id": "1", "name": "x"}]}, r"categories\[3\]: id is '1', not a whole number"),
    ],
)
def test_entries_out_of_format_are_named(write, changes, message):
    with pytest.raises(ValueError, match=message):
        load_coco(**write([], **changes))


def test_a_file_out_of_format_is_named(write, tmp_path):
    arguments = write([], categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}])
    with pytest.raises(ValueError, match=r"a\.json: category ids occur more than once: \[1\]"):
        load_coco(**arguments)
    twice = [{"id": 5, "file_name": "5.jpg", "height": 4, "width": 6}] * 2
    with pytest.raises(ValueError, match="image id 5 occurs more than once"):
        load_coco(**write([], images=twice))
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: not a JSON file"):
        load_coco(**arguments)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"a\.json: no list 'images'; a COCO instances file has"):
        load_coco(**arguments)


def test_missing_files_are_named(write, tmp_path):
    arguments = write([])
    (tmp_path / "images").rmdir()
    with pytest.raises(FileNotFoundError, match="images: no such image folder"):
        load_coco(**arguments)
    (tmp_path / "a.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.json: no such annotation file"):
        load_coco(**arguments)
