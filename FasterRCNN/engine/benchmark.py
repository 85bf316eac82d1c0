"""How long prediction takes, part by part: decoding, resizing, the network, post-processing."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import tensorflow.compat.v1 as tf
from tabulate import tabulate
from tqdm import tqdm

from FasterRCNN.engine.predictor import Predictor, map_ahead

READING_THREADS = 4
PARTS = ("decode", "resize and pad", "network", "post-processing")


@dataclass
class PredictionTimes:
    """Milliseconds a photo of each part, one entry for each timed batch (of "decode": for each photo).

    photos_per_second: end to end, the parts overlapping as in `Predictor.predict_stream`. inputs: (h, w) of the
    network's batches.
    """

    ims_per_batch: int
    milliseconds: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    inputs: list[tuple[int, int]] = field(default_factory=list)
    num_photos: int = 0
    num_detections: int = 0
    photos_per_second: float = 0.0


def time_prediction(
    predictor: Predictor, photos: Sequence[Callable[[], np.ndarray]], *, batches: int = 20, warm_up: int = 3
) -> PredictionTimes:
    """Times `batches` batches after `warm_up` others, first part after part, then as a stream.

    photos: each reads and decodes one, uint8 H×W×3 BGR; they are gone through again as often as needed. Raises
    ValueError when there are none, and what reading raises.
    """
    if not photos:
        raise ValueError("no photo to time prediction on")
    times = PredictionTimes(predictor.ims_per_batch)
    with tqdm(total=warm_up + batches, unit="batch", desc="part by part", disable=None) as progress:
        _run_parts(predictor, photos, warm_up, PredictionTimes(predictor.ims_per_batch), progress)
        _run_parts(predictor, photos, batches, times, progress)
    number = batches * predictor.ims_per_batch
    start = time.perf_counter()
    stream = predictor.predict_stream(map_ahead(_read, _again_and_again(photos, number), threads=READING_THREADS))
    for _ in tqdm(stream, total=number, unit="photo", desc="end to end", disable=None):
        pass
    times.photos_per_second = number / (time.perf_counter() - start)
    return times


def format_times(times: PredictionTimes) -> str:
    """A table of the parts, and the sentences that say what was timed."""
    medians = {part: float(np.median(values)) for part, values in times.milliseconds.items()}
    together = sum(medians.values())
    rows = [
        [part, medians[part], np.percentile(values, 95), f"{medians[part] / together:.0%}"]
        for part, values in times.milliseconds.items()
    ]
    headers = ["part", "median ms/photo", "95th percentile", "share"]
    table = tabulate([*rows, ["one after another", together, None, ""]], headers, floatfmt=".2f",
                     colalign=("left", "right", "right", "right"))
    shapes = sorted(set(times.inputs))
    spread = "×".join(map(str, shapes[0])) + (f" to {'×'.join(map(str, shapes[-1]))}" if len(shapes) > 1 else "")
    return (
        f"{table}\n\nend to end, the parts overlapping: {times.photos_per_second:.2f} photos/s "
        f"({1000 / times.photos_per_second:.2f} ms/photo)\n"
        f"{times.num_photos} photos in batches of {times.ims_per_batch}, {spread} at the network, "
        f"{times.num_detections / times.num_photos:.1f} detections a photo; {_device()}"
    )


def _run_parts(
    predictor: Predictor, photos: Sequence[Callable], batches: int, times: PredictionTimes, progress: tqdm
) -> None:
    """Runs batches of the predictor with nothing beside them, and adds up their times."""

    def decoded() -> Iterator[np.ndarray]:
        for read in _again_and_again(photos, batches * predictor.ims_per_batch):
            start = time.perf_counter()
            photo = read()
            times.milliseconds["decode"].append(1000 * (time.perf_counter() - start))
            yield photo

    for numbered in predictor.batches(decoded()):
        marks = [time.perf_counter()]
        batch = predictor.prepare(numbered)
        marks.append(time.perf_counter())
        ran = predictor.run_batch(batch)
        marks.append(time.perf_counter())
        finished = predictor.finish(ran)
        marks.append(time.perf_counter())
        for part, seconds in zip(PARTS[1:], np.diff(marks), strict=True):
            times.milliseconds[part].append(1000 * float(seconds) / len(numbered))
        times.inputs.append(batch.images.tensors.shape[1:3])
        times.num_photos += len(numbered)
        times.num_detections += sum(len(detections) for _, detections in finished)
        progress.update()


def _again_and_again(photos: Sequence, number: int) -> Iterator:
    return itertools.islice(itertools.cycle(photos), number)


def _read(photo: Callable[[], np.ndarray]) -> np.ndarray:
    return photo()


def _device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return f"CPU, {os.cpu_count()} cores"
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
