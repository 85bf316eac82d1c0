"""Every file of configs/: its header, its keys, and its model, trained for one step and used for a prediction, tiny."""

import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import config

import numpy as np
import pytest
from tiny import TINY, TinyModel, example

import model_table

ROOT = Path(config.__file__).resolve().parent
FILES = sorted((ROOT / "configs").glob("*.yaml"))
OWN = {"bccd.yaml", "nuclei.yaml", "overfit.yaml", "shapes.yaml"}
EXAMPLE = example(61, 75, 3, seed=1)

every_file = pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
published_files = pytest.mark.parametrize(
    "path", [path for path in FILES if path.name not in OWN], ids=[path.stem for path in FILES if path.name not in OWN])


def config_of(path):
    cfg = config.default_config()
    cfg.update_file(path)
    return cfg


# ---------------------------------------------------------------- what the files say


def test_every_row_of_the_predecessors_tables_has_a_file():
    """The figures are those of the issue and of the predecessors' pages, typed again."""
    table = {
        "tensorpack's first release": {
            "faster_rcnn_R50_C4_quick": "33.1", "faster_rcnn_R50_C4_2x": "36.6", "faster_rcnn_R50_FPN_2x": "37.5",
            "mask_rcnn_R50_C4_2x": "38.5;33.7", "mask_rcnn_R50_FPN_2x": "38.8;35.4",
            "mask_rcnn_R50_FPN_ConvGNHead_2x": "39.8;35.5", "mask_rcnn_R50_FPN_GN_2x": "40.3;36.4",
            "mask_rcnn_R101_C4_2x": "41.7;35.5", "mask_rcnn_R101_FPN_2x": "40.7;36.9",
        },
        "tensorpack's last release": {
            "faster_rcnn_R50_FPN_quick": "34.8", "faster_rcnn_R50_C4_1x": "35.6", "faster_rcnn_R50_FPN_1x": "37.5",
            "mask_rcnn_R50_C4_1x": "36.2;31.8", "mask_rcnn_R50_FPN_1x": "38.2;34.8",
            "mask_rcnn_R101_C4_1x": "40.1;34.6", "mask_rcnn_R101_FPN_1x": "40.7;36.8",
            "cascade_mask_rcnn_R50_FPN_1x": "41.7;36.2", "cascade_mask_rcnn_R50_FPN_GN_4x": "46.1;40.1",
            "cascade_mask_rcnn_R101_FPN_3x": "46.6;40.3", "cascade_mask_rcnn_R101_FPN_GN_scratch_9x": "47.7;41.7",
        },
        "maskrcnn-benchmark": {
            "faster_rcnn_R50_C4_1x_caffe2": "34.8", "faster_rcnn_R50_FPN_1x_caffe2": "36.8",
            "faster_rcnn_R101_FPN_1x_caffe2": "39.1", "faster_rcnn_X101_32x8d_FPN_1x_caffe2": "41.2",
            "mask_rcnn_R50_C4_1x_caffe2": "35.6;31.5", "mask_rcnn_R50_FPN_1x_caffe2": "37.8;34.2",
            "mask_rcnn_R101_FPN_1x_caffe2": "40.1;36.1", "mask_rcnn_X101_32x8d_FPN_1x_caffe2": "42.2;37.8",
        },
    }
    headers = {header.name: header for header in model_table.read_headers()}
    assert set(headers) == OWN | {f"{name}.yaml" for rows in table.values() for name in rows}
    for source, rows in table.items():
        for name, figures in rows.items():
            first = headers[f"{name}.yaml"].published[0]
            assert (first.source, ";".join(filter(None, (first.box_ap, first.mask_ap)))) == (source, figures), name


@published_files
def test_the_keys_are_those_that_the_name_tells(path):
    cfg, words = config_of(path), path.stem.split("_")
    assert ("mask" in words) == cfg.MODE_MASK
    assert cfg.MODE_FPN == ("FPN" in words) == ("C4" not in words)
    assert ("cascade" in words) == cfg.FPN.CASCADE
    assert ((3, 4, 6, 3) if "R50" in words else (3, 4, 23, 3)) == cfg.BACKBONE.RESNET_NUM_BLOCKS
    assert (32 if "X101" in words else 1) == cfg.BACKBONE.NUM_GROUPS
    assert (("GN", "GN") if "GN" in words else ("FreezeBN", "None")) == (cfg.BACKBONE.NORM, cfg.FPN.NORM)
    assert ("caffe2" in words and "X101" not in words) == cfg.BACKBONE.STRIDE_1X1
    if words[-1].endswith("x"):
        assert words[-1] == cfg.TRAIN.LR_SCHEDULE
    assert (0 if "scratch" in words else 2) == cfg.BACKBONE.FREEZE_AT
    assert not cfg.BACKBONE.WEIGHTS and not cfg.DATA.BASEDIR, "the command gives them"


@published_files
def test_the_command_names_the_file_and_fitting_weights(path):
    comments = [line[1:] for line in path.read_text().splitlines() if line.startswith("#")]
    arguments = shlex.split(" ".join(comments[1:3]).replace("\\", ""))
    assert arguments[:4] == ["./train.py", "--config-file", f"configs/{path.name}", "--config"]
    cfg = config_of(path)
    cfg.update_args(arguments[4:])
    weights = Path(cfg.BACKBONE.WEIGHTS).name
    assert bool(weights) == ("scratch" not in path.stem)
    if "ImageNet" in weights:
        assert ("R50" in weights) == ("R50" in path.stem)
        assert ("GroupNorm32" in weights) == (cfg.BACKBONE.NORM == "GN")
        assert ("AlignPadding" in weights) != cfg.BACKBONE.TF_PAD_MODE
        assert cfg.PREPROC.PIXEL_STD != (1, 1, 1)
    elif weights:
        assert re.fullmatch(r"(R-50|R-101|X-101-32x8d)\.npz", weights)
        assert cfg.PREPROC.PIXEL_MEAN == (122.7717, 115.9465, 102.9801) and cfg.PREPROC.PIXEL_STD == (1, 1, 1)


@every_file
def test_it_is_a_whole_config(path):
    cfg = config_of(path)
    config.finalize_configs(cfg, is_training=True, starts_from_weights=cfg.BACKBONE.FREEZE_AT > 0)


@every_file
def test_its_cost_is_the_counted_one(path):
    cfg = config_of(path)
    counted = tuple((name, cfg[name]) for name in config.KEYS
                    if not name.startswith(("DATA.", "FRCNN.", "PREPROC.", "TRAIN.", "TEST."))
                    and name not in ("BACKBONE.FREEZE_AT", "BACKBONE.TF_PAD_MODE"))
    assert model_table.read_header(path).cost == cost_of(counted)


@functools.cache
def cost_of(keys):
    """Files that differ in how they are trained alone share the count."""
    cfg = config.default_config()
    cfg.update_dict(dict(keys))
    return model_table.count_cost(cfg)


# ---------------------------------------------------------------- what they build


def tiny_keys(path):
    """The file's keys in TINY's sizes; what makes the model what it is stays."""
    cfg = config_of(path)
    sizes = set(TINY) - {"MODE_FPN", "BACKBONE.FREEZE_AT"}
    unread = ("DATA.", "TRAIN.", "PREPROC.TRAIN_SHORT", "PREPROC.TEST_SHORT")  # by a graph that is given its images
    keys = {name: cfg[name] for name in config.KEYS if name not in sizes and not name.startswith(unread)}
    # R101 keeps more blocks than R50.
    keys["BACKBONE.RESNET_NUM_BLOCKS"] = (1, 1, 2 if cfg.BACKBONE.RESNET_NUM_BLOCKS[2] > 6 else 1, 1)
    if cfg.BACKBONE.NUM_GROUPS > 1:
        keys.update({"BACKBONE.NUM_GROUPS": 4, "BACKBONE.WIDTH_PER_GROUP": 4})
    uses_gn = {
        "BACKBONE.CHANNELS": cfg.BACKBONE.NORM, "FPN.NUM_CHANNEL": cfg.FPN.NORM,
        "FPN.FRCNN_CONV_HEAD_DIM": cfg.FPN.FRCNN_HEAD_FUNC, "MRCNN.HEAD_DIM": cfg.FPN.MRCNN_HEAD_FUNC,
    }
    keys.update({name: config.GN_GROUPS for name, value in uses_gn.items() if "gn" in value.lower()})
    return keys


@functools.cache
def one_step_and_a_prediction(keys):
    """(the final config, losses, detections, the parts of which a trained variable moved); variables stay finite."""
    model = TinyModel(dict(keys), with_gradients=True)
    with model.graph.as_default():
        step = [v.assign_sub(1e-4 * model.gradients[v.op.name]) for v in model.trainable]
    before = model.session.run(model.trainable)
    losses, found, _ = model.run((model.losses, model.detections, step), [EXAMPLE])
    after = model.session.run(model.trainable)
    assert all(np.isfinite(value).all() for value in after)
    moved = {v.op.name.split("/")[0] for v, a, b in zip(model.trainable, before, after) if not np.array_equal(a, b)}
    return model.cfg, losses, found, moved


@every_file
def test_one_step_and_a_prediction(path):
    cfg, losses, found, moved = one_step_and_a_prediction(tuple(tiny_keys(path).items()))
    for name in ("MODE_MASK", "MODE_FPN", "FPN.CASCADE", "BACKBONE.NORM", "BACKBONE.TF_PAD_MODE"):
        assert cfg[name] == config_of(path)[name]
    assert all(np.isfinite(loss) for loss in losses.values()), losses
    assert ("mask/loss" in losses) == ("masks" in found) == cfg.MODE_MASK
    assert sum(name.startswith("box/") for name in losses) == (6 if cfg.FPN.CASCADE else 2)
    assert found["boxes"].shape == (1, TINY["TEST.RESULTS_PER_IM"], 4)
    assert all(np.isfinite(value).all() for value in found.values())
    assert moved >= {"rpn", "cascade_rcnn_stage3" if cfg.FPN.CASCADE else "fastrcnn", "group3"}
    assert ("conv0" in moved) == (cfg.BACKBONE.FREEZE_AT == 0)


# ---------------------------------------------------------------- the table


HEADER = """# Mask R-CNN, R50-FPN: as published
#   ./train.py --config-file configs/x.yaml
# Published by someone: box AP 38.8, mask AP 35.4; weights COCO.npz
# Published by another: box AP 37.5
# Cost: 44.4 M parameters, 538 GFLOP (one 800×1333 image, 80 classes)
MODE_FPN: True
# Cost: below the header
"""


def header_of(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return model_table.read_header(path)


def test_a_header_is_read(tmp_path):
    header = header_of(tmp_path, HEADER)
    assert (header.name, header.title) == ("x.yaml", "Mask R-CNN, R50-FPN")
    assert header.published == (model_table.Published("someone", "38.8", "35.4", "COCO.npz"),
                                model_table.Published("another", "37.5", None, None))
    assert (header.parameters, header.gflop) == ("44.4", "538")


@pytest.mark.parametrize("old, new, message", [
    ("# Mask R-CNN, R50-FPN: as published", "MODE_MASK: True",
     "its first line does not say what the model is; wanted is one like '# Mask R-CNN, R50-FPN, 2x'"),
    ("box AP 38.8", "AP 38.8",
     "'# Published by someone: AP 38.8, mask AP 35.4; weights COCO.npz' in its header cannot be read; wanted is a line "
     "like '# Published by SOURCE: box AP 38.8, mask AP 35.4; weights FILE'"),
    ("44.4 M", "44 M",
     "'# Cost: 44 M parameters, 538 GFLOP (one 800×1333 image, 80 classes)' in its header cannot be read; wanted is a "
     "line like '# Cost: 44.4 M parameters, 538 GFLOP (one 800×1333 image, 80 classes)'"),
    ("# Cost: 44.4", "# costs 44.4",
     "0 lines '# Cost: …' in its header, wanted is one; ./model_table.py --config-file {path} prints it"),
])
def test_a_header_that_cannot_be_read(tmp_path, old, new, message):
    with pytest.raises(ValueError) as error:
        header_of(tmp_path, HEADER.replace(old, new))
    path = tmp_path / "x.yaml"
    assert str(error.value) == f"{path}: {message.format(path=path)}"


def test_an_empty_file_has_no_header(tmp_path):
    with pytest.raises(ValueError, match="first line does not say"):
        header_of(tmp_path, "")


def run(*arguments):
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_lists_the_table():
    lines = run("train.py", "--list-configs").splitlines()
    assert len(lines) == 2 + len(FILES)
    for column in ("configs/", "what it is", "M parameters", "GFLOP", "box AP", "mask AP", "published by"):
        assert column in lines[0]
    line = next(line for line in lines if line.startswith("mask_rcnn_R50_FPN_2x.yaml"))
    assert re.split(r"\s{2,}", line)[1:] == [
        "Mask R-CNN, R50-FPN, 2x", "44.4", "538", "38.8", "35.4", "tensorpack's first release"]
    assert lines == run("model_table.py").splitlines()


def test_the_cost_of_a_config_with_changed_keys():
    printed = run("model_table.py", "--config-file", "configs/shapes.yaml", "--config", "DATA.NUM_CLASS=3")
    assert re.fullmatch(r"Cost: \d\.\d M parameters, \d+ GFLOP \(one 800×1333 image, 3 classes\)\n", printed)
