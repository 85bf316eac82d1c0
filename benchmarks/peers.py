#!/usr/bin/env python3
"""Time another program's Mask R-CNN R50-FPN on the work of benchmarks/speed.py, beside TensorFlow's convolution speed.

    python benchmarks/peers.py                                       # all four, of the torchvision installed here
    python benchmarks/peers.py --python OTHER_VENV/bin/python        # of another virtual environment's
    python benchmarks/peers.py inference training --precisions bf16
    python benchmarks/peers.py --reference TENSORPACK/examples/FasterRCNN  # tensorpack's own program, in fp32

One 800×1333 image, 1,000 proposals, 100 detections, 8 objects, frozen normalisation, stem and first stage not trained;
weights are random. The program is run by its own interpreter, since it is no dependency of this project and may want
other packages (tensorpack's wants tf_keras too, where TensorFlow brings Keras 3); TensorFlow's convolution is measured
in this process before and after it.
"""
import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import run_command  # noqa: E402

HERE = Path(__file__).resolve().parent


def torchvision_commands(what, precisions):
    """Yield (precision, arguments of the interpreter) of every case to time."""
    for precision in precisions or ["fp32", "bf16"]:
        yield precision, [HERE / "peer_torchvision.py", what, precision]


def reference_commands(folder, what):
    """Yield (precision, arguments of the interpreter): as its session runs operations, on one thread, and on all."""
    for threads in ("own", "all"):
        yield "fp32", [HERE / "peer_reference.py", folder, what, threads]


def check_reference(folder, precisions):
    """Raise a ValueError where the folder does not hold the reference, or more than fp32 is asked of it."""
    if not (folder / "modeling" / "generalized_rcnn.py").is_file():
        raise ValueError(f"--reference {folder}: no modeling/generalized_rcnn.py there; give the folder "
                         "examples/FasterRCNN of a copy of tensorpack's repository")
    if set(precisions or ["fp32"]) != {"fp32"}:
        raise ValueError(f"--precisions {' '.join(precisions)}: the reference computes in fp32 only; leave it out")


def compare(args):
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    for what in args.what:
        commands = (reference_commands(args.reference.resolve(), what) if args.reference
                    else torchvision_commands(what, args.precisions))
        for precision, command in commands:
            print(format_case(what, precision, *measure(precision, [args.python, *command, str(args.repeats)])),
                  flush=True)


def measure(precision, command):
    """Return (what the program's process printed, GFLOP/s of a convolution before or after it, the greater)."""
    from benchmarks.speed import TYPES, convolution_speed

    before = convolution_speed(TYPES[precision])
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise ValueError(f"{command[0]} cannot run {command[1].name} (see above): name an interpreter that can with "
                         "--python")
    return json.loads(done.stdout.splitlines()[-1]), max(before, convolution_speed(TYPES[precision]))


def format_case(what, precision, result, speed):
    from benchmarks.speed import INFERENCE_GFLOP, TRAINING_GFLOP

    limit = (INFERENCE_GFLOP if what == "inference" else TRAINING_GFLOP) / speed
    best = min(result["seconds"])
    also = "".join(f" ({name} {min(seconds):.2f} s)" for name, seconds in result.get("also", {}).items())
    counts = ", ".join(f"{number} {name}" for name, number in result["counts"].items())
    return (f"{result['program']}: {what} {precision}: best {best:.2f} s{also}, median "
            f"{np.median(result['seconds']):.2f} s, {counts}; TensorFlow's 3x3 convolution {speed:.0f} GFLOP/s: "
            f"limit {limit:.2f} s, best / limit {best / limit:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["inference", "training"], metavar="inference|training",
                        help="default: both")
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], help="default: both; reference: fp32")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that can run the program (this one)")
    parser.add_argument("--reference", type=Path, metavar="FOLDER",
                        help="time tensorpack's examples/FasterRCNN in this folder instead of torchvision")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs (%(default)s)")
    args = parser.parse_args()
    if unknown := set(args.what) - {"inference", "training"}:
        parser.error(f"nothing to time called {', '.join(unknown)}: choose of inference, training")
    if args.reference:
        check_reference(args.reference, args.precisions)
    compare(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
