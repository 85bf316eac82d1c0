"""ROIAlign over all maps at once as an operation in C++ (pooling_kernel.cc): the fastest form for processors.

`make setup` builds it with tools/build_kernel.py where there is a compiler. Without it pooling_matrix.py does the same,
a few times slower.
"""
import functools
import hashlib
import platform
from pathlib import Path

import tensorflow.compat.v1 as tf

SOURCE = Path(__file__).with_suffix(".cc")


def library_file():
    """Return the path of the built operation, which may not exist: one for each TensorFlow, processor and source."""
    source = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:8]
    return SOURCE.with_name(f"{SOURCE.stem}-tensorflow-{tf.__version__}-{platform.machine()}-{source}.so")


@functools.cache
def library():
    """Return the module of the operations, or None where they are not built; RuntimeError if they cannot be loaded."""
    file = library_file()
    if not file.exists():
        return None
    try:
        return tf.load_op_library(str(file))
    except tf.errors.NotFoundError as error:
        raise RuntimeError(
            f"{file} cannot be loaded: {error.message}. Delete it, and tools/build_kernel.py builds it anew") from None


def pool_by_kernel(features, boxes, level, image_index, size, samples, map_sizes):
    """Return the means of samples×samples values in each bin: list of B×h×w×C, R×4 cells -> R×size×size×C.

    level: R, which of the features each box reads and in whose cells it is; image_index: R. samples 0: as many as a bin
    spans cells. map_sizes: for each feature, int32 B×2, rows and columns of the images' maps, or 1×2. Where samples may
    lie, and what they read: as `pool_by_matrix`. The gradient is that of the features alone.
    """
    if not library():
        raise RuntimeError(f"{SOURCE.name} is not built: tools/build_kernel.py does that")
    return library().pyramid_roi_align(
        features=features, boxes=boxes, level=tf.cast(level, tf.int64), image=tf.cast(image_index, tf.int64),
        map_sizes=map_sizes, size=size, samples=samples)


@tf.RegisterGradient("PyramidRoiAlign")
def _gradient(op, of_pooled):
    count = op.get_attr("N")
    features, (boxes, level, image, *map_sizes) = op.inputs[:count], op.inputs[count:]
    of_features = library().pyramid_roi_align_grad(
        of_pooled=of_pooled, boxes=boxes, level=level, image=image, map_sizes=map_sizes,
        shapes=[tf.shape(feature) for feature in features], size=op.get_attr("size"), samples=op.get_attr("samples"))
    return [*of_features, *[None] * (3 + count)]
