"""Mask crops and sizes, compared with pycocotools' masks at full resolution."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from FasterRCNN.imaging.mask_crops import MASK_CELLS, crop_masks, pack_mask, unpack_mask
from FasterRCNN.imaging.resize import resize_image, resize_scale, resized_shape
from FasterRCNN.masks import Masks

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


def crops_of(segmentations, boxes):
    return crop_masks(Masks(segmentations, (WIDTH, HEIGHT)), boxes)


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
    crops = crops_of(segmentations, boxes)
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
        (crop,) = crops_of([[polygon]], box[None])
        np.testing.assert_array_equal(crop, np.arange(MASK_CELLS)[None].repeat(MASK_CELLS, 0) < columns)


def test_an_rle_is_cropped_without_a_shift():
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    bitmap[50:60, 100:120] = 1
    (crop,) = crops_of([mask_utils.encode(bitmap)], np.float32([[95, 45, 125, 65]]))
    x, y = (np.arange(MASK_CELLS) + 0.5) / MASK_CELLS * 30 + 95, (np.arange(MASK_CELLS) + 0.5) / MASK_CELLS * 20 + 45
    expected = np.outer((y > 50) & (y < 60), (x > 100) & (x < 120))
    assert iou(crop, expected) > 0.99


def test_a_box_smaller_than_its_object_cuts_it():
    polygon = np.float32([[0, 0], [400, 0], [400, 300], [0, 300]])
    slivers = np.float32([[10, 10, 60, 60], [100, 0, 100.01, 300], [0, 0, 400, 0.001]])
    assert (crops_of([[polygon]] * 3, slivers) == 1).all()


def test_no_objects_and_objects_without_mask():
    assert crops_of([], np.zeros((0, 4), np.float32)).shape == (0, MASK_CELLS, MASK_CELLS)
    assert not crops_of([None], np.float32([[0, 0, 5, 5]])).any()


def test_crops_of_a_resized_image_are_the_same():
    rng = np.random.default_rng(2)
    objects = [make_polygons(rng, 2) for _ in range(5)]
    boxes = np.array([box_of(polygons) for polygons in objects])
    for segmentations in (objects, [rle_of(polygons) for polygons in objects]):
        masks = Masks(segmentations, (WIDTH, HEIGHT))
        resized = masks.affine([[1.67, 0, 0], [0, 1.66, 0]], (668, 498))
        assert iou(crop_masks(resized, boxes * (1.67, 1.66, 1.67, 1.66)), crop_masks(masks, boxes)) > 0.999


def test_flipped_crops_are_the_crops_of_the_flipped_object():
    rng = np.random.default_rng(1)
    objects = [make_polygons(rng, 2) for _ in range(10)]
    boxes = np.array([box_of(polygons) for polygons in objects])
    masks = Masks(objects, (WIDTH, HEIGHT))
    flipped = masks.affine([[-1, 0, WIDTH], [0, 1, 0]], (WIDTH, HEIGHT))
    flipped_boxes = np.stack([WIDTH - boxes[:, 2], boxes[:, 1], WIDTH - boxes[:, 0], boxes[:, 3]], axis=1)
    assert iou(crop_masks(flipped, flipped_boxes), crop_masks(masks, boxes)[..., ::-1]) > 0.995


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
