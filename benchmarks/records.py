#!/usr/bin/env python3
"""Measure loading and holding the records of a set as large as COCO train2017, whose JSON is drawn first.

    python benchmarks/records.py               # 118,000 images, 860,000 objects: 5 GB of memory, 1.5 GB of disk
    python benchmarks/records.py --scale 0.05  # a twentieth of it

Memory is the proportional set size (PSS) after all records were decoded in each process: a page that n processes share
counts 1/n in each, so the sum is what they take of the machine. Each row is measured in processes of its own. "List of
dicts" is the file's content as json.load gives it. Linux only.
"""
import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import run_command  # noqa: E402

from FasterRCNN.datasets.annotations import to_dataset  # noqa: E402
from FasterRCNN.datasets.cache import cached_dataset  # noqa: E402
from FasterRCNN.datasets.coco import read_coco  # noqa: E402
from FasterRCNN.datasets.problems import Problems  # noqa: E402

NUM_IMAGES, NUM_OBJECTS = 118_000, 860_000  # COCO train2017: 118,287 and 860,001
HEIGHT, WIDTH = 480, 640
MEAN_POINTS = 25
NUM_CLASSES = 80
NUM_SHAPES = 3_000  # outlines drawn; objects take turns at them
CROWD_SHARE = 0.01
NUM_WORKERS = 4
CASES = {  # name -> how the records are held, processes that load them, workers forked by each
    "nothing": ("nothing", 1, 0),
    "packed, read and written": ("file", 1, 0),
    "packed, mapped": ("file", 1, 0),
    f"packed, mapped, {NUM_WORKERS} workers": ("file", 1, NUM_WORKERS),
    "packed, mapped, 2 processes": ("file", 2, 0),
    f"packed, in memory, {NUM_WORKERS} workers": ("memory", 1, NUM_WORKERS),
    "list of dicts": ("dicts", 1, 0),
    f"list of dicts, {NUM_WORKERS} workers": ("dicts", 1, NUM_WORKERS),
    "list of dicts, 2 processes": ("dicts", 2, 0),
}


# ---------------------------------------------------------------- the file


def draw_json(path, scale, seed=0):
    """Write a COCO instances file of `scale` times the size of train2017, a line an entry."""
    random = np.random.default_rng(seed)
    num_images, num_objects = max(1, int(NUM_IMAGES * scale)), int(NUM_OBJECTS * scale)
    shapes = [_draw_shape(random) for _ in range(NUM_SHAPES)]
    # So many objects in an image as a geometric distribution gives: many have few, few have many.
    counts = random.multinomial(num_objects, random.dirichlet(np.ones(num_images)))
    owners = np.repeat(np.arange(num_images), counts)
    random.shuffle(owners)
    with open(path, "w", encoding="ascii") as file:
        file.write('{"images": [')
        _write_entries(file, ({"id": int(i), "file_name": f"{i:012d}.jpg", "height": HEIGHT, "width": WIDTH,
                               "license": 3, "date_captured": "2013-11-14 11:18:45",
                               "coco_url": f"http://images.example.org/train2017/{i:012d}.jpg"}
                              for i in range(num_images)))
        file.write('], "categories": [')
        _write_entries(file, ({"id": i, "name": f"class {i}"} for i in range(1, NUM_CLASSES + 1)))
        file.write('], "annotations": [')
        for number, owner in enumerate(owners.tolist()):
            file.write(f'{"," if number else ""}\n{{{shapes[number % NUM_SHAPES]}, "image_id": {owner}, '
                       f'"category_id": {number % NUM_CLASSES + 1}, "id": {number + 1}}}')
        file.write("]}\n")


def _write_entries(file, entries):
    file.write(",\n".join(map(json.dumps, entries)))


def _draw_shape(random):
    """Return an object's segmentation, bbox, area and iscrowd as JSON without its braces."""
    size = np.exp(random.uniform(np.log(8), np.log(300), 2))
    corner = random.uniform(0, 1, 2) * ([WIDTH, HEIGHT] - size)
    bbox = [round(float(value), 2) for value in (*corner, *size)]
    if random.random() < CROWD_SHARE:
        runs = np.diff([0, *np.sort(random.integers(1, WIDTH * HEIGHT, 300)), WIDTH * HEIGHT]).tolist()
        words = f'{{"counts": {json.dumps(runs)}, "size": [{HEIGHT}, {WIDTH}]}}, "iscrowd": 1'
    else:
        polygons = [_draw_polygon(random, corner, size) for _ in range(1 + (random.random() < 0.1))]
        words = f'{json.dumps(polygons)}, "iscrowd": 0'
    return f'"segmentation": {words}, "area": {float(size.prod()) / 2:.4f}, "bbox": {bbox}'


def _draw_polygon(random, corner, size):
    number = 3 + int(random.gamma(1.5, (MEAN_POINTS - 3) / 1.5))
    angles = np.sort(random.uniform(0, 2 * np.pi, number))
    points = corner + size / 2 * (1 + np.stack([np.cos(angles), np.sin(angles)], axis=1))
    return points.round(2).ravel().tolist()


# ---------------------------------------------------------------- in a process of its own


def hold(how, path, folder):
    """Return what holds the records, and a function that looks at all of them."""
    if how == "nothing":
        return None, lambda: None
    if how == "dicts":
        with open(path, encoding="ascii") as file:
            content = json.load(file)
        return content, lambda: sum(len(np.asarray(polygon)) for entry in content["annotations"]
                                    if not entry["iscrowd"] for polygon in entry["segmentation"])
    dataset = load_packed(path, folder if how == "file" else None)
    return dataset, lambda: sum(len(record) for record in dataset.records)


def load_packed(path, folder):
    def read(problems):
        annotations = read_coco(path, path.parent, name="drawn")
        return to_dataset(annotations, annotations.categories, problems)

    return cached_dataset(read, Problems(str(path)), key=["drawn"], sources=[path], folder=folder)


def run_here(how, num_workers, path, folder):
    """Load, look at all records here and in workers, and print figures when told to, while others of the case live."""
    begun = time.perf_counter()
    held, look = hold(how, path, folder)
    loaded = time.perf_counter()
    look()
    looked = time.perf_counter()
    context = multiprocessing.get_context("fork")
    ready, end = context.Semaphore(0), context.Event()
    workers = [context.Process(target=_look_and_wait, args=(look, ready, end)) for _ in range(num_workers)]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps({
        "load": loaded - begun,
        "decode": looked - loaded,
        "peak": _kilobytes("self", "status", "VmHWM") * 1024,
        "pss": sum(_kilobytes(pid, "smaps_rollup", "Pss") for pid in [os.getpid(), *(it.pid for it in workers)]) * 1024,
        "packed": held.records.nbytes if how in ("file", "memory") else None,
    }), flush=True)
    sys.stdin.readline()
    end.set()


def _look_and_wait(look, ready, end):
    look()
    ready.release()
    end.wait()


def _kilobytes(pid, file, key):
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise OSError(f"/proc/{pid}/{file} tells no {key}")


# ---------------------------------------------------------------- all of it


def measure(name, path, folder):
    """Return the figures of a case, of each of its processes."""
    how, num_processes, num_workers = CASES[name]
    command = [sys.executable, __file__, "--here", how, str(num_workers), str(path), str(folder)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                 for _ in range(num_processes)]
    try:
        for process in processes:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(f"{name}: a process ended early")
        return [json.loads(_ask(process)) for process in processes]
    finally:
        for process in processes:
            process.communicate("\n")


def _ask(process):
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {'; '.join(CASES)}")
    parser.add_argument("--scale", type=float, default=1, help="of train2017's size, at least 0.05")
    parser.add_argument("--here", nargs=4, metavar=("HOW", "WORKERS", "JSON", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.here:
        how, num_workers, path, folder = args.here
        return run_here(how, int(num_workers), Path(path), Path(folder))
    if unknown := set(args.cases) - set(CASES):
        raise ValueError(f"no case called {', '.join(unknown)}: choose of {'; '.join(CASES)}")
    if args.scale < 0.05:
        raise ValueError(f"--scale {args.scale}: records of less than 0.05 times train2017's are not written to a file")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "instances.json"
        draw_json(path, args.scale)
        print(f"{int(NUM_IMAGES * args.scale)} images, {int(NUM_OBJECTS * args.scale)} objects: JSON of "
              f"{path.stat().st_size / 1e6:.0f} MB; {os.cpu_count()} cores", flush=True)
        rows = []
        for case in args.cases or CASES:
            figures = measure(case, path, folder / "records")
            packed = figures[0]["packed"]
            rows.append([case, figures[0]["load"], figures[0]["decode"], figures[0]["peak"] / 1e6,
                         sum(each["pss"] for each in figures) / 1e6, packed and packed / 1e6])
        print(tabulate(rows, floatfmt=(None, ".2f", ".2f", ".0f", ".0f", ".0f"), missingval="", headers=[
            "held as", "load, s", "decode all, s", "peak RSS of one, MB", "memory of all, MB", "packed, MB"]))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
