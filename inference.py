"""A trained model at work: loading it, photos through it, and its numbers on data sets.

predict.py, train.py and the programs of demo/ and benchmarks/ build on it. TensorFlow is imported where a model is
loaded, not before.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config, default_config, finalize_configs

import numpy as np
from tqdm import tqdm

from data import load_set
from eval import (
    Metrics,
    configured_categories,
    evaluate,
    format_metrics,
    metrics_path,
    report_path,
    results_to_json,
    write_json,
    write_metrics,
)
from FasterRCNN.datasets.coco_categories import COCO_CATEGORIES
from FasterRCNN.datasets.photos import read_photo
from FasterRCNN.engine.stall import WAITING
from FasterRCNN.imaging.visualize import draw_comparison
from FasterRCNN.report import make_report
from FasterRCNN.structures import BoxList, Categories, Dataset

if TYPE_CHECKING:
    from FasterRCNN.engine.predictor import Predictor
    from FasterRCNN.engine.processes import Processes

logger = logging.getLogger(__name__)

READING_THREADS = 4


def load_predictor(
    load_path: str | Path, cfg_overrides: Sequence[str] = (), config_file: str | Path | None = None
) -> tuple[Predictor, Config]:
    """The predictor of a run folder, checkpoint or .npz file, and the config it is built with; see `load_model`.

    Raises ValueError, too, naming the variables that do not fit and the keys that would.
    """
    cfg, weights = load_model(load_path, cfg_overrides, config_file)
    return build_predictor(cfg, weights, source=str(load_path)), cfg


def load_model(
    load_path: str | Path, cfg_overrides: Sequence[str] = (), config_file: str | Path | None = None
) -> tuple[Config, dict[str, np.ndarray]]:
    """The finalized config and the weights by variable name of a run folder, checkpoint or .npz file.

    The config is the one stored with the weights (without one: the defaults), then the file's keys, then the
    overrides, KEY=VALUE. Raises FileNotFoundError or ValueError for what cannot be read.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # as engine/compat.py has it; read once, at TensorFlow's import
    from FasterRCNN.engine.weights import read_config, read_weights

    cfg = default_config()
    stored = read_config(load_path)
    if stored is None:
        logger.warning("%s carries no config: the defaults and --config are used", load_path)
    cfg.update_dict(stored or {})
    cfg.update_given(config_file, cfg_overrides)
    weights = read_weights(load_path)
    if not cfg.DATA.CLASS_NAMES:
        categories = find_categories(cfg, weights)
        cfg.DATA.CLASS_NAMES, cfg.DATA.CATEGORY_IDS = categories.names, categories.ids
        cfg.DATA.NUM_CLASS = len(categories)
    finalize_configs(cfg, is_training=False)
    return cfg, weights


def build_predictor(
    cfg: Config,
    weights: Mapping[str, np.ndarray],
    *,
    source: str = "the weights",
    **placement: Any,
) -> Predictor:
    """The predictor of a finalized config and weights by variable name.

    source: what messages call the weights. placement: Predictor's devices and visible_gpus.
    """
    from FasterRCNN.engine.predictor import Predictor
    from FasterRCNN.engine.tta import AugmentedPredictor
    from FasterRCNN.modeling.build import build_detector

    detector = build_detector(cfg)
    options = {
        "categories": configured_categories(cfg),
        "short_edge": cfg.PREPROC.TEST_SHORT_EDGE_SIZE,
        "max_size": cfg.PREPROC.MAX_SIZE,
        "pad_multiple": detector.pad_multiple,
        "ims_per_batch": cfg.TEST.IMS_PER_GPU,
        "batches_at_once": cfg.TEST.BATCHES_AT_ONCE,
        "with_masks": cfg.MODE_MASK,
        "mask_threshold": cfg.TEST.MASK_THRESH,
        "paste": cfg.MRCNN.PASTE,
        "inclusive_boxes": cfg.ROIALIGN.INCLUSIVE,
        "resize_method": cfg.PREPROC.RESIZE,
        "size_rounding": cfg.PREPROC.SIZE_ROUNDING,
        "config": cfg.to_dict(),
        "source": source,
        **placement,
    }
    if cfg.TEST.AUGMENT_SCALES or cfg.TEST.AUGMENT_FLIPS:
        scales = cfg.TEST.AUGMENT_SCALES or [cfg.PREPROC.TEST_SHORT_EDGE_SIZE]
        return AugmentedPredictor(detector, weights, scales=scales, flips=cfg.TEST.AUGMENT_FLIPS, **options)
    return Predictor(detector, weights, **options)


def find_categories(cfg: Config, weights: Mapping[str, np.ndarray]) -> Categories:
    """The classes of weights that do not name them.

    From the annotations of DATA.VAL or DATA.TRAIN where those exist; else COCO's for 80 classes, else numbers.
    """
    from FasterRCNN.engine.architecture import number_of_classes

    for spec in (*cfg.DATA.VAL, *cfg.DATA.TRAIN):
        try:
            return load_set(cfg, spec, with_truth=False).categories
        except FileNotFoundError:
            continue
    shapes = {name: value.shape for name, value in weights.items()}
    count = number_of_classes(shapes) or cfg.DATA.NUM_CLASS or len(COCO_CATEGORIES)
    if count == len(COCO_CATEGORIES):
        logger.warning("no class names in the config and no annotations: taking the %d classes for COCO's", count)
        return COCO_CATEGORIES
    logger.warning("no class names in the config and no annotations: classes are numbered; set DATA.CLASS_NAMES")
    return Categories(names=[f"class {i}" for i in range(1, count + 1)], ids=range(1, count + 1))


def detect_files(
    predictor: Predictor, files: Sequence[tuple[str, Callable[[], np.ndarray]]], failures: dict[str, str]
) -> Iterator[tuple[int, np.ndarray, BoxList]]:
    """(index, photo, detections) of each file that can be read, in order; files: name and what reads it.

    The others go into failures, name to reason.
    """
    from FasterRCNN.engine.predictor import map_ahead

    waiting: deque[tuple[int, np.ndarray]] = deque()

    def photos() -> Iterator[np.ndarray]:
        for index, (photo, reason) in enumerate(map_ahead(_try_to_read, files, threads=READING_THREADS)):
            if photo is None:
                failures[files[index][0]] = reason
                logger.error("not predicted: %s", reason)
            else:
                waiting.append((index, photo))
                yield photo

    for detections in predictor.predict_stream(photos()):
        index, photo = waiting.popleft()
        yield index, photo, detections


def _try_to_read(file: tuple[str, Callable[[], np.ndarray]]) -> tuple[np.ndarray | None, str]:
    try:
        return file[1](), ""
    except (ValueError, FileNotFoundError) as error:
        return None, str(error)


def photos_of(dataset: Dataset, indices: Sequence[int]) -> list[tuple[str, Callable[[], np.ndarray]]]:
    """Images of a data set for `detect_files`."""
    records = [dataset.records[index] for index in indices]
    return [(record.file_name, partial(read_photo, record, dataset)) for record in records]


# ---------------------------------------------------------------- data sets


def evaluate_model(
    predictor: Predictor,
    dataset: Dataset,
    output: str | Path,
    *,
    metric: str = "auto",
    report_threshold: float | None = None,
    max_detections: int = 100,
    failures: dict[str, str] | None = None,
    num_workers: int | None = None,
    processes: Processes | None = None,
    note: Callable[[str], object] = lambda doing: None,
) -> Metrics | None:
    """Predicts on every image of a data set, writes COCO results to output and the metrics beside it, and scores them.

    dataset: labelled as the model; its ground truth need not be loaded. report_threshold: also writes the report, of
    detections of at least this score. metric, max_detections, num_workers: as eval.evaluate's. An image that cannot be
    read counts as one without detections, is logged, and goes into failures, file to reason; ValueError when none can
    be read. Each of the `processes` of a job predicts on its share of the images; the chief gets the metrics, the
    others None, as all do for a set without annotations. note: is told what goes on, again for each image.
    """
    failures = {} if failures is None else failures
    indices = range(len(dataset))
    results = predict_images(predictor, dataset, processes.share(indices) if processes else indices, failures, note)
    if processes:
        note(WAITING)
        shares = [json.loads(share) for share in processes.gather(json.dumps([results, failures]).encode())]
        if not processes.is_chief:
            return None
        results = sorted((image for found, _ in shares for image in found), key=lambda image: image[0])
        failures.update(item for _, failed in shares for item in failed.items())
    note("scoring an evaluation")
    results = [detection for _, found in results for detection in found]
    if failures and len(failures) == len(dataset):
        raise ValueError(f"no image of {dataset.name} can be read; the first: {next(iter(failures.values()))}")
    write_json(results, output)
    annotations = dataset.reread()
    if not annotations.has_truth:
        logger.info("%s has no annotations to score against: %s is all there is", dataset.name, output)
        return None
    metrics = evaluate(
        results,
        annotations,
        metric=metric,
        iou_types=("bbox", "segm") if predictor.with_masks else ("bbox",),
        categories=dataset.categories,
        max_detections=max_detections,
        num_workers=num_workers,
    )
    write_metrics(metrics, output)
    note("writing the report of an evaluation")
    if report_threshold is not None:
        make_report(results, annotations, metrics, report_path(output), score_threshold=report_threshold)
    return metrics


def predict_images(
    predictor: Predictor,
    dataset: Dataset,
    indices: Sequence[int],
    failures: dict[str, str],
    note: Callable[[str], object] = lambda doing: None,
) -> list[tuple[int, list[dict]]]:
    """(index, its detections as COCO results) of some images of a data set; note: is told of each."""
    results = []
    photos = detect_files(predictor, photos_of(dataset, indices), failures)
    for place, _, detections in tqdm(photos, total=len(indices), unit="image", desc=dataset.name, disable=None):
        note("evaluating")
        record = dataset.records[indices[place]]
        results.append((indices[place], results_to_json({record.image_id: detections}, dataset.categories)))
    return results


def evaluate_sets(predictor: Predictor, cfg: Config, output: str | Path) -> list[str]:
    """Evaluates each set of DATA.VAL and prints its tables: out.json, or out.NAME.json each when there are several.

    Returns an error message for each set of which most images cannot be read: its numbers say little.
    """
    if not cfg.DATA.VAL:
        raise ValueError("DATA.VAL names no data set: give DATA.VAL=path/to/instances.json:path/to/images")
    # All are loaded before the first is predicted on, so that a wrong name is found at once.
    datasets = [load_set(cfg, spec, with_truth=False, categories=predictor.categories) for spec in cfg.DATA.VAL]
    errors = []
    for name, dataset in zip(unique_names([dataset.name for dataset in datasets]), datasets, strict=True):
        path = Path(output).with_suffix(f".{name}.json") if len(datasets) > 1 else Path(output)
        failures: dict[str, str] = {}
        metrics = evaluate_model(
            predictor,
            dataset,
            path,
            metric=cfg.DATA.METRIC,
            report_threshold=cfg.TEST.RESULT_SCORE_THRESH_VIS,
            max_detections=cfg.TEST.RESULTS_PER_IM,
            failures=failures,
        )
        if len(failures) > len(dataset) / 2:
            errors.append(
                f"{len(failures)} of {len(dataset)} images of {name} cannot be read and count as without detections"
            )
        if metrics:
            print(f"\n{name}: {len(dataset)} images\n\n{format_metrics(metrics)}\n")
        print(f"results: {path}")
        if metrics:
            print(f"metrics: {metrics_path(path)}\nreport: {report_path(path) / 'report.html'}")
    return errors


def check_writable(file: str | Path) -> None:
    """Makes the folder of a file that is to be written; ValueError where it could not be written."""
    file = Path(file)
    if file.is_dir():
        raise ValueError(f"{file} is a folder: give a file, such as {file / 'results.json'}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise ValueError(f"{file} cannot be written ({error.strerror}): give another file") from None


def draw_comparisons(
    predictor: Predictor, dataset: Dataset, number: int, *, score_threshold: float
) -> dict[int | str, np.ndarray]:
    """Truth beside prediction of a data set's first `number` images, BGR, by image id; unreadable ones are left out."""
    photos = photos_of(dataset, range(min(number, len(dataset))))
    pictures = {}
    for index, photo, detections in detect_files(predictor, photos, {}):
        record = dataset.records[index]
        pictures[record.image_id] = draw_comparison(
            photo, record, detections, dataset.categories, score_threshold=score_threshold
        )
    return pictures


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, told apart by _2, _3, ... where they are the same but for capitals."""
    unique, taken = [], set()
    for name in names:
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        unique.append(next(candidate for candidate in candidates if candidate.lower() not in taken))
        taken.add(unique[-1].lower())
    return unique
