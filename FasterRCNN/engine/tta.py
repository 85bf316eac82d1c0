"""Test-time augmentation: photos are looked at in several sizes and mirrored, and what is seen becomes one result.

A view is a batch of photos in one size, mirrored or not. The proposals of all views, with their scores and deltas, are
taken to the pixels of the first view, where the detector selects among them as it does among its own; so one view alone
is plain inference. Then each view gives masks for the boxes that were selected, and their mean is the mask.
B images, P proposals, C deltas a proposal, D detections, M mask side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow.compat.v1 as tf

from FasterRCNN.engine.predictor import MIN_SIDE, Batch, Network, Predictor
from FasterRCNN.structures import ImageList, to_image_list

MIRRORED_AXES = {"horizontal": 0, "vertical": 1}  # of coordinates (x, y)


@dataclass(frozen=True)
class View:
    """A batch of photos as the network sees it; axis: the coordinate that is mirrored, 0 is x, 1 is y, or None."""

    images: ImageList
    axis: int | None

    @property
    def sizes(self) -> np.ndarray:
        """(w, h) of each image without padding, float32 B×1×2."""
        return self.images.image_sizes[:, None, ::-1].astype(np.float32)

    def boxes_to(self, other: View, boxes: np.ndarray) -> np.ndarray:
        """Boxes B×P×4 of this view in the pixels of another view."""
        corners = _mirror(boxes.reshape(*boxes.shape[:2], 2, 2), self.sizes, self.axis)
        corners = corners * (other.sizes / self.sizes)[:, :, None]
        return _mirror(corners, other.sizes, other.axis).reshape(boxes.shape)

    def deltas_unmirrored(self, deltas: np.ndarray) -> np.ndarray:
        """Deltas B×P×C×4 as of boxes that are not mirrored; they are relative to the boxes' sizes."""
        return deltas if self.axis is None else deltas * np.where(np.arange(4) == self.axis, -1, 1).astype(np.float32)

    def masks_unmirrored(self, masks: np.ndarray) -> np.ndarray:
        """Masks B×D×M×M as of boxes that are not mirrored."""
        return masks if self.axis is None else np.flip(masks, -1 - self.axis)


def _mirror(corners: np.ndarray, sizes: np.ndarray, axis: int | None) -> np.ndarray:
    """Corners B×P×2×2 (low and high; x and y) in the images of `sizes` B×1×2, mirrored along `axis`."""
    if axis is None:
        return corners
    mirrored = corners.copy()
    mirrored[..., axis] = sizes[..., axis, None] - corners[..., ::-1, axis]
    return mirrored


@dataclass
class ViewedBatch(Batch):
    """A batch with all its views; images: those of the first, in whose pixels the outputs are."""

    views: list[View]


class AugmentedPredictor(Predictor):
    """A predictor that runs its network on every view of a batch, one after another."""

    def __init__(
        self,
        detector: Any,
        weights: Mapping[str, np.ndarray],
        *,
        scales: Sequence[int],
        flips: Sequence[str],
        **options: Any,
    ):
        """scales: shorter sides of the views, pixels; max_size grows with those above short_edge.

        flips: "horizontal" and "vertical": each scale is seen as it is, and mirrored by each. options: as Predictor's.
        """
        super().__init__(detector, weights, **options)
        self._scales, self._axes = scales, [None, *(MIRRORED_AXES[flip] for flip in flips)]

    def _make_network(self, detector: Any, weights: Mapping[str, np.ndarray], **options: Any) -> SteppedNetwork:
        return SteppedNetwork(detector, weights, **options)

    def prepare(self, numbered: list[tuple[int, np.ndarray]]) -> ViewedBatch:
        """The views of a batch of numbered images."""
        numbers, photos = zip(*numbered)
        views = []
        for scale in self._scales:
            longest = self._max_size * max(1, scale / self._short_edge)
            resized = [self._resize(photo, scale, longest) for photo in photos]
            for axis in self._axes:
                seen = resized if axis is None else [np.flip(image, 1 - axis) for image in resized]
                views.append(View(to_image_list(seen, self._pad_multiple, min_side=MIN_SIDE), axis))
        return ViewedBatch(numbers, [photo.shape[1::-1] for photo in photos], views[0].images, views)

    def run_batch(self, batch: ViewedBatch) -> tuple[ViewedBatch, dict[str, np.ndarray]]:
        """A batch, and the detector's outputs from all its views, in the pixels of the first."""
        with self._free_network() as network:
            return batch, self._run_views(network, batch.views)

    def _run_views(self, network: SteppedNetwork, views: Sequence[View]) -> dict[str, np.ndarray]:
        first = views[0]
        candidates, levels = [], []
        for view in views:
            boxes, deltas, scores, valid, *of_masks = network.score(view.images.tensors, view.images.image_sizes)
            candidates.append((view.boxes_to(first, boxes), view.deltas_unmirrored(deltas), scores, valid))
            levels.append(of_masks)
        of_all = [np.concatenate(parts, axis=1) for parts in zip(*candidates)]
        boxes, scores, labels, count = network.select(*of_all, first.images.image_sizes)
        outputs = {"boxes": boxes, "scores": scores, "labels": labels.astype(np.int32), "num_detections": count}
        if self.with_masks:
            masks = [
                view.masks_unmirrored(network.masks(
                    view.images.tensors, view.images.image_sizes, *of_view, first.boxes_to(view, boxes), labels))
                for view, of_view in zip(views, levels, strict=True)
            ]
            outputs["masks"] = np.mean(masks, axis=0)
        return outputs


class SteppedNetwork(Network):
    """A network whose steps run one by one.

    score(image, image_size) -> what the detector selects from, and, of a model with masks, the levels that its heads
    read. select(boxes, deltas, scores, valid, image_size) -> boxes, scores, labels, count. masks(image, image_size,
    *levels, boxes, labels) -> masks.
    """

    def __init__(self, detector: Any, weights: Mapping[str, np.ndarray], **options: Any):
        steps = _Steps(detector)
        super().__init__(steps, weights, **options)
        inputs, levels = [steps.image, steps.image_size], steps.levels if steps.masks is not None else []
        self.score = self.session.make_callable([*steps.scored, *levels], inputs)
        self.select = self.session.make_callable(steps.final, [*steps.candidates, steps.image_size])
        if steps.masks is not None:
            self.masks = self.session.make_callable(steps.masks, [*inputs, *levels, *steps.boxes_and_labels])


class _Steps:
    """A detector in whose graph the tensors between its steps can be read and replaced."""

    def __init__(self, detector: Any):
        self._detector = detector
        self.masks: tf.Tensor | None = None

    def detect(self, image: tf.Tensor, image_size: tf.Tensor) -> dict[str, tf.Tensor]:
        """As Detector.detect."""
        self.image, self.image_size = image, image_size
        _, self.levels, extent = self._detector.features(image, image_size)
        self.scored = self._detector.score_proposals(self.levels, extent, image_size)
        self.candidates = [  # of any number
            tf.placeholder_with_default(part, [part.shape[0], None, *part.shape[2:]]) for part in self.scored
        ]
        final = self._detector.select_detections(*self.candidates, image_size)
        self.final = [final.boxes, final.scores, final.labels, final.count]
        outputs = {"boxes": final.boxes, "scores": final.scores, "labels": tf.cast(final.labels, tf.int32),
                   "num_detections": tf.cast(final.count, tf.int32)}
        if self._detector.mask_head:
            self.boxes_and_labels = [
                tf.placeholder_with_default(part, part.shape) for part in (final.boxes, final.labels)
            ]
            self.masks = outputs["masks"] = self._detector.masks(self.levels, extent, *self.boxes_and_labels)
        return outputs
