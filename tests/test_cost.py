"""engine/cost.py: the count against layers' formulas and against a whole model counted by hand."""

from types import SimpleNamespace

import config

import pytest
import tensorflow.compat.v1 as tf

from FasterRCNN.engine.cost import Cost, measure_cost
from FasterRCNN.modeling.build import build_detector
from FasterRCNN.ops.layers import conv2d, deconv2d, fully_connected


def detector_of(layers, *, pad_multiple=1, box_head=None, mask_head=None):
    """A Detector of one map, which `layers` makes of the image."""

    def features(image, image_size):
        return None, layers(tf.cast(image, tf.float32)), None

    return SimpleNamespace(
        pad_multiple=pad_multiple, features=features, rpn_head=lambda levels, extent: None,
        box_features=lambda levels, boxes, image_index, extent: tf.zeros([boxes.shape[0], 7, 7, 2]), mask_features=None,
        box_stages=[SimpleNamespace(head=box_head)] if box_head else [], mask_head=mask_head)


@pytest.mark.parametrize("norm, others", [("bias", 5), ("FreezeBN", 10), ("None", 0)])
def test_a_convolution(norm, others):
    """Parameters: the kernel, and bias or gamma and beta; the stored statistics are none."""
    cost = measure_cost(detector_of(lambda x: conv2d(x, 5, 3, "conv", stride=2, norm=norm)), image_size=(20, 31))
    assert cost == Cost(parameters=3 * 3 * 3 * 5 + others, flops=2 * (10 * 16) * (3 * 3 * 3 * 5))


def test_an_image_is_padded():
    cost = measure_cost(detector_of(lambda x: conv2d(x, 1, 1, "conv"), pad_multiple=32), image_size=(20, 33))
    assert cost.flops == 2 * 32 * 64 * 3


def test_a_kernel_used_twice_has_its_parameters_once():
    def layers(x):
        for size in (x, x[:, ::2, ::2]):
            with tf.variable_scope("shared", reuse=tf.AUTO_REUSE):
                conv2d(size, 4, 1, "conv0", norm="None")

    assert measure_cost(detector_of(layers), image_size=(8, 8)) == Cost(3 * 4, 2 * (64 + 16) * 3 * 4)


def test_heads_run_on_as_many_rois_as_are_given():
    detector = detector_of(
        lambda x: None, box_head=lambda x: fully_connected(x, 5, "fc"),
        mask_head=lambda x, labels: deconv2d(x, 3, "deconv"))
    cost = measure_cost(detector, num_proposals=11, num_detections=6)
    assert cost.parameters == 98 * 5 + 5 + 2 * 2 * 2 * 3 + 3
    assert cost.flops == 2 * (11 * 98 * 5 + 6 * 49 * 4 * 2 * 3)


def test_a_grouped_convolution_counts_as_its_arithmetic():
    """Whether it is computed part by part or as a dense convolution of a kernel with zeros."""
    def parts(x):
        with tf.variable_scope("conv"):
            kernel = tf.get_variable("W", [3, 3, 1, 6])
            return [tf.nn.conv2d(a, b, 1, "SAME") for a, b in zip(tf.split(x, 3, 3), tf.split(kernel, 3, 3))]

    def dense(x):
        with tf.variable_scope("conv"):
            kernel = tf.get_variable("W", [3, 3, 1, 6])
            return tf.nn.conv2d(x, tf.tile(kernel, [1, 1, 3, 1]), 1, "SAME")

    wanted = Cost(3 * 3 * 6, 2 * 5 * 4 * 3 * 3 * 6)
    assert [measure_cost(detector_of(form), image_size=(5, 4)) for form in (parts, dense)] == [wanted, wanted]


def test_what_cannot_be_counted_is_named():
    def layers(x):
        with tf.variable_scope("lost"):
            return tf.get_variable("W", [2, 2]) * 2.0

    with pytest.raises(ValueError) as error:
        measure_cost(detector_of(layers))
    assert str(error.value) == "layer lost: no convolution or matrix product found; its cost is unknown"
    with pytest.raises(ValueError, match="^layer conv: no convolution or matrix product of unknown shape"):
        measure_cost(detector_of(lambda x: conv2d(tf.placeholder(tf.float32, [None, 4, 4, 3]), 2, 1, "conv")))


# ---------------------------------------------------------------- whole models


def cost_of(**keys):
    cfg = config.default_config()
    cfg.update_dict({"MODE_FPN": True, "DATA.NUM_CLASS": 80, **keys})
    config.finalize_configs(cfg, is_training=False)
    return measure_cost(build_detector(cfg))


class Tally:
    """Multiply-adds and parameters, layer by layer, of an image padded to 800×1344."""

    def __init__(self):
        self.products = self.parameters = 0

    def layer(self, cells, inputs, outputs, *, kernel=1, groups=1, others):
        """others: parameters of each output channel beside its kernel: 1 a bias, 2 gamma and beta, 0 in a reuse."""
        size = kernel * kernel * inputs * outputs // groups
        self.products += cells * size
        self.parameters += (size + others * outputs) if others else 0


def cells(stride):
    return -(-800 // stride) * -(-1344 // stride)


def tally_backbone(*, blocks, groups=1, width=64):
    tally = Tally()
    tally.layer(cells(2), 3, 64, kernel=7, others=2)
    inputs = 64
    for group, count in enumerate(blocks):
        stride, inner, outputs = 4 << group, width << group, 256 << group
        for block in range(count):
            before = cells(stride // 2) if block == 0 and group else cells(stride)
            tally.layer(before, inputs, inner, others=2)
            tally.layer(cells(stride), inner, inner, kernel=3, groups=groups, others=2)
            tally.layer(cells(stride), inner, outputs, others=2)
            if block == 0:
                tally.layer(cells(stride), inputs, outputs, others=2)
            inputs = outputs
    return tally


def tally_mask_rcnn_fpn(**backbone):
    tally = tally_backbone(**backbone)
    for i in range(4):
        tally.layer(cells(4 << i), 256 << i, 256, others=1)
        tally.layer(cells(4 << i), 256, 256, kernel=3, others=1)
    for i, stride in enumerate((4, 8, 16, 32, 64)):
        tally.layer(cells(stride), 256, 256, kernel=3, others=i == 0)
        tally.layer(cells(stride), 256, 3, others=i == 0)
        tally.layer(cells(stride), 256, 12, others=i == 0)
    for inputs, outputs in ((256 * 49, 1024), (1024, 1024), (1024, 81), (1024, 81 * 4)):
        tally.layer(1000, inputs, outputs, others=1)
    for _ in range(4):
        tally.layer(100 * 14 * 14, 256, 256, kernel=3, others=1)
    tally.layer(100 * 14 * 14, 256, 256, kernel=2, others=1)
    tally.layer(100 * 28 * 28, 256, 80, others=1)
    return Cost(tally.parameters, 2 * tally.products)


def test_mask_rcnn_r50_fpn():
    cost = cost_of()
    assert cost == tally_mask_rcnn_fpn(blocks=(3, 4, 6, 3))
    assert cost.flops / 1e9 == pytest.approx(538, rel=0.01)
    assert cost.parameters / 1e6 == pytest.approx(44.4, abs=0.05)


def test_mask_rcnn_x101_32x8d_fpn():
    keys = {"BACKBONE.RESNET_NUM_BLOCKS": [3, 4, 23, 3], "BACKBONE.NUM_GROUPS": 32, "BACKBONE.WIDTH_PER_GROUP": 8}
    assert cost_of(**keys) == tally_mask_rcnn_fpn(blocks=(3, 4, 23, 3), groups=32, width=256)


def test_a_cascade_adds_two_box_heads_with_one_set_of_deltas():
    plain, cascade = cost_of(MODE_MASK=False), cost_of(**{"MODE_MASK": False, "FPN.CASCADE": True})
    head = 256 * 49 * 1024 + 1024 * 1024 + 1024 * (81 + 4)
    assert cascade.flops - plain.flops == 2 * 1000 * (3 * head - (head + 1024 * 4 * 80))


def test_c4_runs_the_last_group_on_rois():
    """And on detections again, for their masks; a C4 image is not padded."""
    boxes, masks = cost_of(MODE_FPN=False, MODE_MASK=False), cost_of(MODE_FPN=False)
    # The last group halves 14×14 to 7×7 in its first block's 3×3.
    first = 196 * 1024 * 512 + 49 * (9 * 512 * 512 + 512 * 2048 + 1024 * 2048)
    others = 2 * 49 * (2048 * 512 + 9 * 512 * 512 + 512 * 2048)
    mask_head = 49 * 4 * 2048 * 256 + 196 * 256 * 80
    assert masks.flops - boxes.flops == 2 * 100 * (first + others + mask_head)
