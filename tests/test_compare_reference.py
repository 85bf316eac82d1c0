"""The tool that compares with reference cases: on cases made by this program itself, intact and spoilt."""

from config import format_value

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import TINY, TinyModel, example

from tools import compare_reference
from tools.compare_reference import (
    Comparison,
    box_agreement,
    case_config,
    compare_detections,
    compare_loss,
    compare_proposals,
    main,
    pad_image,
    reference_loss_name,
    reference_value,
    training_inputs,
)

# 80 classes are what cases have.
CHANGES = {"DATA.NUM_CLASS": 80, "TEST.RESULT_SCORE_THRESH": 0.0}
IMAGE = example(64, 96, 3, seed=1)


@pytest.fixture(scope="module")
def case():
    """A case in the reference's format, of the tiny model."""
    model = TinyModel(CHANGES)
    image, image_size = pad_image(IMAGE.image, 32)
    with model.graph.as_default(), tf.variable_scope(tf.get_variable_scope(), reuse=True):
        maps, levels, extent = model.detector.features(tf.constant(image), tf.constant(image_size))
        proposals = model.detector.propose(
            model.detector.rpn_head(levels, extent), tf.constant(image_size), training=False)
        boxes, deltas, scores = model.detector.score_boxes(
            levels, extent, proposals.boxes, proposals.valid, tf.constant(image_size))
        boxes = model.detector.box_stages[-1].decode(boxes, deltas, tf.constant(image_size))
        named = {f"c{i}": x for i, x in enumerate(maps, 2)} | {f"p{i}": x for i, x in enumerate(levels[:4], 2)}
    found, given, valid, scores, boxes, maps = model.run(
        (model.detections, proposals.boxes, proposals.valid, scores, boxes, named), [IMAGE])
    given, scores, boxes = given[valid], scores[valid], boxes[valid]
    made = {
        "config": np.array([f"{key}={format_value(value)}" for key, value in {**TINY, **CHANGES}.items()]),
        "image_bgr": IMAGE.image, "proposal_boxes": given, "all_scores": scores[:9],
        "all_boxes": boxes[:9], "boxes": found["boxes"][0], "scores": found["scores"][0],
        "labels": found["labels"][0], "masks": found["masks"][0].astype(np.float16),
        "variables": np.array([f"{v.op.name} {'x'.join(map(str, v.shape.as_list()))}" for v in model.variables]),
    }
    random = np.random.default_rng(0)
    for name, values in maps.items():
        values = values.transpose(0, 3, 1, 2)
        index = np.stack([random.integers(0, n, 50) for n in values.shape], axis=1)
        made.update({f"{name}_shape_nchw": np.array(values.shape), f"{name}_index_nchw": index,
                     f"{name}_value": values[tuple(index.T)]})
    return made


def run_main(monkeypatch, capsys, *args):
    monkeypatch.setattr("sys.argv", ["compare_reference.py", *map(str, args)])
    with tf.Graph().as_default():
        status = main()
    return status, capsys.readouterr().out


def test_a_case_of_its_own_agrees(case, tmp_path, monkeypatch, capsys):
    np.savez(tmp_path / "case.npz", **case)
    status, printed = run_main(monkeypatch, capsys, tmp_path / "case.npz")
    assert status == 0 and "FAIL" not in printed
    assert "0 failed" in printed
    for name in ("variables", "c2", "p5", "proposals with a partner", "detections with a partner", "masks"):
        assert f"\n{name}" in printed


def test_a_case_that_differs_is_told(case, tmp_path, monkeypatch, capsys):
    spoilt = {**case, "p3_value": case["p3_value"] * 1.01, "boxes": case["boxes"] + 3,
              "variables": np.append(case["variables"], "another/W 3x3")}
    np.savez(tmp_path / "case.npz", **spoilt)
    status, printed = run_main(monkeypatch, capsys, tmp_path / "case.npz")
    failed = [line.split("  ")[0] for line in printed.splitlines() if line.endswith("FAIL")]
    assert status == 1
    assert failed == ["variables", "p3", "detections with a partner"]
    assert "1 differ: another/W 3x3" in printed


def test_losses_without_the_image_are_refused(tmp_path, monkeypatch):
    np.savez(tmp_path / "losses.npz", draws=np.zeros([2, 3]))
    monkeypatch.setattr("sys.argv", ["compare_reference.py", str(tmp_path / "losses.npz")])
    with pytest.raises(ValueError, match=r"losses\.npz holds training losses: give the image with --train-case"):
        main()


def test_losses_of_its_own_agree(tmp_path, monkeypatch, capsys):
    train_case = {"image_bgr": IMAGE.image, "boxes": IMAGE.boxes, "labels": IMAGE.labels.astype(np.int64)}
    for i, (x1, y1, x2, y2) in enumerate(IMAGE.boxes):
        train_case[f"polygon{i}"] = np.array([[x1, y1], [x2, y1], [x2, y2]], np.float32)
    np.savez(tmp_path / "train_case.npz", **train_case)
    # Enough RoIs that only the choice of background is by chance.
    changes = {**CHANGES, "RPN.BATCH_PER_IM": 8, "FRCNN.BATCH_PER_IM": 30, "FRCNN.FG_RATIO": 0.9}
    model = TinyModel(changes)
    inputs = training_inputs(train_case, 32, model.cfg)
    feeds = {model.inputs[name]: value for name, value in inputs.items()}
    draws = [model.session.run(model.losses, {**feeds, model.inputs["image_seeds"]: [[100 + i, 0]]}) for i in range(4)]
    kernels = [reference_value(v.op.name, v.shape.as_list()) for v in model.trainable if v.op.name.endswith("/W")]
    decay = 1e-4 * sum((kernel.astype(np.float64) ** 2).sum() / 2 for kernel in kernels)
    names = {"rpn/loss_cls": "rpn_label", "rpn/loss_box": "rpn_box", "box/loss_cls": "frcnn_label",
             "box/loss_box": "frcnn_box", "mask/loss": "mask"}
    table = [[draw[name] for name in names] + [decay] for draw in draws]
    case = {"names": np.array([*names.values(), "wd"]), "draws": np.array(table, np.float32),
            "trainable": np.array([v.op.name for v in model.trainable]),
            "config": np.array([f"{key}={format_value(value)}" for key, value in {**TINY, **changes}.items()])}
    for spoil, expected in ((1.0, 0), (1.1, 1)):
        case["draws"][:, -1] *= spoil
        np.savez(tmp_path / "losses.npz", **case)
        status, printed = run_main(
            monkeypatch, capsys, tmp_path / "losses.npz", "--train-case", tmp_path / "train_case.npz")
        assert status == expected, printed
    assert [line.split()[0] for line in printed.splitlines() if line.endswith("FAIL")] == ["wd:"]


def test_reference_values_follow_from_name_and_shape():
    again = reference_value("conv0/W", [7, 7, 3, 64])
    assert np.array_equal(again, reference_value("conv0/W", (7, 7, 3, 64)))
    assert again.std() == pytest.approx((2 / (7 * 7 * 3)) ** 0.5, rel=0.02) and again.dtype == np.float32
    assert reference_value("rpn/class/W", [1, 1, 256, 3]).std() == pytest.approx((0.4 / 256) ** 0.5, rel=0.1)
    gammas = reference_value("group0/block0/conv3/bn/gamma", [500])
    assert gammas.min() >= 0.15 and gammas.max() <= 0.35
    assert reference_value("conv0/bn/variance/EMA", [500]).min() >= 0.8
    assert reference_value("conv0/bn/mean/EMA", [500]).std() == pytest.approx(0.05, rel=0.2)
    with pytest.raises(ValueError, match="no rule gives the reference value of variable 'global_step'"):
        reference_value("global_step", [])


def test_report(capsys):
    result = Comparison()
    result.at_most("low", 0.5, 1)
    result.at_least("high", 0.5, 1)
    result.same("names", ["a", "b"], ["b", "a"])
    assert result.report() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[2:5]] == ["ok", "FAIL", "ok"]
    assert lines[-1] == "2 passed, 1 failed"
    assert Comparison().report() == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_fails(value):
    result = Comparison()
    result.at_most("low", value, 1)
    assert result.report() == 1


def test_case_config_applies_the_case_s_keys():
    cfg = case_config({"config": np.array(["MODE_FPN=True", "RPN.MIN_SIZE=3"])}, is_training=False)
    assert cfg.MODE_FPN and cfg.RPN.MIN_SIZE == 3 and cfg.DATA.NUM_CLASS == 80


def test_pad_image():
    image = np.full([33, 64, 3], 7, np.uint8)
    padded, size = pad_image(image, 32)
    assert padded.shape == (1, 64, 64, 3) and size.tolist() == [[33, 64]]
    assert np.array_equal(padded[0, :33], image) and not padded[0, 33:].any()
    assert pad_image(image, 1)[0].shape == (1, 33, 64, 3)


def test_box_agreement():
    boxes = np.array([[0, 0, 10, 10], [5, 5, 5, 9]], np.float32)
    others = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [5, 5, 5, 9]], np.float32)
    assert box_agreement(boxes, others) == pytest.approx(np.array([[1, 1 / 3, 0], [0, 0, 1]]))


def test_proposals_are_compared_as_a_set():
    boxes = np.array([[i, i, i + 20, i + 20] for i in range(0, 200, 10)], np.float32)
    for ours, status in ((boxes[::-1], 0), (boxes[1:], 1), (np.concatenate([boxes[1:], boxes[:1] + 3]), 1)):
        result = Comparison()
        compare_proposals(result, {"proposal_boxes": boxes}, ours)
        assert result.report() == status


def test_detections_need_box_score_and_label():
    boxes = np.array([[i, i, i + 20, i + 20] for i in range(0, 100, 10)], np.float32)
    case = {"boxes": boxes, "scores": np.linspace(1, 0.1, 10), "labels": np.arange(1, 11)}
    ours = {**case, "num_detections": 10}
    changes = [({}, 0), ({"scores": case["scores"] + 0.01}, 1), ({"labels": case["labels"] + 1}, 1),
               ({"boxes": boxes + 1}, 1), ({"num_detections": 9}, 1)]
    for change, status in changes:
        result = Comparison()
        compare_detections(result, case, {**ours, **change})
        assert result.report() == status


@pytest.mark.parametrize("name, factor, passed", [
    ("wd", 1.00005, True), ("wd", 1.001, False), ("mask/loss", 1.009, True), ("mask/loss", 1.02, False),
    ("rpn/loss_box", 1.004, True), ("box/loss_box", 1.006, False), ("rpn/loss_cls", 1.01, True),
    ("box/loss_cls", 1.2, False)])
def test_tolerance_of_each_loss(name, factor, passed):
    reference = np.random.default_rng(0).normal(1, 0.05 if name.endswith("cls") else 0, 40)
    result = Comparison()
    compare_loss(result, name, reference * factor, reference)
    assert result.rows[0][3] == passed


def test_a_loss_that_sampling_varies_is_compared_by_its_spread():
    reference = np.random.default_rng(0).normal(1, 0.05, 40)
    for factor, passed in ((1.02, True), (1.2, False)):
        result = Comparison()
        compare_loss(result, "box/loss_box", reference * factor, reference)
        assert result.rows[0][3] == passed
    result = Comparison()
    compare_loss(result, "mask/loss", np.zeros(1), np.zeros(1))
    assert result.rows[0][3]


def test_training_inputs_are_the_loader_s():
    boxes = np.array([[10, 10, 30, 40]], np.float32)
    case = {"image_bgr": np.zeros([41, 50, 3], np.uint8), "boxes": boxes, "labels": np.array([7]),
            "polygon0": np.array([[10, 10], [30, 10], [30, 40], [10, 40]], np.float32)}
    inputs = training_inputs(case, 32, None)
    assert inputs["image"].shape == (1, 64, 64, 3) and inputs["image_size"].tolist() == [[41, 50]]
    assert inputs["gt_boxes"].shape == (1, 8, 4) and inputs["gt_labels"].tolist() == [[7] + [0] * 7]
    masks = np.unpackbits(inputs["gt_masks"], axis=-1)
    assert masks.shape == (1, 8, 112, 112) and masks[0, 0].all() and not masks[0, 1:].any()


def test_loss_names_cover_the_detector_s():
    assert set(compare_reference.LOSS_NAMES) == {
        "rpn/loss_cls", "rpn/loss_box", "box/loss_cls", "box/loss_box", "mask/loss", "wd"}


def test_losses_of_a_cascade_are_found_by_stage():
    given = ["rpn_label", "rpn_box", "mask", "wd", *(f"cascade_stage{i}_{kind}" for i in (1, 2, 3)
                                                     for kind in ("label", "box"))]
    assert reference_loss_name("rpn/loss_cls", given) == "rpn_label"
    assert reference_loss_name("box/stage2/loss_cls", given) == "cascade_stage2_label"
    assert reference_loss_name("box/stage3/loss_box", given) == "cascade_stage3_box"
    with pytest.raises(ValueError, match="hold 0 that may be box/stage1/loss_cls: one is wanted"):
        reference_loss_name("box/stage1/loss_cls", given[:4])
