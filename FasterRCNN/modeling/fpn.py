"""Feature pyramid network (Lin et al. 2017)."""
import tensorflow.compat.v1 as tf

from ..ops.layers import FAN_IN, conv2d, group_norm


def fpn(features, extent, *, channels, norm):
    """Return the maps P2..P6 from c2..c5: list of 4 B×h×w×C -> list of 5 B×h×w×channels. norm: 'None' or 'GN'."""
    def normalized(x, scope, stride):
        return group_norm(x, scope, extent=extent.at(stride)) if norm == "GN" else x

    with tf.variable_scope("fpn"):
        merged = []
        for level, feature in reversed(list(enumerate(features, start=2))):
            x = conv2d(feature, channels, 1, f"lateral_1x1_c{level}", initializer=FAN_IN)
            x = normalized(x, f"gn_c{level}", 1 << level)
            if merged:
                x = tf.add_n([x, upsample_nearest(merged[0])])
            merged.insert(0, x)
        levels = []
        for level, x in enumerate(merged, start=2):
            x = extent.at(1 << level).clear(x)
            x = conv2d(x, channels, 3, f"posthoc_3x3_p{level}", initializer=FAN_IN)
            x = normalized(x, f"gn_p{level}", 1 << level)
            levels.append(extent.at(1 << level).extend_edge(x))
        # Every second cell, as tensorpack's and Detectron's P6; as a slice with a step it would take ten times as long.
        levels.append(tf.nn.max_pool2d(levels[-1], 1, 2, "SAME"))
    return levels


def upsample_nearest(x):
    """Repeat every cell 2×2: B×h×w×C -> B×2h×2w×C."""
    with tf.get_default_graph().gradient_override_map({"ResizeNearestNeighbor": "UpsampleNearest"}):
        return tf.raw_ops.ResizeNearestNeighbor(images=x, size=2 * tf.shape(x)[1:3])


@tf.RegisterGradient("UpsampleNearest")
def _gradient_of_upsampling(op, of_output):
    # A pool is vectorised; TensorFlow's gradient takes seventeen times as long in bfloat16, three in float32.
    return 4 * tf.nn.avg_pool2d(of_output, 2, 2, "VALID"), None
