"""detectron2: Faster, Mask and Cascade R-CNN, C4 and FPN, and its ImageNet ResNets.

Names after its modeling/backbone/resnet.py and fpn.py, proposal_generator/rpn.py, roi_heads/*.py, and
tools/convert-torchvision-to-d2.py.
"""

from FasterRCNN.foreign.sources.base import File, Source

_MODEL = r"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)?"
_BLOCK = rf"{_MODEL}res(\d)\.(\d+)"
_CONVENTIONS = {
    "RPN.MIN_SIZE": 1e-6, "TEST.RESULT_MIN_SIZE": 1e-6, "ROIALIGN.SAMPLES": 0, "ROIALIGN.ALIGNED": True,
    "MRCNN.PASTE": "exact", "PREPROC.RESIZE": "pillow", "PREPROC.SIZE_ROUNDING": "nearest"}


def _is_rgb(file: File) -> bool:
    if "pixel_mean" in file.arrays:  # red has the greatest mean of ImageNet's
        first, _, last = file.arrays["pixel_mean"].reshape(-1)
        return bool(first > last)
    return file.texts.get("__author__") == "torchvision"


def _config(file: File, keys, source) -> dict:
    to_rgb = slice(None) if source.is_rgb else slice(None, None, -1)
    # Microsoft's ResNets, the usual start, have their stride in the first 1x1 and take pixels as they are. Caffe2's
    # ResNeXt and torchvision's ResNets, which alone see RGB, take them divided; both and GN's stride in the 3x3.
    divides = keys.get("BACKBONE.NUM_GROUPS", 1) > 1 or source.is_rgb
    chosen = {"PREPROC.PIXEL_MEAN": [123.675, 116.28, 103.53],
              "PREPROC.PIXEL_STD": [58.395, 57.12, 57.375] if divides else [1.0, 1.0, 1.0],
              "BACKBONE.STRIDE_1X1": not divides and keys["BACKBONE.NORM"] != "GN"}
    for name, key in (("pixel_mean", "PREPROC.PIXEL_MEAN"), ("pixel_std", "PREPROC.PIXEL_STD")):
        if name in file.arrays:
            chosen[key] = [round(float(value), 6) for value in file.arrays[name].reshape(-1)[to_rgb]]
    return chosen


SOURCE = Source(
    name="detectron2", title="detectron2",
    marks=(rf"{_MODEL}stem\.conv1\.weight", rf"{_MODEL}res2\.0\.conv1\.weight"),
    norms=((".norm", "norm"),),
    layers=(
        (rf"{_MODEL}stem\.conv1", "conv0", ()),
        (rf"{_BLOCK}\.conv(\d)", "group{}/block{}/conv{}", (-2, 0, 0)),
        (rf"{_BLOCK}\.shortcut", "group{}/block{}/convshortcut", (-2, 0)),
        (r"backbone\.fpn_lateral(\d)", "fpn/lateral_1x1_c{}", (0,)),
        (r"backbone\.fpn_output(\d)", "fpn/posthoc_3x3_p{}", (0,)),
        (r"proposal_generator\.rpn_head\.conv", "rpn/conv0", ()),
        (r"proposal_generator\.rpn_head\.conv\.conv(\d)", "rpn/conv{}", (0,)),
        (r"proposal_generator\.rpn_head\.objectness_logits", "rpn/class", ()),
        (r"proposal_generator\.rpn_head\.anchor_deltas", "rpn/box", ()),
        (r"roi_heads\.box_head\.fc(\d)", "fastrcnn/fc{}", (5,)),
        (r"roi_heads\.box_head\.conv(\d)", "fastrcnn/conv{}", (-1,)),
        (r"roi_heads\.box_head\.(\d)\.fc(\d)", "cascade_rcnn_stage{}/head/fc{}", (1, 5)),
        (r"roi_heads\.box_head\.(\d)\.conv(\d)", "cascade_rcnn_stage{}/head/conv{}", (1, -1)),
        (r"roi_heads\.box_predictor\.cls_score", "fastrcnn/outputs/class", ()),
        (r"roi_heads\.box_predictor\.bbox_pred", "fastrcnn/outputs/box", ()),
        (r"roi_heads\.box_predictor\.(\d)\.cls_score", "cascade_rcnn_stage{}/outputs/class", (1,)),
        (r"roi_heads\.box_predictor\.(\d)\.bbox_pred", "cascade_rcnn_stage{}/outputs/box", (1,)),
        (r"roi_heads\.mask_head\.mask_fcn(\d)", "maskrcnn/fcn{}", (-1,)),
        (r"roi_heads\.mask_head\.deconv", "maskrcnn/deconv", ()),
        (r"roi_heads\.mask_head\.predictor", "maskrcnn/conv", ()),
    ),
    ignored=(
        (r"pixel_(mean|std)", "goes into the config"),
        (r"(stem\.)?(fc|linear|fc1000|pred)\.(weight|bias)", "ImageNet's classifier"),
        (r"sem_seg_head\..*", "semantic segmentation is not predicted here"),
    ),
    adapt=lambda file: {"is_rgb": _is_rgb(file)},
    config=_config, conventions=lambda is_fpn: _CONVENTIONS, background_last=True, mask_background=False,
)
