"""PREPROC.RESIZE and PREPROC.SIZE_ROUNDING: an image at the network's input size, against the formulas, pixel by pixel.

The default sizes are tested in test_mask_crops.py.
"""

import numpy as np
import pytest

from FasterRCNN.imaging.resize import image_dtype, resize_image, resized_shape


def image_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def weights(old, new, *, antialias):
    """new×old: how much of each old pixel is in a new one, by a triangle around the new one's centre."""
    scale = old / new
    support = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(new) + 0.5) * scale
    if not antialias:
        centres = np.clip(centres, 0.5, old - 0.5)
    triangle = np.maximum(1 - np.abs((np.arange(old) + 0.5) - centres[:, None]) / support, 0)
    return triangle / triangle.sum(axis=1, keepdims=True)


def slow_resize(image, shape, *, antialias):
    rows, columns = (weights(old, new, antialias=antialias) for old, new in zip(image.shape[:2], shape[:2]))
    return np.einsum("yh,hwc,xw->yxc", rows, image.astype(np.float64), columns)


@pytest.mark.parametrize("size", [(30, 41), (55, 32), (100, 90)])
def test_float_is_bilinear_without_rounding(size):
    image = image_of(*size)
    resized = resize_image(image, 45, 70, method="float", rounding="floor")
    assert resized.dtype == image_dtype("float") == np.float32
    assert resized == pytest.approx(slow_resize(image, resized.shape, antialias=False), abs=0.02)


@pytest.mark.parametrize("size", [(30, 41), (55, 32), (100, 90), (200, 170)])
def test_pillow_averages_where_it_shrinks(size):
    image = image_of(*size)
    resized = resize_image(image, 45, 70, method="pillow")
    assert resized.dtype == image_dtype("pillow") == np.uint8
    assert resized == pytest.approx(slow_resize(image, resized.shape, antialias=True), abs=1.6)


@pytest.mark.parametrize("method", ["opencv", "pillow", "float"])
def test_an_image_of_the_right_size_stays_as_it_is(method):
    image = image_of(45, 60)
    assert np.array_equal(resize_image(image, 45, 70, method=method), image)


@pytest.mark.parametrize(("size", "expected"), [
    ((480, 640), (800, 1066)), ((640, 480), (1066, 800)), ((427, 640), (800, 1199)), ((500, 1000), (666, 1333)),
    ((1, 3000), (1, 1333)),
])
def test_sizes_by_floor_are_torchvision_s(size, expected):
    """⌊side · min(800 / shorter, 1333 / longer)⌋."""
    assert resized_shape(*size, 800, 1333, "floor") == expected


@pytest.mark.parametrize(("size", "expected"), [
    ((480, 640), (800, 1066)),  # ⌊800 · 640 / 480⌋
    ((640, 480), (1066, 800)),
    ((500, 1000), (666, 1332)),  # round(1333 · 500 / 1000) = 666, halves to even; 2 · 666
    ((300, 1000), (400, 1333)),  # 399.9; ⌊400 · 1000 / 300⌋
    ((700, 700), (800, 800)),
    ((1, 3000), (1, 3000)),  # 0.44, but a side has a pixel
])
def test_sizes_by_the_short_side_are_those_of_maskrcnn_benchmark(size, expected):
    assert resized_shape(*size, 800, 1333, "short") == expected
