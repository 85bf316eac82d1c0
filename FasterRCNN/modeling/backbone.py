"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017) as Caffe2's and tensorpack's detectors use them.

Strides: conv0 and the pool bring 1/4, groups 1 to 3 halve it again. Map c2 is the output of group0 (stride 4), … c5 of
group3 (stride 32).
"""
from contextlib import contextmanager
from functools import partial

import tensorflow.compat.v1 as tf

from ..ops.layers import conv2d, frozen_variables
from ..ops.stem import stem_pool


def stride_two_padding(total, more_at):
    """Return (before, after) of a stride-2 layer, where `total` (odd) is all that a map of even size needs.

    more_at: where the odd one is: "before" (tensorpack's weights), "after" (TensorFlow's SAME), or at "both" sides
    (Caffe, PyTorch), so that maps of odd size round up.
    """
    small, large = total // 2, total - total // 2
    return {"before": (large, small), "after": (small, large), "both": (large, large)}[more_at]


class ResNet:
    """A bottleneck ResNet that returns the maps it is asked for.

    num_blocks: blocks of each of the four groups. norm, frozen_norm: as conv2d's, of the layers that are trained and
    of those that are not. freeze_at: 0 trains all, 1 freezes the stem, 2 also group0. freeze_affine: gamma and beta are
    not trained. pad_more_at: see `stride_two_padding`. channels: width of the stem. num_groups, width_per_group: of the
    3×3 convolutions; the width is that of group0 and doubles in each next. by_kernel: as `stem_pool`'s.
    """

    def __init__(self, *, num_blocks, norm, frozen_norm, freeze_at, freeze_affine, pad_more_at, stride_1x1, channels,
                 num_groups, width_per_group, crop_shortcut, by_kernel):
        self._num_blocks, self._norm, self._frozen_norm = num_blocks, norm, frozen_norm
        self._freeze_at, self._freeze_affine = freeze_at, freeze_affine
        self._pad_more_at, self._stride_1x1 = pad_more_at, stride_1x1
        self._crop_shortcut, self._crop_1x1 = crop_shortcut and pad_more_at != "both", pad_more_at != "both"
        self._channels, self._num_groups, self._width_per_group = channels, num_groups, width_per_group
        self._by_kernel = by_kernel

    def __call__(self, image, extent, num_groups=4):
        """Return the maps c2.. of the first `num_groups` groups: B×H×W×3 -> list of B×h×w×C."""
        with self._stage(1) as conv:
            x = self._stem(image, extent, conv)
        if self._freeze_at >= 1:
            x = tf.stop_gradient(x)
        maps = []
        for group in range(num_groups):
            x = self._group(x, group, lambda stride: extent.at(stride), stride=4 << max(group - 1, 0))
            if self._freeze_at >= 2 + group:
                x = tf.stop_gradient(x)
            maps.append(x)
        return maps

    def roi_group(self, x):
        """Run group3 on pooled RoIs, as the C4 head does: R×14×14×C -> R×7×7×2C."""
        # Boxes and, at inference, masks run through the same group.
        with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
            return self._group(x, 3, lambda stride: None, stride=16)

    @contextmanager
    def _stage(self, stage):
        """Yield conv2d as a stage wants it, 1 the stem, 2.. the groups; what is frozen is made so."""
        if stage <= self._freeze_at:
            with frozen_variables():
                yield partial(conv2d, norm=self._frozen_norm)
        elif self._freeze_affine:
            with frozen_variables(lambda name: name.endswith(("/gamma", "/beta"))):
                yield partial(conv2d, norm=self._norm)
        else:
            yield partial(conv2d, norm=self._norm)

    def _stem(self, image, extent, conv):
        pad = stride_two_padding(5, self._pad_more_at)
        x = conv(image, self._channels, 7, "conv0", stride=2, padding=(pad, pad), activation=tf.nn.relu,
                 extent=extent.at(2))
        return stem_pool(extent.at(2).clear(x), stride_two_padding(1, self._pad_more_at), by_kernel=self._by_kernel)

    def _group(self, x, group, extent_at, *, stride):
        """Run one group on a map of `stride` (pixels a cell); all but group0 halve the resolution."""
        with self._stage(2 + group) as conv, tf.variable_scope(f"group{group}"):
            for block in range(self._num_blocks[group]):
                halve = 2 if block == 0 and group > 0 else 1
                with tf.variable_scope(f"block{block}"):
                    x = self._bottleneck(x, group, halve, extent_at, stride, conv)
                stride *= halve
        return x

    def _bottleneck(self, x, group, halve, extent_at, stride, conv):
        """Return the residual block's output; `stride` is that of x, `halve` 1 or 2."""
        width, channels = self._num_groups * self._width_per_group << group, 4 * self._channels << group
        before, after = extent_at(stride), extent_at(stride * halve)
        shortcut = x
        if x.shape[-1] != channels:
            source = x[:, :-1, :-1] if self._crop_shortcut and halve == 2 else x
            shortcut = conv(source, channels, 1, "convshortcut", stride=halve, extent=after)
        if halve == 2 and self._stride_1x1:
            source = x[:, :-1, :-1] if self._crop_1x1 else x
            x = conv(source, width, 1, "conv1", stride=2, activation=tf.nn.relu, extent=after)
            before, halve = after, 1
        else:
            x = conv(x, width, 1, "conv1", activation=tf.nn.relu, extent=before)
        if before is not None:
            x = before.clear(x)
        conv_3x3 = partial(conv, groups=self._num_groups, activation=tf.nn.relu, extent=after)
        if halve == 2:
            pad = stride_two_padding(1, self._pad_more_at)
            x = conv_3x3(x, width, 3, "conv2", stride=2, padding=(pad, pad))
        else:
            x = conv_3x3(x, width, 3, "conv2")
        x = conv(x, channels, 1, "conv3", gamma_initializer=tf.zeros_initializer(), extent=after)
        # TensorFlow fuses this sum into the convolution; one by `+` only where it knows both shapes.
        return tf.nn.relu(tf.add_n([x, shortcut]))
