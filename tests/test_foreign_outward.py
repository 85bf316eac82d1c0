"""The way to torchvision and detectron2: what is written is read back, by `convert` and by the standard library."""

import pickle
from pathlib import Path

from config import KEYS, default_config

import numpy as np
import pytest
import yaml

from FasterRCNN.engine.npz import save_npz
from FasterRCNN.foreign.containers import read_contents
from FasterRCNN.foreign.convert import convert
from FasterRCNN.foreign.outward import differences, give
from FasterRCNN.foreign.settings import detectron2_settings, torchvision_settings
from FasterRCNN.foreign.sources import SOURCES, File
from FasterRCNN.foreign.target import variables
from FasterRCNN.foreign.writers import write_arrays
from tools import convert_weights

FILES = Path(__file__).parent / "foreign"
R50_TINY = {"BACKBONE.CHANNELS": 4, "BACKBONE.NORM": "FreezeBN", "BACKBONE.RESNET_NUM_BLOCKS": [3, 4, 6, 3],
            "FPN.NUM_CHANNEL": 8, "FPN.FRCNN_FC_HEAD_DIM": 16, "FPN.FRCNN_CONV_HEAD_DIM": 8, "MRCNN.HEAD_DIM": 6}
K = 3


def full_config(changes):
    cfg = default_config()
    cfg.update_dict({"DATA.NUM_CLASS": K, **R50_TINY, **changes})
    return {key: cfg[key] for key in KEYS}


def model(changes):
    """(weights, config) of a random model."""
    config = full_config(changes)
    random = np.random.default_rng(0)
    shapes = variables(config, num_classes=K, num_anchors=3 if config["MODE_FPN"] else 15)
    weights = {name: np.float32(random.uniform(0.5, 1.5, shape)) for name, shape in shapes.items()}
    return weights, config


FPN, GN = {"MODE_FPN": True}, {"BACKBONE.NORM": "GN", "FPN.NORM": "GN"}
WAYS = {
    "torchvision mask": ("torchvision", FPN),
    "torchvision box": ("torchvision", {**FPN, "MODE_MASK": False}),
    "torchvision convs": ("torchvision", {**FPN, "FPN.FRCNN_HEAD_FUNC": "fastrcnn_4conv1fc_head"}),
    "detectron2 mask": ("detectron2", FPN),
    "detectron2 C4": ("detectron2", {"RPN.HEAD_DIM": 64}),
    "detectron2 cascade": ("detectron2", {**FPN, "FPN.CASCADE": True}),
    "detectron2 GN": ("detectron2", {**FPN, **GN, "FPN.FRCNN_HEAD_FUNC": "fastrcnn_4conv1fc_gn_head",
                                     "FPN.MRCNN_HEAD_FUNC": "maskrcnn_up4conv_gn_head"}),
    "detectron2 ResNeXt": ("detectron2", {**FPN, "BACKBONE.NUM_GROUPS": 2, "BACKBONE.WIDTH_PER_GROUP": 4}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ending", [".pkl", ".safetensors"])
def test_round_trip(way, ending, tmp_path):
    program, changes = WAYS[way]
    weights, config = model(changes)
    normalized = ("fpn/lateral", "fpn/posthoc", "fastrcnn/conv", "maskrcnn/fcn") if "GN" in way else ()
    for name in weights:
        if name.endswith("/b") and name.startswith(normalized):
            weights[name] = np.zeros_like(weights[name])  # before a normalisation there is none there
        if program == "detectron2" and name.startswith("fastrcnn/") and "/box/" in name:
            weights[name][..., :4] = 0  # of the background, never read
    path = tmp_path / f"model{ending}"
    write_arrays(path, give(weights, config, program), {"__author__": "x"} if ending == ".pkl" else None)
    contents = read_contents(path)
    conversion = convert(File(contents.arrays, contents.texts), SOURCES[program])
    assert conversion.report.is_complete, list(conversion.report.lines())
    assert conversion.weights.keys() == weights.keys()
    for name, value in weights.items():
        if "variance" in name or "gamma" in name:  # another epsilon there and back
            np.testing.assert_allclose(conversion.weights[name], value, rtol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(conversion.weights[name], value, err_msg=name)


def test_names_are_those_of_a_file_of_torchvision():
    """All but the counters, which PyTorch fills in itself."""
    arrays = read_contents(FILES / "torchvision.pth").arrays
    conversion = convert(File(arrays), SOURCES["torchvision"])
    config = full_config(conversion.config | {"BACKBONE.RESNET_NUM_BLOCKS": [1, 1, 1, 1]})
    given = give(conversion.weights, config, "torchvision")
    assert given.keys() == {name for name in arrays if "num_batches" not in name}
    for name, value in given.items():
        wanted = arrays[name].copy()
        if name.startswith("roi_heads.mask_predictor.mask_fcn_logits"):
            wanted[0] = 0  # of the background, never read
        np.testing.assert_allclose(value, wanted, rtol=1e-5, atol=1e-6, err_msg=name)
    assert not differences(config, "torchvision")


def test_a_pickle_that_the_standard_library_reads(tmp_path):
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.float32([1]),
              "empty": np.zeros((0, 2), np.float32)}
    write_arrays(tmp_path / "plain.pkl", arrays)
    write_arrays(tmp_path / "d2.pkl", arrays, {"__author__": "x"})
    plain, d2 = (pickle.loads((tmp_path / f"{name}.pkl").read_bytes()) for name in ("plain", "d2"))
    assert d2.keys() == {"__author__", "model"} and d2["__author__"] == "x"
    for held in (plain, d2["model"], read_contents(tmp_path / "plain.pkl").arrays):
        assert held.keys() == arrays.keys()
        assert all(np.array_equal(held[name], value) and held[name].shape == value.shape
                   for name, value in arrays.items())
    assert plain["a.weight"].flags.writeable  # PyTorch warns of others
    with pytest.raises(ValueError, match=r"written as \.safetensors or \.pkl"):
        write_arrays(tmp_path / "x.pth", arrays)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["d2.pkl", "plain.pkl"]


@pytest.mark.parametrize("changes, program, named", [
    ({"RPN.HEAD_DIM": 64}, "torchvision", "fastrcnn/class/W"),
    ({**FPN, **GN}, "torchvision", "conv0/gn/gamma"),
    ({**FPN, "FPN.CASCADE": True}, "torchvision", "cascade_rcnn_stage1/head/fc6/W"),
    ({**FPN, **GN}, "detectron2", "fpn/lateral_1x1_c2/b"),
])
def test_what_has_no_place_is_named(changes, program, named):
    weights, config = model(changes)
    with pytest.raises(ValueError, match=f"has no place for .*{named}"):
        give(weights, config, program)


def test_differences_are_told():
    config = full_config({**FPN, "BACKBONE.STRIDE_1X1": True})
    told = differences(config, "torchvision")
    assert "BACKBONE.STRIDE_1X1=True, there False" in told and "ROIALIGN.ALIGNED=True, there False" in told
    told = differences(config, "detectron2")
    assert not any(line.startswith(("ROIALIGN.ALIGNED", "BACKBONE.STRIDE", "ROIALIGN.SAMPLES")) for line in told)
    assert "FRCNN.MAX_SCALE=None, there 62.5" in told


def test_settings_of_detectron2():
    for changes, depth, head in ((FPN, 50, "StandardROIHeads"), ({}, 50, "Res5ROIHeads"), (
            {**FPN, "FPN.CASCADE": True, "BACKBONE.RESNET_NUM_BLOCKS": [3, 4, 23, 3]}, 101, "CascadeROIHeads")):
        settings = yaml.safe_load(detectron2_settings(full_config(changes), "x.pkl"))
        held = settings["MODEL"]
        assert held["WEIGHTS"] == "x.pkl" and held["RESNETS"]["DEPTH"] == depth and held["ROI_HEADS"]["NAME"] == head
        assert held["RESNETS"]["RES2_OUT_CHANNELS"] == 16 and held["RPN"]["CONV_DIMS"] == [8 if changes else 1024]
        assert held["ROI_HEADS"]["NUM_CLASSES"] == K and held["PIXEL_MEAN"] == [103.53, 116.28, 123.675]
    with pytest.raises(ValueError, match="detectron2 has R50, R101 and R152"):
        detectron2_settings(full_config({"BACKBONE.RESNET_NUM_BLOCKS": [1, 1, 1, 1]}), "x.pkl")


def test_settings_of_torchvision():
    plain = {**FPN, "BACKBONE.CHANNELS": 64, "FPN.NUM_CHANNEL": 256, "FPN.FRCNN_FC_HEAD_DIM": 1024,
             "MRCNN.HEAD_DIM": 256}
    text = torchvision_settings(full_config(plain), "x.safetensors")
    compile(text, "settings", "exec")
    assert "backbone_name='resnet50'" in text and "num_classes=4," in text and "load_file('x.safetensors')" in text
    assert "bbox_reg_weights=(10.0, 10.0, 5.0, 5.0)," in text
    assert "AnchorGenerator([[32], [64], [128], [256], [512]], [[0.5, 1.0, 2.0]," in text
    text = torchvision_settings(full_config({
        **plain, "RPN.NUM_CONVS": 2, "FPN.FRCNN_HEAD_FUNC": "fastrcnn_4conv1fc_head", "MODE_MASK": False}), "x.pkl")
    compile(text, "settings", "exec")
    assert "RPNHead(256, 3, conv_depth=2)" in text
    assert "FastRCNNConvFCHead((256, 7, 7), [8, 8, 8, 8], [1024])" in text
    with pytest.raises(ValueError, match=r"FPN.NUM_CHANNEL=8: torchvision's models have 256"):
        torchvision_settings(full_config({**plain, "FPN.NUM_CHANNEL": 8}), "x.pkl")
    with pytest.raises(ValueError, match="torchvision has resnet50"):
        torchvision_settings(full_config({**plain, "BACKBONE.NUM_GROUPS": 2}), "x.pkl")


def test_command(tmp_path, capsys):
    weights, config = model({**FPN, "BACKBONE.STRIDE_1X1": True})
    cfg = default_config()
    cfg.update_dict(config)
    save_npz(tmp_path / "model.npz", weights, cfg.to_dict())
    out = tmp_path / "model.pkl"
    assert convert_weights.main([str(tmp_path / "model.npz"), str(out), "--to", "detectron2"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is True
    assert "# DIFFERS   FRCNN.MAX_SCALE=None, there 62.5" in printed
    assert pickle.loads(out.read_bytes()).keys() == {"__author__", "model"}
    with pytest.raises(ValueError, match="exists already"):
        convert_weights.main([str(tmp_path / "model.npz"), str(out), "--to", "detectron2"])
    with pytest.raises(ValueError, match=r"written as \.safetensors or \.pkl"):
        convert_weights.main([str(tmp_path / "model.npz"), str(tmp_path / "x.pth"), "--to", "torchvision"])
