#!/usr/bin/env python3
"""Build Horovod for the TensorFlow of this Python, install it and let two processes add up a vector: `make horovod`.

    .venv/bin/python tools/build_horovod.py [--gpu]

Gloo on the CPU; with --gpu also NCCL, which needs NVIDIA's CUDA toolkit (nvcc). The wheel is kept for the next time in
~/.cache/fasterrcnn/horovod, or in the folder that the environment variable HOROVOD_WHEELS names, with the log of its
build. A complete installation is left as it is.
"""
import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

VERSION = "0.28.1"
SDIST_SHA256 = "92a43f5a94c43907a56805bad15f19700c62ffc83b7ca483f9e104e229f67ef0"
ROOT = Path(__file__).resolve().parent.parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
COMPILER_GIBIBYTES = 2  # of memory that g++ takes for one source with TensorFlow's headers
CHECK_SECONDS = 180
LOG_LINES = 40  # shown when something fails; the launcher alone ends with 25


class BuildError(Exception):
    """What the user is told, without a traceback."""


@dataclass(frozen=True)
class Patch:
    """`old`, which the file holds exactly once, becomes `new`."""
    path: str
    old: str
    new: str


PATCHES = (
    # Collectives inside XLA's programs: optional, not used here, and beyond compiling, since TensorFlow's package holds
    # XLA's headers without those that they include (xla/printer.h: no highwayhash/arch_specific.h).
    Patch("horovod/tensorflow/CMakeLists.txt",
          'list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n', ""),
    # TensorFlow's NCCL is a package beside it, on no path that the loader searches; Horovod shall use that same one.
    # CMake alone would write down the folder of the build, which is gone by then.
    Patch("horovod/tensorflow/CMakeLists.txt",
          'set(TF_TARGET_LIB "tensorflow")\n',
          'set(TF_TARGET_LIB "tensorflow")\nset(CMAKE_BUILD_WITH_INSTALL_RPATH TRUE)\n'
          'set(CMAKE_INSTALL_RPATH "$ORIGIN/../../nvidia/nccl/lib")\n'),
    # The sockets of the default process set otherwise listen at the address of the host's name, not of the interface
    # that HOROVOD_GLOO_IFACE names; on Debian that is 127.0.1.1, where no other host finds them.
    Patch("horovod/common/gloo/gloo_context.cc",
          "  attr device_attr;\n  device_attr.iface = gloo_iface_;\n  device_attr.ai_family = AF_UNSPEC;\n"
          "  auto dev = CreateDevice(device_attr);\n\n  global_ctx = global_context.ctx;\n",
          "  attr device_attr;\n  gloo_iface_ = global_context.gloo_iface_;\n"
          "  device_attr.iface = gloo_iface_;\n  device_attr.ai_family = AF_UNSPEC;\n"
          "  auto dev = CreateDevice(device_attr);\n\n  global_ctx = global_context.ctx;\n"),
    # horovodrun imports this file first; Python 3.12 has no distutils.
    Patch("horovod/runner/js_run.py",
          "from distutils.spawn import find_executable\n", "from shutil import which as find_executable\n"),
)

GPU_PATCHES = (
    # TensorFlow's package no longer holds this function, which only asked the stream for CUDA's handle.
    Patch("horovod/tensorflow/mpi_ops.cc",
          '#include "tensorflow/compiler/xla/stream_executor/stream.h"\n',
          '#include "tensorflow/compiler/xla/stream_executor/stream.h"\n'
          "namespace stream_executor::gpu {\n"
          "GpuStreamHandle AsGpuStreamValue(Stream* stream) {\n"
          "  return static_cast<GpuStreamHandle>(stream->platform_specific_handle().stream);\n"
          "}\n"
          "}\n"),
)


def patches_for(gpu: bool):
    return PATCHES + GPU_PATCHES if gpu else PATCHES


def apply_patches(source: Path, patches):
    """Changes the files of the unpacked `source`; BuildError names a file that does not hold what is to be replaced."""
    for patch in patches:
        file = source / patch.path
        text = file.read_text(encoding="utf-8")
        if text.count(patch.old) != 1:
            raise BuildError(f"{patch.path} of Horovod {VERSION} should hold this once, but holds it "
                             f"{text.count(patch.old)} times: {patch.old.strip()!r}. Is it another version's source?")
        file.write_text(text.replace(patch.old, patch.new), encoding="utf-8")


def tensorflow_version() -> str:
    for name in ("tensorflow", "tensorflow-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise BuildError(f"{sys.executable} has no TensorFlow to build Horovod for. Run `make setup` first.")


def build_key(tensorflow: str, gpu: bool, python: str = sys.implementation.cache_tag,
              machine: str = platform.machine()) -> str:
    """The name of a build: two of the same name can take each other's place."""
    recipe = hashlib.sha256(repr((SDIST_SHA256, patches_for(gpu))).encode()).hexdigest()[:8]
    return f"horovod-{VERSION}-tensorflow-{tensorflow}-{python}-{machine}-{'gpu' if gpu else 'cpu'}-{recipe}"


def wheels_folder() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HOROVOD_WHEELS") or cache / "fasterrcnn" / "horovod").expanduser().absolute()


def check_compilers(gpu: bool):
    """BuildError says what is not on this machine and how to install it."""
    missing = [name for name in ("g++", "make") if not shutil.which(name)]
    if missing:
        raise BuildError(f"Horovod is built from source, and {' and '.join(missing)} cannot be found. "
                         f"Install: sudo apt-get install {' '.join(missing)}")
    if gpu and not cuda_home():
        raise BuildError("Horovod for GPUs needs nvcc of NVIDIA's CUDA toolkit, and it cannot be found. Install "
                         "CUDA 12 (https://developer.nvidia.com/cuda-toolkit-archive), or name its folder: "
                         "make horovod HOROVOD_CUDA_HOME=/usr/local/cuda-12.9")


def cuda_home() -> Path | None:
    """The folder of the CUDA toolkit: HOROVOD_CUDA_HOME, that of the `nvcc` on the PATH, or /usr/local/cuda."""
    if named := os.environ.get("HOROVOD_CUDA_HOME"):
        candidates = [Path(named)]
    else:
        candidates = [Path(nvcc).resolve().parent.parent] if (nvcc := shutil.which("nvcc")) else []
        candidates.append(Path("/usr/local/cuda"))
    return next((home for home in candidates if (home / "include/cuda_runtime.h").exists()), None)


def build_environment(gpu: bool, scratch: Path) -> dict:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    jobs = max(1, min(len(os.sched_getaffinity(0)), int(memory / COMPILER_GIBIBYTES)))
    environment = dict(
        os.environ, HOROVOD_WITH_TENSORFLOW="1", HOROVOD_WITH_GLOO="1", HOROVOD_WITHOUT_MPI="1",
        HOROVOD_WITHOUT_PYTORCH="1", HOROVOD_WITHOUT_MXNET="1", MAKEFLAGS=f"-j{jobs}", TF_CPP_MIN_LOG_LEVEL="2",
        HOROVOD_CMAKE=str(Path(sys.executable).with_name("cmake")))
    if gpu:
        environment.update(HOROVOD_GPU_OPERATIONS="NCCL", HOROVOD_CUDA_HOME=str(cuda_home()),
                           HOROVOD_NCCL_HOME=str(nccl_home(scratch)), HOROVOD_NCCL_LINK="SHARED")
    return environment


def nccl_home(scratch: Path) -> Path:
    """A folder with NCCL as the linker wants it; TensorFlow's package does not have the name libnccl.so."""
    if named := os.environ.get("HOROVOD_NCCL_HOME"):
        return Path(named)
    try:
        package = Path(next(iter(util.find_spec("nvidia.nccl").submodule_search_locations)))
    except (AttributeError, ModuleNotFoundError):
        raise BuildError(f"{sys.executable} has no NCCL: its TensorFlow is the one for CPUs. "
                         "Run `make setup GPU=1` first.") from None
    home = scratch / "nccl"
    (home / "lib").mkdir(parents=True)
    (home / "lib/libnccl.so").symlink_to(package / "lib/libnccl.so.2")
    (home / "include").symlink_to(package / "include")
    return home


def run(command, log, what: str, **options):
    """Runs `command` with its output in the open file `log`; BuildError shows the end of it."""
    try:
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                **options).returncode
    except subprocess.TimeoutExpired as timeout:
        status = f"no end within {timeout.timeout:.0f} seconds"
    if status:
        tail = Path(log.name).read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        raise BuildError("\n".join([f"{what} failed ({status}). Its last lines:", *tail, f"The whole log: {log.name}"]))


def install_requirements(log):
    run([*PIP, "install", "--only-binary=:all:", "--requirement", ROOT / "requirements-horovod.txt",
         "--constraint", ROOT / "constraints.txt"], log, "Installing requirements-horovod.txt")


def build_wheel(gpu: bool, folder: Path, log) -> Path:
    """Download, patch and compile Horovod; return its wheel in `folder`, which appears there whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="horovod-") as scratch:
        scratch = Path(scratch)
        environment = build_environment(gpu, scratch)
        # pip compares the hash before it runs anything of the archive.
        pinned = scratch / "source.txt"
        pinned.write_text(f"horovod=={VERSION} --hash=sha256:{SDIST_SHA256}\n", encoding="utf-8")
        run([*PIP, "download", "--no-deps", "--no-binary=:all:", "--no-build-isolation", "--dest", scratch,
             "--requirement", pinned], log, f"Downloading Horovod {VERSION}", env=environment)
        shutil.unpack_archive(scratch / f"horovod-{VERSION}.tar.gz", scratch)
        source = scratch / f"horovod-{VERSION}"
        apply_patches(source, patches_for(gpu))
        run([*PIP, "wheel", "--verbose", "--no-deps", "--no-build-isolation", "--wheel-dir", scratch / "wheel", source],
            log, f"Building Horovod {VERSION}", env=environment)
        wheel = next((scratch / "wheel").glob("*.whl"))
        partial = folder / f"{wheel.name}.{os.getpid()}"
        shutil.copyfile(wheel, partial)
        return partial.replace(folder / wheel.name)


def check(log) -> str:
    """Let two processes train for a moment; return what carried their numbers, "Gloo" or "NCCL"."""
    what = "Horovod is installed, but its check with two processes"
    # First alone: of a library that cannot be loaded, horovodrun would only say that "Gloo has not been built".
    run([sys.executable, "-c", "import horovod.tensorflow"], log, what, timeout=CHECK_SECONDS)
    command = [Path(sys.executable).with_name("horovodrun"), "--gloo", "-np", "2", "-H", "localhost:2",
               sys.executable, __file__, "--worker"]
    run(command, log, what, timeout=CHECK_SECONDS,
        env=dict(os.environ, TF_CPP_MIN_LOG_LEVEL="2"))
    return re.findall("carried by (Gloo|NCCL)", Path(log.name).read_text(encoding="utf-8", errors="replace"))[-1]


def worker():
    """One process of the check: the sum over ranks and its gradient, in a graph, are what they must be."""
    import horovod.tensorflow as hvd
    import tensorflow.compat.v1 as tf

    tf.disable_eager_execution()
    hvd.init()
    on_gpu = hvd.nccl_built() and len(tf.config.list_physical_devices("GPU")) >= hvd.local_size()
    options = tf.ConfigProto(device_count={} if on_gpu else {"GPU": 0})
    options.gpu_options.visible_device_list = str(hvd.local_rank()) if on_gpu else ""
    with tf.device("/gpu:0" if on_gpu else "/cpu:0"):
        values = tf.placeholder(tf.float32, [3])  # TensorFlow would work out a constant's sum while it reads the graph
        total = hvd.allreduce(values, op=hvd.Sum)
        gradient = tf.gradients(tf.reduce_sum(total) * (hvd.rank() + 1), values)[0]
    with tf.Session(config=options) as session:
        feed = {values: [1.0 + hvd.rank(), 10.0, 100.0]}
        result = [array.tolist() for array in session.run([total, gradient], feed)]
    if hvd.size() != 2 or result != [[3.0, 20.0, 200.0], [3.0, 3.0, 3.0]]:
        sys.exit(f"wrong: {hvd.size()} processes, sum and gradient {result}")
    print(f"carried by {'NCCL' if on_gpu else 'Gloo'}")


def make_horovod(gpu: bool):
    tensorflow = tensorflow_version()
    key = build_key(tensorflow, gpu)
    stamp = Path(sys.prefix) / "installed-horovod"  # written last: an interrupted build starts again
    if util.find_spec("horovod") and stamp.exists() and stamp.read_text(encoding="utf-8") == key:
        print(f"Nothing to do: Horovod {VERSION} for TensorFlow {tensorflow} is in {sys.prefix}")
        return
    folder = wheels_folder() / key
    wheel = next(folder.glob("*.whl"), None)
    if not wheel:
        check_compilers(gpu)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        install_requirements(log)
        if wheel:
            print(f"Installing {wheel}", flush=True)
        else:
            print(f"Building Horovod {VERSION} for TensorFlow {tensorflow}: a few minutes. Log: {log.name}", flush=True)
            wheel = build_wheel(gpu, folder, log)
        run([*PIP, "install", "--no-deps", "--force-reinstall", wheel], log, f"Installing {wheel}")
        transport = check(log)
    stamp.write_text(key, encoding="utf-8")
    print(f"horovod {VERSION} works: 2 processes, {transport}, TensorFlow {tensorflow}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="exchange tensors of GPUs with NCCL")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker()
    try:
        make_horovod(args.gpu)
    except BuildError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
