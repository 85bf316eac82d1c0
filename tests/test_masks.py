"""Masks under affine maps, compared with pycocotools' masks, NumPy's flips and OpenCV's warping of their bitmaps."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from FasterRCNN.masks import Masks

WIDTH, HEIGHT = 200, 160
SIZE = WIDTH, HEIGHT
FINE = 4
SQUARE = [np.float32([[20, 20], [80, 20], [80, 80], [20, 80]])]


def make_polygons(rng, parts=1, centre=None):
    polygons = []
    for _ in range(parts):
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        radii = rng.uniform(15, 35) * (1 + 0.25 * np.sin(rng.integers(2, 5) * angles + rng.uniform(0, 6)))
        place = rng.uniform(0.2, 0.8, 2) * SIZE if centre is None else centre
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
        polygons.append(np.clip(around + place, 0, SIZE).astype(np.float32))
    return polygons


def rle_of(polygons, width=WIDTH, height=HEIGHT):
    flat = [polygon.ravel().tolist() for polygon in polygons]
    return mask_utils.merge(mask_utils.frPyObjects(flat, height, width))


def make_masks(form, number=12, seed=0):
    rng = np.random.default_rng(seed)
    objects = [make_polygons(rng, 1 + i % 3) for i in range(number)]
    return Masks(objects if form == "polygons" else [rle_of(polygons) for polygons in objects], SIZE)


def iou(a, b):
    return np.logical_and(a, b).sum() / max(1, np.logical_or(a, b).sum())


def pixel_box(bitmap):
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(bitmap, np.uint8))
    return np.array([x, y, x + width, y + height])


def fine_bitmap(segmentation):
    """The mask drawn by pycocotools, FINE times larger."""
    if isinstance(segmentation, dict):
        return np.kron(mask_utils.decode(segmentation), np.ones((FINE, FINE), np.uint8))
    return mask_utils.decode(rle_of([FINE * polygon for polygon in segmentation], FINE * WIDTH, FINE * HEIGHT))


def warped(fine, matrix, size):
    """A bitmap FINE times larger than its image, moved by a matrix for the image's continuous coordinates."""
    linear, offset = matrix[:, :2], matrix[:, 2] * FINE
    centred = np.column_stack([linear, offset + linear @ (0.5, 0.5) - 0.5])
    moved = cv2.warpAffine(fine * np.uint8(255), centred, (size[0] * FINE, size[1] * FINE), flags=cv2.INTER_LINEAR)
    return cv2.resize(moved, size, interpolation=cv2.INTER_AREA) > 127


def rotation(degrees, about, to, factor=1.0):
    angle = np.deg2rad(degrees)
    linear = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.column_stack([linear, np.array(to) - linear @ about])


MIRROR = np.array([[-1.0, 0, WIDTH], [0, 1, 0]])
MAPS = {
    "mirror": (MIRROR, SIZE),
    "upside down": (np.array([[1.0, 0, 0], [0, -1, HEIGHT]]), SIZE),
    "quarter turn": (np.array([[0.0, -1, HEIGHT], [1, 0, 0]]), (HEIGHT, WIDTH)),
    "larger": (np.array([[1.7, 0, 0], [0, 1.6, 0]]), (340, 256)),
    "smaller": (np.array([[0.6, 0, 0], [0, 0.7, 0]]), (120, 112)),
    "crop": (np.array([[1.0, 0, -60], [0, 1, -40]]), (90, 70)),
    "pad": (np.array([[1.0, 0, 30], [0, 1, 50]]), (300, 280)),
    "rotation": (rotation(25, (WIDTH / 2, HEIGHT / 2), (130, 120)), (260, 240)),
    "rotation of a part": (rotation(-70, (WIDTH / 2, HEIGHT / 2), (60, 50), 1.3), (120, 100)),
}


@pytest.mark.parametrize("form", ["polygons", "rle"])
def test_bitmaps_are_those_of_pycocotools(form):
    masks = make_masks(form)
    bitmaps = masks.bitmaps()
    assert bitmaps.shape == (12, HEIGHT, WIDTH) and bitmaps.dtype == np.uint8
    expected = [mask_utils.decode(s if isinstance(s, dict) else rle_of(s)) for s in masks.segmentations]
    assert min(iou(*pair) for pair in zip(bitmaps, expected)) > (0.97 if form == "polygons" else 0.9999)
    np.testing.assert_array_equal(np.asarray(masks), bitmaps)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("form", ["polygons", "rle"])
def test_a_mask_follows_as_its_bitmap_does(form, name):
    matrix, size = MAPS[name]
    masks = make_masks(form, number=20)
    moved = masks.affine(matrix, size)
    assert moved.image_size == size
    bitmaps, boxes = moved.bitmaps(), moved.boxes()
    assert boxes.dtype == np.float32
    num_large = 0
    for segmentation, bitmap, box in zip(masks.segmentations, bitmaps, boxes):
        expected = warped(fine_bitmap(segmentation), matrix, size)
        if expected.sum() > 20 * 20:
            num_large += 1
            assert iou(bitmap, expected) > 0.97
            assert np.abs(box - pixel_box(bitmap)).max() <= 1
    assert num_large > 8


@pytest.mark.parametrize("form", ["polygons", "rle"])
def test_crops_follow_too(form):
    matrix, size = MAPS["rotation"]
    moved = make_masks(form).affine(matrix, size)
    boxes = moved.boxes()
    for crop, box, bitmap in zip(moved.crops(boxes, 48), boxes, moved.bitmaps()):
        x, y = (box[:2, None] + (np.arange(48) + 0.5) / 48 * (box[2:] - box[:2])[:, None]).astype(int)
        assert iou(crop, bitmap[np.ix_(y, x)]) > 0.95


def test_a_pixel_is_set_when_its_centre_lies_inside():
    star = np.float64([[100, 10], [150, 150], [20, 60], [180, 60], [50, 150]])  # its middle is outside: even-odd
    ring = [np.float64([[10, 10], [60.4, 10], [60.4, 40.6], [10, 40.6]]), np.float64([[55, 20], [90, 20], [90, 30]])]
    for polygons in ([star], ring):
        (bitmap,) = Masks([polygons], SIZE).bitmaps()
        y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
        inside = np.zeros((HEIGHT, WIDTH), bool)
        for polygon in polygons:
            crossings = np.zeros((HEIGHT, WIDTH), int)
            for (x1, y1), (x2, y2) in zip(polygon, np.roll(polygon, 1, axis=0)):
                if y1 != y2:
                    crossings += ((y1 > y) != (y2 > y)) & (x1 + (y - y1) / (y2 - y1) * (x2 - x1) <= x)
            inside |= crossings % 2 == 1
        np.testing.assert_array_equal(bitmap, inside)


def test_mirrored_and_turned_bitmaps_are_exact():
    masks = make_masks("rle")
    bitmaps = masks.bitmaps()
    np.testing.assert_array_equal(masks.affine(*MAPS["mirror"]).bitmaps(), bitmaps[:, :, ::-1])
    np.testing.assert_array_equal(masks.affine(*MAPS["upside down"]).bitmaps(), bitmaps[:, ::-1])
    np.testing.assert_array_equal(masks.affine(*MAPS["quarter turn"]).bitmaps(), np.rot90(bitmaps, -1, axes=(1, 2)))
    np.testing.assert_array_equal(masks.affine(*MAPS["crop"]).bitmaps(), bitmaps[:, 40:110, 60:150])


def test_a_row_of_maps_loses_nothing():
    """Shrunk to a tenth and enlarged again: resampled at each step, nothing would be left of the outline."""
    small, large = np.array([[0.1, 0, 0], [0, 0.1, 0]]), np.array([[10.0, 0, 0], [0, 10, 0]])
    for form in ("polygons", "rle"):
        masks = make_masks(form)
        again = masks.affine(small, (20, 16)).affine(large, SIZE)
        np.testing.assert_allclose(again.boxes(), masks.boxes(), atol=1e-3)
        assert min(iou(*pair) for pair in zip(again.bitmaps(), masks.bitmaps())) > 0.995


@pytest.mark.parametrize("form", ["polygons", "rle"])
def test_what_a_crop_cut_off_does_not_come_back(form):
    cropped = make_masks(form).affine(*MAPS["crop"])
    cropped = cropped[cropped.boxes().any(axis=1)]
    assert len(cropped) > 8
    padded = cropped.affine([[1, 0, 60], [0, 1, 40]], SIZE)
    bitmaps = padded.bitmaps()
    expected = np.zeros_like(bitmaps)
    expected[:, 40:110, 60:150] = cropped.bitmaps()
    np.testing.assert_array_equal(bitmaps, expected)
    np.testing.assert_allclose(padded.boxes(), cropped.boxes() + (60, 40, 60, 40), atol=1e-3)
    crops = padded.crops(np.tile(np.float32([0, 0, WIDTH, HEIGHT]), (len(padded), 1)), 40)
    assert not crops[:, :10].any() and not crops[:, :, :12].any() and crops.any()


def test_a_crop_then_a_rotation_keeps_the_slanted_edge():
    everything = Masks([[np.float32([[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]])]], SIZE)
    matrix = rotation(30, (45, 35), (60, 60))
    turned = everything.affine(*MAPS["crop"]).affine(matrix, (120, 120))
    expected = warped(np.ones((70 * FINE, 90 * FINE), np.uint8), matrix, (120, 120))
    assert iou(turned.bitmaps()[0], expected) > 0.99
    assert np.abs(turned.boxes()[0] - pixel_box(expected)).max() <= 1


def test_the_box_of_a_cut_polygon_is_that_of_what_is_left():
    fork = [np.float32([[10, 10], [90, 10], [90, 30], [40, 30], [40, 50], [70, 50], [70, 70], [10, 70]])]
    crop_right_of = Masks([fork], SIZE).affine([[1, 0, -50], [0, 1, 0]], (100, 100))
    np.testing.assert_allclose(crop_right_of.boxes(), [[0, 10, 40, 70]])
    np.testing.assert_allclose(crop_right_of.affine([[1, 0, 0], [0, 1, -35]], (100, 60)).boxes(), [[0, 15, 20, 35]])
    inside = Masks([fork], SIZE).affine([[1, 0, -12], [0, 1, -12]], (5, 6))
    np.testing.assert_allclose(inside.boxes(), [[0, 0, 5, 6]])
    assert not Masks([fork], SIZE).affine([[1, 0, -45], [0, 1, -35]], (50, 10)).boxes().any()


def test_the_given_segmentations_stay_until_something_moves():
    segmentations = [SQUARE, rle_of(SQUARE), None, []]
    masks = Masks(segmentations, SIZE)
    same = masks.affine(np.eye(2, 3), SIZE)
    assert all(a is b for a, b in zip(same.segmentations, segmentations))
    np.testing.assert_array_equal(masks.exist(), [True, True, False, False])
    polygons, rle, none, empty = masks.affine(MIRROR, SIZE).segmentations
    np.testing.assert_array_equal(polygons, [[[180, 20], [120, 20], [120, 80], [180, 80]]])
    np.testing.assert_array_equal(mask_utils.decode(rle), mask_utils.decode(segmentations[1])[:, ::-1])
    assert none is None and empty == []


def test_a_cut_polygon_becomes_an_rle():
    masks = Masks([SQUARE], SIZE).affine([[1, 0, -50], [0, 1, -60]], (40, 50))
    (rle,) = masks.segmentations
    expected = np.zeros((50, 40), np.uint8)
    expected[:20, :30] = 1
    np.testing.assert_array_equal(mask_utils.decode(rle), expected)


def test_parts_of_a_polygon_stay_apart():
    rng = np.random.default_rng(3)
    polygons = make_polygons(rng, 1, (50, 50)) + make_polygons(rng, 1, (140, 100))
    (moved,) = Masks([polygons], SIZE).affine(MIRROR, SIZE).segmentations
    assert len(moved) == 2
    for before, after in zip(polygons, moved):
        np.testing.assert_allclose(after, before * (-1, 1) + (WIDTH, 0), atol=1e-4)


def test_bitmaps_come_back():
    bitmaps = np.random.default_rng(0).integers(0, 2, (3, 7, 9)).astype(np.uint8)
    for given in (bitmaps, bitmaps.astype(bool), bitmaps * 200):
        masks = Masks.from_bitmaps(given)
        assert masks.image_size == (9, 7)
        np.testing.assert_array_equal(masks.bitmaps(), bitmaps)
        np.testing.assert_array_equal(masks.boxes(), [pixel_box(bitmap) for bitmap in bitmaps])


def test_indexing_and_concatenation():
    masks = make_masks("polygons", number=5)
    boxes = masks.boxes()
    for index, rows in [(1, [1]), (-1, [4]), ([3, 0], [3, 0]), (np.array([2, 2]), [2, 2]), (slice(1, 4), [1, 2, 3]),
                        (np.array([True, False, False, True, False]), [0, 3]), ([False] * 5, []), ([], []),
                        (np.int64(2), [2])]:
        part = masks[index]
        assert isinstance(part, Masks) and len(part) == len(rows)
        np.testing.assert_array_equal(part.boxes(), boxes[rows].reshape(-1, 4))
    assert [len(one) for one in masks] == [1] * 5
    with pytest.raises(IndexError):
        masks[5]
    with pytest.raises(IndexError):
        masks[np.array([True, False])]
    mirrored = masks.affine(MIRROR, SIZE)
    both = Masks.concatenate([masks, mirrored])
    np.testing.assert_array_equal(both.boxes(), np.concatenate([boxes, mirrored.boxes()]))
    np.testing.assert_allclose(both.affine(MIRROR, SIZE).boxes()[5:], boxes, atol=1e-4)


def test_no_objects_and_objects_without_mask():
    none = Masks([], SIZE)
    assert len(none) == 0 and none.boxes().shape == (0, 4) and none.bitmaps().shape == (0, HEIGHT, WIDTH)
    assert none.affine(*MAPS["rotation"]).bitmaps().shape == (0, 240, 260)
    assert none.segmentations == [] and none.crops(np.zeros((0, 4)), 28).shape == (0, 28, 28)
    assert len(Masks.from_bitmaps(np.zeros((0, 4, 5), bool))) == 0
    empty = Masks([None, [], rle_of([np.float32([[0, 0], [0, 0], [0, 0]])])], SIZE)
    for masks in (empty, empty.affine(*MAPS["rotation"])):
        assert not masks.boxes().any() and not masks.bitmaps().any()
        assert not masks.crops(np.tile(np.float32([0, 0, 5, 5]), (3, 1)), 28).any()
    assert not make_masks("rle", number=1).crops(np.float32([[30, 20, 30, 60]]), 28).any()
    gone = make_masks("rle").affine([[1, 0, 500], [0, 1, 0]], SIZE)
    assert not gone.boxes().any() and not gone.affine([[1, 0, -500], [0, 1, 0]], SIZE).bitmaps().any()


def test_what_cannot_be_used_is_named():
    with pytest.raises(ValueError, match=r"mask 1: its RLE is of size \[160, 200\], the image of \[200, 160\] "):
        Masks([None, rle_of(SQUARE)], (160, 200))
    with pytest.raises(ValueError, match=r"N×H×W, not of shape \(3, 4\)"):
        Masks.from_bitmaps(np.zeros((3, 4)))
    with pytest.raises(ValueError, match=r"one image size are wanted, not of \[\(5, 4\), \(200, 160\)\]"):
        Masks.concatenate([Masks([], SIZE), Masks([], (5, 4))])
