"""What training takes from a file of weights: the keys of its model, and classes of the same name."""

import subprocess
import sys
from pathlib import Path

from config import default_config

import numpy as np
import pytest
from foreign_names import KINDS, draw_model

from FasterRCNN.engine.class_layers import copy_classes
from FasterRCNN.engine.npz import save_npz
from FasterRCNN.engine.weights import read_config, read_weights
from FasterRCNN.foreign.writers import write_arrays
from start_weights import model_keys
from tools import convert_weights

ROOT = Path(__file__).resolve().parent.parent
GIVEN, WANTED = ("cat", "Dog", "cow"), ("dog", "horse", "cat", "hen")
random = np.random.default_rng(0)


def draw(*shape):
    return random.standard_normal(shape).astype(np.float32)


def test_classes_of_the_same_name_are_copied():
    weights = {"fastrcnn/outputs/class/W": draw(5, 4), "fastrcnn/outputs/class/b": draw(4),
               "fastrcnn/outputs/box/W": draw(5, 16), "fastrcnn/outputs/box/b": draw(16),
               "maskrcnn/conv/W": draw(1, 1, 5, 3), "maskrcnn/conv/b": draw(3), "fastrcnn/fc6/W": draw(7, 5)}
    changed, kept = copy_classes(weights, GIVEN, WANTED, seed=1)
    assert kept == ["dog", "cat"]
    assert changed["fastrcnn/fc6/W"] is weights["fastrcnn/fc6/W"]
    for leaf, each in (("class", 1), ("box", 4)):
        for variable in "Wb":
            name = f"fastrcnn/outputs/{leaf}/{variable}"
            old, new = ([value[..., i:i + each] for i in range(0, value.shape[-1], each)]
                        for value in (weights[name], changed[name]))
            assert len(new) == 5
            for ours, theirs in ((0, 0), (1, 2), (3, 1)):  # background, dog, cat
                np.testing.assert_array_equal(new[ours], old[theirs])
            for ours in (2, 4):
                assert (variable == "b") == (not new[ours].any()) and np.abs(new[ours]).max() < 0.05
    np.testing.assert_array_equal(changed["maskrcnn/conv/W"][..., [0, 2]], weights["maskrcnn/conv/W"][..., [1, 0]])
    assert changed["maskrcnn/conv/b"].shape == (4,)


def test_boxes_of_a_cascade_belong_to_no_class():
    weights = {"cascade_rcnn_stage2/outputs/class/b": draw(4), "cascade_rcnn_stage2/outputs/box/b": draw(4)}
    changed, kept = copy_classes(weights, GIVEN, ["bee"], seed=1)
    assert kept == [] and changed["cascade_rcnn_stage2/outputs/class/b"].shape == (2,)
    np.testing.assert_array_equal(changed["cascade_rcnn_stage2/outputs/box/b"],
                                  weights["cascade_rcnn_stage2/outputs/box/b"])


def test_names_that_do_not_fit_the_layers():
    for count in (7, 8):  # 8: two for each
        with pytest.raises(ValueError, match=f"fastrcnn/class/b has {count} outputs, which are not those of 3 classes"):
            copy_classes({"fastrcnn/class/b": draw(count)}, GIVEN, WANTED, seed=1)


def test_keys_of_a_model(tmp_path):
    cfg = default_config()
    cfg.update_args(["MODE_FPN=True", "PREPROC.PIXEL_STD=[1,1,1]", "RPN.ANCHOR_SIZES=[1,2,3,4,5]", "TRAIN.SEED=5",
                     "BACKBONE.FREEZE_AT=0", "BACKBONE.STRIDE_1X1=True", "DATA.NUM_CLASS=5"])
    path = tmp_path / "model.npz"
    save_npz(path, {"conv0/W": draw(1)}, cfg.to_dict())
    keys = model_keys(str(path), backbone_only=False)
    assert keys["MODE_FPN"] and keys["RPN.ANCHOR_SIZES"] == (1, 2, 3, 4, 5) and keys["BACKBONE.STRIDE_1X1"]
    assert not keys.keys() & {"TRAIN.SEED", "BACKBONE.FREEZE_AT", "DATA.NUM_CLASS", "BACKBONE.WEIGHTS"}
    keys = model_keys(str(path), backbone_only=True)
    assert keys["PREPROC.PIXEL_STD"] == (1, 1, 1) and "MODE_FPN" not in keys
    save_npz(path, {"conv0/W": draw(1)})
    assert model_keys(str(path), backbone_only=False) == model_keys("", backbone_only=True) == {}


def run(script, *arguments):
    """Run a command and return what it logged."""
    done = subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


TINY_RUN = ["DATA.VAL=[]", "DATA.NUM_WORKERS=0", "TRAIN.LR_SCHEDULE=[1]", "TRAIN.BASE_LR=1e-9", "TRAIN.NUM_GPUS=0",
            "TRAIN.STEPS_PER_EPOCH=1", "TRAIN.CHECKPOINT_PERIOD=1", "TRAIN.IMS_PER_GPU=8", "PREPROC.MAX_SIZE=128",
            "PREPROC.TRAIN_SHORT_EDGE_SIZE=[96,96]"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder in COCO's layout with two drawn images."""
    base = tmp_path_factory.mktemp("shapes")
    run("data.py", "--draw", base, "--num-train", 2, "--num-val", 1, "--size", 96)
    return base


def test_a_converted_backbone(base, tmp_path):
    """An ImageNet ResNet of torchvision's names as BACKBONE.WEIGHTS brings its pixels and its form."""
    write_arrays(tmp_path / "x.safetensors", draw_model(KINDS["torchvision ImageNet"][1], seed=0))
    backbone = tmp_path / "backbone.npz"
    assert convert_weights.main([str(tmp_path / "x.safetensors"), str(backbone), "--quiet"]) == 0
    logged = run("train.py", "--logdir", tmp_path / "run", "--config", *TINY_RUN, f"DATA.BASEDIR={base}",
                 f"BACKBONE.WEIGHTS={backbone}", "RPN.HEAD_DIM=8", "MRCNN.HEAD_DIM=8")
    assert "BACKBONE.CHANNELS=4" in logged and "BACKBONE.RESNET_NUM_BLOCKS=[2,1,1,1]" in logged
    given, trained = read_weights(backbone), read_weights(tmp_path / "run")
    assert all(np.allclose(trained[name], value, atol=1e-5) for name, value in given.items())


def test_fine_tuning_from_a_converted_model(base, tmp_path):
    """On other classes, two of the same name, in one command: what the model is comes with its weights."""
    model = tmp_path / "model.npz"
    names = "DATA.CLASS_NAMES=[circle,person,box]"
    assert convert_weights.main([str(ROOT / "tests/foreign/torchvision.pth"), str(model), "--config", names]) == 0
    logged = run("train.py", "--load", model, "--keep-classes", "--logdir", tmp_path / "run", "--config", *TINY_RUN,
                 f"DATA.BASEDIR={base}")
    assert "from the config in" in logged and "MODE_FPN=True" in logged
    given, tuned, config = read_weights(model), read_weights(tmp_path / "run"), read_config(tmp_path / "run")
    assert config["BACKBONE"]["CHANNELS"] == 2
    labels = config["DATA"]["CLASS_NAMES"]
    assert f"kept from {model}: circle" in logged
    column = 1 + labels.index("circle")
    np.testing.assert_allclose(tuned["fastrcnn/outputs/class/W"][:, column], given["fastrcnn/outputs/class/W"][:, 1],
                               atol=1e-6)
