#!/usr/bin/env python3
"""Measure the exchange of gradients between two processes of a Horovod job on this machine, one core each.

    python benchmarks/distributed.py             # both models
    python benchmarks/distributed.py r50_fpn     # or: shapes
    python benchmarks/distributed.py r50_fpn --config TRAIN.IMS_PER_GPU=2

Each process has the training step three times: without exchange, with gradients as float32 and as float16. They take
turns, so that all meet the same machine: one process alone while the other waits, both without exchange (which tells
what they cost each other by sharing the machine), both with each exchange. Processor time tells the exchange from what
other programs do. Bytes are counted from the trained variables, and seen on the loopback device (Linux; what others
send there is counted too). Horovod's timeline tells how much of the exchange runs before the last gradient is there.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import add_config_arguments, default_config, finalize_configs, run_command  # noqa: E402

MODELS = {  # name -> (config file or None, keys, image's height and width)
    "shapes": ("configs/shapes.yaml", ["TRAIN.IMS_PER_GPU=1"], (256, 256)),
    "r50_fpn": (None, ["MODE_FPN=True"], (256, 416)),
}
CASES = {"alone": "none", "both, no exchange": "none", "float32": "float32", "float16": "float16"}  # -> the step made
NUM_OBJECTS = 8
TIMELINE_STEPS = 6
GRADIENT = "gradient_"  # begins the names of the tensors that average_over_processes exchanges


# ---------------------------------------------------------------- one process of the two


def work(model, args):
    """What each process of the job does; the first prints the results."""
    local_rank = int(os.environ["HOROVOD_LOCAL_RANK"])
    os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[local_rank]])  # before any thread is made
    from FasterRCNN.engine import compat  # isort: skip  (before TensorFlow)
    import horovod.tensorflow as hvd
    import tensorflow.compat.v1 as tf

    from FasterRCNN.engine.processes import join_job

    compat.apply()
    tf.disable_eager_execution()
    job = join_job()
    cfg = read_config(model, args.config)
    steps, gradient_bytes = make_steps(cfg, MODELS[model][2])
    barrier = make_barrier()
    figures = take_turns(args, job, steps, barrier)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "timeline.json")
        hvd.start_timeline(path)
        barrier()
        last_gradients = [steps["float32, timed"]()[1] for _ in range(TIMELINE_STEPS)]
        barrier()
        hvd.stop_timeline()
        if job.is_chief:
            time.sleep(2)  # a thread of its own writes the timeline
            print_results(model, cfg.TRAIN.IMS_PER_GPU, gradient_bytes, figures)
            print_overlap(read_timeline(path), last_gradients)
    barrier()


def read_config(model, overrides):
    file, keys, _ = MODELS[model]
    cfg = default_config()
    cfg.update_given(ROOT / file if file else None, [*keys, *overrides])
    cfg.update_dict({"DATA.NUM_CLASS": 80})
    finalize_configs(cfg, is_training=True, starts_from_weights=True)
    return cfg


def make_steps(cfg, image_size):
    """Return ({exchange: what makes a training step}, bytes of the gradients); the steps share all but the exchange.

    The step "float32, timed" also gives the time, in seconds since the epoch, when this process has its last gradient.
    """
    import tensorflow.compat.v1 as tf

    from FasterRCNN.engine.collectives import average_over_processes
    from FasterRCNN.engine.optim import GuardedOptimizer, weight_decay_loss
    from FasterRCNN.modeling.build import build_detector
    from tools.compare_reference import reference_session

    exchanges = {"none": list, "float32": average_over_processes(half_on_wire=False),
                 "float16": average_over_processes(half_on_wire=True)}
    values = draw_inputs(cfg.TRAIN.IMS_PER_GPU, image_size)
    with tf.Graph().as_default():
        inputs = {name: tf.placeholder(value.dtype, value.shape) for name, value in values.items()}
        losses, _ = build_detector(cfg, is_training=True).losses(**inputs)
        variables = tf.trainable_variables()
        loss = tf.add_n([*losses.values(), weight_decay_loss(variables, cfg.TRAIN.WEIGHT_DECAY)])
        sgd = tf.train.MomentumOptimizer(1e-6, cfg.TRAIN.MOMENTUM)
        grads = sgd.compute_gradients(loss)
        operations = {
            exchange: GuardedOptimizer(sgd, losses_finite=lambda: tf.is_finite(loss), average_gradients=average,
                                       clip_norm=cfg.TRAIN.GRADIENT_CLIP).apply_gradients(grads)
            for exchange, average in exchanges.items()
        }
        with tf.control_dependencies([grad for grad, _ in grads]):
            operations["float32, timed"] = operations["float32"], tf.timestamp()
        session = reference_session(tf)
        calls = {name: session.make_callable(step, list(inputs.values())) for name, step in operations.items()}
    steps = {name: partial(call, *values.values()) for name, call in calls.items()}
    return steps, sum(variable.shape.num_elements() * variable.dtype.size for variable in variables)


def draw_inputs(batch, image_size):
    """Return the arguments of Detector.losses by name."""
    random, (height, width) = np.random.default_rng(0), image_size
    corners = random.uniform(0, [width * 0.7, height * 0.7], (batch, NUM_OBJECTS, 2))
    sides = random.uniform(0.1, 0.3, (batch, NUM_OBJECTS, 2)) * [width, height]
    return {
        "image": random.integers(256, size=(batch, height, width, 3)).astype(np.uint8),
        "image_size": np.array([[height, width]] * batch, np.int32),
        "gt_boxes": np.concatenate([corners, corners + sides], axis=2).astype(np.float32),
        "gt_labels": random.integers(1, 81, (batch, NUM_OBJECTS)).astype(np.int32),
        "gt_masks": np.full((batch, NUM_OBJECTS, 112, 14), 255, np.uint8),
        "image_seeds": np.zeros((batch, 2), np.int32),
    }


def make_barrier():
    """Return what returns when every process has called it."""
    import horovod.tensorflow as hvd
    import tensorflow.compat.v1 as tf

    with tf.Graph().as_default():
        everyone = hvd.allreduce(tf.zeros([1]), op=hvd.Sum, name="barrier")
        session = tf.Session()
    return lambda: session.run(everyone)


def take_turns(args, job, steps, barrier):
    """Return {case: rounds × (seconds, processor seconds, bytes through the loopback device) a step}; one warms up."""
    figures = {case: [] for case in CASES}
    for _ in range(args.rounds + 1):
        for case, way in CASES.items():
            barrier()
            sent, processor, start = loopback_bytes(), time.process_time(), time.perf_counter()
            if job.is_chief or case != "alone":
                for _ in range(args.steps):
                    steps[way]()
            taken = time.perf_counter() - start, time.process_time() - processor
            barrier()
            figures[case].append((*taken, loopback_bytes() - sent))
    return {case: np.array(rows[1:]) / args.steps for case, rows in figures.items()}


def loopback_bytes():
    """Return the bytes that were ever sent through the loopback device, all programs together."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    return 0


# ---------------------------------------------------------------- results


def print_results(model, batch, gradient_bytes, figures):
    half_bytes = gradient_bytes // 2
    print(f"{model}, {batch} image(s) a process and step: gradients of {gradient_bytes:,} bytes ({half_bytes:,} as "
          f"float16); over 2 processes each sends and receives that much a step")
    alone, quiet = figures["alone"][:, 0], figures["both, no exchange"]
    for case, rows in figures.items():
        times, processor, sent = rows.T
        ratios = times / alone
        line = (f"  {case}: median {np.median(times):.3f} s, best {times.min():.3f} s a step, of processor time median "
                f"{np.median(processor):.3f} s")
        if case != "alone":
            line += f"; to one process alone {np.median(ratios):.3f} (rounds {ratios.min():.3f} to {ratios.max():.3f})"
            line += f", weak scaling {np.median(1 / ratios):.1%}"
        if CASES[case] != "none":
            exchange = times - quiet[:, 0]
            line += (f"; exchange {np.median(exchange):.3f} s, {np.median(exchange / times):.1%} of the step; loopback "
                     f"{np.median(sent) - np.median(quiet[:, 2]):,.0f} bytes a step")
        print(line)


def read_timeline(path):
    """Return [(tensor, activity, start, end)] of a timeline of Horovod's, in seconds since the epoch."""
    text = Path(path).read_text().rstrip().rstrip(",")
    events = json.loads(text if text.endswith("]") else text + "]")
    names, opened, spans, origin = {}, {}, [], 0.0
    for event in events:
        tensor, details = event.get("pid"), event.get("args", {})
        if event["ph"] == "M" and "start_time_since_epoch_in_micros" in details:
            origin = details["start_time_since_epoch_in_micros"]
        elif event["ph"] == "M" and "name" in details:
            names[tensor] = details["name"]
        elif event["ph"] == "B":
            opened.setdefault(tensor, []).append((event["name"], event["ts"]))
        elif event["ph"] == "E" and opened.get(tensor):
            activity, start = opened[tensor].pop()
            spans.append((names[tensor], activity, (origin + start) / 1e6, (origin + event["ts"]) / 1e6))
    return spans


def merge(intervals):
    """Return the union of intervals as sorted, disjoint (start, end)."""
    merged = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def print_overlap(spans, last_gradients):
    """Print, of the steps after the first, how much of the exchange runs before the last gradient is there."""
    turns = {}
    for tensor, activity, start, end in spans:
        if tensor.startswith(GRADIENT):
            turns.setdefault((tensor, activity), []).append((start, end))
    rows = []
    for step, last in enumerate(last_gradients[1:], 1):  # a tensor has each activity once a step
        asked = min(found[step][0] for (_, activity), found in turns.items() if activity.startswith("NEGOTIATE"))
        busy = merge(found[step] for (_, activity), found in turns.items() if activity == "ALLREDUCE")
        total = sum(end - start for start, end in busy)
        hidden = sum(max(0.0, min(end, last) - start) for start, end in busy)
        rows.append([last - asked, last - busy[0][0], busy[-1][1] - last, total, hidden / total, len(busy)])
    lead, first, tail, total, hidden, count = np.median(rows, axis=0)
    print(f"  timeline, median of {len(rows)} steps: the first gradient is offered {lead:.3f} s and its exchange "
          f"begins {first:.3f} s before the last gradient is there; the last exchange ends {tail:.3f} s after it; "
          f"{count:.0f} exchanges (tensors fused) take {total:.3f} s, {hidden:.0%} of it before the last gradient")


# ---------------------------------------------------------------- the command


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {', '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds (%(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn (%(default)s)")
    parser.add_argument("--in-job", action="store_true", help="this is a process of the job")
    add_config_arguments(parser)
    args = parser.parse_args()
    if unknown := set(args.models) - set(MODELS):
        raise ValueError(f"no model called {', '.join(unknown)}: choose of {', '.join(MODELS)}")
    if args.in_job:
        work(args.models[0], args)
        return 0
    if len(os.sched_getaffinity(0)) < 2:
        raise ValueError("1 core: each of the two processes needs one of its own")
    launcher = Path(sys.executable).with_name("horovodrun")
    if not launcher.exists():
        raise FileNotFoundError(f"{launcher} does not exist: build Horovod with `make horovod`")
    for model in args.models or MODELS:
        subprocess.run([launcher, "--gloo", "-np", "2", "-H", "localhost:2",
                        "--gloo-timeout-seconds", "600", sys.executable, __file__, model,
                        "--in-job", "--rounds", str(args.rounds), "--steps", str(args.steps),
                        *(["--config", *args.config] if args.config else [])],
                       env={**os.environ, "HOROVOD_TIMELINE": "DYNAMIC"}, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
