#!/usr/bin/env python3
"""Measure the peak memory of Mask R-CNN R50-FPN at 800×1333, in training steps and inference as of benchmarks/speed.py.

    python benchmarks/memory.py
    python benchmarks/memory.py training "training, 3,000 objects" --config TRAIN.PRECISION=bf16

Each is run in a process of its own, whose greatest resident set size is printed, TensorFlow's code included.
"""
import argparse
import resource
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import add_config_arguments, run_command  # noqa: E402

from benchmarks import speed  # noqa: E402

REPEATS = 3
CASES = {  # name -> what is run, images of a batch, runs at once or objects of an image
    "inference": ("inference", 1, 1),
    "inference, 2 at once": ("inference", 1, 2),
    "training": ("training", 1, speed.NUM_OBJECTS),
    "training, 3,000 objects": ("training", 1, 3000),
    "training, 4 images": ("training", 4, speed.NUM_OBJECTS),
}


def run_case(name, overrides):
    """Run a case in this process and print its peak memory in GB before the network is made and after it has run."""
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    what, batch, number = CASES[name]
    started = peak_gigabytes()
    if what == "inference":
        speed.time_inference([*overrides, f"TEST.IMS_PER_GPU={batch}"], REPEATS, at_once=number)
    else:
        speed.time_training([*overrides, f"TRAIN.IMS_PER_GPU={batch}"], REPEATS, num_objects=number)
    print(started, peak_gigabytes())


def peak_gigabytes():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"default: all of {'; '.join(CASES)}")
    parser.add_argument("--here", action="store_true", help="run the one case in this process")
    add_config_arguments(parser)
    args = parser.parse_args()
    if unknown := set(args.cases) - set(CASES):
        raise ValueError(f"no case called {', '.join(unknown)}: choose of {'; '.join(CASES)}")
    if args.here:
        for name in args.cases:
            run_case(name, args.config)
        return 0
    for name in args.cases or CASES:
        command = [sys.executable, __file__, name, "--here", *(["--config", *args.config] if args.config else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        started, peak = map(float, done.stdout.splitlines()[-1].split())
        batch = CASES[name][1]
        each = f", {peak / batch:.2f} GB an image" if batch > 1 else ""
        print(f"{name}: peak {peak:.2f} GB{each}; {started:.2f} GB of it before the network is made", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
