"""Flips, mask crops and sizes, compared with pycocotools' masks at full resolution."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from FasterRCNN.imaging.augment import MASK_CELLS, crop_masks, flip_boxes, flip_masks, pack_mask, unpack_mask
from FasterRCNN.imaging.resize import resize_image, resize_scale, resized_shape

HEIGHT, WIDTH = 300, 400


def make_polygons(rng, parts=1):
    """A few outlines like pebbles."""
    polygons = []
    for _ in range(parts):
        angles = np.sort(rng.random(12)) * 2 * np.pi
        radii = rng.uniform(40, 60, (12, 1))
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii
        polygons.append((around + rng.uniform(0.25, 0.75, 2) * (WIDTH, HEIGHT)).astype(np.float32))
    return polygons


def box_of(polygons):
    points = np.concatenate(polygons)
    return np.concatenate([points.min(0), points.max(0)])


def rle_of(polygons):
    flat = [polygon.ravel().tolist() for polygon in polygons]
    return mask_utils.merge(mask_utils.frPyObjects(flat, HEIGHT, WIDTH))


def at_full_size(crop, box):
    """The crop's value at the centre of each pixel of the image, 0 outside the box."""
    x, y = (np.arange(WIDTH) + 0.5 - box[0]) / (box[2] - box[0]), (np.arange(HEIGHT) + 0.5 - box[1]) / (box[3] - box[1])
    inside = np.ix_((y >= 0) & (y < 1), (x >= 0) & (x < 1))
    cells = [(part[(part >= 0) & (part < 1)] * MASK_CELLS).astype(int) for part in (y, x)]
    full = np.zeros((HEIGHT, WIDTH), np.uint8)
    full[inside] = crop[np.ix_(*cells)]
    return full


def iou(a, b):
    return np.logical_and(a, b).sum() / np.logical_or(a, b).sum()


@pytest.mark.parametrize("form", ["polygons", "rle"])
def test_crops_hold_the_mask_that_pycocotools_draws(form):
    rng = np.random.default_rng(0)
    objects = [make_polygons(rng, parts) for parts in [1] * 20 + [2] * 10 + [3] * 5]
    boxes = np.array([box_of(polygons) for polygons in objects])
    segmentations = objects if form == "polygons" else [rle_of(polygons) for polygons in objects]
    crops = crop_masks(segmentations, boxes)
    assert crops.shape == (35, MASK_CELLS, MASK_CELLS) and crops.dtype == np.uint8
    ious = [
        iou(at_full_size(crop, box), mask_utils.decode(rle_of(polygons)))
        for crop, box, polygons in zip(crops, boxes, objects, strict=True)
    ]
    assert np.mean(ious) > 0.98
    assert min(ious) > 0.95


def test_a_cell_is_set_when_its_centre_lies_inside():
    box = np.float32([10, 20, 10 + MASK_CELLS, 20 + MASK_CELLS])
    for edge, columns in [(40.3, 30), (40.7, 31)]:
        polygon = np.float32([[10, 20], [edge, 20], [edge, 132], [10, 132]])
        (crop,) = crop_masks([[polygon]], box[None])
        np.testing.assert_array_equal(crop, np.arange(MASK_CELLS)[None].repeat(MASK_CELLS, 0) < columns)


def test_an_rle_is_cropped_without_a_shift():
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    bitmap[50:60, 100:120] = 1
    (crop,) = crop_masks([mask_utils.encode(bitmap)], np.float32([[95, 45, 125, 65]]))
    x, y = (np.arange(MASK_CELLS) + 0.5) / MASK_CELLS * 30 + 95, (np.arange(MASK_CELLS) + 0.5) / MASK_CELLS * 20 + 45
    expected = np.outer((y > 50) & (y < 60), (x > 100) & (x < 120))
    assert iou(crop, expected) > 0.99


def test_a_box_smaller_than_its_object_cuts_it():
    polygon = np.float32([[0, 0], [400, 0], [400, 300], [0, 300]])
    slivers = np.float32([[10, 10, 60, 60], [100, 0, 100.01, 300], [0, 0, 400, 0.001]])
    assert (crop_masks([[polygon]] * 3, slivers) == 1).all()


def test_no_objects_and_objects_without_mask():
    assert crop_masks([], np.zeros((0, 4), np.float32)).shape == (0, MASK_CELLS, MASK_CELLS)
    assert not crop_masks([None], np.float32([[0, 0, 5, 5]])).any()


def test_flipped_crops_are_the_crops_of_the_flipped_object():
    rng = np.random.default_rng(1)
    objects = [make_polygons(rng, 2) for _ in range(10)]
    boxes = np.array([box_of(polygons) for polygons in objects])
    mirrored = [
        [np.float32([WIDTH, 0]) + polygon * np.float32([-1, 1]) for polygon in polygons] for polygons in objects
    ]
    flipped_boxes = flip_boxes(boxes, WIDTH)
    np.testing.assert_allclose(flipped_boxes, [box_of(polygons) for polygons in mirrored], atol=1e-3)
    assert iou(flip_masks(crop_masks(objects, boxes)), crop_masks(mirrored, flipped_boxes)) > 0.995


def test_flipping_twice_changes_nothing():
    boxes = np.float32([[1, 2, 30, 40], [0, 0, 100, 5]])
    np.testing.assert_array_equal(flip_boxes(boxes, 100)[1], boxes[1])
    np.testing.assert_array_equal(flip_boxes(flip_boxes(boxes, 100), 100), boxes)
    assert flip_boxes(np.zeros((0, 4), np.float32), 100).shape == (0, 4)


def test_packed_crops_come_back():
    crops = np.random.default_rng(0).integers(0, 2, (2, 3, MASK_CELLS, MASK_CELLS)).astype(np.uint8)
    packed = pack_mask(crops)
    assert packed.shape == (2, 3, MASK_CELLS, MASK_CELLS // 8) and packed.dtype == np.uint8
    np.testing.assert_array_equal(unpack_mask(packed), crops)
    assert pack_mask(np.eye(MASK_CELLS, dtype=np.uint8))[0, 0] == 0b10000000
    assert unpack_mask(pack_mask(crops[:, :0])).shape == (2, 0, MASK_CELLS, MASK_CELLS)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((640, 480), (1067, 800)), ((427, 1000), (569, 1333)), ((1, 3000), (1, 1333))],
)
def test_the_short_edge_rules_until_the_long_one_is_too_long(size, expected):
    assert resized_shape(*size, 800, 1333) == expected
    assert resize_image(np.zeros((*size, 3), np.uint8), 800, 1333).shape == (*expected, 3)
    assert resize_scale(*size, 800, 1333) == pytest.approx(max(expected) / max(size), rel=1e-3)
