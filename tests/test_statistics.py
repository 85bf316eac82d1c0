"""Counts and pictures of data sets, against counting by hand."""

import cv2
import numpy as np
import pytest

from FasterRCNN.datasets.anchor_fit import AnchorFit
from FasterRCNN.datasets.statistics import dataset_statistics, format_statistics, plot_statistics
from FasterRCNN.structures import Categories, Dataset, ImageRecord


def make_dataset(images, num_classes=3):
    """images: (height, width, [(box, label, kind), ...]) each, kind one of "", "crowd", "difficult"."""
    records = [
        ImageRecord(
            image_id=number,
            file_name=f"{number}.jpg",
            height=height,
            width=width,
            boxes=np.array([box for box, *_ in objects], np.float32).reshape(-1, 4),
            labels=np.array([label for _, label, _ in objects], np.int32),
            is_crowd=np.array([kind == "crowd" for *_, kind in objects], bool),
            is_difficult=np.array([kind == "difficult" for *_, kind in objects], bool),
        )
        for number, (height, width, objects) in enumerate(images)
    ]
    names = [f"class {label}" for label in range(1, num_classes + 1)]
    return Dataset("mine", records, Categories(names, [10 * label for label in range(1, num_classes + 1)]))


@pytest.fixture
def mixed():
    return make_dataset([
        (100, 200, [((0, 0, 20, 10), 1, ""), ((10, 10, 30, 90), 2, ""), ((0, 0, 9, 9), 1, "crowd")]),
        (100, 200, [((0, 0, 100, 50), 1, "difficult")]),
        (400, 300, [((5, 5, 15, 25), 1, "")]),
        (400, 300, []),
    ])


def test_counts(mixed):
    statistics = dataset_statistics(mixed, short_edge=50, max_size=1000)
    assert statistics.objects.tolist() == [2, 1, 0]
    assert statistics.difficult.tolist() == [1, 0, 0]
    assert statistics.crowds.tolist() == [1, 0, 0]
    assert statistics.images.tolist() == [3, 1, 0]
    assert statistics.objects_per_image.tolist() == [2, 0, 1, 0]
    assert statistics.image_sizes == {(100, 200): 2, (400, 300): 2}


def test_boxes_are_those_of_objects_in_the_resized_image(mixed):
    statistics = dataset_statistics(mixed, short_edge=50, max_size=1000)
    np.testing.assert_allclose(statistics.boxes[:2], [[0, 0, 10, 5], [5, 5, 15, 45]])
    # 300 x 400 becomes 50 x 67: each axis by its own factor.
    np.testing.assert_allclose(statistics.boxes[2:], [[5 / 6, 5 * 67 / 400, 15 / 6, 25 * 67 / 400]], rtol=1e-6)
    assert statistics.canvases.tolist() == [[50, 100], [50, 100], [67, 50]]
    np.testing.assert_allclose(statistics.sizes[:2], np.sqrt([50, 400]), rtol=1e-6)
    np.testing.assert_allclose(statistics.aspect_ratios[:2], [0.5, 4])


def test_tables(mixed):
    lines = format_statistics(dataset_statistics(mixed, short_edge=50, max_size=1000)).splitlines()
    assert lines[0] == "mine: 4 images, 2 of them without objects"
    words = [line.split() for line in lines]
    assert ["10", "class", "1", "2", "1", "1", "3"] in words  # objects, difficult, crowds, images
    assert ["all", "3", "1", "1", "4"] in words
    assert ["200", "x", "100", "2", "100", "x", "50"] in words


def test_many_image_sizes_are_summed_up():
    images = [(100 + number, 100, []) for number in range(13)]
    text = format_statistics(dataset_statistics(make_dataset(images), short_edge=50, max_size=100))
    assert [line.split() for line in text.splitlines() if "others" in line] == [["3", "others", "3"]]


@pytest.mark.parametrize("images", [[(10, 10, []), (20, 10, [((0, 0, 5, 5), 1, "crowd")])], []])
def test_a_set_without_objects_and_one_without_images(tmp_path, images):
    statistics = dataset_statistics(make_dataset(images), short_edge=50, max_size=100)
    assert statistics.boxes.shape == (0, 4)
    assert format_statistics(statistics).startswith(f"mine: {len(images)} images, {len(images)} of them without")
    plot_statistics(statistics, tmp_path / "plot.png")
    assert cv2.imread(str(tmp_path / "plot.png")) is not None


@pytest.mark.parametrize("num_classes", [3, 45])
def test_pictures(tmp_path, num_classes):
    random = np.random.default_rng(5)
    images = [
        (300, 400, [((1, 1, *random.uniform(10, 200, 2)), random.integers(1, num_classes + 1), "") for _ in range(4)])
        for _ in range(20)
    ]
    statistics = dataset_statistics(make_dataset(images, num_classes), short_edge=300, max_size=400)
    current = AnchorFit(sizes=(32, 64), ratios=(0.5, 2), recalls=(1, 1), mean_iou=1)
    plot_statistics(statistics, tmp_path / "without.png")
    plot_statistics(statistics, tmp_path / "with.png", current=current, suggested=current)
    without, marked = (cv2.imread(str(tmp_path / name)) for name in ("without.png", "with.png"))
    assert without.shape == marked.shape == (990, 1430, 3)
    half = len(without) // 2
    assert (without[half:] != marked[half:]).any()
    assert (without < 250).any(axis=(0, 1)).all()
