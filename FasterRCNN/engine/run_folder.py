"""A run's folder: claimed before training, and describing how the run came about. No TensorFlow."""

import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"
PACKAGES = (
    "tensorflow",
    "tensorflow-cpu",
    "tensorpack",
    "numpy",
    "opencv-python",
    "opencv-python-headless",
    "pycocotools",
)


def check_run_folder(logdir: Path, *, resume: bool, overwrite: bool) -> None:
    """Raises ValueError for a folder in use, FileNotFoundError when there is no run to resume; changes nothing."""
    if resume and overwrite:
        raise ValueError("--resume goes on with a run and --overwrite deletes it: give one of them")
    if logdir.exists() and not logdir.is_dir():
        raise ValueError(f"--logdir {logdir} is a file: give a folder")
    is_used, is_run = _is_used(logdir), (logdir / RUN_FILE).is_file()
    if resume and not is_run:
        raise FileNotFoundError(f"--resume: there is no run in {logdir}; give its folder as --logdir")
    if is_used and not resume and not overwrite:
        raise ValueError(
            f"{logdir} is not empty: go on with its run (--resume), give another --logdir, or delete it (--overwrite)"
        )
    if is_used and overwrite and not is_run:
        raise ValueError(f"--overwrite: {logdir} is not a run's folder (no {RUN_FILE}), so it is not deleted")


def claim_run_folder(logdir: Path, *, resume: bool, overwrite: bool) -> None:
    """Makes the folder, once it is checked; with `overwrite` the run that is there is deleted first."""
    check_run_folder(logdir, resume=resume, overwrite=overwrite)
    if overwrite and _is_used(logdir):
        shutil.rmtree(logdir)
    logdir.mkdir(parents=True, exist_ok=True)


def _is_used(logdir: Path) -> bool:
    return logdir.is_dir() and any(logdir.iterdir())


def describe_run(logdir: Path, *, config_yaml: str, argv: Sequence[str], seed: int, devices: Sequence[str]) -> None:
    """Writes config.yaml, and adds this start (command, versions, commit, seed, host, date) to those in run.json."""
    path = logdir / RUN_FILE
    earlier = json.loads(path.read_text(encoding="utf-8"))["starts"] if path.is_file() else []
    start = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(argv),
        "argv": list(argv),
        "directory": os.getcwd(),
        "seed": seed,
        "commit": commit_of(Path(__file__).parent),
        "versions": versions(),
        "host": {"system": platform.platform(), "cpu_count": os.cpu_count(), "devices": list(devices)},
    }
    write_atomically(logdir / CONFIG_FILE, config_yaml)
    write_atomically(path, json.dumps({"starts": [*earlier, start]}, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Python's version and those of the packages that decide a result, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit_of(folder: Path) -> dict | None:
    """{"id": …, "dirty": whether tracked files differ from it}, or None when the folder is in no git repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"id": commit, "dirty": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *args: str) -> str:
    command = ["git", "-C", str(folder), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file that is never seen half written."""
    scratch = path.with_name(f".{path.name}.partial")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)
