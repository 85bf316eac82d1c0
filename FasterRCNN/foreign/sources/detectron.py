"""Detectron (Caffe2): Faster and Mask R-CNN, C4 and FPN, and the ImageNet ResNets of Microsoft and Caffe2.

Names after its modeling/ResNet.py, FPN.py, rpn_heads.py, fast_rcnn_heads.py and mask_rcnn_heads.py. Its batch
normalisations are a scale and a shift. Microsoft's ResNets as detectron2 publishes them keep these names, and have the
statistics besides, under names of its checkpoint/c2_model_loading.py.
"""

import re

from FasterRCNN.foreign.sources.base import File, Source

_IGNORED = (
    (r"(fc1000|pred)_[wb]", "ImageNet's classifier"),
    # Of the ImageNet ResNets; a model that was trained from one of them keeps in its file what it did not read.
    (r"(conv1|(_\[mask\]_)?res\d_\d+_branch(1|2[abc]))_b", "Detectron does not read it: its convolutions have no bias"),
    (r"lr|weight_order", "the state of a training run"),
)
_BLOCK = r"(?:_\[mask\]_)?res(\d)_(\d+)"


def _is_of_detectron2(file: File) -> bool:
    """Whether detectron2 has published the file, which keeps the names of these ImageNet models."""
    return "__author__" in file.texts or file.has(r".*_bn_running_var")


def conventions_of_caffe2(is_fpn: bool) -> dict:
    """Config keys of its detectors, and of maskrcnn-benchmark's, which follow it: corners are pixels, both inside."""
    return {"RPN.ANCHOR_OFFSET": 0.5, "RPN.ANCHOR_ROUNDING": "sides", "ROIALIGN.SAMPLES": 2 if is_fpn else 0,
            "ROIALIGN.ALIGNED": False, "ROIALIGN.INCLUSIVE": True, "MRCNN.PASTE": "padded", "PREPROC.RESIZE": "float",
            "PREPROC.SIZE_ROUNDING": "nearest"}


def _adapt(file: File) -> dict:
    # detectron2 reads the statistics of Caffe2's ResNeXt, which Detectron ignores.
    if not (_is_of_detectron2(file) and file.has(r".*_bn_riv")):
        return {}
    return {"norms": (("_bn", "norm"), ("_gn", "group")), "ignored": _IGNORED}


def _config(file: File, keys, source) -> dict:
    # A trained model's file holds the YAML of its run beside the blobs.
    of_run = file.texts.get("cfg", "")
    told = re.search(r"\bSTRIDE_1X1: (true|false)\b", of_run, re.IGNORECASE)
    # So does its utils/net.py with files of before that key.
    weights = {"FRCNN.BBOX_REG_WEIGHTS": [1.0] * 4} if of_run and "BBOX_REG_WEIGHTS" not in of_run else {}
    is_resnext, is_published_anew = keys.get("BACKBONE.NUM_GROUPS", 1) > 1, _is_of_detectron2(file)
    return {"PREPROC.PIXEL_MEAN": [123.675, 116.28, 103.53] if is_published_anew else [122.7717, 115.9465, 102.9801],
            "PREPROC.PIXEL_STD": [58.395, 57.12, 57.375] if is_published_anew and is_resnext else [1.0, 1.0, 1.0],
            "BACKBONE.STRIDE_1X1": told[1].lower() == "true" if told else (
                not is_resnext and keys["BACKBONE.NORM"] != "GN"), **weights}


SOURCE = Source(
    name="detectron", title="Detectron (Caffe2)", marks=(r"conv1_w", r"res2_0_branch2a_w"), separator="_",
    variables={"w": "weight", "s": "weight", "b": "bias", "rm": "mean", "riv": "variance",
               "gamma": "weight", "beta": "bias", "running_mean": "mean", "running_var": "variance"},
    norms=(("_bn", "affine"), ("_gn", "group")),
    layers=(
        (r"(?:res_)?conv1", "conv0", ()),
        (rf"{_BLOCK}_branch2a", "group{}/block{}/conv1", (-2, 0)),
        (rf"{_BLOCK}_branch2b", "group{}/block{}/conv2", (-2, 0)),
        (rf"{_BLOCK}_branch2c", "group{}/block{}/conv3", (-2, 0)),
        (rf"{_BLOCK}_branch1", "group{}/block{}/convshortcut", (-2, 0)),
        (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?", "fpn/lateral_1x1_c{}", (0,)),
        (r"fpn_res(\d)_\d+_sum", "fpn/posthoc_3x3_p{}", (0,)),
        (r"conv_rpn(?:_fpn2)?", "rpn/conv0", ()),
        (r"rpn_cls_logits(?:_fpn2)?", "rpn/class", ()),
        (r"rpn_bbox_pred(?:_fpn2)?", "rpn/box", ()),
        (r"fc([67])", "fastrcnn/fc{}", (0,)),
        (r"head_conv(\d)", "fastrcnn/conv{}", (-1,)),
        (r"cls_score", "fastrcnn/outputs/class", ()),
        (r"bbox_pred", "fastrcnn/outputs/box", ()),
        (r"_\[mask\]_fcn(\d)", "maskrcnn/fcn{}", (-1,)),
        (r"conv5_mask", "maskrcnn/deconv", ()),
        (r"mask_fcn_logits", "maskrcnn/conv", ()),
    ),
    ignored=(*_IGNORED, (r".*_bn_(rm|riv)",
                         "Detectron does not read it: its batch normalisations are a scale and a shift")),
    adapt=_adapt,
    config=_config, conventions=conventions_of_caffe2, ratios_outside=True,
)
