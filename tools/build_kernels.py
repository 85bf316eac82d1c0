#!/usr/bin/env python3
"""Build the operations of FasterRCNN/ops/kernels for the TensorFlow of this Python: `make setup` does.

    .venv/bin/python tools/build_kernels.py

The compiler is g++, or what the environment variable CXX names. What is built already is left as it is.
"""
import os
import shlex
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tensorflow.compat.v1 as tf  # noqa: E402

from FasterRCNN.ops.kernels import FLAGS, SOURCES, library_file  # noqa: E402


def command(compiler, output):
    """Return the compiler's command line; TensorFlow's headers are a system's, whose warnings are not ours."""
    flags = [flag.replace("-I", "-isystem", 1) for flag in tf.sysconfig.get_compile_flags()]
    return [*compiler, *FLAGS, *flags, *map(str, SOURCES), "-o", str(output), *tf.sysconfig.get_link_flags()]


def build(compiler):
    """Build the library, whole or not at all. Raises RuntimeError with the compiler's last words if it fails."""
    target = library_file()
    if target.exists():
        return target
    part = target.with_suffix(f".{os.getpid()}.part")
    try:
        run = subprocess.run(command(compiler, part), capture_output=True, text=True)
    except FileNotFoundError:
        raise RuntimeError(f"{compiler[0]} cannot be found. Install: sudo apt-get install g++") from None
    try:
        if run.returncode:
            raise RuntimeError(f"{shlex.join(compiler)} could not compile the operations: {run.stderr.strip()[-2000:]}")
        sys.stderr.write(run.stderr)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    for other in target.parent.glob(f"{target.stem.rpartition('-')[0]}-*.so"):
        if other != target:  # of an older source
            other.unlink(missing_ok=True)
    return target


def main():
    try:
        print(f"operations for processors: {build(shlex.split(os.environ.get('CXX') or 'g++')).name}")
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
