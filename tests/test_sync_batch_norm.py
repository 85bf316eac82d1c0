"""Synchronised batch normalisation: against NumPy, TensorFlow's own, and one device with all images."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import TinyModel, evaluate, example

from FasterRCNN.engine.collectives import sum_over_gpus, sum_over_processes
from FasterRCNN.modeling.build import on_one_device
from FasterRCNN.ops.extent import BatchExtent
from FasterRCNN.ops.layers import MOVING_AVERAGES, conv2d, sync_batch_norm
from tools.compare_reference import reference_value

SYNC = {"BACKBONE.NORM": "SyncBN"}


def parameters(channels, scope="bn"):
    return [reference_value(f"{scope}/{name}", [channels]) for name in ("gamma", "beta", "mean/EMA", "variance/EMA")]


def normalise(x, extent=None, sum_over_devices=on_one_device):
    """(normalised x, {variable: value after the step})."""
    y = sync_batch_norm(x, sum_over_devices=sum_over_devices, extent=extent)
    return y, {v.op.name: value for v, value in tf.get_collection(MOVING_AVERAGES)}


def test_it_normalises_by_the_batch_and_moves_the_averages():
    x = np.random.default_rng(0).normal(3, 2, [3, 5, 4, 6]).astype(np.float32)
    y, after = evaluate(normalise, x)
    gamma, beta, mean, variance = parameters(6)
    batch_mean, batch_variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    assert y == pytest.approx((x - batch_mean) / np.sqrt(batch_variance + 1e-5) * gamma + beta, abs=1e-4)
    assert after["bn/mean/EMA"] == pytest.approx(0.9 * mean + 0.1 * batch_mean, rel=1e-5)
    assert after["bn/variance/EMA"] == pytest.approx(0.9 * variance + 0.1 * batch_variance, rel=1e-4)


def test_its_gradient_is_that_of_tensorflow_s_moments():
    random = np.random.default_rng(1)
    x, dy = (random.normal(0, 1, [2, 3, 5, 4]).astype(np.float32) for _ in range(2))

    def ours(x, dy):
        y, _ = normalise(x)
        return tf.gradients(y, [x, *tf.trainable_variables()], dy)

    def theirs(x, dy):
        gamma, beta = (tf.constant(value) for value in parameters(4)[:2])
        y = tf.nn.batch_normalization(x, *tf.nn.moments(x, [0, 1, 2]), beta, gamma, 1e-5)
        return tf.gradients(y, [x, gamma, beta], dy)

    for actual, expected in zip(evaluate(ours, x, dy), evaluate(theirs, x, dy)):
        assert actual == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_padding_counts_for_nothing():
    random = np.random.default_rng(2)
    x = random.normal(1, 2, [2, 4, 5, 3]).astype(np.float32)
    sizes = np.array([[4 * 8, 3 * 8], [2 * 8, 5 * 8]], np.int32)  # 4×3 and 2×5 cells of 8 pixels

    def build(x, sizes):
        y, after = normalise(x, BatchExtent(sizes, 8, tf.constant([4 * 8, 5 * 8])).at(8))
        return y, after["bn/mean/EMA"], tf.gradients(tf.reduce_sum(y[:1, :4, :3]), x)[0]

    y, mean, gradient = evaluate(build, x, sizes)
    own = np.concatenate([x[0, :4, :3].reshape(-1, 3), x[1, :2, :5].reshape(-1, 3)])
    gamma, beta, before, _ = parameters(3)
    expected = (own - own.mean(axis=0)) / np.sqrt(own.var(axis=0) + 1e-5) * gamma + beta
    assert y[0, :4, :3].reshape(-1, 3) == pytest.approx(expected[:12], abs=1e-4)
    assert y[1, :2, :5].reshape(-1, 3) == pytest.approx(expected[12:], abs=1e-4)
    assert mean == pytest.approx(0.9 * before + 0.1 * own.mean(axis=0), rel=1e-4)
    assert not gradient[0, :, 3:].any() and not gradient[1, 2:].any()


def two_layers(x, sum_over_devices):
    """A network with a normalisation that depends on another."""
    def norm(x, *, gamma_initializer, extent):
        return sync_batch_norm(x, sum_over_devices=sum_over_devices, gamma_initializer=gamma_initializer, extent=extent)

    x = conv2d(x, 4, 3, "conv0", norm=norm, activation=tf.nn.relu)
    return conv2d(x, 3, 1, "conv1", norm=norm)


def results_of(x, weight, sum_over_devices):
    """(output, gradients of its mean weighted loss by variable, moving averages) of a tower that has its own scope."""
    y = two_layers(x, sum_over_devices)
    prefix = tf.get_variable_scope().name
    prefix += "/" if prefix else ""
    variables = [v for v in tf.trainable_variables() if v.op.name.startswith(prefix)]
    gradients = tf.gradients(tf.reduce_mean(tf.square(y) * weight), variables)
    averages = {v.op.name.removeprefix(prefix): value for v, value in tf.get_collection(MOVING_AVERAGES)
                if v.op.name.startswith(prefix)}
    return y, {v.op.name.removeprefix(prefix): g for v, g in zip(variables, gradients)}, averages


def random_images():
    random = np.random.default_rng(3)
    return random.normal(1, 2, [2, 6, 7, 3]).astype(np.float32), random.uniform(0, 1, [2, 1, 1, 1]).astype(np.float32)


def on_two_devices(x, weight):
    """The results of two towers on two devices, one image each; towers are named as tensorpack names them."""
    towers, sums = [], sum_over_gpus(2)
    with tf.Graph().as_default() as graph:
        for i, scope in enumerate(("", "tower1")):
            with tf.device(f"/cpu:{i}"):
                image, own = tf.constant(x[i : i + 1]), tf.constant(weight[i : i + 1])
                if scope:
                    with tf.variable_scope(scope):
                        towers.append(results_of(image, own, sums))
                else:
                    towers.append(results_of(image, own, sums))
        with tf.Session(config=tf.ConfigProto(device_count={"CPU": 2})) as running:
            values = {v: reference_value(v.op.name.removeprefix("tower1/"), v.shape.as_list())
                      for v in graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES)}
            running.run(
                [v.initializer for v in values], {v.initializer.inputs[1]: value for v, value in values.items()})
            return running.run(towers)


def run_rank(folder):
    """What each process of a Horovod job does: the results of its own image, into a file."""
    import horovod.tensorflow as hvd

    tf.disable_eager_execution()
    hvd.init()
    image = slice(hvd.rank(), hvd.rank() + 1)
    x, weight = (value[image] for value in random_images())
    y, gradients, averages = evaluate(lambda x, weight: results_of(x, weight, sum_over_processes()), x, weight)
    arrays = {"y": y, **{f"gradient {k}": v for k, v in gradients.items()}, **averages}
    np.savez(Path(folder) / f"{hvd.rank()}.npz", **arrays)


def on_two_processes(folder):
    """The results of two processes of a Horovod job, one image each."""
    horovodrun = Path(sys.executable).with_name("horovodrun")
    command = [horovodrun, "--gloo", "-np", "2", "-H", "localhost:2", sys.executable, __file__, folder]
    paths = [Path(__file__).parent, Path(__file__).parents[1]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))})
    assert done.returncode == 0, done.stdout + done.stderr
    results = []
    for rank in range(2):
        with np.load(folder / f"{rank}.npz", allow_pickle=False) as arrays:
            values = dict(arrays)
        gradients = {name.removeprefix("gradient "): values.pop(name) for name in list(values) if "gradient" in name}
        results.append((values.pop("y"), gradients, values))
    return results


@pytest.mark.parametrize("where", ["devices", "processes"])
def test_two_with_an_image_each_are_one_with_both(where, tmp_path):
    x, weight = random_images()
    two = on_two_devices(x, weight) if where == "devices" else on_two_processes(tmp_path)
    (y0, gradients0, averages0), (y1, gradients1, averages1) = two
    y, gradients, averages = evaluate(lambda x, weight: results_of(x, weight, on_one_device), x, weight)
    assert np.concatenate([y0, y1]) == pytest.approx(y, abs=1e-5)
    assert gradients.keys() == gradients0.keys() == gradients1.keys() and len(gradients) == 6
    for name, value in gradients.items():  # the loss of both is the mean of the two's
        assert (gradients0[name] + gradients1[name]) / 2 == pytest.approx(value, rel=1e-3, abs=1e-5), name
    assert len(averages) == 4
    for name, value in averages.items():
        assert averages0[name] == pytest.approx(value, rel=1e-4), name
        assert averages1[name] == pytest.approx(value, rel=1e-4), name


def test_a_prediction_uses_the_stored_statistics():
    image = [example(64, 80, 2, seed=1)]
    sync, frozen = TinyModel(SYNC), TinyModel({"BACKBONE.NORM": "FreezeBN"})
    found, expected = (model.run(model.detections, image) for model in (sync, frozen))
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name


def test_frozen_layers_keep_their_statistics():
    model = TinyModel({**SYNC, "BACKBONE.FREEZE_AT": 2})
    moved = {name.split("/")[0] for name in model.moving_averages}
    assert moved == {"group1", "group2", "group3"}
    everything = TinyModel(SYNC)
    assert set(everything.moving_averages) == {
        v.op.name for v in everything.variables if v.op.name.endswith("/EMA")}


def test_the_sums_of_a_model_have_names_of_their_own():
    names = []

    def record(x, name):
        names.append(name)
        return x

    model = TinyModel(SYNC, sum_over_devices=record)
    assert len(names) == len(set(names)) == len(model.moving_averages) / 2


if __name__ == "__main__":
    run_rank(sys.argv[1])
