"""The times of prediction's parts, by a clock that is not one."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from bright_box import CATEGORIES, PHOTOS, WEIGHTS, BrightBoxDetector

from FasterRCNN.engine.benchmark import PARTS, PredictionTimes, format_times, time_prediction
from FasterRCNN.engine.predictor import Predictor


def predictor(ims_per_batch):
    return Predictor(BrightBoxDetector(), WEIGHTS, categories=CATEGORIES, short_edge=64, max_size=120, pad_multiple=32,
                     ims_per_batch=ims_per_batch, with_masks=True)


def readers(count):
    return [lambda image=image: image for image, _ in PHOTOS[:count]]


@pytest.mark.parametrize("ims_per_batch", [1, 3])
def test_parts_are_told_apart_and_the_warm_up_is_left_out(monkeypatch, ims_per_batch):
    """The clock goes on by 6 ms whenever it is read, which is before and after each part."""
    seconds = (0.006 * number for number in itertools.count())
    monkeypatch.setattr("FasterRCNN.engine.benchmark.time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    read = []
    photos = [lambda image=image, i=i: read.append(i) or image for i, (image, _) in enumerate(PHOTOS[:4])]
    with predictor(ims_per_batch) as model:
        times = time_prediction(model, photos, batches=5, warm_up=2)
    number = 5 * ims_per_batch
    assert len(read) == 2 * ims_per_batch + 2 * number  # part by part, and end to end
    np.testing.assert_allclose(times.milliseconds["decode"], [6.0] * number)
    for part in PARTS[1:]:
        np.testing.assert_allclose(times.milliseconds[part], [6.0 / ims_per_batch] * 5)
    assert times.num_photos == number and len(times.inputs) == 5
    assert times.photos_per_second == pytest.approx(number / 0.006)
    empty = sum(1 for i in itertools.islice(itertools.cycle(range(4)), number) if i == 1)
    assert times.num_detections == 2 * (number - empty)


def test_table():
    milliseconds = {"decode": [1.0, 2.0, 9.0], "resize and pad": [2.0], "network": [12.0], "post-processing": [4.0]}
    times = PredictionTimes(2, milliseconds, [(64, 96), (64, 128), (64, 96)], 6, 9, 50.0)
    lines = [line.split() for line in format_times(times).splitlines()]
    assert lines[2] == ["decode", "2.00", "8.30", "10%"]
    assert lines[4] == ["network", "12.00", "12.00", "60%"]
    assert lines[6] == ["one", "after", "another", "20.00"]
    text = format_times(times)
    assert "end to end, the parts overlapping: 50.00 photos/s (20.00 ms/photo)" in text
    assert "6 photos in batches of 2, 64×96 to 64×128 at the network, 1.5 detections a photo" in text


def test_no_photo_and_one_that_cannot_be_read():
    with predictor(1) as model:
        with pytest.raises(ValueError, match="no photo to time prediction on"):
            time_prediction(model, [])

        def broken():
            raise ValueError("a.jpg: not an image")

        with pytest.raises(ValueError, match=r"a\.jpg: not an image"):
            time_prediction(model, [*readers(2), broken], batches=3, warm_up=1)
