#!/usr/bin/env python3
"""Writes the files of this folder, once: tiny models and odd tensors as PyTorch and torchvision write them, and what
torchvision, and the programs of restated.py, detect.

    python tests/foreign/make_files.py

Needs torch and torchvision (2.14.1 and 0.29.1 wrote what is here); the tests do not.
"""

import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import Bottleneck

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from foreign_names import BLOCKS, KINDS, draw_model  # noqa: E402
from restated import Rules, run  # noqa: E402

SHORT, LONGEST, MOST = 150, 230, 100  # of the resized photo; detections that are kept
WIDTH, PYRAMID, CLASSES = 2, 4, 4  # background counted


def tiny_body():
    """A ResNet of one bottleneck in each group, as torchvision names it."""
    given, parts = WIDTH, [("conv1", nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False)), ("bn1", nn.BatchNorm2d(WIDTH)),
                           ("relu", nn.ReLU()), ("maxpool", nn.MaxPool2d(3, 2, 1))]
    for group in range(4):
        planes, stride = WIDTH << group, 1 if group == 0 else 2
        shortcut = nn.Sequential(nn.Conv2d(given, 4 * planes, 1, stride, bias=False), nn.BatchNorm2d(4 * planes))
        parts.append((f"layer{group + 1}", nn.Sequential(Bottleneck(given, planes, stride, shortcut))))
        given = 4 * planes
    return nn.Sequential(OrderedDict(parts))


def tiny_model():
    """A Mask R-CNN whose statistics and biases are random too."""
    channels = [4 * WIDTH << group for group in range(4)]
    backbone = BackboneWithFPN(tiny_body(), {f"layer{i + 1}": str(i) for i in range(4)}, channels, PYRAMID)
    model = MaskRCNN(backbone, box_head=TwoMLPHead(49 * PYRAMID, 8), box_predictor=FastRCNNPredictor(8, CLASSES),
                     mask_head=MaskRCNNHeads(PYRAMID, (PYRAMID,) * 4, 1),
                     mask_predictor=MaskRCNNPredictor(PYRAMID, PYRAMID, CLASSES), min_size=160, max_size=230)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "running_mean")):
                value.normal_(0, 0.2)
    return model.eval()


def numbers(model):
    """What the model makes of random pixels (RGB, divided as torchvision's are) and of random pooled features."""
    image = torch.randint(0, 256, [64, 96, 3], dtype=torch.uint8)
    pixels = (image.permute(2, 0, 1) / 255 - model_mean()) / model_std()
    levels = list(model.backbone(pixels[None]).values())
    objectness, deltas = model.rpn.head(levels)
    pooled, mask_pooled = torch.rand(3, PYRAMID, 7, 7), torch.rand(3, PYRAMID, 14, 14)
    logits, boxes = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    masks = model.roi_heads.mask_predictor(model.roi_heads.mask_head(mask_pooled))
    last = {f"level{i}": level.permute(0, 2, 3, 1) for i, level in enumerate(levels)}
    return {"image_bgr": image.flip(2), **last, "pooled": pooled.permute(0, 2, 3, 1), "logits": logits, "boxes": boxes,
            "objectness2": objectness[2].permute(0, 2, 3, 1), "deltas2": deltas[2].permute(0, 2, 3, 1),
            "mask_pooled": mask_pooled.permute(0, 2, 3, 1), "masks": masks[range(3), range(1, 4)]}


def spread_outputs(model, image):
    """Scale the last layers so that there are many detections of different scores and sizes."""
    heads, images = model.roi_heads, model.transform([image])[0]
    levels = model.backbone(images.tensors)
    objectness, deltas = model.rpn.head(list(levels.values()))
    model.rpn.head.cls_logits.weight.mul_(2 / torch.cat([level.flatten() for level in objectness]).std())
    model.rpn.head.bbox_pred.weight.mul_(0.3 / torch.cat([level.flatten() for level in deltas]).std())
    proposals = model.rpn(images, levels)[0]
    features = heads.box_head(heads.box_roi_pool(levels, proposals, images.image_sizes))
    logits, boxes = heads.box_predictor(features)
    heads.box_predictor.cls_score.weight.mul_(2 / (logits - logits.mean(0)).std())
    heads.box_predictor.cls_score.bias.sub_(heads.box_predictor(features)[0].mean(0))
    heads.box_predictor.bbox_pred.weight.mul_(1 / (boxes - boxes.mean(0)).std())
    heads.box_predictor.bbox_pred.bias.sub_(heads.box_predictor(features)[1].mean(0))
    pooled = heads.mask_roi_pool(levels, proposals, images.image_sizes)
    masks = heads.mask_predictor(heads.mask_head(pooled))
    heads.mask_predictor.mask_fcn_logits.weight.mul_(3 / (masks - masks.mean((0, 2, 3), keepdim=True)).std())
    heads.mask_predictor.mask_fcn_logits.bias.sub_(heads.mask_predictor(heads.mask_head(pooled)).mean((0, 2, 3)))


def photo():
    """A uint8 RGB image of smooth colours with some rectangles, 3xHxW, of sides that resizing has to round."""
    y, x = torch.meshgrid(torch.arange(131.0), torch.arange(203.0), indexing="ij")
    image = torch.stack([128 + 100 * torch.sin(x / a + b) * torch.cos(y / (a + 3) - b)
                         for a, b in ((17, 0.0), (23, 1.0), (31, 2.0))])
    bounds = (0, 110), (0, 180), (8, 60), (8, 60)
    for _ in range(12):
        top, left, height, width = (int(torch.randint(*pair, [1])) for pair in bounds)
        image[:, top:top + height, left:left + width] = torch.rand(3, 1, 1) * 255
    return image.clamp(0, 255).to(torch.uint8)


def detections(model, image):
    """What the model finds on an image, uint8 3xHxW RGB: the whole way."""
    found = model([image / 255])[0]
    masks = np.packbits(found.pop("masks").numpy()[:, 0] > 0.5, axis=-1)
    return {"photo": image.permute(1, 2, 0).flip(2).numpy(), "found_masks": masks,
            **{f"found_{name}": value.numpy() for name, value in found.items()}}


def model_mean():
    return torch.tensor([0.485, 0.456, 0.406])[:, None, None]


def model_std():
    return torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def odd_tensors():
    """Tensors of every type and of every way to lie in a storage."""
    base = torch.arange(24, dtype=torch.float32)
    types = {str(kind).removeprefix("torch."): torch.arange(-2, 4).to(kind) for kind in (
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool)}
    return OrderedDict(types) | OrderedDict(
        whole=base, view=base[3:9].view(2, 3), transposed=base.view(4, 6).t(), strided=base[1::5], scalar=base[7],
        empty=torch.zeros(0, 3), repeated=base[5:6].expand(3), parameter=nn.Parameter(torch.ones(2)),
        channels_last=base.view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last))


# ------------------------------------------------------------------------ programs that are written again (restated.py)


class Detectron2Names:
    def __init__(self, is_fpn):
        self.body, self.roi_body = ("backbone.bottom_up.",) * 2 if is_fpn else ("backbone.", "roi_heads.")

    def variable(self, name, kind):
        return f"{name}.{kind}"

    def norm(self, name, kind):
        return f"{name}.norm.{ {'mean': 'running_mean', 'variance': 'running_var'}.get(kind, kind)}"

    def conv(self, group, block, which):
        if group is None:
            return f"{self.body}stem.conv1"
        start = self.roi_body if group == 3 else self.body
        return f"{start}res{group + 2}.{block}.{f'conv{which}' if which else 'shortcut'}"

    def fpn(self, which, level):
        return f"backbone.fpn_{ {'inner': 'lateral', 'outer': 'output'}[which]}{level}"

    def rpn(self, which):
        return "proposal_generator.rpn_head." + {
            "conv": "conv", "class": "objectness_logits", "box": "anchor_deltas"}[which]

    def fc(self, number, stage):
        return f"roi_heads.box_head.{'' if stage is None else f'{stage}.'}fc{number - 5}"

    def head(self, which, stage):
        last = {"class": "cls_score", "box": "bbox_pred"}[which]
        return f"roi_heads.box_predictor.{'' if stage is None else f'{stage}.'}{last}"

    def mask(self, which):
        return "roi_heads.mask_head." + {"deconv": "deconv", "last": "predictor"}.get(which, f"mask_fcn{which}")


class BenchmarkNames(Detectron2Names):
    def __init__(self, is_fpn):
        self.roi_body = "backbone.body." if is_fpn else "roi_heads.box.feature_extractor.head."

    def norm(self, name, kind):
        layer = name.replace("downsample.0", "downsample.1").replace("conv", "bn")
        return f"{layer}.{ {'mean': 'running_mean', 'variance': 'running_var'}.get(kind, kind)}"

    def conv(self, group, block, which):
        if group is None:
            return "backbone.body.stem.conv1"
        start = self.roi_body if group == 3 else "backbone.body."
        return f"{start}layer{group + 1}.{block}.{f'conv{which}' if which else 'downsample.0'}"

    def fpn(self, which, level):
        return f"backbone.fpn.fpn_{ {'inner': 'inner', 'outer': 'layer'}[which]}{level - 1}"

    def rpn(self, which):
        return "rpn.head." + {"conv": "conv", "class": "cls_logits", "box": "bbox_pred"}[which]

    def fc(self, number, stage):
        return f"roi_heads.box.feature_extractor.fc{number}"

    def head(self, which, stage):
        return "roi_heads.box.predictor." + {"class": "cls_score", "box": "bbox_pred"}[which]

    def mask(self, which):
        return "roi_heads.mask." + {"deconv": "predictor.conv5_mask", "last": "predictor.mask_fcn_logits"}.get(
            which, f"feature_extractor.mask_fcn{which}")


class DetectronNames:
    """Of C4 models."""

    def variable(self, name, kind):
        return f"{name}_{kind[0]}"

    def norm(self, name, kind):
        scope = "res_conv1_bn" if name == "conv1" else f"{name}_bn"
        return f"{scope}_{ {'weight': 's', 'bias': 'b'}.get(kind, 'rm')}"

    def conv(self, group, block, which):
        return "conv1" if group is None else f"res{group + 2}_{block}_branch{['1', '2a', '2b', '2c'][which]}"

    def rpn(self, which):
        return {"conv": "conv_rpn", "class": "rpn_cls_logits", "box": "rpn_bbox_pred"}[which]

    def head(self, which, stage):
        return {"class": "cls_score", "box": "bbox_pred"}[which]

    def mask(self, which):
        return {"deconv": "conv5_mask", "last": "mask_fcn_logits"}[which]


D2 = {"plus": 0, "mean": (103.53, 116.28, 123.675), "stride_1x1": True, "epsilon": 1e-5, "aligned": True,
      "samples": 0, "background_first": False, "smallest": 0}
CAFFE2 = D2 | {"plus": 1, "mean": (102.9801, 115.9465, 122.7717), "aligned": False, "background_first": True,
               "epsilon": 0.0, "smallest": -1}
RESTATED = {
    "detectron2 FPN": ("detectron2", Rules(Detectron2Names(True), True, **D2)),
    "detectron2 Cascade": ("detectron2", Rules(Detectron2Names(True), True, **D2, stages=(10.0, 20.0, 30.0))),
    "detectron2 C4": ("detectron2", Rules(Detectron2Names(False), False, **D2)),
    "maskrcnn-benchmark FPN": (
        "maskrcnn-benchmark", Rules(BenchmarkNames(True), True, **CAFFE2 | {"samples": 2})),
    "Detectron C4": ("detectron", Rules(DetectronNames(), False, **CAFFE2)),
}


def restated_numbers():
    """Of each of RESTATED the last layers' arrays and the first detections; their names start with the kind."""
    image = photo()[:, 20:103, 30:161].permute(1, 2, 0).flip(2).numpy()
    arrays = {"photo": image}
    for kind, (way, rules) in RESTATED.items():
        weights = draw_model(KINDS[kind][1], seed=1)
        _, changed = run(weights, rules, image, BLOCKS, way=way, short=SHORT, longest=LONGEST, spread=True)
        found, _ = run(weights | changed, rules, image, BLOCKS, way=way, short=SHORT, longest=LONGEST)
        arrays |= {f"{kind}/weights/{name}": value for name, value in changed.items()}
        arrays |= {f"{kind}/{name}": value[:MOST] for name, value in found.items()}
    return arrays


def main():
    """Write every file."""
    torch.manual_seed(0)
    model, image = tiny_model(), photo()
    with torch.no_grad():
        spread_outputs(model, image / 255)
    state = model.state_dict()
    torch.save(state, HERE / "torchvision.pth")
    with torch.no_grad():
        arrays = {name: value.numpy() for name, value in numbers(model).items()} | detections(model, image)
    np.savez_compressed(HERE / "torchvision_numbers.npz", **arrays)
    checkpoint = {"model": odd_tensors(), "epoch": 3, "optimizer": {"state": {0: {"momentum": torch.ones(2)}}}}
    torch.save(checkpoint, HERE / "odd.pth")
    torch.save(checkpoint, HERE / "odd_stream.pth", _use_new_zipfile_serialization=False)
    np.savez_compressed(HERE / "restated_numbers.npz", **restated_numbers())
    odd = {name: value.float().detach().numpy() for name, value in odd_tensors().items()}
    np.savez_compressed(HERE / "odd_numbers.npz", **odd)
    print(torch.__version__, torchvision.__version__, sum(file.stat().st_size for file in HERE.iterdir()), "bytes")


if __name__ == "__main__":
    main()
