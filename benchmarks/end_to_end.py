#!/usr/bin/env python3
"""Time Mask R-CNN R50-FPN from JPEGs on disk to RLE masks beside the network alone, and the pasting of masks.

    python benchmarks/end_to_end.py          # both
    python benchmarks/end_to_end.py photos   # or: pasting
    python benchmarks/end_to_end.py photos --config TEST.PRECISION=bf16

Photos go the way that they go for users (`detect_files` and the Predictor), at the network as large as in
benchmarks/speed.py and with the same weights. Runs with and without everything take turns, so that both meet the same
machine.
"""
import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import add_config_arguments, run_command  # noqa: E402

from benchmarks.loader import JPEG_QUALITY, draw_photo  # noqa: E402
from benchmarks.speed import benchmark_config, inference_weights, timed  # noqa: E402
from FasterRCNN.imaging.postprocess import paste_mask, paste_masks_to_rle  # noqa: E402
from FasterRCNN.imaging.read import read_image  # noqa: E402
from inference import build_predictor, detect_files  # noqa: E402

ASPECT_RATIO = 5 / 3  # an image of any size becomes 800×1333
MASK_SIDE = 28


def make_predictor(overrides):
    from FasterRCNN.modeling.build import build_detector

    names = [f"class {i}" for i in range(80)]
    cfg = benchmark_config([f"DATA.CLASS_NAMES={names}", *overrides], is_training=False)
    return build_predictor(cfg, inference_weights(build_detector(cfg)))


def time_photos(args):
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    height, width = args.height, round(args.height * ASPECT_RATIO)
    random = np.random.default_rng(0)
    with make_predictor(args.config) as predictor, tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{i}.jpg") for i in range(args.num_photos)]
        for file in files:
            cv2.imwrite(file, draw_photo(random, height, width), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        photos = [(file, partial(read_image, file)) for file in files]
        batches = [predictor.prepare([(0, read_image(file))]) for file in files]

        def network_only():
            return [predictor.network_only(batch.images.tensors, batch.images.image_sizes) for batch in batches]

        def everything():
            return [detections for _, _, detections in detect_files(predictor, photos, {})]

        found = everything()
        print(f"{len(files)} JPEGs of {width}x{height}, {Path(files[0]).stat().st_size / 1000:.0f} kB, to "
              f"{'x'.join(map(str, batches[0].images.tensors.shape[1:3]))}; {len(found[0])} detections, "
              f"{describe_masks(found)}")
        times = np.array([[timed_once(network_only), timed_once(everything)] for _ in range(args.rounds)]) / len(files)
        (network, network_cpu), (whole, whole_cpu) = times.min(axis=0)
        ratios = np.sort(times[:, 1, 0] / times[:, 0, 0])
        print(f"network only {network:.3f} s a photo, everything {whole:.3f} s: {whole / network:.3f} x; "
              f"of the {args.rounds} rounds {ratios[0]:.3f} to {ratios[-1]:.3f} x, median {np.median(ratios):.3f} x")
        print(f"of processor time {network_cpu:.3f} s and {whole_cpu:.3f} s a photo: {whole_cpu / network_cpu:.3f} x")
        lone = timed(lambda: list(detect_files(predictor, photos[:1], {})), args.rounds).min()
        print(f"a lone photo {lone:.3f} s: {lone / network:.3f} x")
        print_parts(predictor, files[0], args.rounds)


def describe_masks(found):
    sides = np.sqrt(np.concatenate([detections.area() for detections in found]))
    counts = [len(rle["counts"]) for detections in found for rle in detections.get_field("masks").segmentations]
    return f"median side of a box {np.median(sides):.0f} pixels, {np.mean(counts):.0f} bytes an RLE"


def timed_once(run):
    """Return the seconds and this process's processor seconds of one run."""
    before = time.perf_counter(), time.process_time()
    run()
    return np.subtract((time.perf_counter(), time.process_time()), before)


def print_parts(predictor, file, repeats):
    """Print what each part of the way takes when nothing else runs in this process."""
    photo = read_image(file)
    batch = predictor.prepare([(0, photo)])
    ran = predictor.run_batch(batch)
    parts = {"reading": lambda: read_image(file), "resizing": lambda: predictor.prepare([(0, photo)]),
             "network": lambda: predictor.run_batch(batch), "pasting and RLE": lambda: predictor.finish(ran)}
    milliseconds = {name: 1000 * timed(run, 2 * repeats).min() for name, run in parts.items()}
    print("one after the other: " + ", ".join(f"{name} {value:.1f} ms" for name, value in milliseconds.items()))


# ---------------------------------------------------------------- pasting


def time_pasting(args):
    print("pasting one mask, RLE included (the least of many):")
    for height, width in [(480, 640), (1200, 1600), (4800, 6400)]:
        milliseconds = [1000 * time_paste(side, height, width, args.rounds) for side in (30, 100, 300)]
        print(f"  image {width}x{height}: " + ", ".join(
            f"box of {side}x{side} {value:.2f} ms" for side, value in zip((30, 100, 300), milliseconds, strict=True)))
    ious = [iou_with_definition(number) for number in range(200)]
    print(f"IoU with the definition evaluated at every pixel of the image, {len(ious)} masks: least {min(ious):.6f}, "
          f"mean {np.mean(ious):.6f}")


def draw_mask(random):
    """Return a blob's soft mask, float32 28×28, as a mask head gives it."""
    coarse = cv2.resize(random.random((5, 5), np.float32), (MASK_SIDE, MASK_SIDE), interpolation=cv2.INTER_CUBIC)
    y, x = (np.mgrid[:MASK_SIDE, :MASK_SIDE] + 0.5) / MASK_SIDE * 2 - 1
    return 1 / (1 + np.exp(-6 * (1 + coarse - 1.5 * np.hypot(x, y)))).astype(np.float32)


def time_paste(side, height, width, repeats):
    random = np.random.default_rng(side)
    masks = np.stack([draw_mask(random) for _ in range(50)])
    corners = random.uniform(0, [width - side, height - side], (50, 2))
    boxes = np.concatenate([corners, corners + side], axis=1).astype(np.float32)
    return timed(lambda: paste_masks_to_rle(masks, boxes, height, width), repeats).min() / 50


def iou_with_definition(seed):
    """Return the IoU of a pasted mask with the pasting rule computed at every pixel of the image in float64."""
    random = np.random.default_rng(seed)
    height, width = random.integers(100, 400, 2)
    corner = random.uniform(-20, [width - 30, height - 30])
    x1, y1, x2, y2 = *corner, *(corner + random.uniform(20, 200, 2))
    mask = draw_mask(random)
    pasted = paste_mask(mask, np.array([x1, y1, x2, y2]), height, width).astype(bool)
    x = (np.arange(width) + 0.5 - x1) / (x2 - x1) * MASK_SIDE - 0.5
    y = (np.arange(height) + 0.5 - y1) / (y2 - y1) * MASK_SIDE - 0.5
    exact = sample(mask.astype(np.float64), *np.meshgrid(x, y)) >= 0.5
    return (pasted & exact).sum() / max(1, (pasted | exact).sum()) if exact.any() else float(not pasted.any())


def sample(mask, x, y):
    """Interpolate bilinearly at cells' coordinates, zeros around."""
    padded = np.pad(mask, 2)
    x, y = (np.clip(v, -2, MASK_SIDE + 1 - 1e-9) + 2 for v in (x, y))
    i, j = y.astype(int), x.astype(int)
    i, j = np.minimum(i, MASK_SIDE + 2), np.minimum(j, MASK_SIDE + 2)
    a, b = y - i, x - j
    upper = padded[i, j] * (1 - b) + padded[i, j + 1] * b
    lower = padded[i + 1, j] * (1 - b) + padded[i + 1, j + 1] * b
    return upper * (1 - a) + lower * a


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", metavar="photos|pasting", help="default: both")
    parser.add_argument("--num-photos", type=int, default=12, metavar="N", help="JPEGs of a round (%(default)s)")
    parser.add_argument("--height", type=int, default=480, help="of a photo; its width is 5/3 (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (%(default)s)")
    add_config_arguments(parser)
    args = parser.parse_args()
    benchmarks = {"photos": time_photos, "pasting": time_pasting}
    if unknown := set(args.what) - set(benchmarks):
        raise ValueError(f"nothing to time called {', '.join(unknown)}: choose of {', '.join(benchmarks)}")
    for name in args.what or benchmarks:
        benchmarks[name](args)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
