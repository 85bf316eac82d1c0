"""Weights of other programs under our names: names and shapes are written down here from their sources, not taken from
the tables that are tested; values are compared through what layers make of them."""

import dataclasses
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from foreign_names import CHANNELS, FC, KINDS, PYRAMID, K, draw_model, statistics
from test_zoo import C4, CASCADE, CONV_GN_HEAD, GN, R50, RESNEXT_32X8D, build, file_shapes, row_config, tiny_width
from tiny import session, tiny_config

from FasterRCNN.engine.architecture import suggest_config
from FasterRCNN.engine.weights import read_config, read_weights, restore
from FasterRCNN.foreign.containers import read_contents
from FasterRCNN.foreign.convert import convert
from FasterRCNN.foreign.sources import SOURCES, File, choose_source
from FasterRCNN.foreign.target import variables
from FasterRCNN.modeling.box_head import two_fc_head
from FasterRCNN.modeling.build import build_detector
from tools import convert_weights

FILES = Path(__file__).parent / "foreign"
random = np.random.default_rng(0)


def draw(shapes):
    """Random arrays; what a square root is taken of is above zero."""
    return {name: np.asarray(random.uniform(0.5, 1.5, shape) if name.endswith(("running_var", "_riv"))
                             else random.standard_normal(shape), np.float32) for name, shape in shapes.items()}


OUR_KEYS = ("MODE_FPN", "MODE_MASK", "BACKBONE.NORM", "FPN.CASCADE", "FPN.NORM", "FPN.FRCNN_HEAD_FUNC",
            "FPN.MRCNN_HEAD_FUNC")


def converted(kind, texts=()):
    """(arrays, Conversion) of a file of one of KINDS, which is recognised by its names and whole."""
    name, shapes = KINDS[kind]
    arrays = draw(shapes)
    file = File(arrays, dict(texts))
    source = choose_source(file)
    assert source.name == name
    conversion = convert(file, source)
    assert conversion.report.is_complete, list(conversion.report.lines())
    return arrays, conversion


@pytest.mark.parametrize("kind", KINDS)
def test_every_variable_is_accounted_for(kind):
    arrays, conversion = converted(kind)
    report = conversion.report
    assert report.used.keys() | report.left_out.keys() == arrays.keys()
    assert report.filled.keys() == conversion.weights.keys()
    keys = suggest_config({name: value.shape for name, value in conversion.weights.items()})
    anchors = 15 if "C4" in kind else 3
    wanted = variables(keys, num_classes=K, num_anchors=anchors)
    assert {name: value.shape for name, value in conversion.weights.items()} == wanted
    assert all(value.dtype == np.float32 for value in conversion.weights.values())


# ------------------------------------------------------------------------------------- our variables without TensorFlow


@pytest.mark.parametrize("changes", [{}, C4, CASCADE, GN, CONV_GN_HEAD, RESNEXT_32X8D, {"MODE_MASK": False},
                                     {"BACKBONE.NORM": "None"}, {**C4, "MODE_MASK": False}],
                         ids=lambda changes: " ".join(changes) or "FPN")
def test_our_variables_are_those_of_the_graph(changes):
    config = tiny_config(row_config((1, 1, 1, 1), changes, tiny_width(changes)))
    _, shapes = build(config)
    anchors = shapes["rpn/class/b"][0]
    assert variables(suggest_config(shapes), num_classes=80, num_anchors=anchors) == shapes


# ------------------------------------------------------------------------------------------- layers, a second time


def ours_scale_shift(weights, scope):
    """The kernel and the bias that our convolution and normalisation make together."""
    gamma, beta, mean, variance = (weights[f"{scope}/bn/{leaf}"].astype(np.float64)
                                   for leaf in ("gamma", "beta", "mean/EMA", "variance/EMA"))
    scale = gamma / np.sqrt(variance + 1e-5)
    return weights[f"{scope}/W"] * scale, beta - mean * scale


@pytest.mark.parametrize("kind, layer, norm, scope, epsilon", [
    ("detectron2 FPN", "backbone.bottom_up.res3.0.conv2", "{}.norm", "group1/block0/conv2", 1e-5),
    ("maskrcnn-benchmark FPN", "backbone.body.layer2.0.downsample.0", "backbone.body.layer2.0.downsample.1",
     "group1/block0/convshortcut", 0.0),
    ("maskrcnn-benchmark C4", "roi_heads.box.feature_extractor.head.layer4.0.conv3",
     "roi_heads.box.feature_extractor.head.layer4.0.bn3", "group3/block0/conv3", 0.0),
    ("torchvision ImageNet", "layer1.1.conv1", "layer1.1.bn1", "group0/block1/conv1", 1e-5),
])
def test_convolution_and_batch_normalisation(kind, layer, norm, scope, epsilon):
    arrays, conversion = converted(kind)
    weight, bias, mean, variance = (arrays[f"{norm.format(layer)}.{leaf}"].astype(np.float64)
                                    for leaf in ("weight", "bias", "running_mean", "running_var"))
    scale = weight / np.sqrt(variance + epsilon)
    kernel, shift = ours_scale_shift(conversion.weights, scope)
    expected = np.einsum("oihw,o->hwio", arrays[f"{layer}.weight"], scale)
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)
    np.testing.assert_allclose(shift, bias - mean * scale, rtol=1e-5, atol=1e-6)


def test_scale_and_shift_of_caffe2():
    arrays, conversion = converted("Detectron C4")
    kernel, shift = ours_scale_shift(conversion.weights, "group0/block1/conv2")
    scale = arrays["res2_1_branch2b_bn_s"]
    np.testing.assert_allclose(kernel, np.einsum("oihw,o->hwio", arrays["res2_1_branch2b_w"], scale), rtol=1e-6)
    np.testing.assert_allclose(shift, arrays["res2_1_branch2b_bn_b"], rtol=1e-6)


def test_statistics_of_microsofts_resnets_as_detectron2_has_them():
    arrays, conversion = converted("detectron2 MSRA")
    kernel, shift = ours_scale_shift(conversion.weights, "conv0")
    gamma, beta, mean, variance = (arrays[f"res_conv1_bn_{leaf}"].astype(np.float64)
                                   for leaf in ("gamma", "beta", "running_mean", "running_var"))
    scale = gamma / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(kernel, np.einsum("oihw,o->hwio", arrays["conv1_w"], scale), rtol=1e-6)
    np.testing.assert_allclose(shift, beta - mean * scale, rtol=1e-5, atol=1e-6)
    assert conversion.config["PREPROC.PIXEL_MEAN"] == [123.675, 116.28, 103.53]
    assert conversion.config["BACKBONE.STRIDE_1X1"]


def test_statistics_smaller_than_our_epsilon():
    arrays = draw(KINDS["maskrcnn-benchmark FPN"][1])
    arrays["backbone.body.stem.bn1.running_var"] = np.array([1e-9, 1e-6, 1e-5, 1], np.float32)
    kernel, _ = ours_scale_shift(convert(File(arrays), SOURCES["maskrcnn-benchmark"]).weights, "conv0")
    scale = arrays["backbone.body.stem.bn1.weight"] / np.sqrt(arrays["backbone.body.stem.bn1.running_var"])
    np.testing.assert_allclose(kernel, np.einsum("oihw,o->hwio", arrays["backbone.body.stem.conv1.weight"], scale),
                               rtol=1e-5)


def test_group_normalisation_has_no_statistics():
    arrays, conversion = converted("Detectron GN")
    weights = conversion.weights
    for theirs, ours in (("conv1", "conv0/gn"), ("res5_0_branch2c", "group3/block0/conv3/gn"),
                         ("fpn_inner_res3_0_sum_lateral", "fpn/gn_c3"), ("fpn_res5_0_sum", "fpn/gn_p5"),
                         ("head_conv1", "fastrcnn/gn0"), ("_[mask]_fcn4", "maskrcnn/gn3")):
        np.testing.assert_array_equal(weights[f"{ours}/gamma"], arrays[f"{theirs}_gn_s"])
        np.testing.assert_array_equal(weights[f"{ours}/beta"], arrays[f"{theirs}_gn_b"])
    assert not weights["fpn/lateral_1x1_c3/b"].any()
    assert "constant" in conversion.report.filled["fastrcnn/conv0/b"]
    np.testing.assert_array_equal(weights["fastrcnn/fc/W"], arrays["fc6_w"].T)
    assert conversion.config["FPN.FRCNN_HEAD_FUNC"] == "fastrcnn_4conv1fc_gn_head"


@pytest.mark.parametrize("kind, names", [
    ("detectron2 FPN", ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")),
    ("maskrcnn-benchmark FPN", ("roi_heads.box.predictor.cls_score", "roi_heads.box.predictor.bbox_pred")),
])
def test_rows_of_classes(kind, names):
    """Class 0 here is the background, which detectron2 has last and without a box."""
    arrays, conversion = converted(kind)
    features = random.standard_normal(FC)
    logits, boxes = (arrays[f"{name}.weight"] @ features + arrays[f"{name}.bias"] for name in names)
    weights = conversion.weights
    ours = features @ weights["fastrcnn/outputs/class/W"] + weights["fastrcnn/outputs/class/b"]
    our_boxes = (features @ weights["fastrcnn/outputs/box/W"] + weights["fastrcnn/outputs/box/b"]).reshape(K + 1, 4)
    for label in range(1, K + 1):
        theirs = label - 1 if kind.startswith("detectron2") else label
        np.testing.assert_allclose(ours[label], logits[theirs], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(our_boxes[label], boxes[4 * theirs:4 * theirs + 4], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours[0], logits[K if kind.startswith("detectron2") else 0], rtol=1e-4, atol=1e-5)


def test_boxes_for_all_classes_alike():
    arrays, conversion = converted("detectron2 agnostic")
    boxes = conversion.weights["fastrcnn/outputs/box/b"].reshape(K + 1, 4)
    np.testing.assert_array_equal(boxes, np.tile(arrays["roi_heads.box_predictor.bbox_pred.bias"], (K + 1, 1)))


def test_stages_of_a_cascade():
    arrays, conversion = converted("detectron2 Cascade")
    for stage in range(3):
        for theirs, ours in ((f"box_head.{stage}.fc2.weight", "head/fc7/W"),
                             (f"box_predictor.{stage}.bbox_pred.weight", "outputs/box/W")):
            np.testing.assert_array_equal(conversion.weights[f"cascade_rcnn_stage{stage + 1}/{ours}"],
                                          arrays[f"roi_heads.{theirs}"].T)
    assert conversion.config["FPN.CASCADE"] is True


@pytest.mark.parametrize("kind, name", [("detectron2 FPN", "roi_heads.mask_head.predictor"),
                                        ("maskrcnn-benchmark FPN", "roi_heads.mask.predictor.mask_fcn_logits")])
def test_masks_have_no_background(kind, name):
    arrays, conversion = converted(kind)
    np.testing.assert_array_equal(conversion.weights["maskrcnn/conv/b"], arrays[f"{name}.bias"][-K:])


def test_transposed_convolution():
    """A cell becomes 2×2 cells; PyTorch's and Caffe2's kernel is in×out×2×2."""
    arrays, conversion = converted("Detectron C4")
    cell = random.standard_normal(CHANNELS << 5)
    theirs = np.einsum("i,iohw->hwo", cell, arrays["conv5_mask_w"])
    ours = np.einsum("hwoi,i->hwo", conversion.weights["maskrcnn/deconv/W"], cell)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_order_of_anchors():
    """At a position of a C4 map Detectron runs over the sizes first, detectron2 and we over the ratios."""
    arrays, conversion = converted("Detectron C4")
    theirs = arrays["rpn_bbox_pred_b"].reshape(3, 5, 4)  # ratio, size
    ours = conversion.weights["rpn/box/b"].reshape(5, 3, 4)
    for size in range(5):
        for ratio in range(3):
            np.testing.assert_array_equal(ours[size, ratio], theirs[ratio, size])
    arrays, conversion = converted("detectron2 C4")
    theirs = arrays["proposal_generator.rpn_head.anchor_deltas.bias"]
    np.testing.assert_array_equal(conversion.weights["rpn/box/b"], theirs)


@pytest.mark.parametrize("kind, name, texts, order", [
    ("torchvision ImageNet", "conv1.weight", {}, -1),
    ("detectron2 ImageNet", "stem.conv1.weight", {"__author__": "torchvision"}, -1),
    ("detectron2 ImageNet", "stem.conv1.weight", {}, 1), ("Detectron ImageNet", "conv1_w", {}, 1)])
def test_order_of_colours(kind, name, texts, order):
    arrays, conversion = converted(kind, texts)
    np.testing.assert_array_equal(conversion.weights["conv0/W"], arrays[name].transpose(2, 3, 1, 0)[:, :, ::order])


def test_config_of_a_source():
    def config(kind, texts=()):
        found = converted(kind, texts)[1].config
        return [found[f"PREPROC.PIXEL_{what}"][0] for what in ("MEAN", "STD")] + [found["BACKBONE.STRIDE_1X1"]]

    assert config("detectron2 FPN") == [123.675, 1.0, True]
    assert config("detectron2 ImageNet") == [123.675, 58.395, False]  # a ResNeXt
    assert config("maskrcnn-benchmark FPN") == [122.7717, 1.0, True]
    assert config("Detectron GN") == [122.7717, 1.0, False]
    assert config("torchvision ImageNet") == [123.675, 58.395, False]
    assert config("Detectron FPN", {"cfg": "RESNETS:\n  STRIDE_1X1: false\n"}) == [122.7717, 1.0, False]


def test_files_of_detectron_before_its_weights_of_deltas():
    key = "FRCNN.BBOX_REG_WEIGHTS"
    assert converted("Detectron FPN", {"cfg": "MODEL: {NUM_CLASSES: 81}\n"})[1].config[key] == [1.0] * 4
    assert key not in converted("Detectron FPN", {"cfg": "MODEL: {BBOX_REG_WEIGHTS: [10.0, 10.0, 5.0, 5.0]}"})[1].config
    assert key not in converted("Detectron FPN")[1].config


def test_config_that_detectron2_saves_beside_the_weights():
    shapes = KINDS["detectron2 FPN"][1]
    mean = {"pixel_mean": np.float32([[[120.5]], [[110.5]], [[100.5]]]), "pixel_std": np.float32([[[3]], [[2]], [[1]]])}
    arrays = draw(shapes) | mean
    conversion = convert(File(arrays), SOURCES["detectron2"])
    assert conversion.config["PREPROC.PIXEL_MEAN"] == [120.5, 110.5, 100.5]
    assert conversion.config["PREPROC.PIXEL_STD"] == [3.0, 2.0, 1.0]
    np.testing.assert_array_equal(conversion.weights["conv0/W"][:, :, 0],
                                  arrays["backbone.bottom_up.stem.conv1.weight"].transpose(2, 3, 1, 0)[:, :, 2])


@pytest.mark.parametrize("norm_before_relu", [True, False])
def test_box_head_of_two_layers_with_group_normalisation(norm_before_relu):
    """maskrcnn-benchmark's layer, group normalisation of 32 groups, ReLU; or, as tensorpack's heads, ReLU before it."""
    shapes = {f"roi_heads.box.feature_extractor.fc{i}.{leaf}": shape for i, given in ((6, 49 * PYRAMID), (7, 256))
              for leaf, shape in (("0.weight", (256, given)), ("1.weight", (256,)), ("1.bias", (256,)))}
    arrays = draw(shapes | {f"roi_heads.box.predictor.{name}.weight": (rows * (K + 1), 256)
                            for name, rows in (("cls_score", 1), ("bbox_pred", 4))})
    file = File(draw_model(KINDS["maskrcnn-benchmark GN"][1], seed=0) | arrays)
    weights = convert(file, SOURCES["maskrcnn-benchmark"]).weights
    pooled = random.standard_normal((5, PYRAMID, 7, 7)).astype(np.float32)

    def relu_if(wanted, x):
        return np.maximum(x, 0) if wanted else x

    expected = pooled.reshape(5, -1)
    for i in (6, 7):
        matrix, gamma, beta = (arrays[f"roi_heads.box.feature_extractor.fc{i}.{leaf}"]
                               for leaf in ("0.weight", "1.weight", "1.bias"))
        y = relu_if(not norm_before_relu, expected @ matrix.T).reshape(5, 32, 8)
        y = (y - y.mean(2, keepdims=True)) / np.sqrt(y.var(2, keepdims=True) + 1e-5)
        expected = relu_if(norm_before_relu, y.reshape(5, 256) * gamma + beta)
    with tf.Graph().as_default(), session() as running:
        found = two_fc_head(tf.constant(pooled.transpose(0, 2, 3, 1)), fc_dim=256, norm="GN",
                            norm_before_relu=norm_before_relu)
        names = [variable.op.name for variable in tf.global_variables()]
        assert len(names) == 8
        restore(running, {name: weights[f"fastrcnn/{name}"] for name in names})
        np.testing.assert_allclose(running.run(found), expected, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------------- refusals


def test_unknown_names():
    with pytest.raises(ValueError, match=r"encoder\.w.*detectron2, maskrcnn-benchmark.*--source"):
        choose_source(File({"encoder.w": np.ones(1)}))
    with pytest.raises(ValueError, match="there is no source yolo"):
        choose_source(File({}), "yolo")


def test_no_bottlenecks():
    arrays = draw({"conv1.weight": (4, 3, 7, 7), "layer1.0.conv1.weight": (4, 4, 3, 3)})
    with pytest.raises(ValueError, match="no whole ResNet of bottlenecks"):
        convert(File(arrays), SOURCES["torchvision-imagenet"])


def test_what_is_missing_or_not_understood_is_named():
    arrays = draw(KINDS["maskrcnn-benchmark FPN"][1])
    del arrays["backbone.fpn.fpn_inner2.bias"]
    arrays["roi_heads.box.feature_extractor.fc8.weight"] = np.ones((2, 2), np.float32)
    arrays["roi_heads.mask.predictor.mask_fcn_logits.bias"] = np.ones(9, np.float32)
    report = convert(File(arrays), SOURCES["maskrcnn-benchmark"]).report
    assert not report.is_complete
    assert report.missing == ["fpn/lateral_1x1_c3/b"]
    assert set(report.refused) == {"roi_heads.box.feature_extractor.fc8.weight",
                                   "roi_heads.mask.predictor.mask_fcn_logits.bias"}
    assert any(line.startswith("MISSING   fpn/lateral_1x1_c3/b") for line in report.lines())


def test_a_number_in_the_place_of_an_array():
    arrays = draw(KINDS["detectron2 FPN"][1])
    arrays["roi_heads.box_predictor.cls_score.bias"] = np.float32(1)
    report = convert(File(arrays), SOURCES["detectron2"]).report
    assert "a single number" in report.refused["roi_heads.box_predictor.cls_score.bias"]
    assert "fastrcnn/outputs/class/b" in report.missing


@pytest.mark.parametrize("value, epsilon", [(np.nan, 1e-5), (-1.0, 1e-5), (0.0, 0.0)])
def test_values_that_are_no_numbers(value, epsilon):
    arrays = draw(KINDS["torchvision ImageNet"][1])
    arrays["layer2.0.bn1.running_var"][3] = value
    source = dataclasses.replace(SOURCES["torchvision-imagenet"], epsilon=epsilon)
    with pytest.raises(ValueError, match=r"layer2.0.bn1.*group1/block0/conv1/bn/gamma val"):
        convert(File(arrays), source)


def test_a_normalisation_that_is_not_whole():
    arrays = draw(KINDS["torchvision ImageNet"][1])
    del arrays["layer2.0.bn1.running_mean"]
    report = convert(File(arrays), SOURCES["torchvision-imagenet"]).report
    assert "layer2.0.conv1.weight" in report.refused
    assert "group1/block0/conv1/W" in report.missing


def test_a_layer_that_stands_in_the_file_twice():
    arrays = draw(KINDS["maskrcnn-benchmark C4"][1])
    shared = {name.replace("roi_heads.box.feature", "roi_heads.mask.feature"): value for name, value in arrays.items()
              if name.startswith("roi_heads.box.feature")}
    report = convert(File(arrays | shared), SOURCES["maskrcnn-benchmark"]).report
    assert report.is_complete
    assert set(shared) <= report.left_out.keys()
    name = next(iter(shared))
    report = convert(File(arrays | shared | {name: shared[name] + 1}), SOURCES["maskrcnn-benchmark"]).report
    assert list(report.refused) == [name]


# ------------------------------------------------------------------------------- a file of torchvision, and the command


def test_numbers_of_torchvision():
    """Feature maps and the heads' outputs of a tiny Mask R-CNN, computed by torchvision (tests/foreign)."""
    contents = read_contents(FILES / "torchvision.pth")
    file = File(contents.arrays)
    conversion = convert(file, choose_source(file))
    assert conversion.report.is_complete, list(conversion.report.lines())
    changes = {key: value for key, value in conversion.config.items() if not key.startswith(("DATA.", "RPN.", "TEST."))}
    cfg = tiny_config({**changes, "DATA.NUM_CLASS": 3})
    with np.load(FILES / "torchvision_numbers.npz") as arrays, tf.Graph().as_default(), session() as running:
        expected = dict(arrays)
        detector = build_detector(cfg)
        image = expected["image_bgr"][None]
        _, levels, extent = detector.features(tf.constant(image), tf.constant([image.shape[1:3]]))
        rpn = detector.rpn_head(levels, extent)
        logits, boxes = detector.box_stages[0].head(tf.constant(expected["pooled"]))
        masks = detector.mask_head(tf.constant(expected["mask_pooled"]), tf.constant([1, 2, 3], tf.int64))
        restore(running, conversion.weights)
        found = running.run({
            **{f"level{i}": level for i, level in enumerate(levels)}, "objectness2": rpn.objectness[2],
            "deltas2": rpn.deltas[2], "logits": logits, "boxes": tf.reshape(boxes, [3, -1]), "masks": masks})
    for name, value in found.items():
        wanted = expected[name].reshape(value.shape)
        np.testing.assert_allclose(value, wanted, atol=1e-4 * np.abs(wanted).max(), err_msg=name)


def test_older_names_of_torchvision():
    arrays = dict(read_contents(FILES / "torchvision.pth").arrays)
    older = {name.replace("_blocks.0.0.", "_blocks.0.").replace("rpn.head.conv.0.0.", "rpn.head.conv.")
             .replace("mask_head.0.0.", "mask_head.mask_fcn1."): value for name, value in arrays.items()}
    assert older.keys() != arrays.keys()
    conversions = [convert(File(held), SOURCES["torchvision"]) for held in (arrays, older)]
    assert conversions[1].report.is_complete
    for name, value in conversions[0].weights.items():
        np.testing.assert_array_equal(conversions[1].weights[name], value)


def test_first_release_of_torchvision_has_no_epsilon():
    arrays = {name.replace("_blocks.0.0.", "_blocks.0."): value
              for name, value in read_contents(FILES / "torchvision.pth").arrays.items() if "num_batches" not in name}
    kernel, _ = ours_scale_shift(convert(File(arrays), SOURCES["torchvision"]).weights, "group3/block0/conv2")
    scale = arrays["backbone.body.layer4.0.bn2.weight"] / np.sqrt(arrays["backbone.body.layer4.0.bn2.running_var"])
    np.testing.assert_allclose(
        kernel, np.einsum("oihw,o->hwio", arrays["backbone.body.layer4.0.conv2.weight"], scale), rtol=1e-6)


def test_batch_normalisation_of_heads_goes_into_their_convolutions():
    """torchvision's second release of models normalises pyramid and heads."""
    arrays = {name: value for name, value in read_contents(FILES / "torchvision.pth").arrays.items()
              if name != "backbone.fpn.inner_blocks.1.0.bias"}
    arrays |= draw(statistics("backbone.fpn.inner_blocks.1.1", 4))
    conversion = convert(File(arrays), SOURCES["torchvision"])
    assert conversion.report.is_complete, list(conversion.report.lines())
    weight, bias, mean, variance = (arrays[f"backbone.fpn.inner_blocks.1.1.{leaf}"]
                                    for leaf in ("weight", "bias", "running_mean", "running_var"))
    scale = weight / np.sqrt(variance + 1e-5)
    feature = random.standard_normal(16)
    theirs = (arrays["backbone.fpn.inner_blocks.1.0.weight"][:, :, 0, 0] @ feature - mean) * scale + bias
    ours = feature @ conversion.weights["fpn/lateral_1x1_c3/W"][0, 0] + conversion.weights["fpn/lateral_1x1_c3/b"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_classes_of_coco():
    def classes(rows, name):
        arrays = draw(KINDS[name][1])
        prefix = "roi_heads.box.predictor" if "bench" in name else "roi_heads.box_predictor"
        boxes = 4 * (rows if "bench" in name else rows - 1)
        for layer, count in (("cls_score", rows), ("bbox_pred", boxes)):
            arrays[f"{prefix}.{layer}.weight"] = np.ones((count, FC), np.float32)
            arrays[f"{prefix}.{layer}.bias"] = np.ones(count, np.float32)
        config = convert(File(arrays), choose_source(File(arrays))).config
        return config["DATA.NUM_CLASS"], config.get("DATA.CLASS_NAMES", []), config.get("DATA.CATEGORY_IDS", [])

    count, names, ids = classes(81, "maskrcnn-benchmark FPN")
    assert (count, names[0], names[-1], ids[-1]) == (80, "person", "toothbrush", 90)
    count, names, ids = classes(91, "maskrcnn-benchmark FPN")
    assert (count, names[11], names[12], ids) == (90, "unused 12", "stop sign", list(range(1, 91)))
    assert classes(21, "detectron2 FPN") == (20, [], [])


def test_command(tmp_path, capsys):
    out = tmp_path / "model.npz"
    assert convert_weights.main([str(FILES / "torchvision.pth"), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "used      backbone.body.conv1.weight -> conv0/W" in printed
    assert "left out  backbone.body.bn1.num_batches_tracked: a counter of training" in printed
    assert "filled    conv0/W <- backbone.body.conv1.weight" in printed
    assert "weights of torchvision's detection models" in printed
    assert read_weights(out)["conv0/W"].shape == (7, 7, 3, 2)
    config = read_config(out)
    assert config["MODE_FPN"] is True
    assert config["PREPROC"]["PIXEL_STD"] == [58.395, 57.12, 57.375]
    with pytest.raises(ValueError, match="exists already"):
        convert_weights.main([str(FILES / "torchvision.pth"), str(out)])
    arguments = ["--overwrite", "--quiet", "--config", "BACKBONE.STRIDE_1X1=True", "--channels", "bgr"]
    assert convert_weights.main([str(FILES / "torchvision.pth"), str(out), *arguments]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 3
    assert "colours BGR (--channels), epsilon 1e-05 (--epsilon), PREPROC.PIXEL_MEAN=[123.675" in printed
    assert read_config(out)["BACKBONE"]["STRIDE_1X1"] is True
    # What this command has written is tensorpack's format, and carries its config through.
    again = tmp_path / "again.npz"
    assert convert_weights.main([str(out), str(again)]) == 0
    assert read_config(again) == read_config(out)
    assert read_weights(again).keys() == read_weights(out).keys()


def test_command_needs_neither_tensorflow_nor_pytorch():
    code = "import sys, tools.convert_weights; print({'tensorflow', 'torch'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], cwd=FILES.parent.parent, capture_output=True, text=True)
    assert found.stdout.strip() == "set()", found.stdout + found.stderr


def test_command_writes_nothing_that_is_not_whole(tmp_path, capsys):
    arrays = draw(KINDS["detectron2 FPN"][1])
    del arrays["proposal_generator.rpn_head.conv.bias"]
    header, data = {}, b""
    for name, value in arrays.items():
        header[name] = {"dtype": "F32", "shape": value.shape, "data_offsets": [len(data), len(data) + value.nbytes]}
        data += value.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    assert convert_weights.main([str(tmp_path / "x.safetensors"), str(tmp_path / "x.npz"), "--quiet"]) == 1
    captured = capsys.readouterr()
    assert "MISSING   rpn/conv0/b" in captured.out
    assert "not written" in captured.err
    assert not (tmp_path / "x.npz").exists()


def test_a_file_whose_config_is_none(tmp_path):
    arrays = draw(file_shapes(R50, C4, tiny_width(C4)))
    for text, word in ((b"[1]", "list"), (b"{", "no JSON")):
        np.savez(tmp_path / "x.npz", config_json=np.frombuffer(text, np.uint8), **arrays)
        with pytest.raises(ValueError, match=f"its config_json .*{word}"):
            convert_weights.main([str(tmp_path / "x.npz"), str(tmp_path / "y.npz")])


def test_tensorpack_file(tmp_path):
    arrays = draw(file_shapes(R50, C4, tiny_width(C4)))
    np.savez(tmp_path / "x.npz", **{f"tower0/{name}:0": value for name, value in arrays.items()})
    file = File(read_contents(tmp_path / "x.npz").arrays)
    conversion = convert(file, choose_source(file))
    assert conversion.report.is_complete, conversion.report.summary()
    assert conversion.weights.keys() == arrays.keys()
