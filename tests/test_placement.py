"""What of a training step and of a prediction would run on the host of a GPU, and what the host would wait for."""

import functools
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorpack.dataflow import FakeData
from tiny import C4, tiny_config

from FasterRCNN.engine import compat
from FasterRCNN.engine.collectives import sum_over_gpus
from FasterRCNN.engine.placement import place, read_kernels, runtime_graph
from FasterRCNN.engine.predictor import build_constant_graph
from FasterRCNN.engine.trainer import DetectorModel, GpuTrainer, PrefetchQueue
from FasterRCNN.modeling.build import build_detector
from tools import gpu_kernels

KERNELS_FILE = Path(__file__).with_name("golden") / "gpu_kernels.json"

FPN = {"MODE_MASK": True}
CASCADE = {**FPN, "FPN.CASCADE": True}
RESNEXT_GN = {
    **CASCADE, "BACKBONE.NUM_GROUPS": 4, "FPN.NORM": "GN", "FPN.NUM_CHANNEL": 32, "FPN.FRCNN_CONV_HEAD_DIM": 32,
    "FPN.FRCNN_HEAD_FUNC": "fastrcnn_4conv1fc_gn_head", "FPN.MRCNN_HEAD_FUNC": "maskrcnn_up4conv_gn_head",
    "MRCNN.HEAD_DIM": 32}
# (changes, GPUs, images on each)
TRAINING = {
    "FPN in float16": ({**FPN, "TRAIN.PRECISION": "fp16"}, 1, 2),
    "cascade of ResNeXt with GN in bfloat16": ({**RESNEXT_GN, "TRAIN.PRECISION": "bf16"}, 1, 1),
    "C4 with SyncBN on two GPUs": ({"MODE_MASK": False, **C4, "BACKBONE.NORM": "SyncBN"}, 2, 1),
}
# (changes, images)
PREDICTION = {
    "cascade in bfloat16": ({**CASCADE, "TEST.PRECISION": "bf16"}, 2),
    "C4 in float16": ({**FPN, **C4, "TEST.PRECISION": "fp16"}, 1),
}

# Operations on the host, and why.
INPUT = {"FIFOQueueV2", "QueueDequeueV2"}  # what the loader's processes send
TIMES = {"Timestamp"}  # how long a step waits for it

# What is made on the GPU and the host waits for: "operation that makes it, type -> operation that wants it".
DECISIONS = {"LogicalAnd bool -> Switch"}  # once a step and GPU: all is finite, so the step is made
RESULTS = {"Cast int32 -> Identity"}  # what is asked for


@functools.cache
def kernels():
    return read_kernels(KERNELS_FILE)


def with_a_gpu():
    """Lets `has_gpu` be true, so that a graph is built as it would be beside a GPU."""
    return mock.patch.object(tf.config, "list_physical_devices", return_value=["GPU"])


@functools.cache
def training_placement(name):
    """The placement of a training step as train.py makes it, the sums over GPUs included."""
    changes, gpus, batch = TRAINING[name]
    cfg = tiny_config(changes)
    compat.apply()
    with tf.Graph().as_default() as graph, with_a_gpu():
        sums = {"sum_over_devices": sum_over_gpus(gpus)} if gpus > 1 else {}
        detector = build_detector(cfg, is_training=True, **sums)
        model = DetectorModel(detector, ims_per_gpu=batch, with_masks=True, clip_norm=1.0,
                              scales_loss=cfg.TRAIN.PRECISION == "fp16")
        trainer = GpuTrainer(list(range(gpus)))
        trainer.setup_graph(model.get_input_signature(), PrefetchQueue(FakeData([[1]])), model.build_graph,
                            model.get_optimizer)
    return place(runtime_graph(graph, [trainer.train_op]), kernels())


@functools.cache
def prediction_placement(name):
    changes, batch = PREDICTION[name]
    with with_a_gpu():
        detector = build_detector(tiny_config(changes))
        with tf.Graph().as_default():
            detector.detect(tf.placeholder(tf.uint8, [1, None, None, 3]), tf.placeholder(tf.int32, [1, 2]))
            weights = {v.op.name: np.ones(v.shape.as_list(), np.float32) for v in tf.global_variables()}
        graph, _, outputs = build_constant_graph(detector, weights, batch_size=1 if batch == 1 else None)
    return place(runtime_graph(graph, [output.op for output in outputs.values()]), kernels())


def copies(placement):
    """"maker, type -> user": an example of each."""
    return {f"{tensor.op.type} {tensor.dtype.name} -> {op.type}": f"{tensor.name} {tensor.shape} -> {op.name}"
            for tensor, ops in placement.copies.items() for op in ops}


def host_ops(placement):
    """Operation: an example of each, and why it is on the host."""
    return {op.type: f"{op.name}, {reason}" for op, reason in placement.host_ops.items()}


def unexpected(found, *expected):
    """A line for each of what was found that is not expected."""
    return "\n".join(f"{kind}: {example}" for kind, example in found.items() if kind not in set().union(*expected))


@pytest.mark.parametrize("name", TRAINING)
def test_a_training_step_runs_on_the_gpu(name):
    placement = training_placement(name)
    assert not unexpected(host_ops(placement), INPUT, TIMES)
    assert not unexpected(copies(placement), DECISIONS)


@pytest.mark.parametrize("name", PREDICTION)
def test_a_prediction_runs_on_the_gpu(name):
    placement = prediction_placement(name)
    assert not unexpected(host_ops(placement))
    assert not unexpected(copies(placement), RESULTS)


def test_what_is_expected_is_there():
    placements = [training_placement(name) for name in TRAINING] + [prediction_placement(name) for name in PREDICTION]
    assert set().union(*map(host_ops, placements)) == INPUT | TIMES
    assert set().union(*map(copies, placements)) == DECISIONS | RESULTS


def placed(build):
    """The placement of a small graph: `build` gets a tensor that is on the GPU, float32 2×3, and returns one."""
    with tf.Graph().as_default() as graph:
        x = tf.exp(tf.placeholder(tf.float32, [2, 3]))
        result = build(x)
    return place(runtime_graph(graph, [result.op]), kernels())


def test_what_has_kernels_stays_on_the_gpu():
    placement = placed(lambda x: tf.nn.relu(tf.matmul(tf.cast(x, tf.bfloat16), tf.ones([3, 4], tf.bfloat16))))
    assert placement.host_ops == {} and placement.copies == {}


def test_an_operation_without_a_kernel_for_its_type_is_on_the_host():
    boxes, places = [[0.0, 0.0, 1.0, 1.0]], [0]

    def crop(x, dtype):
        return tf.image.crop_and_resize(tf.cast(x, dtype)[None, :, :, None], boxes, places, [2, 2])

    found = placed(lambda x: tf.argmax(tf.cast(x, tf.int32), axis=0))
    assert host_ops(found) == {"ArgMax": "ArgMax, no kernel of ArgMax for int32, int64"}
    assert set(copies(found)) == {"Cast int32 -> ArgMax"}
    assert not host_ops(placed(lambda x: crop(x, tf.float16)))


def test_arithmetic_on_int32_is_a_copy_and_on_int64_is_none():
    def order(x, dtype):
        return tf.cast(tf.math.top_k(x, 2)[1], dtype) + 1

    assert set(copies(placed(lambda x: order(x, tf.int32)))) == {"TopKV2 int32 -> AddV2"}
    assert not copies(placed(lambda x: order(x, tf.int64)))


def test_sizes_that_follow_from_shapes_are_no_copies():
    assert not copies(placed(lambda x: tf.reshape(x, [tf.shape(x)[1] * 2, -1])))


def test_branches_and_loops_are_looked_into():
    def loop(x):
        return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.cast(tf.cast(y, tf.int32) + 1, tf.float32)),
                             (0, x))[1]

    assert set(copies(placed(loop))) == {"Cast int32 -> AddV2"}
    found = copies(placed(lambda x: tf.cond(x[0, 0] > 0, lambda: loop(x), lambda: x)))
    assert set(found) == {"Greater bool -> Switch", "Cast int32 -> AddV2"}
    asks_the_gpu = placed(lambda x: tf.while_loop(lambda y: y[0, 0] < 3, lambda y: y + 1, (x,)))
    assert set(copies(asks_the_gpu)) == {"Less bool -> LoopCond"}


def test_what_is_told_to_be_on_the_host_takes_along_what_must_stand_with_it():
    def with_variable(x):
        with tf.device("/cpu:0"):
            variable = tf.get_variable("v", [2, 3], initializer=tf.zeros_initializer())
        with tf.device("/gpu:0"):
            return variable + x

    found = placed(with_variable)
    assert host_ops(found) == {
        "VarHandleOp": "v, told to be on /device:CPU:0",
        "ReadVariableOp": "ReadVariableOp, stands with one that is on the host: told to be on /device:CPU:0"}
    assert not copies(found)


def test_kernels_that_differ_in_one_type_are_joined():
    kernels = [({"T": (a,), "S": (b,)}, ()) for a in "xy" for b in "pq"] + [({"T": ("z",), "S": ("p",)}, ("size",))]
    assert gpu_kernels.merged(kernels) == [[{"S": ("p", "q"), "T": ("x", "y")}, []],
                                           [{"S": ("p",), "T": ("z",)}, ["size"]]]


def test_the_table_is_of_the_tensorflow_that_is_installed():
    wanted = json.loads(KERNELS_FILE.read_text(encoding="utf-8"))["tensorflow"]
    assert wanted == tf.__version__, "run tools/gpu_kernels.py where the GPU build of this version is installed"


@pytest.mark.skipif(tf.test.is_built_with_gpu_support(), reason="a build for GPUs")
def test_a_build_for_cpus_has_no_table():
    with pytest.raises(ValueError, match="is a build for CPUs and knows no GPU kernel: run this where"):
        gpu_kernels.gpu_kernels()


@pytest.mark.skipif(not tf.test.is_built_with_gpu_support(), reason="a build for CPUs")
def test_the_table_is_what_the_registry_says(tmp_path):
    gpu_kernels.write(tmp_path / "kernels.json")
    assert (tmp_path / "kernels.json").read_text() == KERNELS_FILE.read_text()
