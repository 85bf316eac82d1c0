"""Claiming a run's folder, and what it tells about the run."""

import json
import os
import subprocess

import numpy
import pytest
import yaml

from FasterRCNN.engine.run_folder import claim_run_folder, commit_of, describe_run, versions


def claim(logdir, resume=False, overwrite=False):
    claim_run_folder(logdir, resume=resume, overwrite=overwrite)


def describe(logdir, argv=("./train.py", "--config", "A=[1, 2]"), **kwargs):
    arguments = {"config_yaml": "MODE_MASK: true\n", "seed": 5, "devices": ["CPU, 2 cores"], **kwargs}
    describe_run(logdir, argv=argv, **arguments)
    return json.loads((logdir / "run.json").read_text())


def test_new_and_empty_folders_are_claimed(tmp_path):
    claim(tmp_path / "a" / "b")
    claim(tmp_path / "a" / "b")
    claim(tmp_path / "c", overwrite=True)
    assert (tmp_path / "a" / "b").is_dir() and (tmp_path / "c").is_dir()


def test_folder_in_use(tmp_path):
    (tmp_path / "model-5.index").touch()
    with pytest.raises(ValueError, match=r"is not empty: go on with its run \(--resume\), give another --logdir"):
        claim(tmp_path)
    assert (tmp_path / "model-5.index").exists()


def test_overwrite_deletes_a_run_and_nothing_else(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    claim(run)
    describe(run)
    (run / "model-5.index").touch()
    claim(run, overwrite=True)
    assert list(run.iterdir()) == []
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"other is not a run's folder \(no run.json\), so it is not deleted"):
        claim(other, overwrite=True)
    assert (other / "thesis.tex").exists()


def test_resume_needs_a_run(tmp_path):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match="--resume: there is no run in .*; give its folder as --logdir"):
            claim(folder, resume=True)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="--resume goes on with a run and --overwrite deletes it"):
        claim(tmp_path, resume=True, overwrite=True)


def test_logdir_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file: give a folder"):
        claim(tmp_path / "file")


def test_description(tmp_path):
    (start,) = describe(tmp_path)["starts"]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"MODE_MASK": True}
    assert start["argv"] == ["./train.py", "--config", "A=[1, 2]"]
    assert start["command"] == "./train.py --config 'A=[1, 2]'"
    assert start["seed"] == 5
    assert start["versions"]["numpy"] == numpy.__version__ and "tensorpack" in start["versions"]
    assert start["host"]["cpu_count"] == os.cpu_count() and start["host"]["devices"] == ["CPU, 2 cores"]
    assert start["date"].endswith("+00:00")
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "run.json"}


def test_a_resumed_run_tells_both_starts(tmp_path):
    describe(tmp_path)
    starts = describe(tmp_path, argv=("./train.py", "--resume"), config_yaml="MODE_MASK: false\n")["starts"]
    assert [start["argv"][1] for start in starts] == ["--config", "--resume"]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"MODE_MASK": False}


def test_tensorflow_is_among_the_versions():
    assert any(name.startswith("tensorflow") for name in versions())


def test_commit(tmp_path):
    def git(*args):
        command = ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e@x", *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert commit_of(tmp_path) is None
    git("init")
    assert commit_of(tmp_path) is None
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "first")
    assert commit_of(tmp_path) == {"id": git("rev-parse", "HEAD").strip(), "dirty": False}
    (tmp_path / "a").write_text("2")
    assert commit_of(tmp_path)["dirty"] is True
