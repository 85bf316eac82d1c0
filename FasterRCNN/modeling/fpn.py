"""Feature pyramid network (Lin et al. 2017)."""
import tensorflow.compat.v1 as tf

from ..ops.layers import FAN_IN, conv2d, group_norm
from ..ops.resampling import every_nth_cell, upsample_nearest


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
        levels.append(every_nth_cell(levels[-1], 2))
    return levels
