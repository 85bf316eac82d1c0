"""The drawn data set: COCO's layout, truth that agrees with pycocotools and the pictures, the same set for a seed."""

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from FasterRCNN.datasets.shapes import draw_shapes_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return draw_shapes_dataset(tmp_path_factory.mktemp("shapes"), num_train=40, num_val=6, size=192, seed=3)


@pytest.fixture(scope="module")
def coco(folder):
    return COCO(folder / "annotations/instances_train2017.json")


def test_layout_is_cocos(folder, coco):
    val = json.loads((folder / "annotations/instances_val2017.json").read_text())
    assert len(coco.imgs) == 40 and len(val["images"]) == 6
    assert {"info", "licenses", "categories", "images", "annotations"} <= val.keys()
    for split, images in (("train2017", coco.imgs.values()), ("val2017", val["images"])):
        assert sorted(path.name for path in (folder / split).iterdir()) == sorted(i["file_name"] for i in images)
        for image in images:
            assert cv2.imread(str(folder / split / image["file_name"])).shape == (192, 192, 3)
    assert not coco.imgs.keys() & {image["id"] for image in val["images"]}


def test_six_classes_with_ids_that_are_not_labels(coco):
    ids = coco.getCatIds()
    assert len(ids) == 6 and ids != list(range(1, 7))
    assert {a["category_id"] for a in coco.anns.values()} == set(ids)


def test_objects_per_image_and_sizes(coco):
    counts = [len(coco.getAnnIds(imgIds=i)) for i in coco.imgs]
    assert min(counts) >= 1 and max(counts) <= 6 and max(counts) >= 4
    longer = [max(a["bbox"][2:]) / 192 for a in coco.anns.values()]
    assert min(longer) < 0.15 and max(longer) > 0.35


def test_boxes_and_areas_are_those_of_the_polygons(coco):
    for annotation in coco.anns.values():
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in annotation["segmentation"]])
        x, y, width, height = annotation["bbox"]
        np.testing.assert_allclose([*points.min(0), *points.max(0)], [x, y, x + width, y + height])
        assert points.min() >= 0 and points.max() <= 192
        assert annotation["iscrowd"] == 0
        # pycocotools rasterises on its own grid: half a pixel along the outline is its right.
        assert coco.annToMask(annotation).sum() == pytest.approx(annotation["area"], abs=0.5 * (width + height) + 4)


def test_visible_parts_do_not_overlap(coco):
    for image_id in coco.imgs:
        masks = [coco.annToMask(a).astype(bool) for a in coco.imgToAnns[image_id]]
        interiors = [cv2.erode(m.astype(np.uint8), np.ones((3, 3), np.uint8)) for m in masks]
        assert np.sum(interiors, axis=0).max() <= 1


def test_polygons_lie_on_the_edges_of_the_picture(folder, coco):
    """Objects stand out from what surrounds them: just inside and just outside an outline, the colours differ."""
    differences = []
    for annotation in coco.anns.values():
        image = cv2.imread(str(folder / "train2017" / coco.imgs[annotation["image_id"]]["file_name"])).astype(float)
        mask = coco.annToMask(annotation)
        inside = cv2.erode(mask, np.ones((3, 3), np.uint8)).astype(bool)
        ring = (cv2.dilate(mask, np.ones((7, 7), np.uint8)) - cv2.dilate(mask, np.ones((3, 3), np.uint8))).astype(bool)
        differences.append(np.linalg.norm(image[inside].mean(0) - image[ring].mean(0)))
    assert np.median(differences) > 100


def test_colour_does_not_tell_the_class(folder, coco):
    """The mean colours of the classes are alike compared with the spread of colours within one."""
    colours = {i: [] for i in coco.getCatIds()}
    for annotation in coco.anns.values():
        image = cv2.imread(str(folder / "train2017" / coco.imgs[annotation["image_id"]]["file_name"]))
        colours[annotation["category_id"]].append(image[coco.annToMask(annotation).astype(bool)].mean(0))
    means = np.array([np.mean(c, axis=0) for c in colours.values()])
    within = np.mean([np.std(c, axis=0) for c in colours.values()])
    assert means.std(axis=0).mean() < 0.6 * within


def test_same_seed_same_files_and_a_larger_set_begins_with_the_smaller(folder, tmp_path):
    again = draw_shapes_dataset(tmp_path / "again", num_train=3, num_val=1, size=192, seed=3)
    other = draw_shapes_dataset(tmp_path / "other", num_train=3, num_val=1, size=192, seed=4)
    for path in sorted((again / "train2017").iterdir()):
        assert path.read_bytes() == (folder / "train2017" / path.name).read_bytes()
        assert path.read_bytes() != (other / "train2017" / path.name).read_bytes()


@pytest.mark.parametrize(
    "wrong, message", [({"size": 32}, "at least 64"), ({"num_val": 0}, "0 pictures wanted for val2017")]
)
def test_wrong_arguments_are_named(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        draw_shapes_dataset(tmp_path, **{"num_train": 1, "num_val": 1, **wrong})
