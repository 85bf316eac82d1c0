"""The detector: one class for C4 and FPN, one box head or a cascade, with or without masks.

Letters: B images, H×W pixels, A anchors of an image, G ground-truth slots, P proposals, S sampled RoI slots, R filled
RoI slots of the batch, K classes without background, D detections, M mask side.
"""
from collections.abc import Callable
from dataclasses import dataclass

import tensorflow.compat.v1 as tf

from ..ops.compiled import compiled
from ..ops.extent import BatchExtent
from .box_head import compact, expand, image_indices, with_one_filled
from .cascade import BoxStage, score_boxes, train_boxes
from .losses import mask_loss, rpn_losses
from .mask_head import gather_bytes, mask_targets
from .metrics import mask_metrics, named, rpn_metrics


@dataclass(frozen=True)
class Detector:
    """A detector made of its parts; `build_detector` makes it from the configuration.

    pad_multiple: what image sizes are padded to, in pixels. halves_up: the backbone rounds up where it halves a map.
    is_compiled: XLA compiles what reads whole images; these may then be padded further than to pad_multiple.
    normalize(image, image_size) -> B×H×W×3 in the type that the network computes in
    backbone(image, extent) -> maps; neck(maps, extent) -> levels that the heads read
    rpn_head(levels, extent) -> RPNOutput; sample_anchors(rpn, …) -> AnchorSample
    propose(rpn, image_size, training) -> Proposals; sample_rois(proposals, …) -> RoISample
    box_features(levels, boxes, image_index, extent) -> R×h×w×C, read by the head of each of box_stages
    select_detections(boxes, deltas, scores, valid, image_size) -> FinalBoxes
    mask_features like box_features, or None: masks are read from the box features
    mask_head(R×h×w×C, labels R) -> logits R×M×M of each one's class, or None: boxes only
    """

    pad_multiple: int
    num_classes: int
    normalize: Callable
    backbone: Callable
    neck: Callable
    rpn_head: Callable
    sample_anchors: Callable
    propose: Callable
    sample_rois: Callable
    box_features: Callable
    box_stages: tuple[BoxStage, ...]
    select_detections: Callable
    rpn_batch_per_image: int
    mask_features: Callable | None = None
    mask_head: Callable | None = None
    halves_up: bool = False
    is_compiled: bool = False

    def losses(self, *, image, image_size, gt_boxes, gt_labels, image_seeds, gt_masks=None):
        """Return (losses, metrics), two dicts of scalars, for a batch of training images.

        image uint8 or float32 B×H×W×3 BGR, image_size int32 B×2 (h, w), gt_boxes float32 B×G×4 (pixels), gt_labels
        int32 B×G (1..K, 0 empty, −1 crowd), gt_masks uint8 B×G×s×(s/8) (bitmaps in the boxes' frames, packed along x),
        image_seeds int32 B×2: every random choice of an image follows from its seed.
        """
        _, levels, extent = self.features(image, image_size)
        with compiled(self.is_compiled):
            rpn = self.rpn_head(levels, extent)
        anchors = self.sample_anchors(rpn, image_size, gt_boxes, gt_labels, image_seeds)
        losses, objectness = {}, tf.concat(rpn.objectness, 1)
        losses["rpn/loss_cls"], losses["rpn/loss_box"] = rpn_losses(
            objectness, tf.concat(rpn.deltas, 1), anchors, total=self.rpn_batch_per_image)
        metrics = named("rpn", rpn_metrics(objectness, anchors))

        proposals = self.propose(rpn, image_size, training=True)
        rois = self.sample_rois(proposals, gt_boxes, gt_labels, image_seeds)
        box_losses, of_boxes, features = train_boxes(
            self.box_stages, self._pool(levels, extent), rois, image_size, gt_boxes, gt_labels)
        losses.update(box_losses)
        metrics.update(of_boxes)
        if self.mask_head:
            losses["mask/loss"], of_masks = self._train_masks(levels, extent, features, rois, gt_boxes, gt_masks)
            metrics.update(of_masks)
        return losses, metrics

    def detect(self, image, image_size):
        """Return the detections of a batch: image uint8 or float32 B×H×W×3 BGR, image_size int32 B×2 (h, w).

        A dict of boxes float32 B×D×4 (pixels), scores float32 B×D, labels int32 B×D (1..K, 0 = empty slot),
        num_detections int32 B and, with a mask head, masks float32 B×D×M×M (probabilities in the frame of the box).
        """
        _, levels, extent = self.features(image, image_size)
        scored = self.score_proposals(levels, extent, image_size)
        final = self.select_detections(*scored, image_size)
        result = {"boxes": final.boxes, "scores": final.scores, "labels": tf.cast(final.labels, tf.int32),
                  "num_detections": tf.cast(final.count, tf.int32)}
        if self.mask_head:
            result["masks"] = self.masks(levels, extent, final.boxes, final.labels)
        return result

    def features(self, image, image_size):
        """Return (backbone maps, levels that the heads read, BatchExtent)."""
        extent = BatchExtent(image_size, self.pad_multiple, tf.shape(image)[1:3], halves_up=self.halves_up,
                             without_branches=self.is_compiled)
        with compiled(self.is_compiled):
            maps = self.backbone(self.normalize(image, image_size), extent)
            return maps, self.neck(maps, extent), extent

    def score_proposals(self, levels, extent, image_size):
        """Return what `select_detections` takes: boxes B×P×4 (pixels), deltas, scores B×P×(K+1), valid bool B×P."""
        proposals = self.propose(self.rpn_head(levels, extent), image_size, training=False)
        scored = self.score_boxes(levels, extent, proposals.boxes, proposals.valid, image_size)
        return *scored, proposals.valid

    def score_boxes(self, levels, extent, boxes, valid, image_size):
        """Return what `cascade.score_boxes` makes of proposals: boxes B×P×4 (pixels), valid bool B×P."""
        return score_boxes(self.box_stages, self._pool(levels, extent), boxes, valid, image_size)

    def masks(self, levels, extent, boxes, labels):
        """Return B×D×M×M probabilities in the frames of boxes B×D×4 (pixels), of their labels int64 B×D (0: none)."""
        filled = with_one_filled(labels > 0)
        pool = self.mask_features or self.box_features
        features = pool(levels, compact(boxes, filled), image_indices(filled), extent)
        logits = self.mask_head(features, compact(labels, filled))
        return expand(tf.sigmoid(logits), filled) * tf.cast(labels > 0, tf.float32)[:, :, None, None]

    def _pool(self, levels, extent):
        return lambda boxes, filled: self.box_features(levels, compact(boxes, filled), image_indices(filled), extent)

    def _train_masks(self, levels, extent, box_features, rois, gt_boxes, gt_masks):
        box_filled = with_one_filled(rois.is_chosen)
        filled = with_one_filled(rois.is_foreground, among=box_filled)
        boxes, image_index = compact(rois.boxes, filled), image_indices(filled)
        if self.mask_features:
            features = self.mask_features(levels, boxes, image_index, extent)
        else:
            features = compact(box_features, compact(filled, box_filled))
        logits = self.mask_head(features, compact(rois.labels, filled))
        objects = tf.stack([image_index, compact(rois.matched, filled)], axis=1)
        targets = mask_targets(boxes, tf.gather_nd(gt_boxes, objects), gather_bytes(gt_masks, objects), logits.shape[1])
        is_foreground = compact(rois.is_foreground, filled)
        loss = mask_loss(logits, targets, is_foreground, image_index, filled.shape[0])
        return loss, named("mask", mask_metrics(logits, targets, is_foreground))
