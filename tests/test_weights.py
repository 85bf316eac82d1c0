"""engine/weights: formats, refusals and the keys they propose, on small files written here."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from FasterRCNN.engine import npz
from FasterRCNN.engine import weights as W
from FasterRCNN.engine.architecture import number_of_classes, suggest_config
from tools import save_npz

FPN_CONFIG = {
    "MODE_FPN": True, "MODE_MASK": True,
    "BACKBONE": {"RESNET_NUM_BLOCKS": [1, 1, 2, 1], "NORM": "FreezeBN", "CHANNELS": 4},
    "FPN": {"NUM_CHANNEL": 8, "NORM": "None", "CASCADE": False, "FRCNN_HEAD_FUNC": "fastrcnn_2fc_head",
            "FRCNN_FC_HEAD_DIM": 6, "MRCNN_HEAD_FUNC": "maskrcnn_up4conv_head"},
    "MRCNN": {"HEAD_DIM": 8}, "RPN": {"HEAD_DIM": 4},
}


def backbone(blocks=(1, 1, 2, 1), norm="bn"):
    shapes = {"conv0/W": (7, 7, 3, 4)}
    layers = ["conv0"] + [f"group{g}/block{b}/conv{c}" for g in range(4) for b in range(blocks[g]) for c in (1, 2, 3)]
    for layer in layers[1:]:
        shapes[f"{layer}/W"] = (1, 1, 4, 4)
    for layer in layers:
        shapes |= {f"{layer}/{norm}/{leaf}": (4,) for leaf in ("gamma", "beta")}
        if norm == "bn":
            shapes |= {f"{layer}/bn/{leaf}/EMA": (4,) for leaf in ("mean", "variance")}
    return shapes


def layer(name, *shape):
    return {f"{name}/W": shape, f"{name}/b": shape[-1:]}


def fpn_model(classes=3, masks=True, **backbone_options):
    shapes = backbone(**backbone_options) | layer("fpn/lateral_1x1_c2", 1, 1, 4, 8) | layer("rpn/conv0", 3, 3, 8, 8)
    shapes |= layer("rpn/class", 1, 1, 8, 3) | layer("rpn/box", 1, 1, 8, 12)
    shapes |= layer("fastrcnn/fc6", 32, 6) | layer("fastrcnn/fc7", 6, 6)
    shapes |= layer("fastrcnn/outputs/class", 6, classes + 1) | layer("fastrcnn/outputs/box", 6, 4 * classes + 4)
    return shapes | (mask_head(classes) if masks else {})


def c4_model(classes=3, masks=True):
    shapes = backbone() | layer("rpn/conv0", 3, 3, 4, 4) | layer("rpn/class", 1, 1, 4, 15)
    shapes |= layer("fastrcnn/class", 4, classes + 1) | layer("fastrcnn/box", 4, 4 * classes + 4)
    return shapes | (mask_head(classes) if masks else {})


def mask_head(classes):
    return layer("maskrcnn/fcn0", 3, 3, 8, 8) | layer("maskrcnn/deconv", 2, 2, 8, 8) | layer(
        "maskrcnn/conv", 1, 1, 8, classes)


def values(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def save_checkpoint(prefix, arrays, config=None, use_resource=False):
    with tf.Graph().as_default(), tf.Session() as session:
        for name, value in arrays.items():
            tf.get_variable(name, initializer=tf.constant(value), use_resource=use_resource)
        if config is not None:
            tf.get_variable(npz.CONFIG_NAME, initializer=tf.constant(json.dumps(config)), use_resource=True)
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, str(prefix), write_meta_graph=False)
    return prefix


# reading ------------------------------------------------------------------------------------------------------------


def test_npz_round_trip_with_config(tmp_path):
    arrays = values(c4_model())
    config = {"MODE_FPN": False, "DATA": {"CLASS_NAMES": ["Ö", "b", "c"]}}
    npz.save_npz(tmp_path / "new" / "model.npz", arrays, config)
    assert same(W.read_weights(tmp_path / "new" / "model.npz"), arrays)
    assert W.read_config(tmp_path / "new" / "model.npz") == config
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["model.npz"]


def test_npz_without_config_and_empty_npz(tmp_path):
    npz.save_npz(tmp_path / "empty.npz", {})
    assert W.read_weights(tmp_path / "empty.npz") == {}
    assert W.read_config(tmp_path / "empty.npz") is None


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    npz.save_npz(path, {"conv0/W": np.ones(2, np.float32)})

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        npz.save_npz(path, {"conv0/W": np.zeros(2, np.float32)})
    assert same(W.read_weights(path), {"conv0/W": np.ones(2, np.float32)})
    assert list(tmp_path.iterdir()) == [path]


def test_only_npz_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"model.h5: weights are written as \.npz"):
        npz.save_npz(tmp_path / "model.h5", {})


def test_names_of_older_files_and_training_state(tmp_path):
    stored = {"tower0/conv0/W:0": np.ones((1, 1, 3, 4)), "conv0/bn/mean/EMA:0": np.ones(4, np.float16),
              "conv0/W/Momentum:0": np.ones(4), "EMA/total_loss:0": np.ones(()), "tower1/conv0/W:0": np.ones(4),
              "learning_rate:0": np.ones(()), "global_step:0": np.ones((), np.int64), "linear/b": np.ones(2)}
    # The slot's variable has the same plain name as its weight once the tower's prefix is gone.
    np.savez(tmp_path / "old.npz", **stored)
    found = W.read_weights(tmp_path / "old.npz")
    assert set(found) == {"conv0/W", "conv0/bn/mean/EMA", "linear/b"}
    assert all(value.dtype == np.float32 for value in found.values())


@pytest.mark.parametrize("suffix", ["", ".index", ".data-00000-of-00001"])
def test_checkpoint_by_any_of_its_files(tmp_path, suffix):
    arrays = values(backbone())
    extra = {"conv0/W/Momentum": arrays["conv0/W"], "global_step": np.int64(7), "EMA/loss": np.float32(1)}
    save_checkpoint(tmp_path / "model-7", arrays | extra, {"MODE_FPN": True})
    assert same(W.read_weights(f"{tmp_path}/model-7{suffix}"), arrays)
    assert W.read_config(f"{tmp_path}/model-7{suffix}") == {"MODE_FPN": True}


def test_run_folder_means_its_last_checkpoint_even_when_moved(tmp_path):
    run = tmp_path / "run"
    for step in (90, 1000):
        save_checkpoint(run / f"model-{step}", {"conv0/W": np.full(2, step, np.float32)})
    assert W.read_weights(run)["conv0/W"][0] == 1000
    (tmp_path / "elsewhere").mkdir()
    moved = run.rename(tmp_path / "elsewhere" / "run")
    assert W.read_weights(moved)["conv0/W"][0] == 1000
    (moved / "checkpoint").unlink()
    assert W.read_weights(moved)["conv0/W"][0] == 1000
    assert W.read_config(moved) is None
    (moved / "config.yaml").write_text("MODE_FPN: true\n")
    assert W.read_config(moved) == W.read_config(moved / "model-90") == {"MODE_FPN": True}


def test_missing_files_say_what_is_there(tmp_path):
    save_checkpoint(tmp_path / "model-7", {"conv0/W": np.ones(2, np.float32)})
    with pytest.raises(FileNotFoundError, match=r"no weights at .*model-8: give a tensorpack .npz.*holds model-7"):
        W.read_weights(tmp_path / "model-8")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no checkpoint"):
        W.read_weights(tmp_path / "empty")
    (tmp_path / "model.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match="model.pth is no weights file that can be read here"):
        W.read_weights(tmp_path / "model.pth")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "objects", "array"])
def test_damaged_npz_is_one_line(tmp_path, damage):
    path = tmp_path / "model.npz"
    npz.save_npz(path, values(backbone()))
    content = path.read_bytes()
    if damage == "objects":
        np.savez(path, weights=np.array([{"conv0/W": 1}], dtype=object))
    elif damage == "array":
        with open(path, "wb") as file:
            np.save(file, np.ones(3))
    else:
        path.write_bytes({"cut": content[:len(content) // 2], "empty": b"",
                          "flipped": content[:500] + b"\xff\xff" + content[502:]}[damage])
    with pytest.raises(ValueError, match=r"model.npz is damaged or no .npz file of plain arrays") as caught:
        W.read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damaged", ["model-1.data-00000-of-00001", "model-1.index"])
def test_damaged_checkpoint_is_one_line(tmp_path, damaged):
    save_checkpoint(tmp_path / "model-1", values(backbone()))
    (tmp_path / damaged).write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"checkpoint .*model-1 is damaged or incomplete") as caught:
        W.read_weights(tmp_path / "model-1")
    assert "\n" not in str(caught.value)


def test_damaged_configs(tmp_path):
    np.savez(tmp_path / "model.npz", config_json=np.frombuffer(b"{no", np.uint8))
    with pytest.raises(ValueError, match="config_json is no JSON"):
        W.read_config(tmp_path / "model.npz")
    (tmp_path / "config.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match="must hold KEY: VALUE lines, not list"):
        W.read_config(tmp_path)
    (tmp_path / "config.yaml").write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ValueError, match="config.yaml is no YAML file"):
        W.read_config(tmp_path)


# checking -----------------------------------------------------------------------------------------------------------


def test_report_counts_by_part():
    model = fpn_model()
    given = values({name: shape for name, shape in model.items() if not name.startswith("fpn/")})
    given["rpn/class/W"] = np.zeros((1, 1, 8, 5), np.float32)
    given |= values({"other/W": (1,), "linear/W": (2, 2), "linear/b": (2,)})
    report = W.match_weights(given, model)
    assert report.missing == ("fpn/lateral_1x1_c2/W", "fpn/lateral_1x1_c2/b")
    assert report.unexpected == ("other/W",)
    assert report.mismatched == {"rpn/class/W": ((1, 1, 8, 5), (1, 1, 8, 3))}
    assert len(report.matched) == len(model) - 3
    assert report.summary().splitlines() == [
        "loaded: conv0 5, fastrcnn 8, group0 15, group1 15, group2 30, group3 15, maskrcnn 6, rpn 5",
        "missing in the file: fpn 2",
        "of another shape: rpn/class/W is 1x1x8x5, the model's 1x1x8x3",
        "in the file, not in the model: other 1"]


def test_report_of_nothing_and_of_many():
    assert W.match_weights({}, {}).summary() == "loaded: nothing"
    model = {f"rpn/conv{k}/b": () for k in range(9)}
    report = W.match_weights(values(dict.fromkeys(model, (2,))), model)
    assert report.problems() == [
        "of another shape: rpn/conv0/b is 2, the model's scalar; rpn/conv1/b is 2, the model's scalar; "
        "and 7 more in rpn"]


def test_prediction_takes_exactly_the_models_variables():
    given = values(fpn_model())
    selected, report = W.select_for_prediction(given, fpn_model(masks=False), config=FPN_CONFIG)
    assert selected.keys() == fpn_model(masks=False).keys()
    assert {name.split("/")[0] for name in report.unexpected} == {"maskrcnn"}


def refusal(given_shapes, model, config=FPN_CONFIG, select=W.select_for_prediction):
    with pytest.raises(ValueError) as caught:
        select(values(given_shapes), model, config=config, source="model.npz")
    message = str(caught.value)
    assert len(message.splitlines()) <= 4
    return message


def test_c4_weights_for_an_fpn_model():
    message = refusal(c4_model(), fpn_model())
    first, missing, shapes, surplus = message.splitlines()
    assert first == "model.npz does not fit the configured model: these are C4 weights: add MODE_FPN=False"
    assert missing.strip() == "missing in the file: fastrcnn 8, fpn 2, rpn 2"
    assert "rpn/conv0/W is 3x3x4x4, the model's 3x3x8x8" in shapes
    assert surplus.strip() == "in the file, not in the model: fastrcnn 4"


def test_fpn_weights_for_a_c4_model():
    config = {**FPN_CONFIG, "MODE_FPN": False}
    assert "these are FPN weights: add MODE_FPN=True\n" in refusal(fpn_model(), c4_model(), config)


def test_dotted_keys_and_tuples_are_understood():
    config = suggest_config(fpn_model()) | {
        "MODE_FPN": False, "BACKBONE.RESNET_NUM_BLOCKS": (1, 1, 2, 1), "BACKBONE.NORM": "SyncBN"}
    assert "these are FPN weights: add MODE_FPN=True\n" in refusal(fpn_model(), c4_model(), config)


def test_an_rpn_of_two_convolutions():
    assert "these are FPN weights: add RPN.NUM_CONVS=2\n" in refusal(
        fpn_model() | layer("rpn/conv1", 3, 3, 8, 8), fpn_model())


def test_weights_without_masks():
    assert "these are FPN weights: add MODE_MASK=False\n" in refusal(fpn_model(masks=False), fpn_model())


@pytest.mark.parametrize("select", [W.select_for_prediction, W.select_for_training])
def test_deeper_weights_are_refused_though_every_variable_is_there(select):
    message = refusal(fpn_model(blocks=(1, 1, 4, 1)), fpn_model(), select=select)
    assert "add BACKBONE.RESNET_NUM_BLOCKS=[1,1,4,1]\n" in message
    assert "in the file, not in the model: group2 30" in message


def test_other_normalisation():
    assert "add BACKBONE.NORM=GN\n" in refusal(fpn_model(norm="gn"), fpn_model())


def test_other_number_of_classes_for_prediction():
    message = refusal(fpn_model(classes=80), fpn_model(classes=3))
    assert "they tell 80 classes apart, the model 3: DATA.TRAIN and DATA.VAL must name data" in message
    assert "fastrcnn/outputs/class/b is 81, the model's 4" in message


def test_backbone_for_prediction():
    assert refusal(backbone(), fpn_model()).startswith(
        "model.npz is an ImageNet backbone without the detector's heads: use it as BACKBONE.WEIGHTS")


def test_foreign_names():
    message = refusal({"backbone.conv1.weight": (64, 3, 7, 7)}, fpn_model())
    assert message.startswith("model.npz has no variable of this model: it holds backbone.conv1.weight; wanted are "
                              "tensorpack's names, such as conv0/W")
    assert "it holds none at all" in refusal({}, fpn_model())


def test_unknown_misfit_without_config():
    model = c4_model()
    given = {name: shape for name, shape in model.items() if name != "rpn/class/b"}
    assert "use the config that they were trained with" in refusal(given, model, config=suggest_config(model))


def test_suggested_config_of_an_fpn_model_is_its_config():
    flat = {f"{key}.{inner}": value[inner] for key, value in FPN_CONFIG.items() if isinstance(value, dict)
            for inner in value}
    flat |= {"MODE_FPN": True, "MODE_MASK": True, "BACKBONE.NUM_GROUPS": 1, "BACKBONE.WIDTH_PER_GROUP": None,
             "RPN.NUM_CONVS": 1}
    del flat["RPN.HEAD_DIM"]
    assert suggest_config(fpn_model()) == flat


def test_suggested_config_of_other_heads():
    gn = {"cascade_rcnn_stage1/head/gn0/gamma": (5,), "maskrcnn/gn0/gamma": (8,), "fpn/gn_c2/gamma": (8,)}
    head = layer("cascade_rcnn_stage1/head/conv0", 3, 3, 8, 5) | layer("cascade_rcnn_stage1/head/fc", 32, 7)
    model = {name: shape for name, shape in fpn_model(norm="gn").items() if not name.startswith("fastrcnn/")}
    model |= gn | head | layer("cascade_rcnn_stage1/outputs/class", 7, 4)
    found = suggest_config(model)
    assert found["FPN.CASCADE"] is True
    assert found["FPN.NORM"] == found["BACKBONE.NORM"] == "GN"
    assert found["FPN.FRCNN_HEAD_FUNC"] == "fastrcnn_4conv1fc_gn_head"
    assert found["FPN.MRCNN_HEAD_FUNC"] == "maskrcnn_up4conv_gn_head"
    assert (found["FPN.FRCNN_CONV_HEAD_DIM"], found["FPN.FRCNN_FC_HEAD_DIM"]) == (5, 7)
    assert number_of_classes(model) == 3
    assert suggest_config({}) == {}
    stem = {"conv0/W": (7, 7, 3, 4), "group0/block0/conv1/W": (1, 1, 4, 4)}
    assert "BACKBONE.RESNET_NUM_BLOCKS" not in suggest_config(stem)


def test_training_from_a_backbone():
    given = values(backbone() | {"linear/W": (4, 1000), "linear/b": (1000,)})
    selected, report = W.select_for_training(given, fpn_model(), config=FPN_CONFIG)
    assert selected.keys() == backbone().keys()
    assert report.unexpected == ()
    assert "missing in the file: fastrcnn 8, fpn 2, maskrcnn 6, rpn 6" in report.summary()


@pytest.mark.parametrize("model", [fpn_model, c4_model])
def test_training_with_another_number_of_classes_leaves_out_the_last_layers(model):
    selected, report = W.select_for_training(values(model(classes=80)), model(classes=3))
    left_out = {name for name in model() if "/class/" in name or "/box/" in name or name.startswith("maskrcnn/conv/")}
    left_out = {name for name in left_out if not name.startswith("rpn/")}
    assert set(report.mismatched) == left_out
    assert len(left_out) == 6
    assert selected.keys() == model().keys() - left_out


def test_training_refuses_other_shapes_and_half_a_backbone():
    given = fpn_model() | {"rpn/class/W": (1, 1, 8, 5)}
    assert "rpn/class/W is 1x1x8x5" in refusal(given, fpn_model(), select=W.select_for_training)
    given = backbone(blocks=(1, 1, 1, 1))
    message = refusal(given, fpn_model(), select=W.select_for_training)
    assert "these are ImageNet weights: add BACKBONE.RESNET_NUM_BLOCKS=[1,1,1,1]" in message
    assert "missing in the file: group2 15" in message


# restoring ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_resource", [False, True])
def test_restore_sets_values_without_touching_the_graph(use_resource):
    arrays = values(backbone())
    with tf.Graph().as_default() as graph:
        for name, value in arrays.items():
            tf.get_variable(name, value.shape, initializer=tf.zeros_initializer(), use_resource=use_resource)
        other = tf.get_variable("other", initializer=tf.constant(5.0), use_resource=use_resource)
        everything = {variable.op.name: variable for variable in tf.global_variables()}
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            graph.finalize()
            W.restore(session, arrays)
            found = session.run(everything)
            assert found.pop("other") == 5.0
            assert same(found, arrays)
            W.restore(session, {})
            with pytest.raises(ValueError, match="the graph has no variable nowhere/W"):
                W.restore(session, {"nowhere/W": np.zeros(2)})
            assert session.run(other) == 5.0


def test_checkpoint_to_npz_to_graph(tmp_path):
    arrays = values(c4_model())
    save_checkpoint(tmp_path / "model-1", arrays, use_resource=True)
    npz.save_npz(tmp_path / "model.npz", W.read_weights(tmp_path / "model-1"))
    selected, report = W.select_for_prediction(W.read_weights(tmp_path / "model.npz"), c4_model())
    assert same(selected, arrays)
    assert report.missing == report.unexpected == ()


# tools/save_npz.py --------------------------------------------------------------------------------------------------


@pytest.fixture()
def run(tmp_path):
    """A run's folder with a checkpoint of an FPN model and its momentum."""
    arrays = values(fpn_model())
    slots = {f"{name}/Momentum": value for name, value in arrays.items()}
    save_checkpoint(tmp_path / "run" / "model-7", arrays | slots | {"global_step": np.int64(7)}, use_resource=True)
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(FPN_CONFIG))
    return tmp_path / "run"


@pytest.mark.parametrize("model", ["", "model-7"])
def test_a_run_is_saved_as_npz(run, model, capsys):
    out = run.parent / "new" / "model.npz"
    save_npz.main([str(run / model), str(out)])
    size = f"{out.stat().st_size / 1e6:.1f}"
    assert capsys.readouterr().out == f"{out}: {len(fpn_model())} variables, {size} MB, 3 classes, with its config\n"
    selected, report = W.select_for_prediction(W.read_weights(out), fpn_model(), config=W.read_config(out))
    assert same(selected, values(fpn_model()))
    assert report.problems() == []
    assert W.read_config(out) == FPN_CONFIG
    assert set(np.load(out, allow_pickle=False)) == {*fpn_model(), "config_json"}


def test_a_saved_backbone_starts_a_training(run, tmp_path, capsys):
    out = tmp_path / "backbone.npz"
    save_npz.main([str(run), str(out), "--backbone-only"])
    assert capsys.readouterr().out.startswith(f"{out}: {len(backbone())} variables, 0.0 MB, with its config")
    selected, report = W.select_for_training(W.read_weights(out), fpn_model(classes=7))
    assert same(selected, {name: value for name, value in values(fpn_model()).items() if name in backbone()})
    assert report.unexpected == ()
    assert "is an ImageNet backbone" in refusal({n: v.shape for n, v in W.read_weights(out).items()}, fpn_model())


def test_an_npz_is_saved_again_and_never_overwritten_unasked(tmp_path, capsys):
    path, out = tmp_path / "old.npz", tmp_path / "out.npz"
    np.savez(path, **{f"tower0/{name}:0": value for name, value in values(c4_model()).items()})
    save_npz.main([str(path), str(out)])
    assert capsys.readouterr().out.endswith(f" MB, 3 classes, without a config, as {path} carries none\n")
    npz.save_npz(path, values(c4_model(), seed=1))
    with pytest.raises(ValueError, match=r"out\.npz exists already: give another name, or --overwrite"):
        save_npz.main([str(path), str(out)])
    assert same(W.read_weights(out), values(c4_model()))
    save_npz.main([str(path), str(out), "--overwrite"])
    assert same(W.read_weights(out), values(c4_model(), seed=1))


@pytest.mark.parametrize("given, options, message", [
    ({"rpn/conv0/W": (2,)}, ["--backbone-only"], r"in\.npz holds no backbone: give the model of a run"),
    ({}, [], r"in\.npz holds no weights: give the model of a run"),
])
def test_nothing_to_save(tmp_path, given, options, message):
    npz.save_npz(tmp_path / "in.npz", values(given))
    with pytest.raises(ValueError, match=message):
        save_npz.main([str(tmp_path / "in.npz"), str(tmp_path / "out.npz"), *options])
    assert not (tmp_path / "out.npz").exists()


def test_damaged_input_is_one_line_of_the_command(run, tmp_path):
    (run / "model-7.data-00000-of-00001").write_bytes(b"garbage")
    command = [sys.executable, "tools/save_npz.py", str(run), str(tmp_path / "out.npz")]
    done = subprocess.run(command, cwd=Path(save_npz.__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"error: checkpoint {run / 'model-7'} is damaged or incomplete" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.npz").exists()
