#!/usr/bin/env python3
"""Time ResNeXt-101-32x8d's grouped 3×3 convolutions and bottlenecks on the maps of an 800×1344 image.

    python benchmarks/grouped_conv.py

Each is timed forward (kernels constant, as for inference) and forward and backward (as in training), beside the
bottleneck of ResNet, whose 3×3 convolution is dense. A ratio is a time over (arithmetic / the speed of TensorFlow's own
3×3 convolution of 256 channels on a 200×336 map, measured before and after).
"""
import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.speed import convolution_speed, timed  # noqa: E402

GROUPS = 32
HEIGHT, WIDTH, CHANNELS = 200, 336, 256  # of group0; each further group halves the map and doubles the channels


def grouped_conv(tf, x):
    from FasterRCNN.ops.layers import conv2d

    return conv2d(x, x.shape[-1], 3, "conv", groups=GROUPS, norm="None")


def bottleneck(tf, x, *, width, groups):
    """A residual block without projection, `width` channels inside."""
    from FasterRCNN.ops.layers import conv2d

    y = conv2d(x, width, 1, "conv1", norm="FreezeBN", activation=tf.nn.relu)
    y = conv2d(y, width, 3, "conv2", groups=groups, norm="FreezeBN", activation=tf.nn.relu)
    return tf.nn.relu(conv2d(y, x.shape[-1], 1, "conv3", norm="FreezeBN") + x)


def layers_of(group):
    """Return {name: (function of tf and x, multiply-adds of a cell)} of one group's layers."""
    channels = CHANNELS << group
    width = channels // 4

    def resnext(tf, x):
        return bottleneck(tf, x, width=channels, groups=GROUPS)

    def resnet(tf, x):
        return bottleneck(tf, x, width=width, groups=1)

    grouped = 9 * channels * channels // GROUPS
    return {"grouped 3x3": (grouped_conv, grouped),
            "ResNeXt bottleneck": (resnext, 2 * channels * channels + grouped),
            "ResNet bottleneck": (resnet, 2 * channels * width + 9 * width * width)}


def time_layer(layer, shape, *, training, repeats):
    """Return the least seconds of a run, of the gradients of x and of every kernel too if training."""
    import tensorflow.compat.v1 as tf

    def constant(getter, name, shape, **kwargs):
        return tf.constant(np.random.default_rng(1).normal(0, 0.05, shape), tf.float32, name=name)

    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.get_variable("x", shape, initializer=tf.random_normal_initializer())
        with tf.variable_scope("layer", custom_getter=None if training else constant):
            output = layer(tf, x)
        targets = [output.op]
        if training:
            wanted = tf.get_variable("wanted", output.shape, initializer=tf.random_normal_initializer())
            sources = [x, *(v for v in tf.trainable_variables("layer") if v.op.name.endswith("/W"))]
            targets += [gradient.op for gradient in tf.gradients(output, sources, tf.convert_to_tensor(wanted))]
        session.run(tf.global_variables_initializer())
        return timed(session.make_callable(targets), repeats).min()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=8, help="timed runs (%(default)s)")
    repeats = parser.parse_args().repeats
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    for group in range(4):
        shape = [1, HEIGHT >> group, WIDTH >> group, CHANNELS << group]
        before = convolution_speed()
        rows = []
        for name, (layer, cost) in layers_of(group).items():
            gflop = 2 * cost * shape[1] * shape[2] / 1e9
            rows += [(name, "forward", gflop, time_layer(layer, shape, training=False, repeats=repeats)),
                     (name, "forward + backward", 3 * gflop, time_layer(layer, shape, training=True, repeats=repeats))]
        speed = max(before, convolution_speed())
        print("group{}: {}x{}, {} channels; dense 3x3 convolution {:.0f} GFLOP/s".format(group, *shape[1:], speed))
        for name, what, gflop, seconds in rows:
            print(f"  {name:18}  {what:18}  {gflop:6.2f} GFLOP  {1000 * seconds:7.1f} ms  "
                  f"ratio {seconds * speed / gflop:.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
