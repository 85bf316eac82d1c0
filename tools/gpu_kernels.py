#!/usr/bin/env python3
"""Write which kernels TensorFlow has on a GPU, as its own registry tells, for tests on machines without one.

    python tools/gpu_kernels.py tests/golden/gpu_kernels.json

Run it where a GPU build of TensorFlow is installed (`pip install tensorflow`, the version of requirements-gpu.txt): its
kernels are registered when it is loaded, with or without a GPU. FasterRCNN/engine/placement.py reads the file.
"""
import argparse
import itertools
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import run_command  # noqa: E402


def gpu_kernels():
    """Return {operation: kernels}, those that TensorFlow tries first in front.

    A kernel is [types, host], types {attribute: names of the types it is for}, host the names of the arguments that it
    wants, or leaves, in the host's memory. Raises ValueError on a TensorFlow without GPU kernels.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read once, at TensorFlow's import
    import tensorflow as tf
    from tensorflow.python.framework import kernels

    if not tf.test.is_built_with_gpu_support():
        raise ValueError(f"the TensorFlow {tf.__version__} installed here is a build for CPUs and knows no GPU kernel: "
                         "run this where the package `tensorflow` is installed, not `tensorflow-cpu`")
    found = [kernel for kernel in kernels.get_all_registered_kernels().kernel
             # Kernels of DEFAULT serve every device; those with a label are chosen by a graph's attribute only.
             if kernel.device_type in ("GPU", "DEFAULT") and not kernel.label]
    rank = {id(kernel): (kernel.op, kernel.device_type != "GPU", -kernel.priority) for kernel in found}
    found.sort(key=lambda kernel: rank[id(kernel)])
    table = {}
    for (op, *_), alike in itertools.groupby(found, key=lambda kernel: rank[id(kernel)]):
        table.setdefault(op, []).extend(merged([described(kernel) for kernel in alike]))
    return table


def described(kernel):
    """Return (types, host) of a KernelDef, both of tuples."""
    import tensorflow as tf

    types = {constraint.name: tuple(sorted(tf.as_dtype(number).name for number in constraint.allowed_values.list.type))
             for constraint in kernel.constraint if constraint.allowed_values.list.type}
    return types, tuple(sorted(kernel.host_memory_arg))


def merged(kernels):
    """Join kernels that differ in one attribute's types alone: [(types, host)] -> [[types, host]], sorted."""
    for attribute in sorted({name for types, _ in kernels for name in types}):
        joined = {}
        for types, host in kernels:
            others = tuple(sorted((name, value) for name, value in types.items() if name != attribute))
            joined.setdefault((others, host, attribute in types), set()).update(types.get(attribute, ()))
        kernels = [({**dict(others), **({attribute: tuple(sorted(values))} if constrained else {})}, host)
                   for (others, host, constrained), values in joined.items()]
    return sorted(([dict(sorted(types.items())), list(host)] for types, host in kernels), key=json.dumps)


def write(path):
    """Write the table to `path`, an operation a line; return what was written, in a line."""
    import tensorflow as tf

    table = gpu_kernels()
    lines = ",\n".join(f"{json.dumps(op)}: {json.dumps(table[op], separators=(',', ':'))}" for op in sorted(table))
    text = f'{{"tensorflow": "{tf.__version__}", "kernels": {{\n{lines}\n}}}}\n'
    Path(path).write_text(text, encoding="utf-8")
    return f"{path}: {len(table)} operations of TensorFlow {tf.__version__}, {len(text) / 1e6:.2f} MB"


def main(argv=None):
    """Run the command."""
    parser = argparse.ArgumentParser(description="Writes which kernels the installed TensorFlow has on a GPU.")
    parser.add_argument("out", metavar="OUT.json", help="the file to write")
    print(write(parser.parse_args(argv).out))


if __name__ == "__main__":
    sys.exit(run_command(main))
