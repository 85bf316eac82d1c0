"""Operations in C++ for processors, where TensorFlow's own are slow.

ROIAlign is in roi_align.cc, NMS in suppress.cc, pixels and the pool of the stem in stem.cc, convolutions and
products of matrices in amx.cc.

`make setup` builds them with tools/build_kernels.py where there is a compiler. Without them TensorFlow's operations do
the same, slower; so they do on GPUs and in exports, which other programs run.
"""
import ctypes
import functools
import hashlib
import platform
import sys
from pathlib import Path

import tensorflow.compat.v1 as tf

FOLDER = Path(__file__).resolve().parent
SOURCES = sorted(FOLDER.glob("*.cc"))
# Products and sums are rounded one by one, so that all processors give the same.
FLAGS = ("-O3", "-ffp-contract=off", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-psabi")


def library_file():
    """Return the path of what is built, which may not exist: its own for each TensorFlow, processor and source."""
    files = [*SOURCES, *sorted(FOLDER.glob("*.h"))]
    code = hashlib.sha256(" ".join(FLAGS).encode() + b"".join(file.read_bytes() for file in files))
    return FOLDER / f"kernels-tensorflow-{tf.__version__}-{platform.machine()}-{code.hexdigest()[:8]}.so"


@functools.cache
def library():
    """Return the module of the operations, or None where they are not built; RuntimeError if they cannot be loaded."""
    file = library_file()
    if not file.exists():
        if others := sorted(file.parent.glob("kernels-*.so")):
            print(f"note: {others[0].name} is of another TensorFlow or an older source, so slower operations take its "
                  "place: run tools/build_kernels.py", file=sys.stderr)
        return None
    try:
        return tf.load_op_library(str(file))
    except tf.errors.NotFoundError as error:
        raise RuntimeError(
            f"{file} cannot be loaded: {error.message}. Delete it, and tools/build_kernels.py builds it anew") from None


def built_library():
    """Return the module of the operations; RuntimeError where they are not built."""
    if not library():
        raise RuntimeError("the operations of FasterRCNN/ops/kernels are not built: tools/build_kernels.py does that")
    return library()


@functools.cache
def has_amx():
    """Tell whether the operations are built and this processor multiplies bfloat16 matrices with AMX."""
    if not library():
        return False
    question = ctypes.CDLL(str(library_file())).HasAmx
    question.restype = ctypes.c_bool
    return question()
