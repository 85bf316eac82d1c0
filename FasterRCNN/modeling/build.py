"""From the configuration to a detector. The one place inside the package that reads `cfg`."""
from functools import partial

import numpy as np
import tensorflow.compat.v1 as tf

from ..ops.layers import sync_batch_norm
from ..ops.roi_align import form_for_this_machine, multilevel_roi_align, roi_align
from ..ops.stem import normalize_image
from .backbone import ResNet
from .box_head import box_outputs, four_conv_one_fc_head, sample_rois, select_detections, two_fc_head
from .cascade import BoxStage
from .detector import Detector
from .fpn import fpn
from .mask_head import mask_head
from .rpn import propose, rpn_head, sample_anchors

DTYPES = {"fp32": tf.float32, "bf16": tf.bfloat16, "fp16": tf.float16}
BOX_HEADS = {
    "fastrcnn_2fc_head": two_fc_head,
    "fastrcnn_2fc_gn_head": partial(two_fc_head, norm="GN"),
    "fastrcnn_4conv1fc_head": four_conv_one_fc_head,
    "fastrcnn_4conv1fc_gn_head": partial(four_conv_one_fc_head, norm="GN"),
}
MASK_HEADS = {
    "maskrcnn_up4conv_head": mask_head,
    "maskrcnn_up4conv_gn_head": partial(mask_head, norm="GN"),
}


def on_one_device(x, name):
    """Return x: the sum over a single device."""
    return x


def build_detector(cfg, *, is_training=False, sum_over_devices=on_one_device, form=None):
    """Return the Detector that a finalized configuration describes.

    is_training: whether `losses` will be called, not `detect`; the two may differ in precision, and synchronised batch
    normalisation is frozen for prediction. Its sum_over_devices(vector, name) adds up a vector over the devices of a
    training step. form: of ROIAlign, one of FORMS of ops/roi_align.py, by default this machine's; with "kernel"
    suppression is an operation in C++ too, and pixels and the stem's pool are, unless XLA compiles them.
    """
    precision = cfg.TRAIN.PRECISION if is_training else cfg.TEST.PRECISION
    norm = partial(sync_batch_norm, sum_over_devices=sum_over_devices) if is_training else "FreezeBN"
    align, form = cfg.ROIALIGN, form or form_for_this_machine()
    is_compiled = is_training and cfg.TRAIN.XLA
    stem_by_kernel = form == "kernel" and not is_compiled
    backbone = resnet(cfg, norm if cfg.BACKBONE.NORM == "SyncBN" else cfg.BACKBONE.NORM, by_kernel=stem_by_kernel)
    sampling = {"samples": align.SAMPLES, "aligned": align.ALIGNED, "inclusive": align.INCLUSIVE,
                "form": form}
    parts = fpn_parts(cfg, backbone, sampling) if cfg.MODE_FPN else c4_parts(cfg, backbone, sampling)
    max_log_scale = float(np.log(cfg.FRCNN.MAX_SCALE or cfg.PREPROC.MAX_SIZE / 16.0))
    largest = -(-cfg.PREPROC.MAX_SIZE // parts["pad_multiple"]) * parts["pad_multiple"]
    strides = parts.pop("strides")
    anchor_sizes = parts.pop("anchor_sizes")
    stages = box_stages(cfg, parts.pop("box_network"), max_log_scale)
    return Detector(
        num_classes=cfg.DATA.NUM_CLASS,
        normalize=partial(normalize_image, mean=cfg.PREPROC.PIXEL_MEAN[::-1], std=cfg.PREPROC.PIXEL_STD[::-1],
                          dtype=DTYPES[precision], by_kernel=stem_by_kernel),
        rpn_head=partial(rpn_head, strides=strides, anchor_sizes=anchor_sizes, anchor_ratios=cfg.RPN.ANCHOR_RATIOS,
                         anchor_offset=cfg.RPN.ANCHOR_OFFSET, anchor_rounding=cfg.RPN.ANCHOR_ROUNDING,
                         fit_strides=cfg.RPN.FIT_STRIDES, num_convs=cfg.RPN.NUM_CONVS,
                         channels=cfg.FPN.NUM_CHANNEL if cfg.MODE_FPN else cfg.RPN.HEAD_DIM),
        sample_anchors=partial(
            sample_anchors, positive_thresh=cfg.RPN.POSITIVE_ANCHOR_THRESH,
            negative_thresh=cfg.RPN.NEGATIVE_ANCHOR_THRESH, crowd_overlap_thresh=cfg.RPN.CROWD_OVERLAP_THRESH,
            total=cfg.RPN.BATCH_PER_IM, foreground_ratio=cfg.RPN.FG_RATIO,
            # No image is larger, so that no batch's canvas changes the numbers that an image's anchors draw.
            sides=[-(-largest // stride) for stride in strides]),
        rpn_batch_per_image=cfg.RPN.BATCH_PER_IM,
        propose=proposal_function(cfg, max_log_scale, by_kernel=form == "kernel"),
        sample_rois=partial(sample_rois, total=cfg.FRCNN.BATCH_PER_IM, foreground_ratio=cfg.FRCNN.FG_RATIO,
                            foreground_thresh=cfg.FRCNN.FG_THRESH),
        box_stages=stages,
        halves_up=cfg.BACKBONE.SYMMETRIC_PAD,
        is_compiled=is_compiled,
        select_detections=partial(
            select_detections, decode=stages[-1].decode, score_thresh=cfg.TEST.RESULT_SCORE_THRESH,
            nms_thresh=cfg.TEST.FRCNN_NMS_THRESH, max_detections=cfg.TEST.RESULTS_PER_IM,
            min_size=cfg.TEST.RESULT_MIN_SIZE),
        **parts)


def proposal_function(cfg, max_log_scale, *, by_kernel):
    """Return propose(rpn, image_size, training) with the counts of the configured mode."""
    joint = cfg.MODE_FPN and cfg.FPN.PROPOSAL_MODE == "Joint"
    if cfg.MODE_FPN and not joint:
        counts = {True: (cfg.RPN.TRAIN_PER_LEVEL_NMS_TOPK,) * 2, False: (cfg.RPN.TEST_PER_LEVEL_NMS_TOPK,) * 2}
    else:
        counts = {True: (cfg.RPN.TRAIN_PRE_NMS_TOPK, cfg.RPN.TRAIN_POST_NMS_TOPK),
                  False: (cfg.RPN.TEST_PRE_NMS_TOPK, cfg.RPN.TEST_POST_NMS_TOPK)}

    def proposals(rpn, image_size, training):
        pre, post = counts[training]
        return propose(rpn, image_size, pre_nms_topk=pre, post_nms_topk=post, nms_thresh=cfg.RPN.PROPOSAL_NMS_THRESH,
                       min_size=cfg.RPN.MIN_SIZE, max_log_scale=max_log_scale, joint=joint,
                       keep_pixel=cfg.ROIALIGN.INCLUSIVE, by_kernel=by_kernel)
    return proposals


def resnet(cfg, norm, *, by_kernel):
    """Return the configured ResNet; norm: as conv2d's, of the layers that are trained; by_kernel: as `stem_pool`'s."""
    backbone = cfg.BACKBONE
    pad_more_at = "both" if backbone.SYMMETRIC_PAD else "after" if backbone.TF_PAD_MODE else "before"
    return ResNet(
        num_blocks=backbone.RESNET_NUM_BLOCKS, norm=norm, frozen_norm="FreezeBN" if callable(norm) else norm,
        freeze_at=backbone.FREEZE_AT, freeze_affine=backbone.FREEZE_AFFINE, pad_more_at=pad_more_at,
        stride_1x1=backbone.STRIDE_1X1, channels=backbone.CHANNELS, num_groups=backbone.NUM_GROUPS,
        width_per_group=backbone.WIDTH_PER_GROUP, crop_shortcut=not cfg.MODE_FPN, by_kernel=by_kernel)


def box_stages(cfg, network, max_log_scale):
    """Return the BoxStages: one of Fast R-CNN, or three of a cascade; network(R×h×w×C) -> R×C is that of a box head."""
    if not cfg.FPN.CASCADE:
        scopes = ("fastrcnn", "fastrcnn/outputs" if cfg.MODE_FPN else "fastrcnn")
        return (BoxStage("box", scoped_box_head(cfg, network, *scopes), foreground_thresh=cfg.FRCNN.FG_THRESH,
                         weights=tuple(cfg.FRCNN.BBOX_REG_WEIGHTS), max_log_scale=max_log_scale,
                         keep_pixel=cfg.ROIALIGN.INCLUSIVE),)
    return tuple(
        BoxStage(f"box/stage{i}", scoped_box_head(cfg, network, f"cascade_rcnn_stage{i}/head",
                                                  f"cascade_rcnn_stage{i}/outputs", class_agnostic=True),
                 foreground_thresh=iou, weights=weights, max_log_scale=max_log_scale,
                 keep_pixel=cfg.ROIALIGN.INCLUSIVE)
        for i, (iou, weights) in enumerate(zip(cfg.CASCADE.IOUS, cfg.CASCADE.BBOX_REG_WEIGHTS), start=1))


def scoped_box_head(cfg, network, network_scope, output_scope, class_agnostic=False):
    """Return box_head(features) -> (logits, deltas), with its variables under the two scopes."""
    def head(features):
        with tf.variable_scope(network_scope):
            features = network(features)
        with tf.variable_scope(output_scope):
            return box_outputs(features, cfg.DATA.NUM_CLASS, class_agnostic=class_agnostic)
    return head


def fpn_parts(cfg, backbone, sampling):
    """Return the parts of a detector that are particular to FPN. sampling: keyword arguments of `roi_align`."""
    strides = tuple(cfg.FPN.ANCHOR_STRIDES)

    def pooler(size):
        def pool(levels, boxes, image_index, extent):
            # Images are padded to whole cells of every level, so no sample lies beyond an image's own cells; but half a
            # cell off some may.
            return multilevel_roi_align(levels[:4], boxes, image_index, size, strides[:4],
                                        extent=None if cfg.ROIALIGN.ALIGNED else extent, **sampling)
        return pool

    mask_parts, order = {}, {"norm_before_relu": cfg.FPN.NORM_BEFORE_RELU}
    if cfg.MODE_MASK:
        network = partial(MASK_HEADS[cfg.FPN.MRCNN_HEAD_FUNC], **order)
        mask_parts = {"mask_features": pooler(14), "mask_head": scoped_mask_head(cfg, network, num_convs=4)}
    return {
        "pad_multiple": strides[3],
        "strides": strides,
        "anchor_sizes": [(size,) for size in cfg.RPN.ANCHOR_SIZES],
        "backbone": backbone,
        "neck": partial(fpn, channels=cfg.FPN.NUM_CHANNEL, norm=cfg.FPN.NORM),
        "box_features": pooler(7),
        "box_network": partial(BOX_HEADS[cfg.FPN.FRCNN_HEAD_FUNC], fc_dim=cfg.FPN.FRCNN_FC_HEAD_DIM,
                               conv_dim=cfg.FPN.FRCNN_CONV_HEAD_DIM, **order),
        **mask_parts,
    }


def c4_parts(cfg, backbone, sampling):
    """Return the parts of a detector that are particular to C4: group3 of the ResNet is the head of the RoIs.

    sampling: keyword arguments of `roi_align`.
    """
    stride = cfg.RPN.ANCHOR_STRIDE

    def box_features(levels, boxes, image_index, extent):
        pooled = roi_align(levels[0], boxes, image_index, 14, stride, extent.at(stride), **sampling)
        return backbone.roi_group(pooled)

    return {
        "pad_multiple": 1,
        "strides": (stride,),
        "anchor_sizes": [tuple(cfg.RPN.ANCHOR_SIZES)],
        "backbone": partial(backbone, num_groups=3),
        "neck": lambda maps, extent: [extent.at(stride).extend_edge(maps[-1])],
        "box_features": box_features,
        "box_network": lambda x: tf.reduce_mean(x, axis=[1, 2], keepdims=True)[:, 0, 0],
        "mask_head": scoped_mask_head(cfg, mask_head, num_convs=0) if cfg.MODE_MASK else None,
    }


def scoped_mask_head(cfg, network, *, num_convs):
    """Return mask_head(features, labels) -> logits, with its variables under `maskrcnn`."""
    def head(features, labels):
        with tf.variable_scope("maskrcnn"):
            return network(features, labels, cfg.DATA.NUM_CLASS, num_convs=num_convs, channels=cfg.MRCNN.HEAD_DIM)
    return head
