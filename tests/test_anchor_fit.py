"""The fit of anchors against anchors laid out one by one, and anchors found again for boxes drawn from known ones."""

from config import default_config

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from test_statistics import make_dataset

from FasterRCNN.datasets.anchor_fit import best_anchor_iou, fit_of_anchors, format_anchor_fits, suggest_anchors
from FasterRCNN.datasets.statistics import dataset_statistics

FPN_STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)
DEFAULT_SIZES = (32, 64, 128, 256, 512)


def drawn_statistics(sizes, *, canvas=1000, aspect_ratios=(1.0,), seed=0):
    """Statistics of images of canvas² with one box each at a place of chance, that need no resizing."""
    random = np.random.default_rng(seed)
    images = []
    for size in sizes:
        ratio = random.choice(aspect_ratios)
        extent = np.array([size / np.sqrt(ratio), size * np.sqrt(ratio)])
        corner = random.uniform(0, canvas - extent)
        images.append((canvas, canvas, [((*corner, *(corner + extent)), 1, "")]))
    return dataset_statistics(make_dataset(images), short_edge=canvas, max_size=canvas)



def laid_out_anchors(height, width, sizes, ratios, strides):
    """All anchors inside an image, x, y, width, height."""
    anchors = []
    for size, stride in zip(sizes, strides, strict=True):
        for ratio in ratios:
            w, h = size * ratio**-0.5, size * ratio**0.5
            for x in range(0, width, stride):
                for y in range(0, height, stride):
                    if x - w / 2 >= 0 and y - h / 2 >= 0 and x + w / 2 <= width and y + h / 2 <= height:
                        anchors.append([x - w / 2, y - h / 2, w, h])
    return anchors


@pytest.mark.parametrize(
    ("sizes", "strides"), [((9, 21, 50), (4, 8, 16)), ((12, 20, 33), (16, 16, 16)), ((300,), (16,))]
)
def test_the_best_iou_is_that_of_all_anchors_laid_out(sizes, strides):
    random = np.random.default_rng(1)
    canvases = random.integers(40, 120, (60, 2)).astype(np.int32)
    corners = np.sort(random.uniform(0, 1, (60, 2, 2)), axis=1) * canvases[:, None, ::-1]
    corners[:3] = [[[0, 0], [3, 4]], [[0, 0], [39, 39]], [[30, 30], [40, 40]]]
    boxes = corners.reshape(-1, 4)
    ious = best_anchor_iou(boxes, canvases, sizes=sizes, ratios=RATIOS, strides=strides)
    for (x1, y1, x2, y2), (height, width), iou in zip(boxes, canvases, ious, strict=True):
        anchors = laid_out_anchors(height, width, sizes, RATIOS, strides)
        box = [[x1, y1, x2 - x1, y2 - y1]]
        wanted = mask_utils.iou(np.array(anchors), np.array(box), [0]).max() if anchors else 0
        assert iou == pytest.approx(wanted, abs=1e-6)


def test_an_anchor_fits_itself_on_its_grid_and_less_between():
    boxes = np.array([[48, 48, 80, 80], [56, 56, 88, 88]], np.float32)  # centres 64 and 72
    ious = best_anchor_iou(boxes, np.full((2, 2), 128), sizes=[32], ratios=[1], strides=[16])
    np.testing.assert_allclose(ious, [1, 24 * 24 / (2 * 32 * 32 - 24 * 24)], rtol=1e-6)


def test_recalls_are_shares_of_the_boxes():
    statistics = drawn_statistics([32, 32, 32, 500])
    fit = fit_of_anchors(statistics, sizes=[32], ratios=[1], strides=[1])
    assert fit.recalls == (0.75, 0.75)
    assert fit.mean_iou == pytest.approx(0.75 + 0.25 * (32 / 500) ** 2, abs=0.03)


@pytest.mark.parametrize(
    ("true_sizes", "strides"), [((24, 50, 100, 190, 400), FPN_STRIDES), ((90, 150, 210, 300, 420), (16,) * 5)]
)
def test_sizes_that_were_drawn_are_found(true_sizes, strides):
    random = np.random.default_rng(3)
    statistics = drawn_statistics(random.choice(true_sizes, 300) * random.uniform(0.97, 1.03, 300))
    fit, _ = suggest_anchors(statistics, ratios=(1.0,), strides=strides)
    np.testing.assert_allclose(fit.sizes, true_sizes, rtol=0.12)
    assert fit.recalls[0] == 1
    assert fit == suggest_anchors(statistics, ratios=(1.0,), strides=strides)[0]
    assert fit == fit_of_anchors(statistics, sizes=fit.sizes, ratios=(1.0,), strides=strides)


def test_ratios_that_were_drawn_are_found():
    statistics = drawn_statistics(np.geomspace(40, 200, 300), aspect_ratios=(0.25, 1, 4), canvas=1200)
    with_given, with_own = suggest_anchors(statistics, ratios=(0.9, 1, 1.1), strides=FPN_STRIDES)
    np.testing.assert_allclose(with_own.ratios, (0.25, 1, 4), rtol=0.05)
    assert with_given.ratios == (0.9, 1, 1.1)
    assert with_own.recalls[0] > with_given.recalls[0] + 0.3


@pytest.mark.parametrize("size", [2, 40, 990])
def test_one_object(size):
    statistics = drawn_statistics([size])
    for fit in suggest_anchors(statistics, ratios=RATIOS, strides=FPN_STRIDES):
        assert len(fit.sizes) == 5 and len(fit.ratios) == 3
        assert all(small < large for small, large in zip(fit.sizes, fit.sizes[1:], strict=False))
        assert all(small < large for small, large in zip(fit.ratios, fit.ratios[1:], strict=False))
        assert fit.recalls[0] == (size > 2)  # no anchor is that small


def test_what_is_suggested_is_no_worse_and_can_be_pasted():
    random = np.random.default_rng(4)
    statistics = drawn_statistics(random.uniform(8, 40, 200), canvas=200)
    current = fit_of_anchors(statistics, sizes=DEFAULT_SIZES, ratios=RATIOS, strides=FPN_STRIDES)
    suggested = suggest_anchors(statistics, ratios=RATIOS, strides=FPN_STRIDES)
    assert suggested[0].recalls[0] > current.recalls[0]
    text = format_anchor_fits(current, suggested)
    (line,) = [line for line in text.splitlines() if line.startswith("other sizes:")]
    cfg = default_config()
    cfg.update_given(None, [line.removeprefix("other sizes: ")])
    assert tuple(cfg.RPN.ANCHOR_SIZES) == suggested[0].sizes
    assert f"{current.recalls[0]:.1%}" in text


def test_anchors_that_fit_are_kept():
    statistics = drawn_statistics(np.repeat(DEFAULT_SIZES[:4], 20))
    current = fit_of_anchors(statistics, sizes=DEFAULT_SIZES, ratios=RATIOS, strides=FPN_STRIDES)
    assert format_anchor_fits(current, [current, current]).endswith("keep them.")


@pytest.mark.parametrize("images", [[(20, 10, [((0, 0, 5, 5), 1, "crowd")])], []])
def test_without_objects_there_is_nothing_to_fit(images):
    statistics = dataset_statistics(make_dataset(images), short_edge=50, max_size=100)
    words = "mine: no objects, so there is nothing that anchors could fit"
    with pytest.raises(ValueError, match=words):
        fit_of_anchors(statistics, sizes=[32], ratios=[1], strides=[16])
    with pytest.raises(ValueError, match=words):
        suggest_anchors(statistics, ratios=RATIOS, strides=FPN_STRIDES)
