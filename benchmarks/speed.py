#!/usr/bin/env python3
"""Time inference and a training step of Mask R-CNN R50-FPN at 800×1333, beside the machine's convolution speed.

    python benchmarks/speed.py            # both
    python benchmarks/speed.py inference  # or: training

Weights follow from the variables' names, so that there are 1,000 proposals and 100 detections as with a trained model.
The speed of TensorFlow's own 3×3 convolution is measured before and after; the ratio of a time to (arithmetic / that
speed) can be compared between machines.
"""
import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import add_config_arguments, default_config, finalize_configs, run_command  # noqa: E402

from tools.compare_reference import reference_session, reference_value  # noqa: E402

HEIGHT, WIDTH = 800, 1333
NUM_OBJECTS = 8
INFERENCE_GFLOP, TRAINING_GFLOP = 538, 1125  # of R50-FPN with masks at that size


def timed(run, repeats):
    """Return the seconds of each of `repeats` runs, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return np.array(times)


def convolution_speed():
    """Return GFLOP/s of a 3×3 convolution of 256 channels on a 200×336 map (P2 of an 800×1344 image), float32."""
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.float32, [1, 200, 336, 256])
        kernel = tf.placeholder(tf.float32, [3, 3, 256, 256])
        output = tf.nn.conv2d(image, kernel, 1, "SAME")
        run = session.make_callable(output.op, [image, kernel])
        random = np.random.default_rng(0)
        values = [random.random(x.shape.as_list(), np.float32) for x in (image, kernel)]
        seconds = timed(lambda: run(*values), 8).min()
    return 2 * 9 * 256 * 256 * 200 * 336 / seconds / 1e9


def photo():
    """Return a padded image, uint8 1×800×1344×3, and its size."""
    image = np.zeros((1, HEIGHT, -(-WIDTH // 32) * 32, 3), np.uint8)
    image[0, :, :WIDTH] = np.random.default_rng(0).integers(256, size=(HEIGHT, WIDTH, 3))
    return image, np.array([[HEIGHT, WIDTH]], np.int32)


def benchmark_config(overrides, *, is_training):
    """Return the configuration: R50-FPN with masks, 80 classes."""
    cfg = default_config()
    cfg.update_args(["MODE_FPN=True", "MODE_MASK=True", "TEST.RESULT_SCORE_THRESH=0.0", *overrides])
    cfg.update_dict({"DATA.NUM_CLASS": 80})
    finalize_configs(cfg, is_training=is_training, starts_from_weights=True)
    return cfg


def time_inference(overrides, repeats):
    """Return (seconds of each run of the network, what it found)."""
    import tensorflow.compat.v1 as tf

    from FasterRCNN.engine.predictor import build_constant_graph, session_config
    from FasterRCNN.modeling.build import build_detector

    detector = build_detector(benchmark_config(overrides, is_training=False))
    with tf.Graph().as_default():
        detector.detect(tf.placeholder(tf.uint8, [1, None, None, 3]), tf.placeholder(tf.int32, [1, 2]))
        weights = {v.op.name: reference_value(v.op.name, v.shape.as_list()) for v in tf.global_variables()}
    graph, inputs, outputs = build_constant_graph(detector, weights, batch_size=1)
    with tf.Session(graph=graph, config=session_config()) as session:
        run = session.make_callable(outputs, inputs)
        found = run(*photo())
        return timed(lambda: run(*photo()), repeats), f"{int(found['num_detections'][0])} detections"


def time_training(overrides, repeats):
    """Return (seconds of each training step, what was trained)."""
    import tensorflow.compat.v1 as tf

    from FasterRCNN.engine.optim import weight_decay_loss
    from FasterRCNN.modeling.build import build_detector

    cfg = benchmark_config(overrides, is_training=True)
    random = np.random.default_rng(0)
    corners = random.uniform(0, [WIDTH - 300, HEIGHT - 300], (NUM_OBJECTS, 2))
    boxes = np.concatenate([corners, corners + random.uniform(40, 300, (NUM_OBJECTS, 2))], axis=1)
    image, image_size = photo()
    values = {"image": image, "image_size": image_size, "gt_boxes": boxes[None].astype(np.float32),
              "gt_labels": random.integers(1, 81, (1, NUM_OBJECTS)).astype(np.int32),
              "gt_masks": np.full((1, NUM_OBJECTS, 112, 14), 255, np.uint8),
              "image_seeds": np.zeros((1, 2), np.int32)}
    with tf.Graph().as_default():
        inputs = {name: tf.placeholder(value.dtype, value.shape) for name, value in values.items()}
        losses, _ = build_detector(cfg, is_training=True).losses(**inputs)
        losses["wd"] = weight_decay_loss(tf.trainable_variables(), cfg.TRAIN.WEIGHT_DECAY)
        step = tf.train.MomentumOptimizer(1e-6, cfg.TRAIN.MOMENTUM).minimize(tf.add_n(list(losses.values())))
        with reference_session(tf) as session:
            run = session.make_callable(step, list(inputs.values()))
            return timed(lambda: run(*values.values()), repeats), f"{NUM_OBJECTS} objects"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", metavar="inference|training", help="default: both")
    parser.add_argument("--repeats", type=int, default=8, help="timed runs (%(default)s)")
    add_config_arguments(parser)
    args = parser.parse_args()
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    benchmarks = {"inference": (time_inference, INFERENCE_GFLOP), "training": (time_training, TRAINING_GFLOP)}
    if unknown := set(args.what) - set(benchmarks):
        raise ValueError(f"nothing to time called {', '.join(unknown)}: choose of {', '.join(benchmarks)}")
    for name in args.what or benchmarks:
        measure, gflop = benchmarks[name]
        before = convolution_speed()
        seconds, found = measure(args.config, args.repeats)
        speed = max(before, convolution_speed())
        limit = gflop / speed
        print(f"{name}: best {seconds.min():.2f} s, median {np.median(seconds):.2f} s, {found}; "
              f"3x3 convolution {speed:.0f} GFLOP/s: limit {limit:.2f} s, best / limit {seconds.min() / limit:.2f}",
              flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
