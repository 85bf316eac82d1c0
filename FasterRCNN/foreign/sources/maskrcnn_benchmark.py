"""maskrcnn-benchmark: Faster and Mask R-CNN, C4 and FPN.

Names after its modules: modeling/backbone/resnet.py, fpn.py, make_layers.py, rpn/rpn.py, roi_heads/*/roi_*.py.
"""

from FasterRCNN.foreign.sources.base import File, Source
from FasterRCNN.foreign.sources.detectron import conventions_of_caffe2

_BLOCK = r"(?:backbone\.body|roi_heads\.(?:box|mask)\.feature_extractor\.head)\.layer(\d)\.(\d+)"


_LAYERS = (
    (r"backbone\.body\.stem\.conv1", "conv0", ()),
    (r"backbone\.body\.stem\.bn1", "conv0/norm", ()),
    (rf"{_BLOCK}\.conv(\d)", "group{}/block{}/conv{}", (-1, 0, 0)),
    (rf"{_BLOCK}\.bn(\d)", "group{}/block{}/conv{}/norm", (-1, 0, 0)),
    (rf"{_BLOCK}\.downsample\.0", "group{}/block{}/convshortcut", (-1, 0)),
    (rf"{_BLOCK}\.downsample\.1", "group{}/block{}/convshortcut/norm", (-1, 0)),
    (r"backbone\.fpn\.fpn_inner(\d)(?:\.0)?", "fpn/lateral_1x1_c{}", (1,)),
    (r"backbone\.fpn\.fpn_inner(\d)\.1", "fpn/lateral_1x1_c{}/norm", (1,)),
    (r"backbone\.fpn\.fpn_layer(\d)(?:\.0)?", "fpn/posthoc_3x3_p{}", (1,)),
    (r"backbone\.fpn\.fpn_layer(\d)\.1", "fpn/posthoc_3x3_p{}/norm", (1,)),
    (r"rpn\.head\.conv", "rpn/conv0", ()),
    (r"rpn\.head\.cls_logits", "rpn/class", ()),
    (r"rpn\.head\.bbox_pred", "rpn/box", ()),
    (r"roi_heads\.box\.feature_extractor\.fc(\d)(?:\.0)?", "fastrcnn/fc{}", (0,)),
    (r"roi_heads\.box\.feature_extractor\.fc(\d)\.1", "fastrcnn/fc{}/norm", (0,)),
    (r"roi_heads\.box\.predictor\.cls_score", "fastrcnn/outputs/class", ()),
    (r"roi_heads\.box\.predictor\.bbox_pred", "fastrcnn/outputs/box", ()),
    (r"roi_heads\.mask\.feature_extractor\.mask_fcn(\d)(?:\.0)?", "maskrcnn/fcn{}", (-1,)),
    (r"roi_heads\.mask\.feature_extractor\.mask_fcn(\d)\.1", "maskrcnn/fcn{}/norm", (-1,)),
    (r"roi_heads\.mask\.predictor\.conv5_mask", "maskrcnn/deconv", ()),
    (r"roi_heads\.mask\.predictor\.mask_fcn_logits", "maskrcnn/conv", ()),
)


def _box_convs(file: File) -> tuple:
    """The convolutions of a 4conv1fc head: members of a row of conv, ReLU or of conv, GN, ReLU."""
    row = r"roi_heads\.box\.feature_extractor\.xconvs"
    step = 3 if file.has(rf"{row}\.3\.weight") else 2
    return tuple(layer for i in range(4) for layer in (
        (rf"{row}\.{step * i}", f"fastrcnn/conv{i}", ()), (rf"{row}\.{step * i + 1}", f"fastrcnn/conv{i}/norm", ())))


def _config(file, keys, source):
    # Models of Microsoft's ResNets have the stride in the first 1x1; those of ResNeXt and GN come from elsewhere.
    return {"PREPROC.PIXEL_MEAN": [122.7717, 115.9465, 102.9801], "PREPROC.PIXEL_STD": [1.0, 1.0, 1.0],
            "BACKBONE.STRIDE_1X1": keys.get("BACKBONE.NUM_GROUPS", 1) == 1 and keys["BACKBONE.NORM"] != "GN"}


def _conventions(is_fpn):
    return conventions_of_caffe2(is_fpn) | {"PREPROC.RESIZE": "pillow", "PREPROC.SIZE_ROUNDING": "short"}


SOURCE = Source(
    name="maskrcnn-benchmark", title="maskrcnn-benchmark", marks=(r"backbone\.body\.stem\.conv1\.weight",),
    layers=_LAYERS, adapt=lambda file: {"layers": _LAYERS + _box_convs(file)},
    config=_config, conventions=_conventions, epsilon=0.0, ratios_outside=True,
)
