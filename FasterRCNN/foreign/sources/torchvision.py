"""torchvision: Faster and Mask R-CNN with FPN, and its ImageNet classifiers.

The files of torchvision 0.13 and before call a layer of the pyramid `inner_blocks.0`, later ones `inner_blocks.0.0`;
likewise the RPN's and the mask head's convolutions. Both are read.
"""

from FasterRCNN.foreign.sources.base import File, Source

_IMAGENET = {"PREPROC.PIXEL_MEAN": [123.675, 116.28, 103.53], "PREPROC.PIXEL_STD": [58.395, 57.12, 57.375],
             "BACKBONE.STRIDE_1X1": False}

_RESNET = (
    (r"conv1", "conv0", ()),
    (r"bn1", "conv0/norm", ()),
    (r"layer(\d)\.(\d+)\.conv(\d)", "group{}/block{}/conv{}", (-1, 0, 0)),
    (r"layer(\d)\.(\d+)\.bn(\d)", "group{}/block{}/conv{}/norm", (-1, 0, 0)),
    (r"layer(\d)\.(\d+)\.downsample\.0", "group{}/block{}/convshortcut", (-1, 0)),
    (r"layer(\d)\.(\d+)\.downsample\.1", "group{}/block{}/convshortcut/norm", (-1, 0)),
)

_CONVENTIONS = {
    "BACKBONE.STRIDE_1X1": False, "RPN.ANCHOR_ROUNDING": "corners", "RPN.FIT_STRIDES": True, "RPN.MIN_SIZE": 1e-3,
    "TEST.RESULT_MIN_SIZE": 1e-2,
    "ROIALIGN.SAMPLES": 2, "ROIALIGN.ALIGNED": False, "MRCNN.PASTE": "padded", "PREPROC.RESIZE": "float",
    "PREPROC.SIZE_ROUNDING": "floor"}

DETECTION = Source(
    name="torchvision", title="torchvision's detection models", marks=(r"backbone\.body\.conv1\.weight",),
    layers=(
        *((rf"backbone\.body\.{pattern}", scope, shifts) for pattern, scope, shifts in _RESNET),
        (r"backbone\.fpn\.inner_blocks\.(\d)(?:\.0)?", "fpn/lateral_1x1_c{}", (2,)),
        (r"backbone\.fpn\.inner_blocks\.(\d)\.1", "fpn/lateral_1x1_c{}/norm", (2,)),
        (r"backbone\.fpn\.layer_blocks\.(\d)(?:\.0)?", "fpn/posthoc_3x3_p{}", (2,)),
        (r"backbone\.fpn\.layer_blocks\.(\d)\.1", "fpn/posthoc_3x3_p{}/norm", (2,)),
        (r"rpn\.head\.conv", "rpn/conv0", ()),
        (r"rpn\.head\.conv\.(\d)\.0", "rpn/conv{}", (0,)),
        (r"rpn\.head\.cls_logits", "rpn/class", ()),
        (r"rpn\.head\.bbox_pred", "rpn/box", ()),
        (r"roi_heads\.box_head\.fc(\d)", "fastrcnn/fc{}", (0,)),
        (r"roi_heads\.box_head\.([0-3])\.0", "fastrcnn/conv{}", (0,)),
        (r"roi_heads\.box_head\.([0-3])\.1", "fastrcnn/conv{}/norm", (0,)),
        (r"roi_heads\.box_head\.5", "fastrcnn/fc6", ()),
        (r"roi_heads\.box_predictor\.cls_score", "fastrcnn/outputs/class", ()),
        (r"roi_heads\.box_predictor\.bbox_pred", "fastrcnn/outputs/box", ()),
        (r"roi_heads\.mask_head\.mask_fcn(\d)", "maskrcnn/fcn{}", (-1,)),
        (r"roi_heads\.mask_head\.(\d)\.0", "maskrcnn/fcn{}", (0,)),
        (r"roi_heads\.mask_head\.(\d)\.1", "maskrcnn/fcn{}/norm", (0,)),
        (r"roi_heads\.mask_predictor\.conv5_mask", "maskrcnn/deconv", ()),
        (r"roi_heads\.mask_predictor\.mask_fcn_logits", "maskrcnn/conv", ()),
    ),
    # Its first COCO weights came from a FrozenBatchNorm2d without epsilon, and torchvision still sets it to 0 for them.
    adapt=lambda file: {"epsilon": 0.0} if _is_of_first_release(file) else {},
    config=lambda *_: _IMAGENET, conventions=lambda is_fpn: _CONVENTIONS,
    is_rgb=True, ratios_outside=True,
)

CLASSIFICATION = Source(
    name="torchvision-imagenet", title="torchvision's ImageNet classifiers",
    marks=(r"conv1\.weight", r"layer1\.0\.conv1\.weight"), layers=_RESNET,
    ignored=((r"fc\.(weight|bias)", "ImageNet's classifier"),),
    config=lambda *_: _IMAGENET,
    is_rgb=True,
)


def _is_of_first_release(file: File) -> bool:
    return file.has(r"backbone\.fpn\.inner_blocks\.0\.weight") and not file.has(r".*num_batches_tracked")
