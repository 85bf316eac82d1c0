#!/usr/bin/env python3
"""Time the training loader on drawn 640×480 JPEGs with masks, resized to 800×1067, and measure its workers' memory.

    python benchmarks/loader.py         # both
    python benchmarks/loader.py speed   # or: memory

Memory is the proportional set size (PSS): a page that n processes share counts 1/n in each, so the sum over this
process and its workers is what they take of the machine. Linux only.
"""
import argparse
import gc
import os
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import default_config, finalize_configs, run_command  # noqa: E402

from data import make_train_batches  # noqa: E402
from FasterRCNN.datasets.records import PackedRecords  # noqa: E402
from FasterRCNN.loading.prefetch import StepsInOrder  # noqa: E402
from FasterRCNN.structures import Categories, Dataset, ImageRecord  # noqa: E402

HEIGHT, WIDTH = 480, 640
SHORT_EDGE = 800
OBJECTS_PER_IMAGE, CORNERS = 7, 24
JPEG_QUALITY = 90
NUM_CLASSES = 80
NUM_PICTURES = 200  # for the speed
NUM_RECORDS = 118_000  # for the memory, as many as COCO train2017 has; they share one small JPEG
TINY_HEIGHT, TINY_WIDTH = 48, 64
CHECKED_STEPS = (200, 1_000, 5_000)


def draw_photo(random, height=HEIGHT, width=WIDTH):
    """Return a picture with a photo's mixture of smooth areas, edges and fine noise, uint8 height×width×3."""
    coarse = random.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    photo = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    texture = cv2.resize(random.normal(0, 20, (height // 4, width // 4, 3)), (width, height))
    photo += texture + random.normal(0, 4, photo.shape)
    return np.clip(photo, 0, 255).astype(np.uint8)


def draw_polygon(random, height, width):
    """Return the outline of a blob inside the image, CORNERS×2."""
    radius = random.uniform(0.04, 0.25) * height
    centre = random.uniform(radius, [width - radius, height - radius])
    angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    distances = radius * random.uniform(0.6, 1, CORNERS)
    return centre + distances[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def draw_records(random, files, number, height, width):
    """Return `number` images with OBJECTS_PER_IMAGE polygons each, packed; they take turns at showing the files."""
    return PackedRecords.from_iterable(_draw_record(random, i, files[i % len(files)], height, width)
                                       for i in range(number))


def _draw_record(random, number, file, height, width):
    outlines = [draw_polygon(random, height, width) for _ in range(OBJECTS_PER_IMAGE)]
    boxes = np.array([[*outline.min(axis=0), *outline.max(axis=0)] for outline in outlines], np.float32)
    return ImageRecord(image_id=number, file_name=str(file), height=height, width=width, boxes=boxes,
                       labels=random.integers(1, NUM_CLASSES + 1, OBJECTS_PER_IMAGE).astype(np.int32),
                       is_crowd=np.zeros(OBJECTS_PER_IMAGE, bool),
                       segmentations=[[outline.astype(np.float32)] for outline in outlines])


def draw_steps(folder, *, num_records, num_files, height, width, short_edge):
    """Write `num_files` JPEGs and return what makes a step's datapoint from `num_records` images that show them."""
    random = np.random.default_rng(0)
    files = [folder / f"{height}_{number}.jpg" for number in range(num_files)]
    for file in files:
        cv2.imwrite(str(file), draw_photo(random, height, width), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    categories = Categories(names=[f"class {i}" for i in range(NUM_CLASSES)], ids=range(NUM_CLASSES))
    records = draw_records(random, files, num_records, height, width)
    cfg = default_config()
    cfg.update_dict({"MODE_FPN": True, "MODE_MASK": True, "PREPROC.TRAIN_SHORT_EDGE_SIZE": [short_edge, short_edge]})
    finalize_configs(cfg, is_training=False)
    return make_train_batches(cfg, Dataset("drawn", records, categories), ims_per_gpu=1, seed=0)


def measure_speed(folder, args):
    make = draw_steps(folder, num_records=NUM_PICTURES, num_files=NUM_PICTURES, height=HEIGHT, width=WIDTH,
                      short_edge=SHORT_EDGE)
    kilobytes = np.mean([file.stat().st_size for file in folder.iterdir()]) / 1000
    height, width = make(0)[1][0]
    print(f"{NUM_PICTURES} JPEGs of {WIDTH}x{HEIGHT}, {kilobytes:.0f} kB, {OBJECTS_PER_IMAGE} polygons each, "
          f"to {height}x{width}; {os.cpu_count()} cores")
    runs = {number: [] for number in args.workers}
    for _ in range(args.repeats):
        for number in args.workers:
            runs[number].append(time_steps(make, num_workers=number, num_steps=args.num_steps))
    for number, found in runs.items():
        seconds, own_cpu, workers_cpu = np.min(found, axis=0) / args.num_steps
        print(f"speed, {number} workers: {1 / seconds:.0f} images/s, {1 / seconds / max(1, number):.0f} per process; "
              f"of processor time an image takes {1000 * own_cpu:.1f} ms here, {1000 * workers_cpu:.1f} ms in workers",
              flush=True)


def time_steps(make, *, num_workers, num_steps):
    """Return seconds and processor seconds (of this process, of its workers) of `num_steps` images, queues full."""
    steps = StepsInOrder(make, num_workers=num_workers)
    for _ in range(8 * max(1, num_workers)):  # what the workers make before the first is taken
        next(steps)
    workers = worker_ids(steps)
    before = time.perf_counter(), time.process_time(), sum(map(cpu_seconds, workers))
    for _ in range(num_steps):
        next(steps)
    after = time.perf_counter(), time.process_time(), sum(map(cpu_seconds, workers))
    steps.stop()
    return np.subtract(after, before)


def measure_memory(folder, args):
    make = draw_steps(folder, num_records=NUM_RECORDS, num_files=1, height=TINY_HEIGHT, width=TINY_WIDTH,
                      short_edge=TINY_HEIGHT)
    for step in range(20):
        make(step)
    gc.collect()
    alone = pss([os.getpid()])
    print(f"{NUM_RECORDS} records with {NUM_RECORDS * OBJECTS_PER_IMAGE} polygons: "
          f"{make.dataset.records.nbytes / 1e6:.0f} MB; this process with them: {alone:.0f} MB", flush=True)
    for number in filter(None, args.workers):
        steps = StepsInOrder(make, num_workers=number)
        for step in range(1, max(CHECKED_STEPS) + 1):
            next(steps)
            if step in CHECKED_STEPS:
                workers = worker_ids(steps)
                together = pss([os.getpid(), *workers])
                print(f"memory, {len(workers)} workers, step {step}: together {together:.0f} MB, "
                      f"{together / alone:.2f} x one process; of each worker alone: "
                      f"{', '.join(f'{private(pid):.0f}' for pid in workers)} MB", flush=True)
        steps.stop()


def worker_ids(steps):
    return [process.pid for process, _ in steps._workers]


def cpu_seconds(pid):
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss(pids):
    """Return the proportional set size of processes together, MB."""
    return sum(_rollup(pid)["Pss"] for pid in pids)


def private(pid):
    """Return what a process shares with no other, MB."""
    rollup = _rollup(pid)
    return rollup["Private_Clean"] + rollup["Private_Dirty"]


def _rollup(pid):
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name.rstrip(":"): int(kibibytes) * 1024 / 1e6 for name, kibibytes, _ in map(str.split, lines)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", metavar="speed|memory", help="default: both")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each number of workers (%(default)s)")
    parser.add_argument("--num-steps", type=int, default=200, metavar="N", help="images of a timed run (%(default)s)")
    args = parser.parse_args()
    benchmarks = {"speed": measure_speed, "memory": measure_memory}
    if unknown := set(args.what) - set(benchmarks):
        raise ValueError(f"nothing to measure called {', '.join(unknown)}: choose of {', '.join(benchmarks)}")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.what or benchmarks:
            benchmarks[name](Path(folder), args)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
