"""config.py: values, spellings, files, messages, cross-checks, and the command."""

import copy
import json
import logging
import os
import subprocess
import sys
import zipfile
from dataclasses import FrozenInstanceError
from pathlib import Path

import config
from config import ConfigError, UnknownKeyError, default_config, describe, finalize_configs, run_command

import pytest
import yaml

SCRIPT = Path(config.__file__).resolve()


def changed(*args):
    cfg = default_config()
    cfg.update_args(args)
    return cfg


def finalized(*args, training=False, **kwargs):
    cfg = changed(*args)
    finalize_configs(cfg, is_training=training, **kwargs)
    return cfg


@pytest.fixture(autouse=True)
def _notices_again():
    config._notice.cache_clear()


# ---------------------------------------------------------------- the table


def test_defaults_are_the_first_releases():
    cfg = default_config()
    assert (cfg.MODE_MASK, cfg.MODE_FPN, cfg.TRAIN.LR_SCHEDULE) == (True, False, "2x")
    assert (cfg.TRAIN.BASE_LR, cfg.TRAIN.WARMUP, cfg.TRAIN.WARMUP_INIT_LR) == (1e-2, 1000, 1e-5)
    assert cfg.BACKBONE.RESNET_NUM_BLOCKS == (3, 4, 6, 3)
    assert (cfg.FRCNN.BATCH_PER_IM, cfg.RPN.CROWD_OVERLAP_THRESH, cfg.TEST.RESULTS_PER_IM) == (512, 9.99, 100)
    assert cfg.CASCADE.BBOX_REG_WEIGHTS[2] == (30.0, 30.0, 15.0, 15.0)


def test_every_key_has_a_meaning_and_its_default_is_accepted():
    assert len(config.KEYS) == len(config.TABLE), "a key appears twice"
    for key in config.TABLE:
        assert key.help
        assert config._accept(key, key.default) == default_config()[key.name]


def test_every_printed_default_can_be_typed_again():
    cfg = changed(*repr(default_config()).splitlines())
    assert cfg == default_config()


def test_describe_shows_all_keys_or_those_asked_for():
    text = describe(changed("TRAIN.BASE_LR=0.02"))
    assert all(f"{name}=" in text for name in config.KEYS)
    assert "TRAIN.BASE_LR=0.02\n" in text and "(default 0.01)" in text
    assert describe(default_config(), ["freeze_at"]).splitlines()[0] == "BACKBONE.FREEZE_AT=2"
    assert describe(default_config(), ["nothing"]) == ""


# ---------------------------------------------------------------- values


@pytest.mark.parametrize(
    "arg, expected",
    [
        ("MODE_FPN=True", True),
        ("TRAIN.LR_SCHEDULE=1x", "1x"),
        ("TRAIN.LR_SCHEDULE='1x'", "1x"),
        ("TRAIN.LR_SCHEDULE=[240000,320000,360000]", (240000, 320000, 360000)),
        ("DATA.BASEDIR=/path/a=b", "/path/a=b"),
        ("DATA.BASEDIR=2017", "2017"),
        ("DATA.TRAIN=a.json:imgs", ("a.json:imgs",)),
        ("DATA.TRAIN=coco_train2017,b.json:imgs", ("coco_train2017", "b.json:imgs")),
        ("DATA.TRAIN=[a, b]", ("a", "b")),
        ("DATA.TRAIN=('a,b.json:c',)", ("a,b.json:c",)),
        ("DATA.TRAIN=", ()),
        ("DATA.CATEGORY_IDS=[0,7,90]", (0, 7, 90)),
        ("BACKBONE.RESNET_NUM_BLOCKS=[3,4,23,3]", (3, 4, 23, 3)),
        ("BACKBONE.NORM=None", "None"),
        ("TRAIN.NUM_GPUS=2", 2),
        ("TRAIN.NUM_GPUS=None", None),
        ("TRAIN.BASE_LR=1", 1.0),
        ("TRAIN.BASE_LR=2e-2", 0.02),
        ("FRCNN.BBOX_REG_WEIGHTS=[20,20,10,10]", (20.0, 20.0, 10.0, 10.0)),
    ],
)
def test_values_typed_on_the_command_line(arg, expected):
    value = changed(arg)[arg.split("=")[0]]
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    "arg, message",
    [
        ("FRCNN.BATCH_PER_IM=many", "FRCNN.BATCH_PER_IM='many': wants a whole number, e.g. FRCNN.BATCH_PER_IM=512"),
        ("FRCNN.BATCH_PER_IM=1.5", "wants a whole number"),
        ("FRCNN.BATCH_PER_IM=True", "wants a whole number"),
        ("TRAIN.BASE_LR=False", "wants a number"),
        ("TRAIN.BASE_LR=1e999", "wants a number"),
        ("MODE_FPN=1", "MODE_FPN='1': wants True or False"),
        ("TRAIN.NUM_GPUS=all", "wants a whole number or None"),
        ("BACKBONE.RESNET_NUM_BLOCKS=[3,4,6]", "a list of 4 whole numbers, e.g. BACKBONE.RESNET_NUM_BLOCKS=[3,4,6,3]"),
        ("BACKBONE.RESNET_NUM_BLOCKS=[3,4,6,0]", "must be at least 1"),
        ("CASCADE.BBOX_REG_WEIGHTS=[1,2]", "wants a list of lists of numbers"),
        ("DATA.CATEGORY_IDS=cat", "e.g. DATA.CATEGORY_IDS=[17,18]"),
        ("BACKBONE.NORM=BN", "BACKBONE.NORM=BN: must be one of FreezeBN, SyncBN, GN, None"),
        ("BACKBONE.FREEZE_AT=3", "must be one of 0, 1, 2"),
        ("RPN.FG_RATIO=0", "RPN.FG_RATIO=0.0: must be above 0 and at most 1"),
        ("TRAIN.IMS_PER_GPU=0", "must be at least 1"),
        ("TRAIN.STALL_TIMEOUT=5", "must be 0 or at least 20"),
        ("TRAIN.MOMENTUM=1", "at least 0 and below 1"),
        ("MODE_FPN", "KEY=VALUE"),
        ("FPN=1", "FPN is a group of keys and takes no value; its keys are FPN.ANCHOR_STRIDES, "),
    ],
)
def test_a_wrong_value_says_what_is_wanted(arg, message):
    with pytest.raises(ConfigError) as caught:
        changed(arg)
    assert message in str(caught.value)


def test_values_are_not_evaluated():
    with pytest.raises(ConfigError, match="wants a whole number"):
        changed("TRAIN.WARMUP=__import__('os').getpid()")


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("FRCNN.BATCH_PER_IMG", "FRCNN.BATCH_PER_IM"),
        ("train.base_lr", "TRAIN.BASE_LR"),
        ("IMS_PER_GPU", "TRAIN.IMS_PER_GPU or TEST.IMS_PER_GPU"),
        ("BACKBONE.RESNET_BLOCKS", "BACKBONE.RESNET_NUM_BLOCKS"),
    ],
)
def test_an_unknown_key_names_the_nearest(name, nearest):
    with pytest.raises(UnknownKeyError) as caught:
        changed(f"{name}=1")
    assert f"unknown config key {name!r}: did you mean {nearest}" in str(caught.value)


def test_an_unknown_key_like_no_other_points_to_the_list():
    with pytest.raises(UnknownKeyError, match=r"'XYZ': \./config.py lists them all"):
        changed("XYZ=1")


# ---------------------------------------------------------------- access


def test_attributes_and_items():
    cfg = default_config()
    cfg.TRAIN.BASE_LR = 0.02
    cfg["MODE_FPN"] = True
    assert cfg["TRAIN.BASE_LR"] == 0.02 and cfg.MODE_FPN is True
    assert not hasattr(cfg, "NOTHING") and not hasattr(cfg.TRAIN, "NOTHING")
    with pytest.raises(UnknownKeyError, match="did you mean TRAIN.BASE_LR"):
        _ = cfg.TRAIN.BASE_RL
    with pytest.raises(ConfigError, match="group of keys"):
        cfg.TRAIN = {}


def test_frozen_is_read_only_and_clone_is_not():
    cfg = default_config()
    cfg.freeze()
    for change in (lambda: setattr(cfg.TRAIN, "BASE_LR", 1.0), lambda: cfg.update_args(["MODE_FPN=True"])):
        with pytest.raises(FrozenInstanceError, match="read-only"):
            change()
    other = cfg.clone()
    other.MODE_FPN = True
    assert other != cfg and cfg == default_config()


def test_a_copy_keeps_values():
    cfg = changed("TRAIN.SEED=7")
    cfg.freeze()
    twin = copy.deepcopy(cfg)
    assert twin == cfg
    with pytest.raises(FrozenInstanceError):
        twin.MODE_FPN = True


# ---------------------------------------------------------------- old spellings


def test_old_spellings_are_accepted_with_one_notice(caplog):
    with caplog.at_level(logging.WARNING):
        cfg = changed("PREPROC.SHORT_EDGE_SIZE=500")
        cfg.update_args(["PREPROC.SHORT_EDGE_SIZE=600", "BACKBONE.RESNET_NUM_BLOCK=[3,4,23,3]"])
    assert cfg.PREPROC.TRAIN_SHORT_EDGE_SIZE == (600, 600) and cfg.PREPROC.TEST_SHORT_EDGE_SIZE == 600
    assert cfg.BACKBONE.RESNET_NUM_BLOCKS == (3, 4, 23, 3)
    assert len(caplog.messages) == 2
    assert "PREPROC.SHORT_EDGE_SIZE is an old spelling" in caplog.messages[0]


def test_old_spellings_say_what_they_want():
    with pytest.raises(ConfigError, match="PREPROC.TEST_SHORT_EDGE_SIZE='small': wants a whole number"):
        changed("PREPROC.SHORT_EDGE_SIZE=small")


def test_the_old_way_to_choose_how_masks_are_pasted():
    assert changed("MRCNN.ACCURATE_PASTE=True").MRCNN.PASTE == changed().MRCNN.PASTE == "exact"
    assert changed("MRCNN.ACCURATE_PASTE=False").MRCNN.PASTE == "rounded"
    with pytest.raises(ConfigError, match="MRCNN.PASTE='well': must be one of exact, rounded, padded|MRCNN.PASTE=well"):
        changed("MRCNN.ACCURATE_PASTE=well")


def test_old_data_set_names():
    cfg = changed("DATA.TRAIN=('train2014', 'valminusminival2014')", "DATA.VAL=minival2014")
    assert cfg.DATA.TRAIN == ("coco_train2014", "coco_valminusminival2014") and cfg.DATA.VAL == ("coco_minival2014",)


@pytest.mark.parametrize(
    "row",
    [
        "MODE_MASK=False FRCNN.BATCH_PER_IM=64 PREPROC.SHORT_EDGE_SIZE=600 PREPROC.MAX_SIZE=1024 "
        "TRAIN.LR_SCHEDULE=[150000,230000,280000]",
        "MODE_MASK=True MODE_FPN=True FPN.NORM=GN BACKBONE.NORM=GN FPN.FRCNN_HEAD_FUNC=fastrcnn_4conv1fc_gn_head "
        "FPN.MRCNN_HEAD_FUNC=maskrcnn_up4conv_gn_head",
        "MODE_MASK=True BACKBONE.RESNET_NUM_BLOCK=[3,4,23,3]",
    ],
)
def test_rows_of_the_predecessors_table(row):
    finalized(*row.split(), training=True, starts_from_weights=True)


# ---------------------------------------------------------------- files


def test_files_nested_and_dotted(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("MODE_FPN: true\nTRAIN.BASE_LR: 1e-3\nBACKBONE:\n  NORM: None\n  FREEZE_AT: 0\n")
    cfg = default_config()
    cfg.update_file(path)
    assert (cfg.MODE_FPN, cfg.TRAIN.BASE_LR, cfg.BACKBONE.NORM, cfg.BACKBONE.FREEZE_AT) == (True, 1e-3, "None", 0)


def test_an_empty_file_changes_nothing(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    cfg = default_config()
    cfg.update_file(path)
    assert cfg == default_config()


@pytest.mark.parametrize(
    "text, message",
    [
        ("TRIAN:\n  BASE_LR: 1\n", "did you mean TRAIN.BASE_LR"),
        ("TRAIN:\n  WARMUP: soon\n", "TRAIN.WARMUP='soon': wants a whole number"),
        ("TRAIN:\n", "TRAIN is a group of keys"),
        ("TRAIN.BASE_LR: {a: 1}\n", "TRAIN.BASE_LR={'a': 1}: wants a number"),
        ("- MODE_FPN\n", "wants lines of KEY: VALUE"),
        ("a: [\n", "not readable as YAML"),
        ("MODE_FPN: !!python/object/apply:os.getpid []\n", "not readable as YAML"),
    ],
)
def test_errors_of_a_file_name_file_and_key(tmp_path, text, message):
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        default_config().update_file(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.yaml does not exist"):
        default_config().update_file(tmp_path / "nowhere.yaml")


def test_yaml_and_json_round_trips(tmp_path):
    cfg = changed(
        "DATA.CLASS_NAMES=['no', 'naïve', '1']", "DATA.CATEGORY_IDS=[0,7,90]", "TRAIN.BASE_LR=1e-7",
        "TRAIN.LR_SCHEDULE=[10,20]", "BACKBONE.NORM=None", "DATA.BASEDIR=/a b/c",
    )  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(cfg.to_yaml(), encoding="utf-8")
    from_yaml, from_json = default_config(), default_config()
    from_yaml.update_file(path)
    from_json.update_dict(json.loads(json.dumps(cfg.to_dict())))
    assert from_yaml == cfg and from_json == cfg
    assert yaml.safe_load(cfg.to_yaml()) == cfg.to_dict()


# ---------------------------------------------------------------- cross-checks


def test_finalize_fills_in_and_freezes():
    cfg = finalized("MODE_FPN=True", "DATA.CLASS_NAMES=['a','b']", "DATA.BASEDIR=~/coco")
    assert cfg.PREPROC.MAX_SIZE == 1344 and cfg.DATA.NUM_CLASS == 2
    assert os.path.expanduser("~/coco") == cfg.DATA.BASEDIR
    with pytest.raises(FrozenInstanceError):
        cfg.MODE_FPN = False
    assert finalized().PREPROC.MAX_SIZE == 1333
    assert finalized("MODE_FPN=True", "FPN.ROUND_MAX_SIZE=False").PREPROC.MAX_SIZE == 1333
    again = cfg.clone()
    finalize_configs(again, is_training=False)
    assert again == cfg


def test_no_more_loader_processes_than_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    scratch = ("BACKBONE.FREEZE_AT=0", "BACKBONE.NORM=GN")
    assert finalized(*scratch, training=True).DATA.NUM_WORKERS == 3
    assert finalized(*scratch, "DATA.NUM_WORKERS=0", training=True).DATA.NUM_WORKERS == 0


@pytest.mark.parametrize(
    "args, message",
    [
        ("PREPROC.TRAIN_SHORT_EDGE_SIZE=[800,640]", "did you mean [640,800]?"),
        ("RPN.NEGATIVE_ANCHOR_THRESH=0.8", "=0.8: must not exceed RPN.POSITIVE_ANCHOR_THRESH=0.7"),
        ("RPN.ANCHOR_RATIOS=[]", "RPN.ANCHOR_RATIOS=[]: at least one"),
        ("RPN.ANCHOR_STRIDE=8", "RPN.ANCHOR_STRIDE=8: the C4 feature map has stride 16"),
        ("DATA.CATEGORY_IDS=[1,2] DATA.CLASS_NAMES=['a']", "DATA.CATEGORY_IDS=[1,2]: 1 wanted"),
        ("DATA.NUM_CLASS=3 DATA.CLASS_NAMES=['a']", "DATA.NUM_CLASS=3: there are 1 class names"),
        ("MODE_FPN=True RPN.ANCHOR_SIZES=[32,64]", "RPN.ANCHOR_SIZES=[32,64]: MODE_FPN=True takes one size"),
        ("MODE_FPN=True FPN.ANCHOR_STRIDES=[8,16,32,64,128]", "P2..P6 have the strides [4,8,16,32,64]"),
        ("FPN.CASCADE=True", "add MODE_FPN=True"),
        ("MODE_FPN=True FPN.CASCADE=True CASCADE.IOUS=[0.4,0.6,0.7]", "FRCNN.FG_THRESH=0.5; make the two equal"),
        ("MODE_FPN=True FPN.CASCADE=True CASCADE.BBOX_REG_WEIGHTS=[[1,1,1,1]]", "4 weights for each of the 3 stages"),
        ("BACKBONE.NORM=GN BACKBONE.CHANNELS=40", "BACKBONE.CHANNELS=40: group normalisation needs a multiple of 32"),
        ("MODE_FPN=True FPN.NORM=GN FPN.NUM_CHANNEL=100", "FPN.NUM_CHANNEL=100: group normalisation"),
        ("BACKBONE.SYMMETRIC_PAD=True BACKBONE.TF_PAD_MODE=True", "contradicts BACKBONE.TF_PAD_MODE=True"),
        ("BACKBONE.NORM=None BACKBONE.FREEZE_AFFINE=True", "use FREEZE_AFFINE=False"),
    ],
)
def test_keys_that_do_not_fit_each_other(args, message):
    with pytest.raises(ConfigError) as caught:
        finalized(*args.split())
    assert message in str(caught.value)


@pytest.mark.parametrize("schedule", ["0x", "10x", "fast", "[]", "[20,10]", "[0,10]"])
def test_learning_rate_schedules_that_are_none(schedule):
    with pytest.raises(ConfigError, match="TRAIN.LR_SCHEDULE=.*wants 1x .. 9x, or a rising list"):
        finalized(f"TRAIN.LR_SCHEDULE={schedule}", training=True, starts_from_weights=True)


def test_pyramid_keys_without_the_pyramid_are_told(caplog):
    finalized("FPN.NORM=GN")
    assert "without MODE_FPN=True nothing comes of FPN.NORM" in caplog.text


def test_frozen_layers_need_weights(caplog):
    with pytest.raises(ConfigError, match="BACKBONE.FREEZE_AT=2: .*or FREEZE_AT=0 to train from scratch"):
        finalized(training=True)
    finalized(training=True, starts_from_weights=True)
    finalized(training=False)
    finalized("BACKBONE.FREEZE_AT=0", training=True)
    assert "GN trains better from scratch" in caplog.text


@pytest.mark.parametrize("held, norm", [("bn", "FreezeBN"), ("gn", "GN"), ("", "None")])
def test_backbone_weights_must_fit_the_norm(tmp_path, held, norm):
    path = tmp_path / "weights.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("conv0/W.npy", b"")
        if held:
            archive.writestr(f"conv0/{held}/gamma.npy", b"")
    finalized(f"BACKBONE.WEIGHTS={path}", f"BACKBONE.NORM={norm}", training=True)
    other = "FreezeBN" if norm == "GN" else "GN"
    with pytest.raises(ConfigError, match=f"BACKBONE.NORM={other}: BACKBONE.WEIGHTS=.* fits BACKBONE.NORM={norm}"):
        finalized(f"BACKBONE.WEIGHTS={path}", f"BACKBONE.NORM={other}", training=True)


def test_missing_backbone_weights_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="BACKBONE.WEIGHTS=.*none.npz does not exist"):
        finalized(f"BACKBONE.WEIGHTS={tmp_path}/none.npz", training=True)


# ---------------------------------------------------------------- commands


def command(*args):
    return subprocess.run([sys.executable, str(SCRIPT), *args], capture_output=True, text=True, timeout=30)


def test_the_command_prints_the_keys():
    assert os.access(SCRIPT, os.X_OK)
    for args in ((), ("--help",)):
        shown = command(*args)
        assert shown.returncode == 0 and "RPN.PROPOSAL_NMS_THRESH=0.7" in shown.stdout
    assert yaml.safe_load(command("--yaml", "--config", "MODE_FPN=True").stdout)["MODE_FPN"] is True


def test_the_command_prints_a_mistake_as_one_line():
    shown = command("--config", "BATCH_PER_IM=3")
    assert shown.returncode == 2 and shown.stdout == ""
    assert shown.stderr.startswith("error: unknown config key 'BATCH_PER_IM': did you mean ")
    assert len(shown.stderr.splitlines()) == 1


def test_run_command_tells_mistakes_from_defects(capsys, monkeypatch):
    def mistake():
        raise ValueError("x=1 is wrong")

    assert run_command(lambda: None) == 0 and run_command(lambda: 3) == 3
    assert run_command(mistake) == 2 and capsys.readouterr().err == "error: x=1 is wrong\n"
    with pytest.raises(json.JSONDecodeError):
        run_command(lambda: json.loads("{"))
    monkeypatch.setenv("TRACEBACK", "1")
    with pytest.raises(ValueError, match="x=1"):
        run_command(mistake)


def test_no_tensorflow_at_import():
    code = "import sys, config; sys.exit(not {'tensorflow', 'numpy', 'yaml'}.isdisjoint(sys.modules))"
    subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, check=True, timeout=30)
