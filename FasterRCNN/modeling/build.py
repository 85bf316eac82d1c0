"""From the configuration to a detector. The one place inside the package that reads `cfg`."""
from functools import partial

import numpy as np
import tensorflow.compat.v1 as tf

from ..ops.roi_align import multilevel_roi_align, roi_align
from .backbone import ResNet, normalize_image
from .box_head import box_outputs, four_conv_one_fc_head, sample_rois, select_detections, two_fc_head
from .detector import Detector
from .fpn import fpn
from .mask_head import mask_head
from .rpn import propose, rpn_head, sample_anchors

BOX_HEADS = {
    "fastrcnn_2fc_head": two_fc_head,
    "fastrcnn_4conv1fc_head": four_conv_one_fc_head,
    "fastrcnn_4conv1fc_gn_head": partial(four_conv_one_fc_head, norm="GN"),
}
MASK_HEADS = {
    "maskrcnn_up4conv_head": mask_head,
    "maskrcnn_up4conv_gn_head": partial(mask_head, norm="GN"),
}


def build_detector(cfg):
    """Return the Detector that a finalized configuration describes."""
    parts = fpn_parts(cfg) if cfg.MODE_FPN else c4_parts(cfg)
    max_log_scale = float(np.log(cfg.PREPROC.MAX_SIZE / 16.0))
    strides = parts.pop("strides")
    anchor_sizes = parts.pop("anchor_sizes")
    return Detector(
        num_classes=cfg.DATA.NUM_CLASS,
        normalize=partial(normalize_image, mean=cfg.PREPROC.PIXEL_MEAN[::-1], std=cfg.PREPROC.PIXEL_STD[::-1]),
        rpn_head=partial(rpn_head, strides=strides, anchor_sizes=anchor_sizes, anchor_ratios=cfg.RPN.ANCHOR_RATIOS,
                         channels=cfg.FPN.NUM_CHANNEL if cfg.MODE_FPN else cfg.RPN.HEAD_DIM),
        sample_anchors=partial(
            sample_anchors, positive_thresh=cfg.RPN.POSITIVE_ANCHOR_THRESH,
            negative_thresh=cfg.RPN.NEGATIVE_ANCHOR_THRESH, crowd_overlap_thresh=cfg.RPN.CROWD_OVERLAP_THRESH,
            total=cfg.RPN.BATCH_PER_IM, foreground_ratio=cfg.RPN.FG_RATIO,
            # No image is larger, so that no batch's canvas changes the numbers that an image's anchors draw.
            sides=[-(-cfg.PREPROC.MAX_SIZE // stride) for stride in strides]),
        rpn_batch_per_image=cfg.RPN.BATCH_PER_IM,
        propose=proposal_function(cfg, max_log_scale),
        sample_rois=partial(sample_rois, total=cfg.FRCNN.BATCH_PER_IM, foreground_ratio=cfg.FRCNN.FG_RATIO,
                            foreground_thresh=cfg.FRCNN.FG_THRESH),
        box_weights=tuple(cfg.FRCNN.BBOX_REG_WEIGHTS),
        select_detections=partial(
            select_detections, weights=tuple(cfg.FRCNN.BBOX_REG_WEIGHTS), max_log_scale=max_log_scale,
            score_thresh=cfg.TEST.RESULT_SCORE_THRESH, nms_thresh=cfg.TEST.FRCNN_NMS_THRESH,
            max_detections=cfg.TEST.RESULTS_PER_IM),
        **parts)


def proposal_function(cfg, max_log_scale):
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
                       min_size=cfg.RPN.MIN_SIZE, max_log_scale=max_log_scale, joint=joint)
    return proposals


def resnet(cfg):
    """Return the configured ResNet."""
    return ResNet(
        num_blocks=cfg.BACKBONE.RESNET_NUM_BLOCKS, norm=cfg.BACKBONE.NORM, freeze_at=cfg.BACKBONE.FREEZE_AT,
        freeze_affine=cfg.BACKBONE.FREEZE_AFFINE, tf_pad_mode=cfg.BACKBONE.TF_PAD_MODE,
        stride_1x1=cfg.BACKBONE.STRIDE_1X1, channels=cfg.BACKBONE.CHANNELS, crop_shortcut=not cfg.MODE_FPN)


def fpn_parts(cfg):
    """Return the parts of a detector that are particular to FPN."""
    strides = tuple(cfg.FPN.ANCHOR_STRIDES)
    box_network = partial(BOX_HEADS[cfg.FPN.FRCNN_HEAD_FUNC], fc_dim=cfg.FPN.FRCNN_FC_HEAD_DIM,
                          conv_dim=cfg.FPN.FRCNN_CONV_HEAD_DIM)

    def box_head(features):
        with tf.variable_scope("fastrcnn"):
            features = box_network(features)
            with tf.variable_scope("outputs"):
                return box_outputs(features, cfg.DATA.NUM_CLASS)

    def pooler(size):
        def pool(levels, boxes, image_index, extent):
            # Images are padded to whole cells of every level, so no sample lies beyond an image's own cells.
            return multilevel_roi_align(levels[:4], boxes, image_index, size, strides[:4])
        return pool

    mask_parts = {}
    if cfg.MODE_MASK:
        network = MASK_HEADS[cfg.FPN.MRCNN_HEAD_FUNC]
        mask_parts = {"mask_features": pooler(14), "mask_head": scoped_mask_head(cfg, network, num_convs=4)}
    return {
        "pad_multiple": strides[3],
        "strides": strides,
        "anchor_sizes": [(size,) for size in cfg.RPN.ANCHOR_SIZES],
        "backbone": resnet(cfg),
        "neck": partial(fpn, channels=cfg.FPN.NUM_CHANNEL, norm=cfg.FPN.NORM),
        "box_features": pooler(7),
        "box_head": box_head,
        **mask_parts,
    }


def c4_parts(cfg):
    """Return the parts of a detector that are particular to C4: group3 of the ResNet is the head of the RoIs."""
    backbone = resnet(cfg)
    stride = cfg.RPN.ANCHOR_STRIDE

    def box_features(levels, boxes, image_index, extent):
        pooled = roi_align(levels[0], boxes, image_index, 14, stride, extent=extent.at(stride))
        return backbone.roi_group(pooled)

    def box_head(features):
        with tf.variable_scope("fastrcnn"):
            return box_outputs(tf.reduce_mean(features, axis=[1, 2]), cfg.DATA.NUM_CLASS)

    return {
        "pad_multiple": 1,
        "strides": (stride,),
        "anchor_sizes": [tuple(cfg.RPN.ANCHOR_SIZES)],
        "backbone": partial(backbone, num_groups=3),
        "neck": lambda maps, extent: [extent.at(stride).extend_edge(maps[-1])],
        "box_features": box_features,
        "box_head": box_head,
        "mask_head": scoped_mask_head(cfg, mask_head, num_convs=0) if cfg.MODE_MASK else None,
    }


def scoped_mask_head(cfg, network, *, num_convs):
    """Return mask_head(features) -> logits, with its variables under `maskrcnn`."""
    def head(features):
        with tf.variable_scope("maskrcnn"):
            return network(features, cfg.DATA.NUM_CLASS, num_convs=num_convs, channels=cfg.MRCNN.HEAD_DIM)
    return head
