"""The work that another program is timed on: one 800×1333 image with 8 objects of 80 classes."""
import time

import numpy as np

HEIGHT, WIDTH, NUM_OBJECTS, NUM_CLASSES = 800, 1333, 8, 80


def draw_objects():
    """Return random boxes float32 8×4, labels int64 8 of 1..80, and masks uint8 8×800×1333 that fill the boxes."""
    random = np.random.default_rng(0)
    corners = random.uniform(0, [WIDTH - 300, HEIGHT - 300], (NUM_OBJECTS, 2))
    boxes = np.concatenate([corners, corners + random.uniform(40, 300, (NUM_OBJECTS, 2))], axis=1)
    masks = np.zeros((NUM_OBJECTS, HEIGHT, WIDTH), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int)):
        mask[y1:y2, x1:x2] = 1
    return boxes.astype(np.float32), random.integers(1, NUM_CLASSES + 1, NUM_OBJECTS), masks


def timed(run, repeats):
    """Return the seconds of each of `repeats` runs, after one to warm up."""
    run()
    times = [time.perf_counter()]
    for _ in range(repeats):
        run()
        times.append(time.perf_counter())
    return np.diff(times).tolist()
