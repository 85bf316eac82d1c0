"""The figures beside the losses, against counting in NumPy."""
import numpy as np
import pytest
from tiny import evaluate

from FasterRCNN.modeling.box_head import RoISample
from FasterRCNN.modeling.metrics import box_metrics, mask_metrics, named, rpn_metrics
from FasterRCNN.modeling.rpn import AnchorSample


def share(x, among):
    return x[among].mean() if among.any() else 0.0


def assert_close(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("foreground_share", [0.4, 0.0])
def test_of_anchors(foreground_share):
    random = np.random.default_rng(1)
    logits = random.normal(size=(2, 50)).astype(np.float32)
    indices = np.stack([random.permutation(50)[:12] for _ in range(2)])
    chosen = random.uniform(size=(2, 12)) < 0.8
    foreground = chosen & (random.uniform(size=(2, 12)) < foreground_share)

    def build(logits, indices, foreground, chosen):
        return rpn_metrics(logits, AnchorSample(indices, foreground, chosen, None, None))

    called = chosen & (np.take_along_axis(logits, indices, axis=1) > 0)
    assert_close(evaluate(build, logits, indices, foreground, chosen), {
        "foreground": foreground.sum() / 2,
        "precision": share(foreground, called),
        "recall": share(called, foreground),
    })


@pytest.mark.parametrize("foreground_share", [0.5, 0.0])
def test_of_rois(foreground_share):
    random = np.random.default_rng(2)
    logits = random.normal(size=(2, 30, 4)).astype(np.float32)
    chosen = random.uniform(size=(2, 30)) < 0.8
    foreground = chosen & (random.uniform(size=(2, 30)) < foreground_share)
    labels = np.where(foreground, random.integers(1, 4, (2, 30)), 0)

    def build(logits, labels, foreground, chosen):
        return box_metrics(logits, RoISample(None, labels, None, foreground, chosen))

    predicted = logits.argmax(axis=2)
    assert_close(evaluate(build, logits, labels, foreground, chosen), {
        "foreground": foreground.sum() / 2,
        "accuracy": share(predicted == labels, chosen),
        "foreground_accuracy": share(predicted == labels, foreground),
        "false_negatives": share(predicted == 0, foreground),
    })


@pytest.mark.parametrize("foreground", [[True, False, True], [False, False, False]])
def test_of_masks(foreground):
    random = np.random.default_rng(3)
    logits = random.normal(size=(3, 6, 6)).astype(np.float32)
    targets = random.uniform(size=(3, 6, 6)).astype(np.float32)
    right, of_object = (logits > 0) == (targets >= 0.5), targets >= 0.5
    rois = np.array(foreground)
    pixels = np.broadcast_to(rois[:, None, None], right.shape)
    assert_close(evaluate(mask_metrics, logits, targets, rois), {
        "accuracy": share(right, pixels),
        "object_accuracy": share(right, pixels & of_object),
        "object_share": share(of_object, pixels),
    })


def test_names():
    assert named("box/stage1", {"accuracy": 1}) == {"box/stage1/accuracy": 1}
