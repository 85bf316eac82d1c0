#!/usr/bin/env python3
"""Time the layers in bfloat16 that AMX computes by operations of ours, beside TensorFlow's own, in turn.

    python benchmarks/amx_layers.py
"""
import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.speed import timed  # noqa: E402

# Maps of an 800×1344 image, and the box head on 1,000 proposals: (shape of the input, output channels).
CONVOLUTIONS = [([1, 200, 336, 256], 256), ([1, 100, 168, 256], 256), ([1, 50, 84, 256], 256),
                ([1, 200, 336, 64], 64), ([1, 100, 168, 128], 128)]
PRODUCTS = [([1000, 12544], 1024)]


def layer_runs(tf, layer, shape):
    """Return (run by TensorFlow's operations, run by ours) of layer(x), its variables constants."""
    from FasterRCNN.ops.amx import amx_layers

    def constant(getter, name, shape, **kwargs):
        return tf.constant(np.random.default_rng(0).normal(0, 0.05, shape), tf.float32, name=name)

    runs = []
    for allowed in (False, True):
        with tf.Graph().as_default():
            x = tf.get_variable("x", initializer=tf.cast(tf.random.normal(shape), tf.bfloat16), use_resource=True)
            # Images' sizes are not known beforehand.
            unknown = tf.placeholder_with_default(x, [None] * (len(shape) - 1) + shape[-1:])
            with amx_layers(allowed), tf.variable_scope("layer", custom_getter=constant):
                output = layer(unknown)
            if allowed != output.op.type.startswith("Amx"):
                raise RuntimeError("this machine does not use AMX: the processor has none, a GPU is there, or "
                                   "tools/build_kernels.py has not run")
            session = tf.Session()
            session.run(x.initializer)
            runs.append(session.make_callable(output.op))
    return runs


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=25, help="timed runs (%(default)s)")
    repeats = parser.parse_args().repeats
    import tensorflow.compat.v1 as tf

    from FasterRCNN.ops.layers import conv2d, fully_connected

    tf.disable_eager_execution()
    convolution, product = partial(conv2d, kernel_size=3, scope="conv"), partial(fully_connected, scope="fc")
    layers = [("3x3 convolution", 9, convolution, *sizes) for sizes in CONVOLUTIONS]
    layers += [("product", 1, product, *sizes) for sizes in PRODUCTS]
    for name, taps, layer, shape, channels in layers:
        runs = layer_runs(tf, partial(layer, channels=channels, activation=tf.nn.relu), shape)
        theirs, ours = np.min([[timed(run, 1)[0] for run in runs] for _ in range(repeats)], axis=0)
        gflop = 2 * taps * np.prod(shape) * channels / 1e9
        print(f"{name}, {'x'.join(map(str, shape))} to {channels} channels, {gflop:.1f} GFLOP: TensorFlow's "
              f"{1000 * theirs:.2f} ms, ours {1000 * ours:.2f} ms, {ours / theirs:.2f} x, "
              f"{gflop / ours:.0f} GFLOP/s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
