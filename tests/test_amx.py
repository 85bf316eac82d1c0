"""Layers on the matrix unit of Intel's processors: against NumPy, against TensorFlow's, and where they are used."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import evaluate, random_image, tiny_config

from FasterRCNN.engine.predictor import build_constant_graph
from FasterRCNN.modeling.build import build_detector
from FasterRCNN.ops import amx
from FasterRCNN.ops.amx import amx_conv2d, amx_layers, amx_matmul, is_for_amx
from FasterRCNN.ops.kernels import built_library, has_amx
from FasterRCNN.ops.layers import conv2d, fully_connected
from tools.compare_reference import reference_value

needs_amx = pytest.mark.skipif(not has_amx(), reason="this processor has no AMX, or the operations are not built")
ROUNDING = 2**-8  # of bfloat16, relative


def numbers(seed, *shape):
    """Numbers that bfloat16 holds, as float32."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return (values.view(np.uint32) & 0xFFFF0000).view(np.float32)


def numpy_conv(x, kernel, bias):
    size = kernel.shape[0]
    height, width = x.shape[1:3]
    padded = np.pad(x, [(0, 0)] + [(size // 2, size // 2)] * 2 + [(0, 0)]).astype(np.float64)
    taps = [(i, j) for i in range(size) for j in range(size)]
    return bias + sum(padded[:, i:i + height, j:j + width] @ kernel[i, j] for i, j in taps)


def in_bfloat16(layer, x, kernel, *others, **options):
    """The layer's output, float32, of bfloat16 input and kernel; the kernel a constant, as for prediction."""
    def build(x):
        y = layer(tf.cast(x, tf.bfloat16), tf.cast(tf.constant(kernel), tf.bfloat16), *others, **options)
        assert y.dtype == tf.bfloat16
        return tf.cast(y, tf.float32)

    return evaluate(build, x, fed=True)


@needs_amx
@pytest.mark.parametrize("relu", [None, tf.nn.relu])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("batch, height, width, channels, outputs", [
    (1, 1, 1, 32, 32), (2, 2, 16, 32, 64), (1, 5, 17, 64, 32), (3, 7, 33, 32, 96), (2, 61, 75, 96, 64)])
def test_convolution(batch, height, width, channels, outputs, size, relu):
    x, bias = numbers(0, batch, height, width, channels), numbers(1, outputs)
    kernel = numbers(2, size, size, channels, outputs)
    found = in_bfloat16(amx_conv2d, x, kernel, bias, activation=relu)
    expected = numpy_conv(x, kernel, bias)
    np.testing.assert_allclose(found, np.maximum(expected, 0) if relu else expected, rtol=ROUNDING, atol=1e-3)


@needs_amx
@pytest.mark.parametrize("relu", [None, tf.nn.relu])
@pytest.mark.parametrize("rows, depth, outputs", [
    (1, 32, 32), (31, 64, 32), (33, 544, 64), (256, 512, 256), (300, 1056, 288), (520, 32, 544)])
def test_product(rows, depth, outputs, relu):
    x, weights, bias = numbers(0, rows, depth), numbers(1, depth, outputs), numbers(2, outputs)
    found = in_bfloat16(amx_matmul, x, weights, bias, activation=relu)
    expected = x.astype(np.float64) @ weights + bias
    np.testing.assert_allclose(found, np.maximum(expected, 0) if relu else expected, rtol=ROUNDING, atol=1e-3)


@needs_amx
def test_the_bias_is_added_in_float32():
    x, kernel = np.full([1, 2, 3, 32], -100 / 32, np.float32), np.ones([1, 1, 32, 32], np.float32)
    found = in_bfloat16(amx_conv2d, x, kernel, np.full(32, 100.3, np.float32))  # in bfloat16 the bias would be 100.5
    np.testing.assert_allclose(found, 0.3, rtol=ROUNDING)


@needs_amx
def test_layers_without_a_bias():
    x, kernel = numbers(0, 1, 4, 20, 32), numbers(1, 3, 3, 32, 32)
    np.testing.assert_allclose(in_bfloat16(amx_conv2d, x, kernel), numpy_conv(x, kernel, 0), rtol=ROUNDING, atol=1e-3)
    x, weights = numbers(0, 5, 64), numbers(1, 64, 32)
    np.testing.assert_allclose(in_bfloat16(amx_matmul, x, weights), x @ weights, rtol=ROUNDING, atol=1e-3)


@needs_amx
def test_nothing_to_compute():
    kernel = numbers(1, 3, 3, 32, 64)
    for shape in ([0, 4, 4, 32], [2, 0, 4, 32], [2, 4, 0, 32]):
        assert in_bfloat16(amx_conv2d, numbers(0, *shape), kernel).shape == (*shape[:3], 64)
    assert in_bfloat16(amx_matmul, numbers(0, 0, 32), numbers(1, 32, 64)).shape == (0, 64)


@needs_amx
def test_what_is_no_number_is_kept():
    x = numbers(0, 1, 3, 20, 32)
    x[0, 1, 10, 0] = np.nan
    kernel = np.ones([3, 3, 32, 32], np.float32)
    expected = np.zeros([1, 3, 20, 32], bool)
    expected[:, :, 9:12] = True
    assert np.array_equal(np.isnan(in_bfloat16(amx_conv2d, x, kernel, activation=tf.nn.relu)), expected)


@needs_amx
def test_tensorflow_s_own_matrices_stay_right_beside_them():
    """Both set the unit up for the threads they run on: turn by turn."""
    x, kernel, weights = numbers(0, 1, 24, 48, 64), numbers(1, 3, 3, 64, 64) / 24, numbers(2, 64, 64) / 8

    def build(x):
        own, theirs = tf.cast(x, tf.bfloat16), tf.cast(x, tf.bfloat16)
        of_kernel, of_weights = tf.cast(kernel, tf.bfloat16), tf.cast(weights, tf.bfloat16)
        for _ in range(4):
            own = amx_conv2d(own, of_kernel, activation=tf.nn.relu)
            with tf.control_dependencies([own]):
                theirs = tf.nn.relu(tf.nn.conv2d(theirs, of_kernel, 1, "SAME"))
            with tf.control_dependencies([theirs]):
                own = tf.reshape(amx_matmul(tf.reshape(own, [-1, 64]), of_weights), own.shape)
            with tf.control_dependencies([own]):
                theirs = tf.reshape(tf.matmul(tf.reshape(theirs, [-1, 64]), of_weights), own.shape)
        return tf.cast(own, tf.float32), tf.cast(theirs, tf.float32)

    own, theirs = evaluate(build, x, fed=True)
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(own, theirs, atol=0.03 * np.abs(theirs).max())


@needs_amx
@pytest.mark.parametrize("operation, inputs, kernel, bias, words", [
    ("amx_convolution", [4, 4, 32], [1, 3, 3, 1, 1024], [32], "the input must be B×h×w×C, the kernel (C'/32)×k×k×(C/32)"
     "×1024 with odd k, the bias C': got [4,4,32], [1,3,3,1,1024] and [32]"),
    ("amx_convolution", [1, 4, 4, 48], [1, 3, 3, 1, 1024], [32], "got [1,4,4,48], "),
    ("amx_convolution", [1, 4, 4, 32], [1, 2, 2, 1, 1024], [32], "[1,2,2,1,1024]"),
    ("amx_convolution", [1, 4, 4, 32], [1, 3, 3, 1, 1024], [64], "and [64]"),
    ("amx_product", [4, 32], [1, 3, 3, 1, 1024], [32], "the input must be R×C, the kernel (C'/32)×k×k×(C/32)×1024 with "
     "k 1, the bias C': got [4,32], [1,3,3,1,1024] and [32]"),
    ("amx_convolution", [1, 4, 4, 32], [1, 3, 1, 1, 1024], [32], "[1,3,1,1,1024]"),
    ("amx_convolution", [1, 4, 4, 32], [1, 3, 3, 1, 512], [32], "[1,3,3,1,512]"),
    ("amx_convolution", [1, 4, 4, 32], [9, 1024], [32], "[9,1024]"),
    ("amx_product", [4, 32], [1, 1, 1, 2, 1024], [32], "[1,1,1,2,1024]"),
    ("amx_product", [4, 0], [1, 1, 1, 0, 1024], [32], "got [4,0], [1,1,1,0,1024]"),
])
def test_what_does_not_fit_is_refused(operation, inputs, kernel, bias, words):
    def build(*tensors):
        x, kernel = (tf.cast(tensor, tf.bfloat16) for tensor in tensors[:2])
        return tf.cast(getattr(built_library(), operation)(x, kernel, tensors[2], relu=False), tf.float32)

    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        evaluate(build, *(np.zeros(shape, np.float32) for shape in (inputs, kernel, bias)))
    assert words in str(error.value)


@pytest.mark.skipif(has_amx(), reason="this processor has AMX")
def test_another_processor_refuses_the_operations():
    with pytest.raises((tf.errors.UnimplementedError, tf.errors.InvalidArgumentError, tf.errors.NotFoundError)):
        in_bfloat16(amx_conv2d, numbers(0, 1, 4, 4, 32), numbers(1, 3, 3, 32, 32))


@pytest.fixture
def with_amx(monkeypatch):
    """As on a processor with AMX, without a GPU."""
    monkeypatch.setattr(amx, "has_amx", lambda: True)
    monkeypatch.setattr(amx, "has_gpu", lambda: False)


def chosen(*, width=None, dtype=tf.bfloat16, size=3, channels=64, outputs=64, **options):
    with tf.Graph().as_default():
        x = tf.placeholder(dtype, [1, None, width, channels])
        return is_for_amx(x, tf.zeros([size, size, channels // options.get("groups", 1), outputs], dtype), **options)


@pytest.mark.parametrize("options", [
    {"dtype": tf.float32}, {"dtype": tf.float16}, {"size": 1}, {"size": 5}, {"channels": 48}, {"outputs": 16},
    {"channels": 512}, {"outputs": 288}, {"groups": 2}, {"stride": 2}, {"padding": "VALID"}, {"width": 14},
    {"width": 7}])
def test_other_convolutions_are_tensorflow_s(with_amx, options):
    with amx_layers():
        assert chosen() and chosen(width=112) and not chosen(**options)


def test_products_that_are_chosen(with_amx):
    with tf.Graph().as_default(), amx_layers():
        long, short = tf.placeholder(tf.bfloat16, [None, 4096]), tf.placeholder(tf.bfloat16, [None, 1024])
        assert is_for_amx(long, tf.zeros([4096, 96], tf.bfloat16))
        assert not is_for_amx(long, tf.zeros([4096, 81], tf.bfloat16))
        assert not is_for_amx(short, tf.zeros([1024, 96], tf.bfloat16))
        assert not is_for_amx(tf.cast(long, tf.float32), tf.zeros([4096, 96]))


def test_nothing_is_chosen_beyond_the_scope_without_amx_or_beside_a_gpu(with_amx, monkeypatch):
    assert not chosen()
    with amx_layers():
        with amx_layers(False):
            assert not chosen()
        assert chosen()
    with pytest.raises(KeyError), amx_layers():
        raise KeyError
    assert not chosen()
    for name, value in (("has_amx", False), ("has_gpu", True)):
        with monkeypatch.context() as changed:
            changed.setattr(amx, name, lambda value=value: value)
            with amx_layers():
                assert not chosen()


@needs_amx
@pytest.mark.parametrize("norm", ["bias", "None", "FreezeBN", "GN"])
@pytest.mark.parametrize("activation", [None, tf.nn.relu, tf.nn.elu])
def test_layers_are_the_same_by_both(norm, activation):
    x, features = numbers(0, 2, 9, 31, 32), numbers(1, 6, 8, 8, 32)

    def build(x, features):
        x, features = tf.cast(x, tf.bfloat16), tf.cast(features, tf.bfloat16)
        outputs = []
        for allowed in (False, True):
            with amx_layers(allowed), tf.variable_scope("layers", reuse=tf.AUTO_REUSE):
                outputs += [conv2d(x, 64, 3, "conv", norm=norm, activation=activation),
                            fully_connected(features, 64, "fc", activation=activation)]
        types = [op.type for op in tf.get_default_graph().get_operations()]
        assert [name for name in types if name.startswith("Amx")] == ["AmxConvolution", "AmxProduct"]
        return [tf.cast(output, tf.float32) for output in outputs]

    conv, fc, conv_by_amx, fc_by_amx = evaluate(build, x, features, fed=True)
    for found, expected in ((conv_by_amx, conv), (fc_by_amx, fc)):
        assert found.shape == expected.shape and expected.std() > 0.1
        np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


def prediction(for_this_machine):
    """What the tiny detector, wide enough for AMX, finds in bfloat16, and the nodes that TensorFlow ran for it."""
    detector = build_detector(tiny_config({
        "TEST.PRECISION": "bf16", "FPN.NUM_CHANNEL": 64, "FPN.FRCNN_FC_HEAD_DIM": 64, "BACKBONE.CHANNELS": 32,
        "RPN.HEAD_DIM": 32}))
    with tf.Graph().as_default():
        detector.detect(tf.placeholder(tf.uint8, [1, None, None, 3]), tf.placeholder(tf.int32, [1, 2]))
        weights = {v.op.name: reference_value(v.op.name, v.shape.as_list()) for v in tf.global_variables()}
    graph, inputs, outputs = build_constant_graph(detector, weights, batch_size=1, for_this_machine=for_this_machine)
    options, metadata = tf.RunOptions(output_partition_graphs=True), tf.RunMetadata()
    with tf.Session(graph=graph) as session:
        feed = dict(zip(inputs, [random_image(96, 128, 0)[None], [[96, 120]]]))
        found = session.run(outputs, feed, options, metadata)
    return found, {node.name: node for part in metadata.partition_graphs for node in part.node}


@needs_amx
def test_a_detector_predicts_the_same_by_both_and_packs_its_kernels_once():
    by_tensorflow, nodes = prediction(False)
    assert not any(node.op.startswith("Amx") for node in nodes.values())
    by_amx, nodes = prediction(True)
    layers = [node for node in nodes.values() if node.op.startswith("Amx")]
    pyramid = [f"fpn/posthoc_3x3_p{level}" for level in range(2, 6)]
    assert sorted(node.name.rpartition("/")[0] for node in layers) == [
        "fastrcnn/fc6", *pyramid, "group0/block0/conv2", "rpn/conv0", *(f"rpn_{i}/conv0" for i in range(1, 5))]
    assert all(nodes[node.input[1]].op == "Const" for node in layers)
    found, expected = by_amx["scores"][0], by_tensorflow["scores"][0]
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=0.02)
    np.testing.assert_allclose(by_amx["boxes"][0, :6], by_tensorflow["boxes"][0, :6], atol=0.5)
