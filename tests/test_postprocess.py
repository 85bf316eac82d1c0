"""Masks pasted into photos: against a slow, plain implementation, a true disc, and pycocotools' own encoder."""

import tracemalloc

import numpy as np
import pycocotools.mask as coco_mask
import pytest

from FasterRCNN.imaging.postprocess import paste_mask, paste_masks_to_rle


def slow_paste(mask, box, height, width, threshold=0.5):
    """Pixel by pixel, as the definition reads."""
    padded = np.pad(np.asarray(mask, np.float64), 1)
    x1, y1, x2, y2 = (float(v) for v in box)
    size = len(mask)
    out = np.zeros((height, width), np.uint8)
    for y in range(height):
        for x in range(width):
            u = (x + 0.5 - x1) / (x2 - x1) * size - 0.5 + 1
            v = (y + 0.5 - y1) / (y2 - y1) * size - 0.5 + 1
            if 0 <= u <= size + 1 and 0 <= v <= size + 1:
                i, j = min(int(v), size), min(int(u), size)
                a, b = v - i, u - j
                upper = padded[i, j] * (1 - b) + padded[i, j + 1] * b
                lower = padded[i + 1, j] * (1 - b) + padded[i + 1, j + 1] * b
                out[y, x] = upper * (1 - a) + lower * a >= threshold
    return out


def slow_padded_paste(mask, box, height, width, threshold=0.5):
    """Pixel by pixel as in Detectron: a mask with a ring of zeros, resized to whole pixels of the box with the ring."""
    size = len(mask) + 2
    padded = np.pad(np.asarray(mask, np.float64), 1)
    x1, y1, x2, y2 = (float(v) for v in box)
    ring_x, ring_y = (x2 - x1) / len(mask), (y2 - y1) / len(mask)
    left, top, right, bottom = int(x1 - ring_x), int(y1 - ring_y), int(x2 + ring_x), int(y2 + ring_y)
    out = np.zeros((height, width), np.uint8)
    for y in range(max(top, 0), min(bottom + 1, height)):
        for x in range(max(left, 0), min(right + 1, width)):
            u = np.clip((x - left + 0.5) * size / (right - left + 1) - 0.5, 0, size - 1)
            v = np.clip((y - top + 0.5) * size / (bottom - top + 1) - 0.5, 0, size - 1)
            i, j = min(int(v), size - 2), min(int(u), size - 2)
            a, b = v - i, u - j
            upper = padded[i, j] * (1 - b) + padded[i, j + 1] * b
            lower = padded[i + 1, j] * (1 - b) + padded[i + 1, j + 1] * b
            out[y, x] = upper * (1 - a) + lower * a > threshold
    return out


def disc_mask(cells):
    """The share of each cell of a box that its inscribed disc covers."""
    fine = 16
    centres = (np.arange(cells * fine) + 0.5) / (cells * fine) - 0.5
    inside = centres[:, None] ** 2 + centres**2 <= 0.25
    return inside.reshape(cells, fine, cells, fine).mean((1, 3)).astype(np.float32)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


BOXES = {
    "inside": (5.3, 7.8, 40.1, 31.6),
    "whole pixels": (8, 4, 36, 32),
    "smaller than the mask": (10.2, 10.7, 14.9, 13.1),
    "thin": (3.2, 20.1, 50.9, 21.3),
    "beyond two edges": (-12.5, -3.1, 20.4, 17.7),
    "beyond all edges": (-9.4, -7.7, 70.2, 60.3),
    "full height": (11.5, 0, 30.5, 40),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_paste_is_the_plain_definition(box, threshold):
    mask = np.random.default_rng(0).random((7, 7), np.float32)
    pasted = paste_mask(mask, np.array(box, np.float32), 40, 56, threshold)
    assert pasted.dtype == np.uint8 and pasted.any()
    np.testing.assert_array_equal(pasted, slow_paste(mask, np.float32(box), 40, 56, threshold))


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_padded_paste_is_detectron_s(box, threshold):
    mask, box = np.random.default_rng(0).random((7, 7), np.float32), np.array(box, np.float32)
    expected = slow_padded_paste(mask, box, 40, 56, threshold)
    pasted = paste_mask(mask, box, 40, 56, threshold, padded=True)
    assert pasted.any()
    np.testing.assert_array_equal(pasted, expected)
    (rle,) = paste_masks_to_rle(mask[None], box[None], 40, 56, threshold, padded=True)
    assert rle == coco_mask.encode(np.asfortranarray(expected))


def test_padded_paste_of_a_box_without_area_has_a_pixel():
    """int(5) … int(5) of the rows: one, at the middle of the mask; the columns from int(5 − 1) to int(9 + 1)."""
    pasted = paste_mask(np.ones((4, 4), np.float32), np.array([5, 5, 9, 5], np.float32), 20, 30, padded=True)
    assert sorted(zip(*np.nonzero(pasted))) == [(5, x) for x in range(5, 10)]


@pytest.mark.parametrize("box", [(60, 60, 70, 70), (-20, -20, -10, -10), (np.nan, 0, 5, 5), (0, 0, np.inf, 5)])
def test_padded_paste_of_boxes_without_a_pixel(box):
    assert not paste_mask(np.ones((14, 14), np.float32), np.array(box, np.float32), 20, 30, padded=True).any()


@pytest.mark.parametrize("cells", [14, 28])
@pytest.mark.parametrize("radius", [30.0, 57.3, 140.6])
def test_disc_comes_out_as_a_disc_unshifted(cells, radius):
    cx, cy, height, width = 157.3, 149.8, 300, 320
    pasted = paste_mask(disc_mask(cells), np.array([cx - radius, cy - radius, cx + radius, cy + radius]), height, width)
    y, x = np.mgrid[:height, :width] + 0.5
    assert iou(pasted, ((x - cx) ** 2 + (y - cy) ** 2 <= radius**2).astype(np.uint8)) >= 0.97
    assert x[pasted == 1].mean() == pytest.approx(cx, abs=0.1)
    assert y[pasted == 1].mean() == pytest.approx(cy, abs=0.1)


def test_full_mask_fills_its_box_to_the_pixel():
    pasted = paste_mask(np.ones((28, 28), np.float32), np.array([3, 5, 17, 11]), 20, 30)
    expected = np.zeros((20, 30), np.uint8)
    expected[5:11, 3:17] = 1
    np.testing.assert_array_equal(pasted, expected)


def random_masks(rng, count, cells):
    """Blobs rather than noise, some of them empty or full."""
    coarse = rng.random((count, 4, 4)).repeat(cells // 4, 1).repeat(cells // 4, 2).astype(np.float32)
    coarse[0], coarse[1] = 0, 1
    return coarse


def test_rle_is_what_pycocotools_encodes():
    rng = np.random.default_rng(1)
    for height, width in [(40, 56), (1, 50), (50, 1), (33, 20)]:
        corners = rng.uniform(-10, [width + 10, height + 10], (60, 2, 2))
        boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(np.float32)
        boxes[1:4] = [[0, 0, width, height], [-5, -5, width + 5, height + 5], [width / 3, 0, width, height]]
        masks = random_masks(rng, 60, 28)
        masks[2:4] = 1
        for rle, mask, box in zip(paste_masks_to_rle(masks, boxes, height, width), masks, boxes, strict=True):
            bitmap = paste_mask(mask, box, height, width)
            assert rle == coco_mask.encode(np.asfortranarray(bitmap))
            assert isinstance(rle["counts"], bytes)


@pytest.mark.parametrize(
    "box",
    [(5, 5, 5, 9), (9, 5, 5, 9), (60, 60, 70, 70), (-20, -20, -10, -10), (np.nan, 0, 5, 5), (0, 0, np.inf, 5)],
)
def test_boxes_without_a_pixel_give_a_valid_empty_mask(box):
    mask, box = np.ones((14, 14), np.float32), np.array(box, np.float32)
    assert not paste_mask(mask, box, 20, 30).any()
    (rle,) = paste_masks_to_rle(mask[None], box[None], 20, 30)
    assert rle == coco_mask.encode(np.zeros((20, 30), np.uint8, order="F"))


def test_no_detections():
    assert paste_masks_to_rle(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32), 20, 30) == []


def test_memory_follows_the_box_not_the_image():
    box = np.array([[4000, 3000, 4100, 3080]], np.float32)
    paste_masks_to_rle(np.ones((1, 28, 28)), box, 100, 100)
    tracemalloc.start()
    (rle,) = paste_masks_to_rle(np.ones((1, 28, 28)), box, 20000, 30000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 100 * 80 - 4 <= coco_mask.area(rle) <= 100 * 80  # the ring of zeros rounds the corners off
    assert peak < 1_000_000
