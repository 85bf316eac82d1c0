"""The whole detector, tiny: batches against single images, gradients against differences, extremes, and the reference.

`golden/reference_case.npz` holds a few numbers of the reference implementation (tensorpack's FasterRCNN example at
commit 1547a54, R50 with `reference_value` weights) and the two images that they belong to.
"""

from pathlib import Path

import config

import cv2
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import (
    C4,
    GN_BACKBONE,
    NUM_CLASSES,
    Example,
    TinyModel,
    evaluate,
    example,
    restore_reference_values,
    session,
)

from FasterRCNN.engine.optim import weight_decay_loss
from FasterRCNN.engine.weights import restore
from FasterRCNN.modeling.box_head import select_detections, with_one_filled
from FasterRCNN.modeling.build import build_detector
from FasterRCNN.modeling.rpn import Proposals, RPNOutput, sample_anchors
from FasterRCNN.ops.anchors import grid_anchors
from FasterRCNN.ops.roi_align import FORMS
from tools.compare_reference import pad_image, training_inputs

FPN_GN = {**GN_BACKBONE, "FPN.NORM": "GN", "FPN.NUM_CHANNEL": 32}
MODELS = {
    "fpn": {},
    "fpn gn boxes": {**FPN_GN, "MODE_MASK": False},
    "cascade of resnext": {"FPN.CASCADE": True, "BACKBONE.NUM_GROUPS": 4, "RPN.MIN_SIZE": 1.0},
    "as torchvision": {
        "ROIALIGN.ALIGNED": False, "ROIALIGN.INCLUSIVE": True, "FPN.ROUND_MAX_SIZE": False, "PREPROC.MAX_SIZE": 125,
    },
    "c4": C4,
    "c4 as detectron2": {**C4, "ROIALIGN.SAMPLES": 0, "BACKBONE.SYMMETRIC_PAD": True, "RPN.NUM_CONVS": 2},
    "c4 gn boxes": {**C4, **GN_BACKBONE, "MODE_MASK": False, "BACKBONE.TF_PAD_MODE": True},
}
# Of sizes that divide by nothing; objects reach into corners.
BATCH = [example(97, 125, 5, seed=1), example(69, 106, 0, seed=2), example(122, 90, 12, seed=3, crowd=True)]
BATCH[0].boxes[0] = [95, 60, 125, 97]
BATCH[2].boxes[1] = [50, 95, 90, 122]


@pytest.fixture(scope="module", params=MODELS)
def batched_and_alone(request):
    """Losses and detections of the batch at once, and of its images one by one."""
    results = []
    for batches in ([BATCH], [[item] for item in BATCH]):
        model = TinyModel(MODELS[request.param], batch=len(batches[0]))
        results.append([model.run((model.losses, model.detections), batch) for batch in batches])
        model.session.close()
    return results


def test_losses_of_a_batch_are_the_mean_of_those_of_its_images(batched_and_alone):
    [(together, _)], alone = batched_and_alone
    for name, loss in together.items():
        assert loss == pytest.approx(np.mean([losses[name] for losses, _ in alone]), rel=2e-3), name


def test_detections_of_an_image_are_the_same_in_a_batch(batched_and_alone):
    [(_, together)], alone = batched_and_alone
    for i, (_, single) in enumerate(alone):
        assert together["num_detections"][i] == single["num_detections"][0] > 0
        assert together["labels"][i].tolist() == single["labels"][0].tolist()
        assert together["boxes"][i] == pytest.approx(single["boxes"][0], abs=1e-2)
        assert together["scores"][i] == pytest.approx(single["scores"][0], abs=1e-4)
        if "masks" in single:
            assert together["masks"][i] == pytest.approx(single["masks"][0], abs=1e-3)


def test_detections_are_well_formed(batched_and_alone):
    [(_, found)], _ = batched_and_alone
    for i, item in enumerate(BATCH):
        height, width = item.image.shape[:2]
        count, boxes = found["num_detections"][i], found["boxes"][i]
        assert (boxes >= 0).all() and (boxes <= [width, height, width, height]).all()
        assert (np.diff(found["scores"][i, :count]) <= 0).all() and not found["scores"][i, count:].any()
        assert (found["labels"][i, :count] >= 1).all() and (found["labels"][i] <= NUM_CLASSES).all()
        assert not found["labels"][i, count:].any()


def test_padding_on_both_sides_changes_odd_sizes_alone():
    models = [TinyModel({**C4, "BACKBONE.SYMMETRIC_PAD": pad}) for pad in (False, True)]
    even, odd = example(96, 128, 1, seed=1), example(97, 125, 1, seed=1)
    for item, shapes in ((even, [(6, 8), (6, 8)]), (odd, [(6, 7), (7, 8)])):
        maps = []
        for model in models:
            with model.graph.as_default(), tf.variable_scope(tf.get_variable_scope(), reuse=True):
                _, levels, _ = model.detector.features(model.inputs["image"], model.inputs["image_size"])
            maps.append(model.run(levels[0], [item]))
        assert [x.shape[1:3] for x in maps] == shapes
        if shapes[0] == shapes[1]:
            assert maps[1] == pytest.approx(maps[0], abs=1e-4)


def test_anchors_that_fit_the_image():
    """P6 of 96×160 pixels has 2×3 cells: 48 and 53 pixels apart, on the other levels as far as the stride."""
    for fit, steps in ((False, (64, 64)), (True, (48, 53))):
        model = TinyModel({"RPN.FIT_STRIDES": fit, "PREPROC.MAX_SIZE": 160})
        with model.graph.as_default(), tf.variable_scope(tf.get_variable_scope(), reuse=True):
            _, levels, extent = model.detector.features(model.inputs["image"], model.inputs["image_size"])
            anchors = model.detector.rpn_head(levels, extent).anchors
        p5, p6 = model.run(anchors[3:], [example(96, 160, 1, seed=1)])
        corners = p6.reshape(2, 3, 3, 4)[..., :2]
        assert np.diff(corners, axis=0)[..., 1] == pytest.approx(steps[0], abs=1e-3)
        assert np.diff(corners, axis=1)[..., 0] == pytest.approx(steps[1], abs=1e-3)
        assert np.diff(p5.reshape(3, 5, 3, 4)[..., 0], axis=1) == pytest.approx(32, abs=1e-3)


def test_the_longest_side_that_deltas_make():
    scales = [{}, {"FRCNN.MAX_SCALE": 62.5}, {"MODE_FPN": False, "PREPROC.MAX_SIZE": 800}]
    assert [np.exp(TinyModel(changes).detector.box_stages[0].max_log_scale) for changes in scales] == pytest.approx(
        [128 / 16, 62.5, 800 / 16])


def slopes(model, examples, groups):
    """(group, slope by gradient, slope by differences) of the total loss along a direction of each group."""
    feeds, random = model.feeds(examples), np.random.default_rng(0)
    gradients = model.session.run(model.gradients, feeds)
    variables = {v.op.name: v for v in model.trainable}
    for group in groups:
        names = [name for name in variables if name.startswith(group)]
        assert names, group
        start = model.session.run({name: variables[name] for name in names})
        direction = {name: (random.normal(size=value.shape) * max(np.std(value), 0.01)).astype(np.float32)
                     for name, value in start.items()}
        # Along the gradient too, so that the derivative is not small by chance.
        for name in names:
            norm = np.linalg.norm(gradients[name])
            if norm > 0:
                direction[name] += gradients[name] * (np.linalg.norm(direction[name]) / norm)
        slope = sum((gradients[name] * direction[name]).sum(dtype=np.float64) for name in names)
        differences = []
        for step in (1e-5, 3e-5, 1e-4):
            values = []
            for sign in (1, -1):
                restore(model.session, {name: start[name] + sign * step * direction[name] for name in names})
                values.append(np.float64(model.session.run(model.total, feeds)))
            differences.append((values[0] - values[1]) / (2 * step))
        restore(model.session, start)
        yield group, slope, np.median(differences)  # one step may fall on a kink, or in the noise of float32


def fixed_proposals(rpn, image_size, training):
    """The same boxes whatever the weights: the gradient leaves out that proposals move, and differences must too."""
    objects = tf.constant(BATCH[0].boxes)
    boxes = tf.concat([objects + shift for shift in (0.0, 2.5, -4.0, 15.0, -25.0)], axis=0)
    boxes = tf.clip_by_value(boxes, 0.0, [125.0, 97.0, 125.0, 97.0])[None]
    return Proposals(boxes, tf.zeros(boxes.shape[:2]), tf.fill(boxes.shape[:2], True))


FPN_GROUPS = ["conv0", "group0", "group1", "group2", "group3", "fpn", "rpn", "fastrcnn", "maskrcnn"]


@pytest.mark.parametrize("changes, groups", [
    (FPN_GN, FPN_GROUPS),
    (C4, ["conv0", "group0", "group1", "group2", "group3", "rpn", "fastrcnn", "maskrcnn"]),
    ({"BACKBONE.NORM": "SyncBN", "BACKBONE.NUM_GROUPS": 4}, FPN_GROUPS),
], ids=["fpn gn", "c4", "resnext with synchronised normalisation"])
def test_gradients_agree_with_differences(changes, groups):
    model = TinyModel(changes, with_gradients=True, replace={"propose": fixed_proposals})
    assert not [name for name, gradient in model.gradients.items() if gradient is None]
    for group, slope, difference in slopes(model, BATCH[:1], groups):
        assert slope == pytest.approx(difference, rel=0.01), group


@pytest.mark.parametrize("changes", [FPN_GN, C4, {"FPN.CASCADE": True}, {"TRAIN.PRECISION": "bf16"}],
                         ids=["fpn gn", "c4", "cascade", "bfloat16"])
def test_a_step_gives_the_same_bits_every_time(changes):
    model = TinyModel(changes, with_gradients=True)
    first, *others = (model.run((model.losses, model.gradients), BATCH[:1]) for _ in range(4))
    for losses, gradients in others:
        assert losses == first[0]
        assert [name for name, gradient in gradients.items() if not np.array_equal(gradient, first[1][name])] == []


@pytest.mark.parametrize("changes", [{}, C4, {"ROIALIGN.SAMPLES": 0}], ids=["fpn", "c4", "as many samples as cells"])
def test_losses_are_the_same_in_each_form_of_roi_align(changes):
    models = [TinyModel(changes, form=form) for form in FORMS]
    for item in BATCH[:2]:
        losses, *others = (model.run(model.losses, [item]) for model in models)
        for other in others:
            assert other == pytest.approx(losses, rel=1e-4)


@pytest.fixture(scope="module", params=["fpn", "c4"])
def trainable_model(request):
    return TinyModel(MODELS[request.param], with_gradients=True)


@pytest.mark.parametrize("item", [
    example(64, 80, 0, seed=4),
    example(64, 80, 1, seed=5, crowd=True),
    example(64, 80, 3000, seed=6, least=2),
    Example(np.zeros([64, 80, 3], np.uint8), *(x[:0] for x in (BATCH[0].boxes, BATCH[0].labels, BATCH[0].masks)), 0),
    example(32, 33, 2, seed=7),
], ids=["no object", "one crowd", "3000 objects", "black", "small"])
def test_losses_and_gradients_are_finite(trainable_model, item):
    losses, gradients = trainable_model.run((trainable_model.losses, trainable_model.gradients), [item])
    assert all(np.isfinite(loss) and loss >= 0 for loss in losses.values()), losses
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    if not (item.labels > 0).any():
        assert losses["rpn/loss_box"] == losses["box/loss_box"] == losses["mask/loss"] == 0


def test_the_seed_of_an_image_decides_its_sampling(trainable_model):
    item = BATCH[0]
    other = Example(item.image, item.boxes, item.labels, item.masks, seed=99)
    first, again, different = (trainable_model.run(trainable_model.losses, [x]) for x in (item, item, other))
    assert first == pytest.approx(again, rel=1e-5)
    assert first["rpn/loss_cls"] != pytest.approx(different["rpn/loss_cls"], rel=1e-5)


def test_no_detection_at_all(trainable_model):
    biases = {v.op.name: v for v in trainable_model.variables if v.op.name.endswith("class/b")}
    name, = set(biases) - {"rpn/class/b"}
    before = trainable_model.session.run(biases[name])
    restore(trainable_model.session, {name: before + [50, 0, 0, 0]})  # all is background
    found = trainable_model.run(trainable_model.detections, BATCH[:1])
    restore(trainable_model.session, {name: before})
    assert found["num_detections"].tolist() == [0]
    assert not any(value.any() for value in found.values())
    assert found["masks"].shape == (1, 12, *[28 if trainable_model.cfg.MODE_FPN else 14] * 2)


@pytest.mark.parametrize("min_size, kept", [(0.0, [0.9, 0.8, 0.7]), (0.01, [0.9, 0.7]), (20.0, [0.9])])
def test_detections_without_area_are_dropped_if_asked(min_size, kept):
    boxes = np.array([[[0, 0, 30, 40], [50, 9, 50, 20], [60, 60, 79, 90]]], np.float32)
    scores = np.array([[[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]]], np.float32)
    found = evaluate(lambda boxes, scores: select_detections(
        boxes, tf.zeros([1, 3, 2, 4]), scores, tf.fill([1, 3], True), tf.constant([[100, 100]]), score_thresh=0.05,
        nms_thresh=0.5, max_detections=5, decode=lambda boxes, deltas, size: boxes[:, :, None] + deltas,
        min_size=min_size).scores, boxes, scores)
    assert found[0] == pytest.approx(kept + [0] * (5 - len(kept)))


@pytest.mark.parametrize("valid, among, expected", [
    ([[0, 0], [0, 0]], None, [[1, 0], [0, 0]]),
    ([[0, 0], [0, 0]], [[False, False], [False, True]], [[0, 0], [0, 1]]),
    ([[0, 0], [1, 0]], [[True, True], [True, True]], [[0, 0], [1, 0]]),
])
def test_the_list_of_rois_is_never_empty(valid, among, expected):
    def build(valid):
        return with_one_filled(valid, None if among is None else tf.constant(among, tf.bool))

    slots = evaluate(build, np.array(valid, bool))
    assert slots.tolist() == np.array(expected, bool).tolist()


def numpy_anchor_labels(anchors, size, boxes, crowds, crowd_thresh):
    """The labels of the anchors (1, 0, −1 ignored) as the reference gives them, one by one."""
    def share(a, b, union):
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        common = max(width, 0) * max(height, 0)
        area = (a[2] - a[0]) * (a[3] - a[1])
        return common / (area + (b[2] - b[0]) * (b[3] - b[1]) - common if union else area)

    labels = -np.ones(len(anchors), int)
    inside = [i for i, a in enumerate(anchors) if a[0] >= 0 and a[1] >= 0 and a[2] <= size[1] and a[3] <= size[0]]
    if not len(boxes):
        labels[inside] = 0
    else:
        iou = np.array([[share(anchors[i], box, union=True) for box in boxes] for i in inside])
        best = (iou == iou.max(axis=0)) & (iou > 0)
        labels[inside] = np.where(iou.max(axis=1) < 0.3, 0, np.where(best.any(1) | (iou.max(axis=1) >= 0.7), 1, -1))
    for i in inside:
        if any(share(anchors[i], crowd, union=False) > crowd_thresh for crowd in crowds):
            labels[i] = -1
    return labels


def label_all_anchors(size, boxes, labels, *, rows, columns, crowd_thresh=9.99, extra_rows=0):
    """The anchors that are not ignored, by their labels, on a map of stride 16 with ratios 0.5, 1, 2 of size 32."""
    ratios, total = (0.5, 1.0, 2.0), 3 * (rows + extra_rows) * columns

    def build(image_size, gt_boxes, gt_labels):
        height, width = rows + extra_rows, columns
        own = tf.range(height * width * 3) < rows * columns * 3
        anchors = grid_anchors(height, width, 16, [32], ratios)
        rpn = RPNOutput(3, anchors=[anchors], on_image=[own[None]], shapes=[(tf.constant(height), tf.constant(width))])
        sample = sample_anchors(
            rpn, image_size, gt_boxes, gt_labels, tf.constant([[1, 2]]), positive_thresh=0.7, negative_thresh=0.3,
            crowd_overlap_thresh=crowd_thresh, total=2 * total, foreground_ratio=0.5, sides=[100])
        return anchors, sample.indices[0], sample.is_foreground[0], sample.is_chosen[0]

    gt_boxes = np.array(boxes, np.float32).reshape(1, -1, 4)
    anchors, indices, foreground, chosen = evaluate(
        build, np.array([size], np.int32), gt_boxes, np.array([labels], np.int32))
    ours = -np.ones(total, int)
    ours[indices[chosen]] = foreground[chosen]
    return anchors, ours


@pytest.mark.parametrize("crowd_thresh", [9.99, 0.7])
@pytest.mark.parametrize("boxes", [
    [[40, 40, 70, 75]],
    [[0, 5, 39, 27]],  # its best anchor leaves the image: the best of those inside counts
    [[100, 70, 128, 96], [30, 20, 60, 60], [33, 22, 61, 58]],
    [],
], ids=["inner", "corner", "several", "none"])
def test_anchors_are_labelled_as_in_the_reference(boxes, crowd_thresh):
    crowds = [[60, 0, 128, 50]]
    slots = [*boxes, *crowds, [0, 0, 0, 0]]
    anchors, ours = label_all_anchors(
        (96, 128), slots, [1] * len(boxes) + [-1, 0], rows=6, columns=8, crowd_thresh=crowd_thresh)
    expected = numpy_anchor_labels(anchors, (96, 128), boxes, crowds, crowd_thresh)
    assert ours.tolist() == expected.tolist()


def test_anchors_of_the_canvas_beyond_an_image_take_no_part():
    size, boxes = (111, 128), [[40, 80, 86, 111]]
    _, alone = label_all_anchors(size, boxes, [1], rows=6, columns=8)
    _, padded = label_all_anchors(size, boxes, [1], rows=6, columns=8, extra_rows=3)
    assert padded[: len(alone)].tolist() == alone.tolist()
    assert (padded[len(alone) :] == -1).all()


def bottleneck_names(group, block, shortcut, norm):
    convolutions = ["conv1", "conv2", "conv3"] + ["convshortcut"] * shortcut
    suffixes = {"FreezeBN": ["W", "bn/gamma", "bn/beta", "bn/mean/EMA", "bn/variance/EMA"],
                "GN": ["W", "gn/gamma", "gn/beta"], "None": ["W"]}[norm]
    return {f"group{group}/block{block}/{name}/{suffix}" for name in convolutions for suffix in suffixes}


def expected_names(norm, heads):
    names = {name.replace("group0/block0/conv1", "conv0") for name in bottleneck_names(0, 0, False, norm)
             if "/conv1/" in name}
    for group in range(4):
        names |= bottleneck_names(group, 0, True, norm)
    names |= bottleneck_names(2, 1, False, norm)
    for layer in ["rpn/conv0", "rpn/class", "rpn/box", *heads]:
        names |= {f"{layer}/W", f"{layer}/b"}
    return names


FPN_LAYERS = [f"fpn/{kind}{level}" for kind in ("lateral_1x1_c", "posthoc_3x3_p") for level in range(2, 6)]
OUTPUTS = ["fastrcnn/outputs/class", "fastrcnn/outputs/box"]
MASK_LAYERS = [*(f"maskrcnn/fcn{i}" for i in range(4)), "maskrcnn/deconv", "maskrcnn/conv"]


@pytest.mark.parametrize("changes, norm, heads, also", [
    ({}, "FreezeBN", [*FPN_LAYERS, "fastrcnn/fc6", "fastrcnn/fc7", *OUTPUTS, *MASK_LAYERS], []),
    ({"BACKBONE.NORM": "None", "FPN.NORM": "GN", "FPN.NUM_CHANNEL": 32, "MODE_MASK": False,
      "FPN.FRCNN_HEAD_FUNC": "fastrcnn_4conv1fc_gn_head", "FPN.FRCNN_CONV_HEAD_DIM": 32}, "None",
     [*FPN_LAYERS, *(f"fastrcnn/conv{i}" for i in range(4)), "fastrcnn/fc", *OUTPUTS],
     [*(f"fpn/gn_{level}" for level in ("c2", "c3", "c4", "c5", "p2", "p3", "p4", "p5")),
      *(f"fastrcnn/gn{i}" for i in range(4))]),
    (C4, "FreezeBN", ["fastrcnn/class", "fastrcnn/box", "maskrcnn/deconv", "maskrcnn/conv"], []),
    ({"FPN.CASCADE": True}, "FreezeBN",
     [*FPN_LAYERS, *MASK_LAYERS, *(f"cascade_rcnn_stage{i}/{layer}" for i in (1, 2, 3)
                                   for layer in ("head/fc6", "head/fc7", "outputs/class", "outputs/box"))], []),
], ids=["fpn", "fpn gn heads", "c4", "cascade"])
def test_variables_have_the_names_of_tensorpack_s_checkpoints(changes, norm, heads, also):
    model = TinyModel({**changes, "BACKBONE.RESNET_NUM_BLOCKS": [1, 1, 2, 1]})
    expected = expected_names(norm, heads) | {f"{layer}/{name}" for layer in also for name in ("gamma", "beta")}
    names = [v.op.name for v in model.variables]
    assert sorted(names) == sorted(expected)


GOLDEN = Path(__file__).parent / "golden" / "reference_case.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN, allow_pickle=False) as file:
        case = dict(file)
    for name in ("image_bgr", "train_image_bgr"):
        case[name] = cv2.imdecode(case.pop(f"{name}_webp"), cv2.IMREAD_COLOR)
    return case


def r50_config(*args):
    cfg = config.default_config()
    cfg.update_args(["DATA.NUM_CLASS=80", "TEST.RESULT_SCORE_THRESH=0.0", *args])
    config.finalize_configs(cfg, is_training=True, starts_from_weights=True)
    return cfg


@pytest.fixture(scope="module")
def reference_run(golden):
    """What an R50 of FPN and of C4, sharing variables, say of the golden images."""
    fpn_cfg, c4_cfg = r50_config("MODE_FPN=True"), r50_config("MODE_FPN=False", "MODE_MASK=False")
    image, image_size = pad_image(golden["image_bgr"], 32)
    train_case = {name.removeprefix("train_"): value for name, value in golden.items() if name.startswith("train_")}
    with tf.Graph().as_default() as graph:
        fpn, c4 = build_detector(fpn_cfg), build_detector(c4_cfg)
        draw = tf.placeholder(tf.int32, [])
        with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
            inputs = training_inputs(train_case, fpn.pad_multiple, fpn_cfg)
            losses, _ = fpn.losses(**{name: tf.constant(value) for name, value in inputs.items()},
                                   image_seeds=tf.stack([[draw, 0]]))
            losses["wd"] = weight_decay_loss(tf.trainable_variables(), 1e-4)
            maps, levels, _ = fpn.features(tf.constant(image), tf.constant(image_size))
            detections = fpn.detect(tf.constant(image), tf.constant(image_size))
            c4_results = of_given_proposals(c4, golden["c4_proposal_boxes"], image, image_size)
        with session() as running:
            restore_reference_values(running, graph)
            named = {f"c{i}": x for i, x in enumerate(maps, 2)} | {f"p{i}": x for i, x in enumerate(levels[:4], 2)}
            results = running.run({"maps": named, "detections": detections, "c4": c4_results})
            results["draws"] = [running.run(losses, {draw: i}) for i in range(2)]
    return results


def of_given_proposals(detector, boxes, image, image_size):
    """Class probabilities and boxes of the proposals P×4, and the map that they are pooled from."""
    _, levels, extent = detector.features(tf.constant(image), tf.constant(image_size))
    given = tf.constant(boxes[None])
    boxes, deltas, scores = detector.score_boxes(
        levels, extent, given, tf.fill(given.shape[:2], True), tf.constant(image_size))
    decoded = detector.box_stages[-1].decode(boxes, deltas, tf.constant(image_size))
    return {"map": levels[0], "scores": scores[0], "boxes": decoded[0]}


@pytest.mark.parametrize("name", ["c2", "c3", "c4", "c5", "p2", "p3", "p4", "p5"])
def test_maps_agree_with_the_reference(golden, reference_run, name):
    batch, channel, row, column = golden[f"{name}_index_nchw"].T
    expected = golden[f"{name}_value"]
    ours = reference_run["maps"][name][batch, row, column, channel]
    assert np.abs(ours - expected).max() <= 1e-3 * np.abs(expected).max()


def test_detections_agree_with_the_reference(golden, reference_run):
    ours = {name: value[0] for name, value in reference_run["detections"].items()}
    for box, score, label, mask in zip(*(golden[name] for name in ("boxes", "scores", "labels", "masks"))):
        distance = np.abs(ours["boxes"] - box).max(axis=1) + 1e6 * (ours["labels"] != label)
        partner = distance.argmin()
        assert distance[partner] < 0.1
        assert ours["scores"][partner] == pytest.approx(score, abs=1e-3)
        assert np.abs(ours["masks"][partner] - mask.astype(np.float32)).mean() < 2e-3


def test_c4_agrees_with_the_reference(golden, reference_run):
    ours = reference_run["c4"]
    batch, channel, row, column = golden["c4_map_index_nchw"].T
    values = golden["c4_map_value"]
    assert np.abs(ours["map"][batch, row, column, channel] - values).max() <= 1e-3 * np.abs(values).max()
    assert ours["scores"] == pytest.approx(golden["c4_all_scores"], abs=1e-3)
    assert ours["boxes"] == pytest.approx(golden["c4_all_boxes"], abs=0.1)


@pytest.mark.parametrize("name, reference, tolerance", [
    ("rpn/loss_box", "rpn_box", 0.005), ("box/loss_box", "frcnn_box", 0.005), ("mask/loss", "mask", 0.01),
    ("wd", "wd", 1e-4)])
def test_losses_without_chance_agree_with_the_reference(golden, reference_run, name, reference, tolerance):
    expected = golden["loss_mean"][golden["loss_names"].tolist().index(reference)]
    for draw in reference_run["draws"]:
        assert draw[name] == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("name, reference", [("rpn/loss_cls", "rpn_label"), ("box/loss_cls", "frcnn_label")])
def test_losses_with_chance_lie_among_those_of_the_reference(golden, reference_run, name, reference):
    index = golden["loss_names"].tolist().index(reference)
    spread = golden["loss_std"][index] * (1 / len(reference_run["draws"]) + 1 / golden["loss_draws"]) ** 0.5
    mean = np.mean([draw[name] for draw in reference_run["draws"]])
    assert abs(mean - golden["loss_mean"][index]) < 4 * spread
