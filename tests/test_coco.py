"""Reading COCO's instances format, compared with pycocotools."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from FasterRCNN.datasets.catalog import load_dataset
from FasterRCNN.datasets.coco import read_coco
from FasterRCNN.datasets.problems import Problems
from FasterRCNN.structures import Categories

SQUARE = [10, 10, 30, 10, 30, 30, 10, 30]
IMAGE = {"id": 5, "file_name": "5.jpg", "height": 40, "width": 60}
CATEGORIES = [{"id": 90, "name": "car"}, {"id": 0, "name": "cat"}, {"id": 7, "name": "dog"}]


def annotate(annotation_id=1, **changes):
    """An object whose box tells its id; see ids_of."""
    number = annotation_id if isinstance(annotation_id, int) else 0
    usual = {"id": annotation_id, "image_id": 5, "category_id": 7, "iscrowd": 0}
    return {**usual, "bbox": [10, 10, 20, 20 + number / 16], "segmentation": [SQUARE], **changes}


def ids_of(record):
    return ((record.boxes[:, 3] - 30) * 16).tolist()


@pytest.fixture
def write(tmp_path):
    """Writes annotations (and no info or licenses) and returns the data set's name."""

    def write_file(annotations, categories=CATEGORIES, **changes):
        images = [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 60} for i in (5, 0, 12)]
        content = {"images": images, "annotations": annotations, "categories": categories, **changes}
        (tmp_path / "a.json").write_text(json.dumps(content))
        (tmp_path / "images").mkdir(exist_ok=True)
        return f"{tmp_path / 'a.json'}:{tmp_path / 'images'}"

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
    spec = write(
        [annotate(1, category_id=90), annotate(2, category_id=0, image_id=12), annotate(3, category_id=7)]
    )
    dataset = load_dataset(spec)
    assert dataset.name == "a"
    assert dataset.reread().source == str(tmp_path / "a.json")
    assert dataset.categories == Categories(names=("cat", "dog", "car"), ids=(0, 7, 90))
    assert [record.image_id for record in dataset.records] == [5, 0, 12]
    first, empty, last = dataset.records
    assert first.file_name == str(tmp_path / "images" / "5.jpg")
    assert (first.height, first.width) == (40, 60)
    assert first.labels.tolist() == [3, 2]
    assert ids_of(first) == [1, 3]
    assert last.labels.tolist() == [1]
    assert len(empty) == 0 and empty.boxes.shape == (0, 4) and empty.segmentations == []


def test_every_form_of_segmentation_agrees_with_pycocotools(write, tmp_path):
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
    spec = write([
        annotate(i, bbox=[0, 0, 60, 40], segmentation=form, iscrowd=int(i == 3))
        for i, form in enumerate(forms, start=1)
    ])
    record = load_dataset(spec).records[0]
    truth = COCO(str(tmp_path / "a.json"))
    for i, segmentation in enumerate(record.segmentations, start=1):
        np.testing.assert_array_equal(bitmap_of(segmentation), truth.annToMask(truth.anns[i]))
    np.testing.assert_array_equal(bitmap_of(record.segmentations[2]), blob)
    assert record.is_crowd.tolist() == [False, False, True, False, False]


def test_boxes_are_clipped_to_the_image(write):
    record = load_dataset(write([annotate(bbox=[-5, 20.5, 100, 100])])).records[0]
    np.testing.assert_array_equal(record.boxes, np.float32([[0, 20.5, 60, 40]]))


def test_fractions_of_the_image(write):
    spec = write([annotate(bbox=[0.5, 0.25, 0.25, 0.5], segmentation=[[0, 0, 1, 0, 1, 1]])])
    record = load_dataset(spec, absolute_coord=False).records[0]
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
    record = load_dataset(write([annotate(1, bbox=bbox), annotate(2)])).records[0]
    assert ids_of(record) == [2]
    assert len(record.labels) == len(record.is_crowd) == len(record.segmentations) == 1


def test_one_warning_of_each_kind_counts_what_is_left_out_and_names_the_first(write, caplog):
    flawed = [annotate(4), annotate(1, bbox=[1, 1, 0, 0]), annotate(5, bbox=[1, 1, 5, 0]), annotate(3, image_id=99)]
    spec = write([*flawed, annotate(2, segmentation=[[1, 1, 2, 2]])])
    with caplog.at_level(logging.WARNING):
        assert ids_of(load_dataset(spec).records[0]) == [4]
    homeless, boxes, masks = (record.getMessage() for record in caplog.records)
    assert "left out 1 x object of an image that is not listed, the first: image id 99, annotation id 3" in homeless
    assert "a.json: left out 2 x box without area, the first: image id 5, annotation id 1, bbox" in boxes
    assert "left out 1 x polygon of fewer than 3 points, the first: image id 5, annotation id 2, 2 points" in masks


def test_errors_stop_the_run_where_that_is_wanted(write):
    spec = write([annotate(4), annotate(1, bbox=[1, 1, 0, 0]), annotate(2, bbox=[-3, 1, 20, 20])])
    with pytest.raises(ValueError, match=r"a\.json: 1 x box without area, the first: .*annotation id 1, .*--check"):
        load_dataset(spec, stop_on_error=True)
    only_a_warning = write([annotate(2, bbox=[-3, 1, 20, 20])])
    assert len(load_dataset(only_a_warning, stop_on_error=True).records[0]) == 1


@pytest.mark.parametrize("nothing", [None, []])
def test_objects_without_masks_are_left_out_where_masks_are_needed(write, nothing, caplog):
    spec = write([annotate(1, iscrowd=1, segmentation=nothing), annotate(8, segmentation=nothing), annotate(9)])
    assert ids_of(load_dataset(spec, masks_required=True).records[0]) == [1, 9]
    assert "left out 1 x object without a mask, the first: image id 5, annotation id 8" in caplog.text
    for with_masks in (True, False):
        assert load_dataset(spec, with_masks=with_masks).records[0].segmentations[:2] == [None, None]


def test_boxes_alone_need_mode_mask_off(write):
    spec = write([annotate(8, segmentation=None)])
    with pytest.raises(ValueError, match=r"a\.json: none of its 1 objects has a mask; .*MODE_MASK=False"):
        load_dataset(spec, masks_required=True)


def test_without_truth_no_annotations_are_needed(write, tmp_path):
    spec = write(None)
    content = json.loads((tmp_path / "a.json").read_text())
    del content["annotations"]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="a.json: no list 'annotations': there is nothing to train on"):
        load_dataset(spec)
    dataset = load_dataset(spec, with_truth=False)
    assert [len(record) for record in dataset.records] == [0, 0, 0]
    assert len(dataset.categories) == 3
    assert not dataset.reread().has_truth


def test_without_truth_objects_are_not_looked_at(write, caplog):
    dataset = load_dataset(write([annotate(1), annotate(2, bbox=[1, 1, 0, 0])]), with_truth=False)
    assert [len(record) for record in dataset.records] == [0, 0, 0]
    assert not caplog.text


def test_labels_follow_the_training_set_by_id_or_by_name(write):
    training = Categories(names=("dog", "cat", "car"), ids=(1, 2, 3))
    by_name = load_dataset(write([annotate(category_id=7)]), categories=training)
    assert by_name.records[0].labels.tolist() == [1]
    assert by_name.categories == Categories(names=("dog", "cat", "car"), ids=(7, 0, 90))
    fewer = write([annotate(category_id=2)], categories=[{"id": 2, "name": "cat"}])
    by_id = load_dataset(fewer, categories=training)
    assert by_id.records[0].labels.tolist() == [2]
    assert by_id.categories == training


def test_categories_that_differ_are_named(write):
    training = Categories(names=("cat", "wolf", "car"), ids=(0, 7, 90))
    with pytest.raises(ValueError, match=r"a\.json: its classes are .* Only here: dog; only in training: wolf\."):
        load_dataset(write([]), categories=training)


@pytest.mark.parametrize(
    ("annotation", "kind", "detail"),
    [
        (annotate(category_id=8), "unknown_category", "category id 8"),
        (annotate(segmentation={"size": [60, 40], "counts": [2400]}), "rle_size", "RLE of size [60, 40], image"),
        (annotate(segmentation={"size": [40, 60], "counts": [7]}), "malformed_mask", "counts cover 7 of 2400 pixels"),
        (annotate(segmentation={"size": [40, 60], "counts": [7, None]}), "malformed_mask", "neither text nor a list"),
        (annotate(segmentation=[["a"] * 6]), "malformed_mask", "polygon ['a', 'a'"),
        (annotate(segmentation=[[1, 2, None, 4, 5, 6]]), "malformed_mask", "polygon [1, 2, None"),
        (annotate(segmentation="text"), "malformed_mask", "segmentation text"),
        (annotate(segmentation=[[1, 2, 3]]), "malformed_mask", "polygon [1, 2, 3]"),
        (annotate(segmentation=[{}]), "malformed_mask", "polygon {}"),
        (annotate(segmentation=[[1, 2, 3, 4]]), "short_polygon", "2 points"),
        (annotate(bbox=[1, 1, 5, -2]), "negative_box", "[1, 1, 5, -2]"),
        (annotate(bbox=[70, 1, 5, 5]), "box_outside", "image 60 x 40"),
    ],
)
def test_an_object_that_cannot_be_used_is_left_out(write, caplog, annotation, kind, detail):
    spec = write([annotation, annotate(2)])
    assert ids_of(load_dataset(spec).records[0]) == [2]
    assert detail in caplog.text
    with_boxes_alone = ids_of(load_dataset(spec, with_masks=False).records[0])
    assert with_boxes_alone == ([1, 2] if kind in ("rle_size", "malformed_mask", "short_polygon") else [2])


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"id": 3}, r"a\.json, annotations\[0\]: no 'image_id' in {'id': 3}"),
        (annotate(category_id="7"), r"a\.json, annotations\[0\]: category_id is '7', not a whole number"),
        (annotate([3]), r"annotations\[0\]: id is '\[3\]', not a whole number or text"),
        (annotate(image_id=[5]), r"annotations\[0\]: image_id is '\[5\]', not a whole number or text"),
        (7, r"annotations\[0\]: no 'image_id' in 7"),
    ],
)
def test_an_annotation_out_of_format_is_named(write, annotation, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(write([annotation]))


@pytest.mark.parametrize("entry, place", [
    ({"id": 3, "category_id": 7}, "annotation id 3, annotations[1]: no 'image_id'"),
    (annotate(4, category_id=None), "image id 5, annotation id 4, annotations[1]: category_id is 'None'"),
    (annotate([3]), "image id 5, annotations[1]: id is '[3]'"),
    (7, "annotations[1]: no 'image_id' in 7"),
])
def test_one_annotation_out_of_format_of_several_is_left_out(write, caplog, entry, place):
    spec = write([annotate(1), entry])
    assert len(load_dataset(spec).records[0]) == 1
    assert f"left out 1 x entry of an annotation file that is out of format, the first: {place}" in caplog.text
    with pytest.raises(ValueError, match=r"a\.json: 1 x entry of an annotation file"):
        load_dataset(spec, stop_on_error=True)


def test_one_image_out_of_format_is_left_out_with_its_objects(write, tmp_path):
    spec = write([annotate(1), annotate(2, image_id=6)], images=[IMAGE, IMAGE | {"id": 6, "width": "60"}])
    assert [record.image_id for record in load_dataset(spec).records] == [5]
    problems = Problems("a.json")
    list(read_coco(tmp_path / "a.json", tmp_path / "images", name="a").read_images(problems))
    assert [(problem.kind, problem.image_id) for problem in problems] == [("malformed_entry", 6)]


@pytest.mark.parametrize("size", [{}, {"width": 60}, {"width": None, "height": None}, {"width": 0, "height": 0}])
def test_an_image_of_unknown_size_is_measured(write, tmp_path, size):
    images = [{"id": i, "file_name": f"{i}.jpg", **size} for i in (5, 6)]
    spec = write([annotate(1), annotate(2, image_id=6)], images=images)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(tmp_path / "images" / "5.jpg", exif=exif)
    (record,) = load_dataset(spec).records
    assert (record.image_id, record.width, record.height) == (5, 60, 40)
    problems = Problems("a.json")
    list(read_coco(tmp_path / "a.json", tmp_path / "images", name="a").read_images(problems))
    assert [(problem.kind, problem.image_id) for problem in problems] == [("no_size", 5), ("missing_image", 6)]


@pytest.mark.parametrize("listed, used, detail", [
    (5, "5", "5 is listed as a number"), ("5", 5, "'5' is listed as text"), (5, "6", ""), ("a", 5, "")])
def test_ids_that_are_numbers_here_and_text_there_are_pointed_out(write, tmp_path, listed, used, detail):
    write([annotate(1, image_id=used)], images=[IMAGE | {"id": listed}])
    problems = Problems("a.json")
    list(read_coco(tmp_path / "a.json", tmp_path / "images", name="a").read_images(problems))
    assert [(problem.kind, problem.detail) for problem in problems] == [("unknown_image", detail)]


def test_a_flat_segmentation_is_one_polygon(write):
    record = load_dataset(write([annotate(segmentation=SQUARE), annotate(2, segmentation=SQUARE)])).records[0]
    for (polygon,) in record.segmentations:
        np.testing.assert_array_equal(polygon.ravel(), np.float32(SQUARE))


def test_one_bad_polygon_of_several_goes_alone(write):
    record = load_dataset(write([annotate(segmentation=[[1, 1, 2, 2], SQUARE])])).records[0]
    np.testing.assert_array_equal(record.segmentations[0][0].ravel(), np.float32(SQUARE))


def test_annotation_ids_need_not_be_numbers(write):
    assert len(load_dataset(write([annotate("ann-1"), annotate(None), annotate(3)])).records[0]) == 3


def test_ids_used_twice_are_problems_of_the_file(write, tmp_path):
    twice = [{"id": 5, "file_name": f"{i}.jpg", "height": 40, "width": 60} for i in (1, 2)]
    spec = write([annotate(1), annotate(1)], images=twice)
    assert [record.file_name[-5:] for record in load_dataset(spec).records] == ["1.jpg"]
    problems = Problems("a.json")
    images = list(read_coco(tmp_path / "a.json", tmp_path / "images", name="a").read_images(problems))
    assert [len(image.objects) for image in images] == [2]
    assert {(p.kind, p.image_id, p.annotation_id) for p in problems} == {("annotation_id", 5, 1), ("image_id", 5, None)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [3]}, r"a\.json, images\[0\]: no 'id' in 3"),
        ({"images": [IMAGE | {"width": "60"}]}, r"a\.json, images\[0\]: width is '60', not a whole number of pixels"),
        ({"images": [IMAGE | {"height": -1}]}, r"images\[0\]: height is '-1', not a whole number of pixels"),
        ({"images": [IMAGE | {"file_name": None}]}, r"images\[0\]: file_name is 'None', not text"),
        ({"images": [IMAGE, IMAGE | {"id": "5"}]}, "some image ids are numbers, others text"),
        ({"categories": [{"id": 1, "name": None}]}, r"categories\[0\]: name is 'None', not a name"),
        ({"categories": ["cat"]}, r"a\.json, categories\[0\]: no 'id' in cat"),
        ({"categories": [*CATEGORIES, {"id": "1", "name": "x"}]}, r"categories\[3\]: id is '1', not a whole number"),
    ],
)
def test_entries_out_of_format_are_named(write, changes, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(write([], **changes))


def test_a_file_out_of_format_is_named(write, tmp_path):
    spec = write([], categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}])
    with pytest.raises(ValueError, match=r"a\.json: category ids occur more than once: \[1\]"):
        load_dataset(spec)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: not a JSON file"):
        load_dataset(spec)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match=r"a\.json: no list 'images'; a COCO instances file has"):
        load_dataset(spec)


def test_missing_files_are_named(write, tmp_path):
    spec = write([])
    (tmp_path / "images").rmdir()
    with pytest.raises(FileNotFoundError, match="images: no such image folder"):
        load_dataset(spec)
    (tmp_path / "a.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.json: no such annotation file"):
        load_dataset(spec)
