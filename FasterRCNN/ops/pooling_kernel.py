"""ROIAlign over all maps at once as an operation in C++ (kernels/roi_align.cc): the fastest form for processors."""
import tensorflow.compat.v1 as tf

from .kernels import built_library


def pool_by_kernel(features, boxes, level, image_index, size, samples, map_sizes):
    """Return the means of samples×samples values in each bin: list of B×h×w×C, R×4 cells -> R×size×size×C.

    level: R, which of the features each box reads and in whose cells it is; image_index: R. samples 0: as many as a bin
    spans cells. map_sizes: for each feature, int32 B×2, rows and columns of the images' maps, or 1×2. Where samples may
    lie, and what they read: as `pool_by_matrix`. The gradient is that of the features alone.
    """
    return built_library().pyramid_roi_align(
        features=features, boxes=boxes, level=tf.cast(level, tf.int64), image=tf.cast(image_index, tf.int64),
        map_sizes=map_sizes, size=size, samples=samples)


@tf.RegisterGradient("PyramidRoiAlign")
def _gradient(op, of_pooled):
    count = op.get_attr("N")
    features, (boxes, level, image, *map_sizes) = op.inputs[:count], op.inputs[count:]
    of_features = built_library().pyramid_roi_align_grad(
        of_pooled=of_pooled, boxes=boxes, level=level, image=image, map_sizes=map_sizes,
        shapes=[tf.shape(feature) for feature in features], size=op.get_attr("size"), samples=op.get_attr("samples"))
    return [*of_features, *[None] * (3 + count)]
