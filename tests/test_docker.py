"""The Dockerfile, read from its text: nothing is built. What it copies, runs and who runs it."""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]


def instructions(text):
    """(instruction, its arguments in one line) of a Dockerfile; comments are left out and lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def stages(text):
    """The instructions of each stage, by its name ("" without one), in order."""
    found = {}
    for instruction, arguments in instructions(text):
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            found[name] = []
        found[name].append((instruction, base if instruction == "FROM" else arguments))
    return found


@pytest.fixture(scope="module")
def dockerfile():
    return stages(DOCKERFILE.read_text())


def commands_of(dockerfile):
    """Each command that is run while an image is built, in words."""
    for stage in dockerfile.values():
        for instruction, arguments in stage:
            if instruction == "RUN":
                yield from (shlex.split(command) for command in arguments.split("&&"))


def test_stages_are_made_from_one_base_of_a_fixed_version(dockerfile):
    assert list(dockerfile) == ["program", "jupyter", ""]
    bases = [stage[0][1] for stage in dockerfile.values()]
    assert bases[1:] == ["program", "program"]
    assert re.fullmatch(r"python:3\.1[0-3]\.\d+-slim-\w+", bases[0])


def test_what_is_run_is_not_root(dockerfile):
    users = [arguments for stage in dockerfile.values() for instruction, arguments in stage if instruction == "USER"]
    assert users == ["1000"]
    program = [instruction for instruction, _ in dockerfile["program"]]
    assert program.index("USER") < program.index("COPY")
    copies = [arguments for instruction, arguments in dockerfile["program"] if instruction == "COPY"]
    assert all(arguments.startswith("--chown=1000:1000 ") for arguments in copies)


def test_make_targets_exist_and_take_the_build_argument(dockerfile):
    calls = [command[command.index("make"):] for command in commands_of(dockerfile)
             if "make" in command and "apt-get" not in command]
    assert calls == [["make", "packages", "GPU=${GPU}"], ["make", "--touch", "packages", "GPU=${GPU}"],
                     ["make", "setup", "GPU=${GPU}"]]
    assert ("ARG", "GPU=0") in dockerfile["program"]
    for device, wanted in (("0", "requirements-cpu.txt"), ("1", "requirements-gpu.txt")):
        # --what-if: as if nothing were set up here.
        plan = subprocess.run(["make", "--dry-run", "--what-if=constraints.txt", "packages", f"GPU={device}"],
                              cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert f"--requirement {wanted}" in plan


def test_everything_the_makefile_installs_from_is_copied_before(dockerfile):
    first = next(arguments for instruction, arguments in dockerfile["program"] if instruction == "COPY")
    patterns = first.split()[1:-1]
    assert all(list(ROOT.glob(pattern)) for pattern in patterns)
    needed = set(re.findall(r"[\w-]+\.txt", (ROOT / "Makefile").read_text())) | {"requirements-cpu.txt", "Makefile"}
    for name in needed:
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), name


def test_a_second_copy_does_not_install_again(tmp_path):
    """Files copied again may be younger than the stamp of the layer before: --touch says that all is installed."""
    for file in [ROOT / "Makefile", *ROOT.glob("*.txt")]:
        shutil.copy(file, tmp_path)
    (tmp_path / ".venv").mkdir()
    stamp = tmp_path / ".venv" / "installed-gpu"
    stamp.touch()
    os.utime(stamp, (0, 0))
    is_done = ["make", "--question", "packages"]
    assert subprocess.run(is_done, cwd=tmp_path).returncode == 1
    subprocess.run(["make", "--touch", "packages", "GPU=1"], cwd=tmp_path, check=True, capture_output=True)
    assert subprocess.run(is_done, cwd=tmp_path).returncode == 0


def test_the_program_is_copied_and_what_git_ignores_is_not():
    for path in ("train.py", "predict.py", "FasterRCNN", "configs", "demo", "tests", "requirements-gpu.txt"):
        assert (ROOT / path).exists()
        assert not any(fnmatch.fnmatch(path, pattern) for pattern in IGNORED), path
    for line in (ROOT / ".gitignore").read_text().split():
        wanted = line.strip("/")
        assert {wanted, f"**/{wanted}"} & set(IGNORED), f".gitignore has {line}, .dockerignore has not"


def test_jupyter_is_pinned_and_keeps_its_token(dockerfile):
    stage = dict(dockerfile["jupyter"])
    assert re.search(r"jupyterlab==\d+\.\d+\.\d+$", stage["RUN"]) and "--constraint constraints.txt" in stage["RUN"]
    assert stage["EXPOSE"] == "8888"
    assert "token" not in stage["CMD"].lower() and "allow-root" not in stage["CMD"]
