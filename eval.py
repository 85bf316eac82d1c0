#!/usr/bin/env python3
"""Detections to COCO's numbers: a module, and a command that scores an existing results file. No TensorFlow.

A COCO results file is a JSON list with one entry per detection: image_id, category_id, bbox (x, y, width, height),
score and, with masks, segmentation (compressed RLE). Every metric lies in 0..1, or is None (printed n/a) where there is
no ground truth to find.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from config import Config, add_config_arguments, default_config, finalize_configs, run_command

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from FasterRCNN.datasets.catalog import locate_dataset
from FasterRCNN.datasets.coco import Oddities, finite_box, objects_by_image, read_categories, read_instances, read_json
from FasterRCNN.engine.prefetch import StepsInOrder
from FasterRCNN.evaluation import CocoMatcher, average_precisions, twelve_numbers
from FasterRCNN.structures import Categories, Detections

logger = logging.getLogger(__name__)

TITLES = {"bbox": "box", "segm": "mask"}
COCO_MAX_DETECTIONS = 100
FEW_DETECTIONS = 20_000  # matched sooner than worker processes would start


@dataclass
class Metrics:
    """COCO's twelve numbers for boxes and, where masks were scored, for masks, and the AP of each class.

    bbox, segm: name ("AP", "AP50", ...) to value; segm is empty without masks. per_class: "bbox" or "segm" to class
    name to AP. None stands for "no ground truth".
    """

    bbox: dict[str, float | None] = field(default_factory=dict)
    segm: dict[str, float | None] = field(default_factory=dict)
    per_class: dict[str, dict[str, float | None]] = field(default_factory=dict)
    num_detections: int = 0

    def scalars(self) -> dict[str, float]:
        """The numbers that exist, for monitors: {"bbox/AP": 0.5, ...}."""
        named = {f"{kind}/{name}": value for kind, table in self.overall().items() for name, value in table.items()}
        return {name: value for name, value in named.items() if value is not None}

    def overall(self) -> dict[str, dict[str, float | None]]:
        """The twelve numbers of boxes and, where they were scored, of masks."""
        return {kind: table for kind, table in (("bbox", self.bbox), ("segm", self.segm)) if table}


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


def results_to_json(detections_by_image: Mapping[int | str, Detections], categories: Categories) -> list[dict]:
    """COCO results of detections by image id; boxes are rounded to 1/1000 pixel, scores to 1e-6."""
    results = []
    for image_id, detections in detections_by_image.items():
        xywh = np.concatenate([detections.boxes[:, :2], detections.boxes[:, 2:] - detections.boxes[:, :2]], axis=1)
        for i, label in enumerate(detections.labels):
            result = {
                "image_id": image_id if isinstance(image_id, str) else int(image_id),
                "category_id": categories.id_of_label(int(label)),
                "bbox": [round(float(value), 3) for value in xywh[i]],
                "score": round(float(detections.scores[i]), 6),
            }
            if detections.masks is not None:
                mask = detections.masks[i]
                height, width = (int(side) for side in mask["size"])
                result["segmentation"] = {"size": [height, width], "counts": mask["counts"].decode("ascii")}
            results.append(result)
    return results


def evaluate_coco(
    results: list[dict],
    annotation_file: str | Path,
    *,
    iou_types: Sequence[str] = ("bbox", "segm"),
    categories: Categories | None = None,
    max_detections: int = COCO_MAX_DETECTIONS,
    absolute_coord: bool = True,
    num_workers: int | None = None,
    watch: Stopwatch | None = None,
) -> Metrics:
    """Scores COCO results against an annotation file as COCO does: pycocotools' numbers.

    Objects are left out as `load_coco` leaves them out, with a warning. Crowd objects, and for masks objects without
    one, are regions to ignore. categories: those of the model; the file's must be among them. max_detections: the most
    detections of an image and class that count; never under COCO's 100. absolute_coord=False: the file's boxes and
    polygons are fractions of the image's sides. num_workers: processes that share the work where there is much of it,
    by default one for each core; the numbers do not depend on it. watch: told the time of each part. Raises
    FileNotFoundError for a missing file; ValueError for malformed files and results, results of images or categories
    which the file does not have, masks of another size, and masks wanted where no result or no object has one.
    """
    num_workers = (os.cpu_count() or 1) if num_workers is None else num_workers
    watch = watch or Stopwatch()
    with watch.part("reading the annotations"):
        content = read_instances(annotation_file)
        names = _class_names(read_categories(content, annotation_file), annotation_file, categories)
        dataset = _ground_truth(content, annotation_file, absolute_coord=absolute_coord, with_masks="segm" in iou_types)
    with watch.part("checking the results"):
        _check_results(results, iou_types)
        _check_ids(results, dataset, annotation_file, categories)
        if "segm" in iou_types:
            _check_masks(results, dataset)
    max_detections = max(max_detections, COCO_MAX_DETECTIONS)
    overall, per_class = {}, {}
    for iou_type in iou_types:
        truth = _ignore_maskless(dataset, annotation_file) if iou_type == "segm" else dataset
        overall[iou_type], per_class[iou_type] = _score(
            truth, results, iou_type, names, max_detections, num_workers, watch
        )
    return Metrics(**overall, per_class=per_class, num_detections=len(results))


def _ground_truth(content: dict, annotation_file: str | Path, *, absolute_coord: bool, with_masks: bool) -> dict:
    """The annotation file's content, cleaned, with what pycocotools relies on: areas, and annotation ids 1, 2, ...

    It takes a match with id 0 for none, and loses objects that share an id. An area that the file does not give, or
    gives as a fraction, is that of the box.
    """
    oddities = Oddities(annotation_file)
    annotations = []
    for image, objects in objects_by_image(content, oddities, absolute_coord=absolute_coord, with_masks=with_masks):
        for entry in objects:
            area, segmentation = entry.annotation.get("area"), entry.segmentation
            if isinstance(segmentation, list):
                segmentation = [polygon.ravel().tolist() for polygon in segmentation]
            annotations.append({
                "id": len(annotations) + 1,
                "file_id": entry.annotation.get("id"),
                "image_id": image["id"],
                "category_id": entry.annotation["category_id"],
                "bbox": list(entry.bbox),
                "area": area if absolute_coord and _is_finite(area) else entry.bbox[2] * entry.bbox[3],
                "iscrowd": int(entry.is_crowd),
                "segmentation": segmentation,
            })
    oddities.warn()
    images = [{"id": image["id"], **{side: int(image[side]) for side in ("height", "width")}}
              for image in content["images"]]
    return {"images": images, "annotations": annotations, "categories": content["categories"]}


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _class_names(truth: Categories, annotation_file: str | Path, categories: Categories | None) -> dict[int, str]:
    """Category id to a name that no other class has."""
    wrong = [] if categories is None else [i for i, name in truth.by_id.items() if categories.by_id.get(i) != name]
    if wrong:
        pairs = [f"id {i}: {categories.by_id.get(i, '-')} / {truth.by_id[i]}" for i in wrong]
        raise ValueError(
            f"the model's categories are not those of {annotation_file} (model / file): {_some(pairs, '; ')}. "
            "Evaluate on data with the categories of training, or set DATA.CLASS_NAMES and DATA.CATEGORY_IDS"
        )
    return {i: name if truth.names.count(name) == 1 else f"{name} (id {i})" for i, name in zip(truth.ids, truth.names)}


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


def _check_ids(results: list[dict], dataset: dict, annotation_file: str | Path, categories: Categories | None) -> None:
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
                f"{len(unknown)} of the results' {key}s are not in {annotation_file}: {_some(unknown)}. "
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


def _ignore_maskless(dataset: dict, annotation_file: str | Path) -> dict:
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
        raise ValueError(f"no object in {annotation_file} has a mask: score boxes alone with MODE_MASK=False")
    if maskless:
        first = maskless[0]
        logger.warning(
            "%s: %d of %d objects have no mask and are ignored in mask AP; the first is annotation %s of image %s",
            *(annotation_file, len(maskless), len(annotations), first["file_id"], first["image_id"]),
        )
    return dataset | {"annotations": annotations}


def _score(
    dataset: dict, results: list[dict], iou_type: str, names: dict[int, str], max_detections: int, num_workers: int,
    watch: Stopwatch,
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """The twelve numbers and the AP by class name."""
    limits = [1, 10, max_detections]
    with watch.part(f"{TITLES[iou_type]} IoU and matching"):
        matcher = CocoMatcher(dataset, results, iou_type, limits)
        outcomes = _match(matcher, TITLES[iou_type], num_workers)
    with watch.part("accumulation"):
        precision, recall = matcher.precision_recall(outcomes)
        by_class = dict(zip(names.values(), average_precisions(precision), strict=True))  # both by id
        return twelve_numbers(precision, recall, limits), by_class


def _match(matcher: CocoMatcher, title: str, num_workers: int) -> np.ndarray:
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


def format_metrics(metrics: Metrics) -> str:
    """Two tables: the twelve numbers, and the AP of each class."""
    titles = [TITLES[kind] for kind in metrics.overall()]
    parts = ["Nothing was detected: every AP is 0."] if metrics.num_detections == 0 else []
    parts.append(_table(["metric", *titles], metrics.overall()))
    parts.append(_table(["class", *(f"{title} AP" for title in titles)], metrics.per_class))
    return "\n\n".join(parts)


def _table(headers: list[str], columns: dict[str, dict[str, float | None]]) -> str:
    rows = [[name, *(column[name] for column in columns.values())] for name in next(iter(columns.values()))]
    # Only the first column is text: a class may be called "1e5".
    return tabulate(rows, headers, floatfmt=".4f", missingval="n/a", disable_numparse=[0])


def metrics_path(results_file: str | Path) -> Path:
    """out.json -> out.metrics.json"""
    return Path(results_file).with_suffix(".metrics.json")


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
    write_json(asdict(metrics), path)
    return path


def _some(items: Sequence, separator: str = ", ", most: int = 5) -> str:
    more = [f"and {len(items) - most} more"] if len(items) > most else []
    return separator.join([str(item) for item in items[:most]] + more)


def configured_categories(cfg: Config) -> Categories | None:
    """The classes that the config names, as a run folder's does; without ids they are numbered from 1."""
    names = cfg.DATA.CLASS_NAMES
    return Categories(names=names, ids=cfg.DATA.CATEGORY_IDS or range(1, len(names) + 1)) if names else None


def evaluate_file(
    results_file: str | Path, annotation_file: str | Path, cfg: Config, watch: Stopwatch | None = None
) -> Metrics:
    """Scores a results file against an annotation file, masks too where the config and the results have them."""
    watch = watch or Stopwatch()
    if not Path(results_file).is_file():
        raise FileNotFoundError(f"results file {results_file} does not exist: ./predict.py --evaluate writes one")
    with watch.part("reading the results"):
        results = read_json(results_file)
    listed = [result for result in results if isinstance(result, dict)] if isinstance(results, list) else []
    has_masks = any("segmentation" in result for result in listed)
    if cfg.MODE_MASK and results and not has_masks:
        logger.warning("%s holds no masks: only boxes are scored", results_file)
    return evaluate_coco(
        results,
        annotation_file,
        iou_types=("bbox", "segm") if cfg.MODE_MASK and (has_masks or not results) else ("bbox",),
        categories=configured_categories(cfg),
        max_detections=cfg.TEST.RESULTS_PER_IM,
        absolute_coord=cfg.DATA.ABSOLUTE_COORD,
        num_workers=cfg.DATA.NUM_WORKERS,
        watch=watch,
    )


def main() -> int:
    """Scores results files, one for each set of DATA.VAL."""
    parser = argparse.ArgumentParser(description="Score COCO results files against the annotations of DATA.VAL.")
    parser.add_argument("results", nargs="+", metavar="OUT.json", help="results, one file for each set of DATA.VAL")
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
        name, annotation_file, _ = locate_dataset(spec, basedir=cfg.DATA.BASEDIR)
        watch = Stopwatch()
        metrics = evaluate_file(results_file, annotation_file, cfg, watch)
        with watch.part("writing the metrics"):
            path = write_metrics(metrics, results_file)
        print(f"{results_file} on {name}\n\n{format_metrics(metrics)}\n\n{watch.table()}\n")
        print(f"metrics written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
