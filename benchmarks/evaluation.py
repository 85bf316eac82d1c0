#!/usr/bin/env python3
"""Time the evaluation of a drawn results file as large as COCO val2017's, beside plain pycocotools on the same files.

    python benchmarks/evaluation.py               # 5,000 images, 36,000 objects, 500,000 detections with masks
    python benchmarks/evaluation.py --images 500  # a tenth
    python benchmarks/evaluation.py --metric voc  # Pascal VOC's numbers, timed alone

Prints the seconds of each part, the ratio, and the greatest difference of any number: the twelve of boxes, the twelve
of masks, and the AP of each class. pycocotools gets the results twice, the second time without boxes, so that masks are
small, medium or large by their own area.
"""
import argparse
import contextlib
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import default_config, run_command  # noqa: E402

from eval import Stopwatch, evaluate_file, write_json, write_metrics  # noqa: E402
from FasterRCNN.datasets.catalog import read_annotations  # noqa: E402
from FasterRCNN.datasets.coco_categories import COCO_CATEGORIES  # noqa: E402

HEIGHT, WIDTH = 480, 640
OBJECTS_PER_IMAGE, DETECTIONS_PER_IMAGE = 7.3, 100
EMPTY, CROWD = 0.01, 0.012  # of the images, of the objects
DETECTIONS_PER_OBJECT = 4


def blob(rng, centre, radius):
    """Return the polygon, N×2, of an uneven outline around a centre, inside the image."""
    angles = np.linspace(0, 2 * np.pi, rng.integers(8, 32), endpoint=False)
    waves = 1 + 0.25 * np.sin(angles * rng.integers(1, 5) + rng.uniform(0, 6)) + rng.normal(0, 0.04, len(angles))
    points = centre + (radius * waves)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1) * (1, 0.8)
    return points.clip(0, (WIDTH, HEIGHT))


def jittered(rng, points):
    """Return the outline moved, scaled and roughened, and how far, from 0 on."""
    amount = rng.exponential(0.1)
    centre, size = points.mean(axis=0), np.ptp(points, axis=0)
    moved = (points - centre) * np.exp(rng.normal(0, amount, 2)) + centre + rng.normal(0, amount, 2) * size / 2
    return (moved + rng.normal(0, 0.01, points.shape) * size).clip(0, (WIDTH, HEIGHT)), amount


def random_blob(rng):
    """Return a blob anywhere; two of five are small in COCO's sense, one in four is large."""
    radius = np.exp(rng.normal(np.log(28), 1.2)).clip(3, 300)
    return blob(rng, rng.uniform((0, 0), (WIDTH, HEIGHT)), radius)


def draw_objects(rng, categories):
    """Return [(category id, polygon)] of an image."""
    count = 0 if rng.random() < EMPTY else rng.geometric(1 / OBJECTS_PER_IMAGE)
    few = rng.choice(categories, 3)  # a photo shows few classes
    return [(int(rng.choice(few)), random_blob(rng)) for _ in range(count)]


def draw_detections(rng, objects, categories):
    """Return [(category id, polygon, score)]: around each object, and elsewhere."""
    detections = []
    for category, points in objects[: DETECTIONS_PER_IMAGE // DETECTIONS_PER_OBJECT]:
        for _ in range(DETECTIONS_PER_OBJECT):
            moved, amount = jittered(rng, points)
            wrong = rng.random() < 0.15
            detections.append((int(rng.choice(categories)) if wrong else category, moved, rng.beta(4, 2 + 20 * amount)))
    while len(detections) < DETECTIONS_PER_IMAGE:
        detections.append((int(rng.choice(categories)), random_blob(rng), rng.beta(1, 8)))
    return detections


def rle_of(points):
    (rle,) = mask_utils.frPyObjects([points.ravel().tolist()], HEIGHT, WIDTH)
    return rle


def draw(folder, num_images):
    """Write an annotation file and a results file; return their paths."""
    categories = np.array(COCO_CATEGORIES.ids)
    images, annotations, results = [], [], []
    for number in tqdm(range(num_images), desc="drawing", unit="image", disable=None):
        rng = np.random.default_rng([0, number])
        image_id = 139 + 97 * number
        images.append({"id": image_id, "file_name": f"{image_id:012d}.jpg", "height": HEIGHT, "width": WIDTH})
        objects = draw_objects(rng, categories)
        for category, points in objects:
            rle = rle_of(points)
            is_crowd = int(rng.random() < CROWD)
            segmentation = rle | {"counts": rle["counts"].decode()} if is_crowd else [points.ravel().round(2).tolist()]
            annotations.append({
                "id": len(annotations) + 1, "image_id": image_id, "category_id": category, "iscrowd": is_crowd,
                "bbox": mask_utils.toBbox(rle).tolist(), "area": float(mask_utils.area(rle)),
                "segmentation": segmentation})
        for category, points, score in draw_detections(rng, objects, categories):
            rle = rle_of(points)
            results.append({
                "image_id": image_id, "category_id": category, "bbox": mask_utils.toBbox(rle).round(3).tolist(),
                "score": round(float(score), 4), "segmentation": rle | {"counts": rle["counts"].decode()}})
    listed = [{"id": int(category), "name": f"class {category}"} for category in categories]
    truth_file, results_file = folder / "instances.json", folder / "results.json"
    write_json({"images": images, "annotations": annotations, "categories": listed}, truth_file)
    write_json(results, results_file)
    print(f"{num_images} images, {len(annotations)} objects, {len(results)} detections", flush=True)
    return truth_file, results_file


def run_ours(truth_file, results_file, num_workers, metric):
    """Return the metrics and the stopwatch."""
    cfg = default_config()
    cfg.DATA.NUM_WORKERS = num_workers
    cfg.DATA.METRIC = metric
    watch = Stopwatch()
    with watch.part("reading the annotations"):
        annotations = read_annotations(f"{truth_file}:{truth_file.parent}")
    metrics = evaluate_file(results_file, annotations, cfg, watch)
    with watch.part("writing the metrics"):
        write_metrics(metrics, results_file)
    return metrics, watch


def numbers_of(metrics):
    """Return the numbers by name, those of each class among them."""
    classes = {f"{kind}/{name}": ap for kind, tables in metrics.per_class.items() for name, ap in tables["AP"].items()}
    return metrics.scalars() | {name: ap for name, ap in classes.items() if ap is not None}


def run_pycocotools(truth_file, results_file):
    """Return the numbers by name, and the stopwatch, of pycocotools as its users call it."""
    numbers, watch = {}, Stopwatch()
    with contextlib.redirect_stdout(None):
        with watch.part("reading the annotations"):
            truth = COCO(str(truth_file))
        for kind, name in (("bbox", "box"), ("segm", "mask")):
            with watch.part("reading the results"):
                results = json.loads(results_file.read_bytes())
                if kind == "segm":
                    results = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
                evaluation = COCOeval(truth, truth.loadRes(results), kind)
            with watch.part(f"{name} IoU and matching"):
                evaluation.evaluate()
            with watch.part("accumulation"):
                evaluation.accumulate()
                evaluation.summarize()
            names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
            numbers.update({f"{kind}/{name}": value for name, value in zip(names, evaluation.stats) if value > -1})
            for k, category in enumerate(evaluation.params.catIds):
                values = evaluation.eval["precision"][:, :, k, 0, -1]
                if (values > -1).any():
                    numbers[f"{kind}/class {category}"] = values[values > -1].mean()
    return numbers, watch


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000, help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="worker processes (%(default)s)")
    parser.add_argument("--metric", choices=["coco", "voc"], default="coco", help="whose numbers (%(default)s)")
    parser.add_argument("--skip-pycocotools", action="store_true", help="time ours alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = draw(Path(folder), args.images)
        metrics, watch = run_ours(*files, args.workers, args.metric)
        _, main_number = metrics.main
        named = ", ".join(f"{kind} {main_number} {table[main_number]:.4f}" for kind, table in metrics.overall().items())
        print(f"{args.workers} workers; {named}\n\n{watch.table()}\n", flush=True)
        if args.skip_pycocotools or args.metric != "coco":
            return 0
        ours = numbers_of(metrics)
        theirs, their_watch = run_pycocotools(*files)
    print(f"pycocotools\n\n{their_watch.table()}\n")
    print(f"ours / pycocotools: {watch.total() / their_watch.total():.3f}")
    if ours.keys() != theirs.keys():
        raise ValueError(f"different numbers: {sorted(ours.keys() ^ theirs.keys())}")
    greatest = max(abs(ours[name] - theirs[name]) for name in ours)
    print(f"greatest difference of any of {len(ours)} numbers: {greatest:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
