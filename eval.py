#!/usr/bin/env python3
"""Detections to COCO's or Pascal VOC's numbers: a module, and a command that scores a results file. No TensorFlow.

A results file, whichever the numbers, is COCO's: a JSON list with one entry per detection: image_id, category_id, bbox
(x, y, width, height), score and, with masks, segmentation (compressed RLE). Every metric lies in 0..1, or is None
(printed n/a) where there is no ground truth to find.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from config import Config, add_config_arguments, default_config, finalize_configs, run_command

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from FasterRCNN.datasets.annotations import Annotations, SoundObject, finite_box, is_area, sound_objects
from FasterRCNN.datasets.catalog import read_annotations
from FasterRCNN.datasets.coco import read_json
from FasterRCNN.datasets.problems import Problems
from FasterRCNN.evaluation import CocoMatcher, Matcher, compressed_rle
from FasterRCNN.loading.prefetch import StepsInOrder
from FasterRCNN.metrics import MAIN_NUMBER, TITLES, Curves, Metrics, format_metrics
from FasterRCNN.report import make_report
from FasterRCNN.structures import BoxList, Categories
from FasterRCNN.voc_evaluation import VocMatcher

logger = logging.getLogger(__name__)

COCO_MAX_DETECTIONS = 100
FEW_DETECTIONS = 20_000  # matched sooner than worker processes would start


class Stopwatch:
    """Seconds of named parts, in the order of their first start."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time spent in the block to the part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())

    def table(self) -> str:
        """A row for each part, and their sum."""
        return tabulate([*self.seconds.items(), ("together", self.total())], ["part", "seconds"], floatfmt=".2f")


def results_to_json(detections_by_image: Mapping[int | str, BoxList], categories: Categories) -> list[dict]:
    """COCO results of detections by image id; boxes are rounded to 1/1000 pixel, scores to 1e-6.

    Detections have the fields scores, labels and, with masks, masks: compressed RLEs.
    """
    results = []
    for image_id, detections in detections_by_image.items():
        boxes = np.asarray(detections.convert("xywh").boxes, np.float64).round(3).tolist()
        masks = detections.get_field("masks").segmentations if detections.has_field("masks") else None
        for i, (label, score) in enumerate(zip(detections.get_field("labels"), detections.get_field("scores"))):
            result = {
                "image_id": image_id if isinstance(image_id, str) else int(image_id),
                "category_id": categories.id_of_label(int(label)),
                "bbox": boxes[i],
                "score": round(float(score), 6),
            }
            if masks is not None:
                height, width = (int(side) for side in masks[i]["size"])
                result["segmentation"] = {"size": [height, width], "counts": masks[i]["counts"].decode("ascii")}
            results.append(result)
    return results


def evaluate(
    results: list[dict],
    annotations: Annotations,
    *,
    metric: str = "auto",
    iou_types: Sequence[str] = ("bbox", "segm"),
    categories: Categories | None = None,
    max_detections: int = COCO_MAX_DETECTIONS,
    num_workers: int | None = None,
    watch: Stopwatch | None = None,
) -> Metrics:
    """Scores COCO results against a data set's annotations, by COCO's rules (pycocotools' numbers) or Pascal VOC's.

    metric: "coco", "voc", or "auto", the set's own. Objects that cannot be used are left out, with a warning; difficult
    ones and crowds are regions to ignore, and so, for masks, are objects without one. categories: those of the model;
    the set's must be among them. max_detections: the most detections of an image and class that count for COCO, never
    under its 100; for VOC all count. num_workers: processes that share the work where there is much of it, by default
    one for each core; the numbers do not depend on it. watch: told the time of each part. Raises ValueError for a set
    without annotations, for malformed results, results of images or categories which the set does not have, masks of
    another size, and masks wanted where no result or no object has one.
    """
    if not annotations.has_truth:
        raise ValueError(
            f"{annotations.source} has no annotations to score against; the results file can be uploaded to the "
            "server that has them"
        )
    metric = _chosen_metric(metric, annotations)
    num_workers = (os.cpu_count() or 1) if num_workers is None else num_workers
    watch = watch or Stopwatch()
    with watch.part("reading the annotations"):
        names = _class_names(annotations, categories)
        problems = Problems(annotations.source)
        truth = _ground_truth(annotations, problems, with_masks="segm" in iou_types)
        problems.settle()
    with watch.part("checking the results"):
        _check_results(results, iou_types)
        _check_ids(results, truth, annotations.source, categories)
        if "segm" in iou_types:
            _check_masks(results, truth)
    max_detections = max(max_detections, COCO_MAX_DETECTIONS)
    overall, per_class, curves = {}, {}, {}
    for iou_type in iou_types:
        own = _ignore_maskless(truth, annotations.source) if iou_type == "segm" else truth
        overall[iou_type], by_id, curves[iou_type] = _score(
            own, results, iou_type, metric, max_detections, num_workers, watch
        )
        per_class[iou_type] = {
            number: dict(zip(names.values(), values, strict=True)) for number, values in by_id.items()
        }
    counts = Counter(entry["category_id"] for entry in truth["annotations"] if _counts(entry))
    num_objects = {name: counts[category_id] for category_id, name in names.items()}
    return Metrics(
        metric,
        **overall,
        per_class=per_class,
        num_objects=num_objects,
        num_detections=len(results),
        curves=curves,
    )


def score_truth(annotations: Annotations, *, metric: str = "auto", with_masks: bool = True) -> float | None:
    """The main AP of the truth as if it were detections, of boxes or of masks, whichever is less; None without objects.

    But for rounding it is 1, unless masks are empty or, by VOC's rules, objects of a class have the same box: then the
    second counts as a wrong detection of the first. metric: as `evaluate`'s. with_masks=False: of boxes alone.
    """
    if not annotations.has_truth:
        return None
    metric = _chosen_metric(metric, annotations)
    truth = _ground_truth(annotations, Problems(annotations.source), with_masks=with_masks)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    found = [entry | {"score": 1.0} for entry in truth["annotations"] if _counts(entry)]
    masked = [
        entry | {"segmentation": compressed_rle(entry["segmentation"], *sizes[entry["image_id"]])}
        for entry in found
        if entry["segmentation"]
    ]
    limit = max(len(found), COCO_MAX_DETECTIONS)
    overall = [_score(truth, found, "bbox", metric, limit)[0]]
    if masked:
        overall.append(_score(_ignore_maskless(truth, annotations.source), masked, "segm", metric, limit)[0])
    scores = [numbers[MAIN_NUMBER[metric]] for numbers in overall]
    return min((score for score in scores if score is not None), default=None)


def _chosen_metric(metric: str, annotations: Annotations) -> str:
    if metric not in ("auto", *MAIN_NUMBER):
        raise ValueError(f"unknown metric {metric!r}: DATA.METRIC is auto, {', '.join(MAIN_NUMBER)}")
    return annotations.metric if metric == "auto" else metric


def _ground_truth(annotations: Annotations, problems: Problems, *, with_masks: bool) -> dict:
    """The annotations in the form of a COCO file, cleaned; what is left out goes into `problems`."""
    images, entries = [], []
    for image in annotations.read_images(problems):
        images.append({"id": image.image_id, "height": image.height, "width": image.width})
        for entry in sound_objects(image, annotations.categories, problems, with_masks=with_masks):
            entries.append(_entry(image.image_id, entry))
    return {
        "images": images,
        "annotations": entries,
        "categories": [{"id": category_id} for category_id in annotations.categories.ids],
    }


def _entry(image_id: int | str, entry: SoundObject) -> dict:
    """An object as in a COCO file; an area that is not given is that of the box."""
    area, segmentation = entry.raw.area, entry.segmentation
    if isinstance(segmentation, list):
        segmentation = [polygon.ravel().tolist() for polygon in segmentation]
    return {
        "file_id": entry.raw.annotation_id,
        "image_id": image_id,
        "category_id": entry.raw.category_id,
        "bbox": list(entry.bbox),
        "area": area if is_area(area) else entry.bbox[2] * entry.bbox[3],
        "iscrowd": int(entry.raw.is_crowd),
        "is_difficult": entry.raw.is_difficult,
        "segmentation": segmentation,
    }


def _counts(entry: dict) -> bool:
    return not entry["iscrowd"] and not entry["is_difficult"]


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _class_names(annotations: Annotations, categories: Categories | None) -> dict[int, str]:
    """Category id, in their order, to a name that no other class has."""
    truth = annotations.categories
    wrong = [] if categories is None else [i for i, name in truth.by_id.items() if categories.by_id.get(i) != name]
    if wrong:
        pairs = [f"id {i}: {categories.by_id.get(i, '-')} / {truth.by_id[i]}" for i in wrong]
        raise ValueError(
            f"the model's categories are not those of {annotations.source} (model / file): {_some(pairs, '; ')}. "
            "Evaluate on data with the categories of training, or set DATA.CLASS_NAMES and DATA.CATEGORY_IDS"
        )
    return {
        i: name if truth.names.count(name) == 1 else f"{name} (id {i})" for i, name in sorted(truth.by_id.items())
    }


def _check_results(results: list[dict], iou_types: Sequence[str]) -> None:
    if not isinstance(results, list):
        raise ValueError(f"COCO results are a list with one entry per detection, not {type(results).__name__}")
    wanted = ["image_id", "category_id", "bbox", "score"] + ["segmentation"] * ("segm" in iou_types)
    for number, result in enumerate(results):
        lacking = [key for key in wanted if key not in result] if isinstance(result, dict) else wanted
        if lacking:
            way_out = ": score boxes alone with MODE_MASK=False" if lacking == ["segmentation"] else ""
            raise ValueError(f"result number {number} has no {', '.join(lacking)}{way_out}")
        image_id, category_id, bbox, score = (result[key] for key in wanted[:4])
        if not isinstance(image_id, (int, str)) or not isinstance(category_id, int):
            raise ValueError(
                f"result number {number}: image_id {image_id!r} must be a whole number or text, "
                f"category_id {category_id!r} a whole number"
            )
        if finite_box(bbox) is None or not _is_finite(score):
            raise ValueError(f"result number {number}: bbox {bbox!r} must be four numbers, score {score!r} one")


def _check_ids(results: list[dict], dataset: dict, source: str, categories: Categories | None) -> None:
    known = {
        "image_id": {image["id"] for image in dataset["images"]},
        # A class of the model that the file does not list has nothing to be scored against.
        "category_id": {category["id"] for category in dataset["categories"]}
        | set(categories.ids if categories else ()),
    }
    for key, ids in known.items():
        unknown = sorted({result[key] for result in results} - ids, key=str)
        if unknown:
            raise ValueError(
                f"{len(unknown)} of the results' {key}s are not in {source}: {_some(unknown)}. "
                "Are these the results of another data set? Name the right one with DATA.VAL"
            )


def _check_masks(results: list[dict], dataset: dict) -> None:
    """pycocotools takes a mask of another size for one that overlaps nothing."""
    sizes = {image["id"]: [image["height"], image["width"]] for image in dataset["images"]}
    for number, result in enumerate(results):
        mask, size = result["segmentation"], sizes[result["image_id"]]
        if not isinstance(mask, dict) or mask.get("size") != size or not isinstance(mask.get("counts"), (str, bytes)):
            raise ValueError(
                f"result number {number}: segmentation {str(mask)[:60]} must be a compressed RLE of the image's size: "
                f'{{"size": {size}, "counts": "..."}}'
            )


def _ignore_maskless(dataset: dict, source: str) -> dict:
    """The ground truth for masks: an object without a mask becomes an ignored region, its box, as crowds are."""
    annotations, maskless = [], []
    for annotation in dataset["annotations"]:
        segmentation = annotation["segmentation"]
        if not segmentation:
            maskless.append(annotation)
            x, y, width, height = annotation["bbox"]
            box = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotation = annotation | {"iscrowd": 1}
            segmentation = [box]
        annotations.append(annotation | {"segmentation": segmentation})
    if maskless and len(maskless) == len(annotations):
        raise ValueError(f"no object in {source} has a mask: score boxes alone with MODE_MASK=False")
    if maskless:
        first = maskless[0]
        logger.warning(
            "%s: %d of %d objects have no mask and are ignored in mask AP; the first is annotation %s of image %s",
            *(source, len(maskless), len(annotations), first["file_id"], first["image_id"]),
        )
    return dataset | {"annotations": annotations}


def _score(
    truth: dict,
    results: list[dict],
    iou_type: str,
    metric: str,
    max_detections: int,
    num_workers: int = 0,
    watch: Stopwatch | None = None,
) -> tuple[dict[str, float | None], dict[str, list[float | None]], Curves]:
    """By name, the numbers of all classes and those of each class by id; the curves behind them."""
    watch = watch or Stopwatch()
    with watch.part(f"{TITLES[iou_type]} IoU and matching"):
        if metric == "voc":
            matcher = VocMatcher(truth, results, iou_type)
        else:
            matcher = CocoMatcher(truth, results, iou_type, [1, 10, max_detections])
        outcomes = _match(matcher, TITLES[iou_type], num_workers)
    with watch.part("accumulation"):
        return *matcher.numbers(outcomes), matcher.curves(outcomes)


def _match(matcher: Matcher, title: str, num_workers: int) -> np.ndarray:
    """The outcomes of all chunks, made by this process where that is soon done, else by worker processes."""
    is_small = matcher.num_detections < FEW_DETECTIONS
    chunks = StepsInOrder(matcher.match, num_workers=0 if is_small or num_workers == 1 else num_workers)
    outcomes = []
    try:
        total, unit = matcher.num_detections, " detections"
        with tqdm(desc=f"{title} IoU", total=total, unit=unit, unit_scale=True, delay=1, disable=None) as bar:
            for (part,) in itertools.islice(chunks, matcher.num_chunks):
                outcomes.append(part)
                bar.update(len(part))
    finally:
        chunks.stop()
    return np.concatenate(outcomes)


def metrics_path(results_file: str | Path) -> Path:
    """out.json -> out.metrics.json"""
    return Path(results_file).with_suffix(".metrics.json")


def report_path(results_file: str | Path) -> Path:
    """out.json -> out.report, a folder"""
    return Path(results_file).with_suffix(".report")


def write_json(value: object, path: str | Path) -> None:
    """Writes JSON whole or not at all, and makes the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
    os.replace(partial, path)


def write_metrics(metrics: Metrics, results_file: str | Path) -> Path:
    """Writes the metrics next to the results they belong to; returns where."""
    path = metrics_path(results_file)
    write_json(metrics.to_dict(), path)
    return path


def _some(items: Sequence, separator: str = ", ", most: int = 5) -> str:
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([str(item) for item in items[:most]] + more)


def configured_categories(cfg: Config) -> Categories | None:
    """The classes that the config names, as a run folder's does; without ids they are numbered from 1."""
    names = cfg.DATA.CLASS_NAMES
    return Categories(names=names, ids=cfg.DATA.CATEGORY_IDS or range(1, len(names) + 1)) if names else None


def evaluate_file(
    results_file: str | Path, annotations: Annotations, cfg: Config, watch: Stopwatch | None = None
) -> Metrics:
    """Scores a results file against annotations, masks too where the config and the results have them."""
    watch = watch or Stopwatch()
    with watch.part("reading the results"):
        results = _read_results(results_file)
    return _evaluate_results(results, results_file, annotations, cfg, watch)


def _read_results(results_file: str | Path) -> list[dict]:
    if not Path(results_file).is_file():
        raise FileNotFoundError(f"results file {results_file} does not exist: ./predict.py --evaluate writes one")
    return read_json(results_file)


def _evaluate_results(
    results: list[dict], results_file: str | Path, annotations: Annotations, cfg: Config, watch: Stopwatch
) -> Metrics:
    listed = [result for result in results if isinstance(result, dict)] if isinstance(results, list) else []
    has_masks = any("segmentation" in result for result in listed)
    if cfg.MODE_MASK and results and not has_masks:
        logger.warning("%s holds no masks: only boxes are scored", results_file)
    return evaluate(
        results,
        annotations,
        metric=cfg.DATA.METRIC,
        iou_types=("bbox", "segm") if cfg.MODE_MASK and (has_masks or not results) else ("bbox",),
        categories=configured_categories(cfg),
        max_detections=cfg.TEST.RESULTS_PER_IM,
        num_workers=cfg.DATA.NUM_WORKERS,
        watch=watch,
    )


def main() -> int:
    """Scores results files, one for each set of DATA.VAL."""
    parser = argparse.ArgumentParser(description="Score results files against the annotations of DATA.VAL.")
    parser.add_argument("results", nargs="+", metavar="OUT.json", help="results, one file for each set of DATA.VAL")
    parser.add_argument("--no-report", action="store_true", help="write no OUT.report/ with curves and confusions")
    parser.add_argument("--no-pictures", action="store_true", help="a report without photos, if they are elsewhere")
    add_config_arguments(parser)
    args = parser.parse_args()
    cfg = default_config()
    cfg.update_given(args.config_file, args.config)
    finalize_configs(cfg, is_training=False)
    if len(args.results) != len(cfg.DATA.VAL):
        raise ValueError(
            f"{len(args.results)} results files but {len(cfg.DATA.VAL)} sets in DATA.VAL ({', '.join(cfg.DATA.VAL)}): "
            "give one file for each set, in the same order"
        )
    for results_file, spec in zip(args.results, cfg.DATA.VAL, strict=True):
        watch = Stopwatch()
        with watch.part("reading the annotations"):
            annotations = read_annotations(
                spec, basedir=cfg.DATA.BASEDIR, absolute_coord=cfg.DATA.ABSOLUTE_COORD, catalog=cfg.DATA.CATALOG
            )
        with watch.part("reading the results"):
            results = _read_results(results_file)
        metrics = _evaluate_results(results, results_file, annotations, cfg, watch)
        with watch.part("writing the metrics"):
            written = [f"metrics: {write_metrics(metrics, results_file)}"]
        if not args.no_report:
            with watch.part("writing the report"):
                page = make_report(
                    results,
                    annotations,
                    metrics,
                    report_path(results_file),
                    score_threshold=cfg.TEST.RESULT_SCORE_THRESH_VIS,
                    with_pictures=not args.no_pictures,
                )
            written.append(f"report: {page}")
        print(f"{results_file} on {annotations.name}\n\n{format_metrics(metrics)}\n\n{watch.table()}\n")
        print("\n".join(written))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
