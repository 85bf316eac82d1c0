"""Grouped convolutions against sums over windows in NumPy, in the form of each kind of machine."""
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from FasterRCNN.ops import grouped_conv
from FasterRCNN.ops.grouped_conv import grouped_conv2d

# C_in, C_out, groups, stride, padding
CASES = [(64, 64, 8, 1, "SAME"), (64, 32, 8, 2, "VALID"), (96, 96, 2, 2, "SAME"), (64, 128, 1, 1, "VALID"),
         (6, 12, 3, 1, "SAME"), (8, 8, 8, 1, "SAME"), (256, 256, 32, 1, "SAME")]


@pytest.fixture(params=["own form", "blocks"])
def form(request, monkeypatch):
    if request.param == "blocks":
        monkeypatch.setattr(grouped_conv, "_has_own_form", lambda: False)
    elif not grouped_conv._has_own_form():
        # Without oneDNN there is only one form, which the other parameter tests.
        monkeypatch.setattr(grouped_conv, "BLOCK_CHANNELS", 1)


def windows(x, size, stride, padding):
    """Return (padded x, output rows and columns, [(row, column, its window in padded x)], x's place in padded x)."""
    height, width = x.shape[1:3]
    if padding == "SAME":
        rows, columns = -(-height // stride), -(-width // stride)
        amounts = [max((n - 1) * stride + size - length, 0) for n, length in ((rows, height), (columns, width))]
    else:
        rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
        amounts = [0, 0]
    before = [amount // 2 for amount in amounts]
    pads = [(0, 0), *((b, amount - b) for b, amount in zip(before, amounts, strict=True)), (0, 0)]
    places = [(row, column, np.s_[:, row * stride:row * stride + size, column * stride:column * stride + size])
              for row in range(rows) for column in range(columns)]
    own = np.s_[:, before[0]:before[0] + height, before[1]:before[1] + width]
    return np.pad(x, pads).astype(np.float64), (rows, columns), places, own


def numpy_grouped_conv(x, kernel, groups, stride, padding):
    padded, (rows, columns), places, _ = windows(x, kernel.shape[0], stride, padding)
    per_group, out_per_group = kernel.shape[2], kernel.shape[3] // groups
    output = np.zeros((len(x), rows, columns, kernel.shape[3]))
    for group in range(groups):
        source, target = (slice(group * n, (group + 1) * n) for n in (per_group, out_per_group))
        for row, column, place in places:
            output[:, row, column, target] = np.tensordot(padded[place][..., source], kernel[..., target], axes=3)
    return output


def numpy_gradients(x, kernel, groups, stride, padding, output_gradient):
    """Return the gradients of sum(output · output_gradient) with respect to x and the kernel."""
    padded, _, places, own = windows(x, kernel.shape[0], stride, padding)
    per_group, out_per_group = kernel.shape[2], kernel.shape[3] // groups
    x_gradient, kernel_gradient = np.zeros_like(padded), np.zeros(kernel.shape)
    for group in range(groups):
        source, target = (slice(group * n, (group + 1) * n) for n in (per_group, out_per_group))
        for row, column, place in places:
            cell = output_gradient[:, row, column, target].astype(np.float64)
            x_gradient[place][..., source] += np.tensordot(cell, kernel[..., target], axes=(1, 3))
            kernel_gradient[..., target] += np.tensordot(padded[place][..., source], cell, axes=(0, 0))
    return x_gradient[own], kernel_gradient


def drawn(channels, out_channels, groups, *, batch=2, height=9, width=12):
    random = np.random.default_rng(groups)
    return (random.normal(size=(batch, height, width, channels)).astype(np.float32),
            random.normal(size=(3, 3, channels // groups, out_channels)).astype(np.float32))


def run(x, kernel, groups, stride, padding, *, output_gradient=None, constant_kernel=False, scale=1.0):
    """Return the output and, with output_gradient, the gradients of x and the kernel, from a graph of unknown sizes."""
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.float32, [None, None, None, x.shape[-1]])
        weights = tf.constant(kernel) if constant_kernel else tf.placeholder(tf.float32, kernel.shape)
        output = grouped_conv2d(image, weights * scale, groups, stride=stride, padding=padding)
        assert output.shape.as_list() == [None, None, None, kernel.shape[-1]]
        fetches = [output]
        if output_gradient is not None:
            fetches += tf.gradients(output, [image, weights], tf.constant(output_gradient))
        feeds = {image: x} if constant_kernel else {image: x, weights: kernel}
        return session.run(fetches, feeds)


@pytest.mark.parametrize(("channels", "out_channels", "groups", "stride", "padding"), CASES)
def test_output_and_gradients_are_the_definitions(form, channels, out_channels, groups, stride, padding):
    x, kernel = drawn(channels, out_channels, groups)
    wanted = numpy_grouped_conv(x, kernel, groups, stride, padding)
    output_gradient = np.random.default_rng(9).normal(size=wanted.shape).astype(np.float32)
    output, x_gradient, kernel_gradient = run(x, kernel, groups, stride, padding, output_gradient=output_gradient)
    wanted_x, wanted_kernel = numpy_gradients(x, kernel, groups, stride, padding, output_gradient)
    np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(x_gradient, wanted_x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(kernel_gradient, wanted_kernel, rtol=1e-4, atol=2e-4)


def test_kernel_may_be_a_product(form):
    x, kernel = drawn(64, 64, 8)
    scale = np.random.default_rng(1).uniform(0.5, 2, 64).astype(np.float32)
    wanted = numpy_grouped_conv(x, kernel * scale, 8, 1, "SAME")
    output_gradient = np.ones(wanted.shape, np.float32)
    output, x_gradient, kernel_gradient = run(x, kernel, 8, 1, "SAME", output_gradient=output_gradient, scale=scale)
    wanted_x, wanted_kernel = numpy_gradients(x, kernel * scale, 8, 1, "SAME", output_gradient)
    np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(x_gradient, wanted_x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(kernel_gradient, wanted_kernel * scale, rtol=1e-4, atol=2e-4)


def test_constant_kernel_fused_with_bias_and_relu(form):
    x, kernel = drawn(64, 64, 8, batch=1)
    bias = np.linspace(-3, 3, 64, dtype=np.float32)
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.float32, [1, None, None, 64])
        output = grouped_conv2d(image, tf.constant(kernel), 8, stride=2, padding="SAME")
        output = session.run(tf.nn.relu(tf.nn.bias_add(output, bias)), {image: x})
    np.testing.assert_allclose(
        output, np.maximum(numpy_grouped_conv(x, kernel, 8, 2, "SAME") + bias, 0), rtol=1e-4, atol=1e-4)


def test_one_group_is_an_ordinary_convolution(form):
    x, kernel = drawn(16, 24, 1)
    with tf.Graph().as_default(), tf.Session() as session:
        wanted = session.run(tf.nn.conv2d(x, kernel, 2, "VALID"))
    np.testing.assert_array_equal(run(x, kernel, 1, 2, "VALID", constant_kernel=True)[0], wanted)


@pytest.mark.parametrize(("per_group", "groups", "convolutions"), [(8, 32, 8), (8, 6, 2), (64, 4, 4), (4, 2, 1)])
def test_blocks_hold_whole_groups_of_up_to_32_channels(monkeypatch, per_group, groups, convolutions):
    monkeypatch.setattr(grouped_conv, "_has_own_form", lambda: False)
    channels = per_group * groups
    with tf.Graph().as_default() as graph:
        grouped_conv2d(tf.zeros([1, 4, 4, channels]), tf.zeros([3, 3, per_group, channels]), groups, stride=1,
                       padding="SAME")
        assert sum(op.type == "Conv2D" for op in graph.get_operations()) == convolutions


@pytest.mark.parametrize(("channels", "per_group", "out_channels", "message"), [
    (20, 5, 24, "20 input and 24 output channels cannot be convolved in 3 groups: both numbers must be multiples "
                "of the number of groups"),
    (24, 8, 20, "24 input and 20 output channels cannot be convolved in 3 groups: both numbers must be multiples "
                "of the number of groups"),
    (24, 4, 24, "a kernel of shape [3, 3, 4, 24] does not fit 24 input channels in 3 groups: its third dimension must "
                "be 24 / 3 = 8")])
def test_channels_must_fit_the_groups(channels, per_group, out_channels, message):
    with tf.Graph().as_default(), pytest.raises(ValueError) as error:
        grouped_conv2d(tf.zeros([1, 4, 4, channels]), tf.zeros([3, 3, per_group, out_channels]), 3, stride=1,
                       padding="SAME")
    assert str(error.value) == message
