"""TRAIN.XLA: what XLA compiles gives what TensorFlow gives, on a larger canvas too."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import C4, GN_BACKBONE, TinyModel, batch_inputs, example

from FasterRCNN.ops.compiled import compiled

EXAMPLES = [example(61, 75, 6, seed=1, crowd=True), example(80, 64, 3, seed=2)]


def run(changes, examples, canvas):
    """Losses, gradients and the kinds of operations that ran, of images padded to multiples of `canvas`."""
    model = TinyModel(changes, batch=len(examples), with_gradients=True)
    values = batch_inputs(examples, canvas)
    feed = {model.inputs[name]: values[name] for name in model.inputs}
    trace = tf.RunMetadata()
    losses, gradients = model.session.run((model.losses, model.gradients), feed, run_metadata=trace,
                                          options=tf.RunOptions(output_partition_graphs=True))
    return losses, gradients, [node.op for graph in trace.partition_graphs for node in graph.node]


@pytest.mark.parametrize("changes, batch", [
    ({}, 1),
    ({"FPN.NORM": "GN", "FPN.NUM_CHANNEL": 32, "FPN.CASCADE": True}, 2),
    ({**C4, **GN_BACKBONE}, 1),
    ({"BACKBONE.NORM": "SyncBN"}, 2),
], ids=["fpn", "normalised", "c4", "synchronised"])
def test_compiled_training_on_a_larger_canvas_is_the_same(changes, batch):
    multiple = 1 if "MODE_FPN" in changes else 32
    losses, gradients, ops = run(changes, EXAMPLES[:batch], multiple)
    assert "_XlaRun" not in ops
    same, compiled_gradients, ops = run({**changes, "TRAIN.XLA": True}, EXAMPLES[:batch], 128)
    assert "_XlaRun" in ops and not {"NormalizePixels", "StemPool"} & set(ops)
    for name, loss in losses.items():
        np.testing.assert_allclose(same[name], loss, rtol=1e-4, err_msg=name)
    # A bias ahead of group normalisation has no gradient but of rounding.
    rounding = 1e-6 * max(np.abs(gradient).max() for gradient in gradients.values())
    for name, gradient in gradients.items():
        difference = np.abs(compiled_gradients[name] - gradient)
        # An activation near zero may be cut off in one of the two, which few values of a gradient show.
        assert np.linalg.norm(difference) <= 1e-3 * np.linalg.norm(gradient) + rounding, name


def test_one_program_and_one_of_its_gradients():
    with tf.Graph().as_default(), tf.Session() as session:
        x = tf.placeholder(tf.float32, [None])
        with compiled():
            y = tf.tanh(x * 2.0) * x
        slope, = tf.gradients(y, x)
        trace = tf.RunMetadata()
        values, slopes = session.run([y, slope], {x: [0.5, -1.0]}, run_metadata=trace,
                                     options=tf.RunOptions(output_partition_graphs=True))
    ops = [node.op for graph in trace.partition_graphs for node in graph.node]
    assert ops.count("_XlaRun") == 2 and "Tanh" not in ops
    np.testing.assert_allclose(values, [0.5 * np.tanh(1.0), np.tanh(2.0)], rtol=1e-6)
    expected = [np.tanh(2 * x) + 2 * x / np.cosh(2 * x) ** 2 for x in (0.5, -1.0)]
    np.testing.assert_allclose(slopes, expected, rtol=1e-5)
