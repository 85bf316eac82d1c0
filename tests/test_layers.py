"""Layers against their definitions in NumPy; variables by the names and shapes of tensorpack's checkpoints."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import evaluate

from FasterRCNN.modeling.backbone import stride_two_padding
from FasterRCNN.modeling.box_head import normalized_convs
from FasterRCNN.modeling.fpn import fpn
from FasterRCNN.ops.extent import BatchExtent
from FasterRCNN.ops.layers import (
    NORM_EPSILON,
    conv1x1_own_class,
    conv2d,
    deconv2d,
    frozen_variables,
    fully_connected,
    group_norm,
)
from FasterRCNN.ops.resampling import upsample_nearest
from tools.compare_reference import reference_value


def feature(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def numpy_conv(x, kernel, stride, padding):
    """Convolution of N×h×w×C with a kernel kh×kw×C×O, padding ((top, bottom), (left, right))."""
    x = np.pad(x, [(0, 0), *padding, (0, 0)]).astype(np.float64)
    size = kernel.shape[0]
    rows, columns = ((n - size) // stride + 1 for n in x.shape[1:3])
    out = np.zeros([len(x), rows, columns, kernel.shape[3]])
    for row in range(rows):
        for column in range(columns):
            window = x[:, row * stride : row * stride + size, column * stride : column * stride + size]
            out[:, row, column] = np.tensordot(window, kernel, axes=3)
    return out


def values(scope, **shapes):
    return [reference_value(f"{scope}/{name.replace('__', '/')}", shape) for name, shape in shapes.items()]


@pytest.mark.parametrize("stride, padding", [(1, ((1, 1), (1, 1))), (2, ((1, 0), (1, 0))), (2, ((0, 1), (0, 1)))])
def test_convolution_with_bias(stride, padding):
    x = feature(2, 6, 8, 3)
    kernel, bias = values("layer", W=(3, 3, 3, 5), b=(5,))
    ours = evaluate(lambda x: conv2d(x, 5, 3, "layer", stride=stride, padding=padding, activation=tf.nn.relu), x)
    assert ours == pytest.approx(np.maximum(numpy_conv(x, kernel, stride, padding) + bias, 0), abs=1e-4)


def test_frozen_normalisation_is_folded_into_the_kernel_exactly():
    x = feature(2, 5, 7, 4)
    kernel, gamma, beta, mean, variance = values(
        "layer", W=(3, 3, 4, 6), bn__gamma=(6,), bn__beta=(6,), bn__mean__EMA=(6,), bn__variance__EMA=(6,))
    ours = evaluate(lambda x: conv2d(x, 6, 3, "layer", norm="FreezeBN"), x)
    plain = numpy_conv(x, kernel, 1, ((1, 1), (1, 1)))
    expected = (plain - mean) / np.sqrt(variance + NORM_EPSILON) * gamma + beta
    assert ours == pytest.approx(expected, abs=1e-4)


def test_frozen_normalisation_trains_kernel_gamma_and_beta_as_if_explicit():
    x = feature(2, 5, 7, 4)
    upstream = feature(2, 5, 7, 6, seed=1)

    def gradients(build):
        def gradients_of(x):
            loss = tf.reduce_sum(build(x) * upstream)
            trained = tf.trainable_variables()
            return dict(zip([v.op.name for v in trained], tf.gradients(loss, trained)))
        return evaluate(gradients_of, x)

    def explicit(x):
        kernel = tf.get_variable("layer/W", [3, 3, 4, 6])
        gamma, beta = (tf.get_variable(f"layer/bn/{name}", [6]) for name in ("gamma", "beta"))
        mean, variance = values("layer", bn__mean__EMA=(6,), bn__variance__EMA=(6,))
        return (tf.nn.conv2d(x, kernel, 1, "SAME") - mean) / np.sqrt(variance + NORM_EPSILON) * gamma + beta

    ours, expected = gradients(lambda x: conv2d(x, 6, 3, "layer", norm="FreezeBN")), gradients(explicit)
    assert set(ours) == set(expected)
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, rel=1e-3, abs=1e-3)


def numpy_group_norm(x, gamma, beta, groups=32):
    """Group normalisation of one image h×w×C."""
    grouped = x.astype(np.float64).reshape(*x.shape[:2], groups, -1)
    mean, variance = (f(grouped, axis=(0, 1, 3), keepdims=True) for f in (np.mean, np.var))
    return ((grouped - mean) / np.sqrt(variance + NORM_EPSILON)).reshape(x.shape) * gamma + beta


def test_group_norm_matches_numpy():
    x = 3 * feature(2, 5, 7, 64) + 8
    gamma, beta = values("gn", gamma=(64,), beta=(64,))
    ours = evaluate(lambda x: group_norm(x, "gn"), x)
    assert ours == pytest.approx(np.stack([numpy_group_norm(image, gamma, beta) for image in x]), abs=2e-3)


def test_group_norm_of_a_constant_is_beta():
    beta, = values("gn", beta=(32,))
    ours = evaluate(lambda x: group_norm(x, "gn"), np.full([1, 4, 4, 32], 0.5, np.float32))
    assert ours == pytest.approx(np.broadcast_to(beta, ours.shape), abs=1e-3)


def test_group_norm_with_extent_is_that_of_the_image_alone():
    x, sizes = feature(2, 8, 12, 32), np.array([[33, 64], [64, 96]], np.int32)

    def together(x):
        return group_norm(x, "gn", extent=BatchExtent(tf.constant(sizes), 32, tf.constant([64, 96])).at(8))

    alone = evaluate(lambda x: group_norm(x, "gn"), x[:1, :8, :8])
    assert evaluate(together, x)[:1, :8, :8] == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("norm_before_relu", [False, True])
def test_convolutions_of_a_head_with_normalisation_on_either_side_of_relu(norm_before_relu):
    x = feature(2, 4, 5, 32)
    ours = evaluate(lambda x: normalized_convs(x, 32, 1, "conv", norm="GN", norm_before_relu=norm_before_relu), x)
    kernel, bias = values("conv0", W=(3, 3, 32, 32), b=(32,))
    gamma, beta = values("gn0", gamma=(32,), beta=(32,))
    expected = numpy_conv(x, kernel, 1, ((1, 1), (1, 1))) + bias
    if not norm_before_relu:
        expected = np.maximum(expected, 0)
    expected = np.stack([numpy_group_norm(image, gamma, beta) for image in expected])
    assert ours == pytest.approx(np.maximum(expected, 0) if norm_before_relu else expected, abs=2e-3)


@pytest.mark.parametrize("size", [8, 9])
def test_padding_on_both_sides_rounds_odd_sizes_up(size):
    """Windows of 7 at steps of 2, from three cells before the map until no later one begins within it."""
    pad = stride_two_padding(5, "both")
    assert (pad, stride_two_padding(1, "both")) == ((3, 3), (1, 1))
    x, (kernel, bias) = feature(1, size, size, 3), values("layer", W=(7, 7, 3, 2), b=(2,))
    ours = evaluate(lambda x: conv2d(x, 2, 7, "layer", stride=2, padding=(pad, pad)), x)
    assert ours.shape == (1, -(-size // 2), -(-size // 2), 2)
    assert ours == pytest.approx(numpy_conv(x, kernel, 2, ((3, 3), (3, 3))) + bias, abs=1e-4)


def test_fully_connected_reads_maps_in_channel_row_column_order():
    x = feature(4, 3, 2, 5)
    weights, bias = values("fc", W=(30, 7), b=(7,))
    expected = x.transpose(0, 3, 1, 2).reshape(4, 30) @ weights + bias
    assert evaluate(lambda x: fully_connected(x, 7, "fc"), x) == pytest.approx(expected, abs=1e-4)
    flat = feature(4, 30)
    assert evaluate(lambda x: fully_connected(x, 7, "fc"), flat) == pytest.approx(flat @ weights + bias, abs=1e-4)


def test_transposed_convolution_paints_a_square_for_every_cell():
    x = feature(2, 3, 4, 5)
    kernel, bias = values("deconv", W=(2, 2, 6, 5), b=(6,))
    expected = np.zeros([2, 6, 8, 6])
    for row in range(3):
        for column in range(4):
            square = np.einsum("nc,ijoc->nijo", x[:, row, column], kernel)
            expected[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = square
    parts = evaluate(lambda x: deconv2d(x, 6, "deconv"), x)
    assert parts.shape == (2, 3, 4, 4, 6)
    placed = parts.reshape(2, 3, 4, 2, 2, 6).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 8, 6)
    assert placed == pytest.approx(expected + bias, abs=1e-4)


@pytest.mark.parametrize("layer, shape", [
    (lambda x: group_norm(x, "gn"), (0, 7, 7, 32)),
    (lambda x: fully_connected(x, 4, "layer"), (0, 4)),
])
def test_no_rois(layer, shape):
    def build(x):
        y = layer(x)
        return y, tf.gradients(tf.reduce_sum(y), tf.trainable_variables())

    y, gradients = evaluate(build, np.zeros([0, 7, 7, 32], np.float32))
    assert y.shape == shape
    assert not any(gradient.any() for gradient in gradients)


def variables(build):
    with tf.Graph().as_default():
        build(tf.zeros([1, 8, 8, 3]))
        trained = {v.op.name for v in tf.trainable_variables()}
        return {v.op.name: (v.shape.as_list(), v.op.name in trained) for v in tf.global_variables()}


def test_names_and_shapes_of_variables():
    bn = {f"conv0/bn/{name}": ([32], trained) for name, trained in
          [("gamma", True), ("beta", True), ("mean/EMA", False), ("variance/EMA", False)]}
    kernel = {"conv0/W": ([3, 3, 3, 32], True)}
    assert variables(lambda x: conv2d(x, 32, 3, "conv0", norm="FreezeBN")) == {**kernel, **bn}
    gn = {"conv0/gn/gamma": ([32], True), "conv0/gn/beta": ([32], True)}
    assert variables(lambda x: conv2d(x, 32, 3, "conv0", norm="GN")) == {**kernel, **gn}
    assert variables(lambda x: conv2d(x, 32, 3, "conv0")) == {**kernel, "conv0/b": ([32], True)}
    assert variables(lambda x: conv2d(x, 32, 3, "conv0", norm="None")) == kernel
    assert variables(lambda x: deconv2d(x, 4, "d")) == {"d/W": ([2, 2, 4, 3], True), "d/b": ([4], True)}
    assert variables(lambda x: fully_connected(x, 4, "fc")) == {"fc/W": ([192, 4], True), "fc/b": ([4], True)}


def test_frozen_variables():
    def all_frozen(x):
        with frozen_variables():
            conv2d(x, 32, 3, "conv0", norm="GN")

    def affine_frozen(x):
        with tf.variable_scope("group1"), frozen_variables(lambda name: name.endswith(("/gamma", "/beta"))):
            conv2d(x, 32, 3, "conv0", norm="FreezeBN")
        conv2d(x, 32, 3, "conv1", norm="FreezeBN")

    assert not any(trained for _, trained in variables(all_frozen).values())
    trained = {name for name, (_, trained) in variables(affine_frozen).items() if trained}
    assert trained == {"group1/conv0/W", "conv1/W", "conv1/bn/gamma", "conv1/bn/beta"}


def test_convolution_without_norm():
    x = feature(1, 6, 6, 3)
    kernel, = values("layer", W=(3, 3, 3, 5))
    ours = evaluate(lambda x: conv2d(x, 5, 3, "layer", stride=2, padding=((1, 0), (1, 0)), norm="None"), x)
    assert ours == pytest.approx(numpy_conv(x, kernel, 2, ((1, 0), (1, 0))), abs=1e-4)


@pytest.mark.parametrize("dtype, tolerance", [(tf.float32, 1e-5), (tf.bfloat16, 1e-2)])
def test_maps_of_each_roi_s_own_class(dtype, tolerance):
    """Logits and gradients are those of the convolution to all classes, one of them picked; background takes any."""
    x, labels, upstream = feature(4, 15, 6), np.array([5, 1, 3, 5]), feature(4, 15, seed=1)

    def picked(x, labels):
        return tf.gather(conv2d(x[:, None], 5, 1, "layer")[:, 0], labels - 1, axis=2, batch_dims=1)

    def own(x, labels):
        return conv1x1_own_class(tf.cast(x, dtype), labels, 5, "layer", initializer=None)

    def outputs_of(build):
        def outputs(x, labels, upstream):
            y = build(x, labels)
            return [y, *tf.gradients(y, [x, *tf.trainable_variables()], upstream)]
        return evaluate(outputs, x, labels, upstream)

    for found, wanted in zip(outputs_of(own), outputs_of(picked), strict=True):
        np.testing.assert_allclose(found, wanted, atol=tolerance * np.abs(wanted).max())
    of_background = evaluate(own, x, np.zeros(4, np.int64))
    assert of_background.shape == (4, 15) and np.isfinite(of_background).all()
    assert evaluate(own, x[:0], labels[:0]).shape == (0, 15)


@pytest.mark.parametrize("height, width", [(3, 2), (1, 1)])
def test_upsampling_and_its_gradient(height, width):
    """Every cell becomes four; its gradient is the sum of theirs."""
    x, upstream = feature(2, height, width, 3), feature(2, 2 * height, 2 * width, 3, seed=1)

    def build(x, upstream):
        y = upsample_nearest(x)
        return y, tf.gradients(y, x, upstream)[0]

    y, gradient = evaluate(build, x, upstream)
    assert np.array_equal(y, x.repeat(2, axis=1).repeat(2, axis=2))
    of_four = upstream.reshape(2, height, 2, width, 2, 3).sum(axis=(2, 4))
    np.testing.assert_allclose(gradient, of_four, atol=1e-6)


def test_p6_is_every_second_cell_of_p5_with_its_gradient():
    maps = [feature(2, 5 * 2**i, 7 * 2**i, 3, seed=i) for i in (3, 2, 1, 0)]
    upstream = feature(2, 3, 4, 4, seed=5)

    def build(*values):
        *maps, upstream = values
        extent = BatchExtent(tf.constant([[160, 224]] * 2), 32, tf.constant([160, 224]))
        *_, p5, p6 = fpn(maps, extent, channels=4, norm="None")
        return p5, p6, tf.gradients(p6, p5, upstream)[0]

    p5, p6, gradient = evaluate(build, *maps, upstream)
    assert np.array_equal(p6, p5[:, ::2, ::2]) and p6.min() < 0
    wanted = np.zeros(p5.shape)
    wanted[:, ::2, ::2] = upstream
    assert np.array_equal(gradient, wanted)
