#!/usr/bin/env python3
"""Time inference and a training step of Mask R-CNN R50-FPN at 800×1333, beside the machine's convolution speed.

    python benchmarks/speed.py            # both
    python benchmarks/speed.py inference  # or: training
    python benchmarks/speed.py --config TEST.PRECISION=bf16 TRAIN.PRECISION=bf16
    python benchmarks/speed.py --config TEST.IMS_PER_GPU=4 TRAIN.IMS_PER_GPU=4

Weights follow from the variables' names, so that there are 1,000 proposals and 100 detections as with a trained model.
The speed of TensorFlow's own 3×3 convolution, in float32 and in the same precision, is measured between the runs; the
ratio of a time to (arithmetic / that speed) can be compared between machines: of the best time to the best speed, and
of each run to the speed just before it, since a machine's speed may change meanwhile. Times are those of one image.

    python benchmarks/speed.py inference --at-once 2

lets two threads run the network at once, as prediction does on processors: the time is that of all over their number.
"""
import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import add_config_arguments, default_config, finalize_configs, run_command  # noqa: E402

from tools.compare_reference import reference_session, reference_value  # noqa: E402

HEIGHT, WIDTH = 800, 1333
NUM_OBJECTS = 8
TYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
INFERENCE_GFLOP, TRAINING_GFLOP = 538, 1125  # of R50-FPN with masks of all classes at that size


def timed(run, repeats, beside=()):
    """Return the seconds of each of `repeats` runs, after one to warm up; each of `beside` is called before each."""
    run()
    times = []
    for _ in range(repeats):
        for call in beside:
            call()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return np.array(times)


class Convolution:
    """A 3×3 convolution of 256 channels on a 200×336 map (P2 of an 800×1344 image), and its GFLOP/s at each measure."""

    def __init__(self, dtype="float32"):
        import tensorflow.compat.v1 as tf

        self.dtype, self.speeds = dtype, []
        with tf.Graph().as_default():
            # Variables: what is fed would be copied, which takes a sixth as long as the convolution in bfloat16.
            image, kernel = (
                tf.get_variable(name, initializer=tf.cast(tf.random.uniform(shape), dtype), use_resource=True)
                for name, shape in (("image", [1, 200, 336, 256]), ("kernel", [3, 3, 256, 256])))
            session = tf.Session()
            session.run(tf.global_variables_initializer())
            self._run = session.make_callable(tf.nn.conv2d(image, kernel, 1, "SAME").op)

    def measure(self, times=4):
        self.speeds.append(2 * 9 * 256 * 256 * 200 * 336 / timed(self._run, times).min() / 1e9)

    @property
    def speed(self):
        return max(self.speeds)

    def ratios(self, seconds, gflop):
        """Return the time of each run over what `gflop` take at the speed measured just before it."""
        return seconds * np.array(self.speeds) / gflop


def convolution_speed(dtype="float32"):
    """Return the GFLOP/s of the Convolution."""
    convolution = Convolution(dtype)
    convolution.measure(8)
    return convolution.speed


def photos(batch):
    """Return padded images, uint8 batch×800×1344×3, and their sizes."""
    images = np.zeros((batch, HEIGHT, -(-WIDTH // 32) * 32, 3), np.uint8)
    images[:, :, :WIDTH] = np.random.default_rng(0).integers(256, size=(batch, HEIGHT, WIDTH, 3))
    return images, np.array([[HEIGHT, WIDTH]] * batch, np.int32)


def benchmark_config(overrides, *, is_training):
    """Return the configuration: R50-FPN with masks, 80 classes."""
    cfg = default_config()
    cfg.update_args(["MODE_FPN=True", "MODE_MASK=True", *overrides])
    cfg.update_dict({"DATA.NUM_CLASS": 80})
    finalize_configs(cfg, is_training=is_training, starts_from_weights=True)
    return cfg


def inference_weights(detector):
    """Return weights that follow from the variables' names, with class logits of deviation 1.

    Some pairs of RoI and class then pass the threshold, as with a trained model and in benchmarks/peer_torchvision.py,
    and not all or none.
    """
    import tensorflow.compat.v1 as tf

    from FasterRCNN.engine.predictor import build_constant_graph

    with tf.Graph().as_default():
        detector.detect(tf.placeholder(tf.uint8, [1, None, None, 3]), tf.placeholder(tf.int32, [1, 2]))
        weights = {v.op.name: reference_value(v.op.name, v.shape.as_list()) for v in tf.global_variables()}
    graph, inputs, _ = build_constant_graph(detector, weights, batch_size=1)

    def of_boxes(names, end):  # in the order of their making, of a cascade's stages
        return [name for name in names if name.endswith(end) and not name.startswith("rpn")]

    layers = of_boxes([op.name for op in graph.get_operations()], "class/BiasAdd")
    with tf.Session(graph=graph) as session:
        logits = session.run([f"{name}:0" for name in layers], dict(zip(inputs, photos(1))))
    for name, values in zip(of_boxes(weights, "class/W"), logits):
        weights[name] = weights[name] / values.std()
    return weights


def time_inference(overrides, repeats, beside=(), *, at_once=1):
    """Return (seconds an image of each run of the network, what it found).

    at_once above 1: so many threads run it four times each, and a run's time is that of all over their number.
    """
    import tensorflow.compat.v1 as tf

    from FasterRCNN.engine.predictor import build_constant_graph, session_config
    from FasterRCNN.modeling.build import build_detector

    cfg = benchmark_config(overrides, is_training=False)
    detector, batch = build_detector(cfg), cfg.TEST.IMS_PER_GPU
    weights, values, size = inference_weights(detector), photos(batch), 1 if batch == 1 else None
    graph, inputs, outputs = build_constant_graph(detector, weights, batch_size=size, for_this_machine=True)
    with tf.Session(graph=graph, config=session_config()) as session:
        run = session.make_callable(outputs, inputs)
        found = run(*values)
        runs = 4 * at_once if at_once > 1 else 1
        with ThreadPoolExecutor(at_once) as pool:
            seconds = timed(lambda: list(pool.map(lambda _: run(*values), range(runs))), repeats, beside) / runs
        return seconds / batch, f"{batch} x {int(found['num_detections'][0])} detections"


def time_training(overrides, repeats, beside=(), num_objects=NUM_OBJECTS):
    """Return (seconds an image of each training step, what was trained)."""
    import tensorflow.compat.v1 as tf

    from FasterRCNN.engine.optim import weight_decay_loss
    from FasterRCNN.modeling.build import build_detector

    cfg = benchmark_config(overrides, is_training=True)
    batch, random = cfg.TRAIN.IMS_PER_GPU, np.random.default_rng(0)
    corners = random.uniform(0, [WIDTH - 300, HEIGHT - 300], (batch, num_objects, 2))
    boxes = np.concatenate([corners, corners + random.uniform(40, 300, (batch, num_objects, 2))], axis=2)
    image, image_size = photos(batch)
    values = {"image": image, "image_size": image_size, "gt_boxes": boxes.astype(np.float32),
              "gt_labels": random.integers(1, 81, (batch, num_objects)).astype(np.int32),
              "gt_masks": np.full((batch, num_objects, 112, 14), 255, np.uint8),
              "image_seeds": np.zeros((batch, 2), np.int32)}
    with tf.Graph().as_default():
        inputs = {name: tf.placeholder(value.dtype, value.shape) for name, value in values.items()}
        losses, _ = build_detector(cfg, is_training=True).losses(**inputs)
        losses["wd"] = weight_decay_loss(tf.trainable_variables(), cfg.TRAIN.WEIGHT_DECAY)
        step = tf.train.MomentumOptimizer(1e-6, cfg.TRAIN.MOMENTUM).minimize(tf.add_n(list(losses.values())))
        with reference_session(tf) as session:
            run = session.make_callable(step, list(inputs.values()))
            return timed(lambda: run(*values.values()), repeats, beside) / batch, f"{batch} x {num_objects} objects"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", metavar="inference|training", help="default: both")
    parser.add_argument("--repeats", type=int, default=8, help="timed runs (%(default)s)")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="threads that run inference (%(default)s)")
    add_config_arguments(parser)
    args = parser.parse_args()
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    cfg = benchmark_config(args.config, is_training=False)
    inference = partial(time_inference, at_once=args.at_once)
    benchmarks = {"inference": (inference, INFERENCE_GFLOP, cfg.TEST.PRECISION),
                  "training": (time_training, TRAINING_GFLOP, cfg.TRAIN.PRECISION)}
    if unknown := set(args.what) - set(benchmarks):
        raise ValueError(f"nothing to time called {', '.join(unknown)}: choose of {', '.join(benchmarks)}")
    for name in args.what or benchmarks:
        measure, gflop, precision = benchmarks[name]
        convolutions = [Convolution(dtype) for dtype in dict.fromkeys(["float32", TYPES[precision]])]
        seconds, found = measure(args.config, args.repeats, [convolution.measure for convolution in convolutions])
        print(f"{name} in {precision}: best {seconds.min():.3f} s, median {np.median(seconds):.3f} s, {found}")
        for c in convolutions:
            print(f"    {c.dtype} 3x3 convolution {c.speed:.0f} GFLOP/s: limit {gflop / c.speed:.2f} s, "
                  f"best / limit {seconds.min() * c.speed / gflop:.2f}, "
                  f"each run / limit of its moment {np.median(c.ratios(seconds, gflop)):.2f} (median)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
