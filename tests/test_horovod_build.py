"""What the build of Horovod decides before and around the compiler: patches, requirements, names, messages."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def build():
    """tools/build_horovod.py, which lies in no package."""
    spec = importlib.util.spec_from_file_location("build_horovod", ROOT / "tools/build_horovod.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def log(tmp_path):
    with open(tmp_path / "log.txt", "w", encoding="utf-8") as file:
        yield file


def write_source(build, folder):
    """Files that hold what the patches replace, between lines of their own; returns {path: text}."""
    texts = {}
    for patch in build.patches_for(gpu=True):
        texts[patch.path] = texts.get(patch.path, "first\n") + patch.old + "between\n"
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return texts


def test_patches_change_their_lines_and_nothing_else(build, tmp_path):
    write_source(build, tmp_path)
    build.apply_patches(tmp_path, build.patches_for(gpu=True))
    assert (tmp_path / "horovod/tensorflow/CMakeLists.txt").read_text(encoding="utf-8").splitlines() == [
        "first", "between", 'set(TF_TARGET_LIB "tensorflow")',
        "set(CMAKE_BUILD_WITH_INSTALL_RPATH TRUE)",
        'set(CMAKE_INSTALL_RPATH "$ORIGIN/../../nvidia/nccl/lib")', "between"]
    assert (tmp_path / "horovod/runner/js_run.py").read_text(encoding="utf-8").splitlines() == [
        "first", "from shutil import which as find_executable", "between"]
    source = (tmp_path / "horovod/tensorflow/mpi_ops.cc").read_text(encoding="utf-8")
    assert source.index("stream.h") < source.index("AsGpuStreamValue(Stream* stream) {")
    assert source.startswith("first\n#include") and source.endswith("}\n}\nbetween\n")


def test_only_gpus_need_the_patched_stream(build):
    assert not any(patch.path.endswith("mpi_ops.cc") for patch in build.patches_for(gpu=False))


@pytest.mark.parametrize("times", [0, 2])
def test_patch_that_does_not_fit_is_named(build, tmp_path, times):
    path = "horovod/tensorflow/CMakeLists.txt"
    texts = write_source(build, tmp_path)
    line = next(patch.old for patch in build.PATCHES if "xla_mpi_ops.cc" in patch.old)
    (tmp_path / path).write_text(texts[path].replace(line, line * times), encoding="utf-8")
    with pytest.raises(build.BuildError, match=f"{path} .*holds it {times} times: .*xla_mpi_ops.cc.*another version"):
        build.apply_patches(tmp_path, build.patches_for(gpu=True))


@pytest.mark.parametrize("missing, install", [
    (["g++"], "g++ cannot be found. Install: sudo apt-get install g++"),
    (["g++", "make"], "g++ and make cannot be found. Install: sudo apt-get install g++ make")])
def test_missing_compiler_is_named(build, monkeypatch, missing, install):
    monkeypatch.setattr(build.shutil, "which", lambda name: None if name in missing else f"/usr/bin/{name}")
    with pytest.raises(build.BuildError) as error:
        build.check_compilers(gpu=False)
    assert str(error.value).endswith(install)


def test_missing_compiler_is_told_before_any_download(build, tmp_path, monkeypatch):
    monkeypatch.setenv("HOROVOD_WHEELS", str(tmp_path / "wheels"))
    monkeypatch.setattr(build.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build, "run", lambda *args, **options: pytest.fail(f"ran {args[0]}"))
    with pytest.raises(build.BuildError, match="sudo apt-get install"):
        build.make_horovod(gpu=False)
    assert not (tmp_path / "wheels").exists()


def test_gpus_need_the_cuda_toolkit(build, tmp_path, monkeypatch):
    monkeypatch.setenv("HOROVOD_CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(build.shutil, "which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(build.BuildError, match="nvcc .* HOROVOD_CUDA_HOME="):
        build.check_compilers(gpu=True)
    (tmp_path / "include").mkdir()
    (tmp_path / "include/cuda_runtime.h").touch()
    build.check_compilers(gpu=True)
    assert build.cuda_home() == tmp_path


def test_key_tells_builds_apart(build):
    key = build.build_key("2.21.0", gpu=False, python="cpython-311", machine="x86_64")
    assert key == build.build_key("2.21.0", gpu=False, python="cpython-311", machine="x86_64")
    assert key.startswith("horovod-0.28.1-tensorflow-2.21.0-cpython-311-x86_64-cpu-")
    others = {build.build_key("2.21.1", gpu=False, python="cpython-311", machine="x86_64"),
              build.build_key("2.21.0", gpu=True, python="cpython-311", machine="x86_64"),
              build.build_key("2.21.0", gpu=False, python="cpython-312", machine="x86_64"),
              build.build_key("2.21.0", gpu=False, python="cpython-311", machine="aarch64")}
    assert len(others | {key}) == 5


def test_key_changes_with_the_patches(build, monkeypatch):
    key = build.build_key("2.21.0", gpu=False)
    monkeypatch.setattr(build, "PATCHES", build.PATCHES[1:])
    assert build.build_key("2.21.0", gpu=False) != key


def test_requirements_agree_with_the_constraints():
    def pins(name):
        lines = (line.partition("#")[0].partition(";")[0] for line in (ROOT / name).read_text("utf-8").splitlines())
        return dict(line.strip().split("==") for line in lines if "==" in line)

    constraints = pins("constraints.txt")
    wanted = pins("requirements-horovod.txt")
    assert {"cmake", "setuptools", "cloudpickle", "psutil"} == set(wanted)
    assert [name for name in wanted if constraints.get(name, wanted[name]) != wanted[name]] == []


@pytest.mark.parametrize("environment, folder", [
    ({"HOROVOD_WHEELS": "/big/wheels", "XDG_CACHE_HOME": "/cache"}, "/big/wheels"),
    ({"HOROVOD_WHEELS": "", "XDG_CACHE_HOME": "/cache"}, "/cache/fasterrcnn/horovod"),
    ({"HOROVOD_WHEELS": "", "XDG_CACHE_HOME": "", "HOME": "/home/someone"},
     "/home/someone/.cache/fasterrcnn/horovod")])
def test_folder_of_the_wheels(build, monkeypatch, environment, folder):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert build.wheels_folder() == Path(folder)


def test_build_uses_gloo_alone_and_the_cores_there_are(build, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(os, "sysconf", lambda name: 1024 if name == "SC_PAGE_SIZE" else 2**30 * 5 // 1024)
    environment = build.build_environment(gpu=False, scratch=tmp_path)
    assert environment["MAKEFLAGS"] == "-j2"  # 5 GiB: two compilers of 2
    assert environment["HOROVOD_WITH_TENSORFLOW"] == environment["HOROVOD_WITH_GLOO"] == "1"
    assert environment["HOROVOD_WITHOUT_MPI"] == "1"
    assert "HOROVOD_GPU_OPERATIONS" not in environment


def test_failure_shows_the_end_of_the_log(build, log):
    program = "print('early'); [print(f'line {i}') for i in range(50)]; raise SystemExit(3)"
    with pytest.raises(build.BuildError) as error:
        build.run([sys.executable, "-c", program], log, "Building")
    lines = str(error.value).splitlines()
    assert lines[0] == "Building failed (3). Its last lines:"
    assert lines[1:-1] == [f"line {i}" for i in range(50 - build.LOG_LINES, 50)]
    assert lines[-1] == f"The whole log: {log.name}"


def test_command_without_end_is_stopped(build, log):
    with pytest.raises(build.BuildError, match="no end within 1 seconds"):
        build.run([sys.executable, "-c", "import time; time.sleep(60)"], log, "The check", timeout=1)


def test_complete_installation_is_left_alone(build, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build.sys, "prefix", str(tmp_path))
    monkeypatch.setattr(build.util, "find_spec", lambda name: name == "horovod")
    monkeypatch.setattr(build, "run", lambda *args, **options: pytest.fail(f"ran {args[0]}"))
    (tmp_path / "installed-horovod").write_text(build.build_key(build.tensorflow_version(), gpu=False))
    build.make_horovod(gpu=False)
    assert capsys.readouterr().out.startswith("Nothing to do: Horovod 0.28.1 for TensorFlow ")
