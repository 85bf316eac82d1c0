"""Inference of detectron2, maskrcnn-benchmark and Detectron, written again after their sources, with PyTorch.

Each in its own coordinates and order of operations; for one image. Run by make_files.py, not by the tests.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision import ops

SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
LONGEST_STEP = math.log(1000 / 16)


@dataclass
class Rules:
    """What the programs do differently. plus: 1 where a box's last corner is a pixel inside it, else 0."""

    names: object  # name(part, ...) -> the layer's name
    is_fpn: bool
    plus: int
    mean: tuple  # BGR
    stride_1x1: bool
    epsilon: float
    aligned: bool
    samples: int  # of ROIAlign; 0: adaptive
    background_first: bool
    smallest: float  # proposals' sides must exceed it
    stages: tuple = (10.0,)  # of the box heads in a row, the first of its deltas' weights; the last two are half of it


class Model:
    """arrays: the file's; the last layers are scaled where `spread` is set, so that outputs are of different sizes."""

    def __init__(self, arrays, rules, spread=False):
        self.arrays = {name: torch.from_numpy(np.asarray(value, np.float32)) for name, value in arrays.items()}
        self.rules, self.spread, self.changed = rules, spread, {}

    def value(self, name):
        return self.arrays.get(name)

    def layer(self, name, x, **options):
        """A convolution, or a matrix, with its bias."""
        weight, bias = (self.value(self.rules.names.variable(name, kind)) for kind in ("weight", "bias"))
        return F.conv2d(x, weight, bias, **options) if weight.ndim == 4 else F.linear(x.flatten(1), weight, bias)

    def output(self, name, x, std):
        """A last layer."""
        y = self.layer(name, x)
        if self.spread:
            weight, bias = (self.rules.names.variable(name, kind) for kind in ("weight", "bias"))
            axes = [0, 2, 3][:y.ndim - 1] if y.ndim == 4 else [0]
            factor = std / (y - y.mean(axes, keepdim=True)).std()
            self.arrays[weight] = self.arrays[weight] * factor
            self.arrays[bias] = (self.arrays[bias] - y.mean(axes)) * factor + 0.5 * std * torch.randn(len(y.mean(axes)))
            self.changed |= {name: self.arrays[name].numpy() for name in (weight, bias)}
            y = self.layer(name, x)
        return y

    # ------------------------------------------------------------------------------------------------------ backbone

    def normalized(self, name, x, **options):
        x = self.layer(name, x, **options)
        weight, bias, mean, variance = (
            self.value(self.rules.names.norm(name, kind)) for kind in ("weight", "bias", "mean", "variance"))
        if variance is not None:
            scale = weight / torch.sqrt(variance + self.rules.epsilon)
            weight, bias = scale, bias - mean * scale
        return x * weight[:, None, None] + bias[:, None, None]

    def group(self, x, group, blocks):
        names = self.rules.names
        for block in range(blocks):
            stride = 2 if group > 0 and block == 0 else 1
            first, second = (stride, 1) if self.rules.stride_1x1 else (1, stride)
            y = F.relu(self.normalized(names.conv(group, block, 1), x, stride=first))
            y = F.relu(self.normalized(names.conv(group, block, 2), y, stride=second, padding=1))
            y = self.normalized(names.conv(group, block, 3), y)
            if block == 0:
                x = self.normalized(names.conv(group, block, 0), x, stride=stride)
            x = F.relu(x + y)
        return x

    def features(self, x, blocks):
        x = F.relu(self.normalized(self.rules.names.conv(None, None, None), x, stride=2, padding=3))
        x = F.max_pool2d(x, 3, 2, 1)
        maps = []
        for group in range(4 if self.rules.is_fpn else 3):
            x = self.group(x, group, blocks[group])
            maps.append(x)
        if not self.rules.is_fpn:
            return maps[-1:]
        merged, levels = None, []
        for level in (5, 4, 3, 2):
            lateral = self.layer(self.rules.names.fpn("inner", level), maps[level - 2])
            merged = lateral if merged is None else lateral + F.interpolate(merged, scale_factor=2, mode="nearest")
            levels.insert(0, self.layer(self.rules.names.fpn("outer", level), merged, padding=1))
        return [*levels, F.max_pool2d(levels[-1], 1, 2, 0)]

    # ------------------------------------------------------------------------------------------------------- boxes

    def anchors(self, size, stride):
        """Of a level's window: float A×4 around the first cell."""
        if not self.rules.plus:
            areas = [(math.sqrt(s * s / r), r * math.sqrt(s * s / r)) for s in size for r in RATIOS]
            return torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in areas])
        rows = []
        for ratio in RATIOS:  # Detectron's run over the sizes inside
            width = np.round(np.sqrt(stride * stride / ratio))
            height = np.round(width * ratio)
            for s in size:
                w, h, centre = width * s / stride, height * s / stride, (stride - 1) / 2
                rows.append([centre - (w - 1) / 2, centre - (h - 1) / 2, centre + (w - 1) / 2, centre + (h - 1) / 2])
        return torch.tensor(rows, dtype=torch.float32)

    def decode(self, boxes, deltas, weights):
        plus = self.rules.plus
        width, height = boxes[:, 2] - boxes[:, 0] + plus, boxes[:, 3] - boxes[:, 1] + plus
        x, y = boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height
        dx, dy, dw, dh = (deltas / torch.tensor(weights)).unbind(-1)
        x, y = x[:, None] + dx * width[:, None], y[:, None] + dy * height[:, None]
        w = torch.exp(dw.clamp(max=LONGEST_STEP)) * width[:, None]
        h = torch.exp(dh.clamp(max=LONGEST_STEP)) * height[:, None]
        return torch.stack([x - w / 2, y - h / 2, x + w / 2 - plus, y + h / 2 - plus], -1)

    def clip(self, boxes, size):
        limit = torch.tensor([size[1], size[0], size[1], size[0]]) - self.rules.plus
        return torch.minimum(boxes.clamp(min=0), limit)

    def suppress(self, boxes, scores, threshold):
        """Kept indices, best first; torchvision's, to which an inclusive box ends one pixel later."""
        return ops.nms(boxes + torch.tensor([0, 0, 1, 1]) * self.rules.plus, scores, threshold)

    def proposals(self, levels, size):
        names, found = self.rules.names, []
        strides = (4, 8, 16, 32, 64) if self.rules.is_fpn else (16,)
        sizes = [[s] for s in SIZES] if self.rules.is_fpn else [SIZES]
        before, after = (1000, 1000) if self.rules.is_fpn else (6000, 1000)
        for x, stride, size_of_level in zip(levels, strides, sizes):
            hidden = F.relu(self.layer(names.rpn("conv"), x, padding=1))
            scale, self.spread = self.spread, self.spread and stride in (4, 16) and not self.changed
            logits, deltas = self.output(names.rpn("class"), hidden, 2.0), self.output(names.rpn("box"), hidden, 0.3)
            self.spread = scale
            count, height, width = logits.shape[1:]
            logits = logits[0].permute(1, 2, 0).reshape(-1)
            deltas = deltas[0].reshape(count, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
            y, x_ = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
            shifts = torch.stack([x_, y, x_, y], -1).reshape(-1, 1, 4)
            anchors = (shifts + self.anchors(size_of_level, stride)).reshape(-1, 4)
            best = logits.topk(min(before, len(logits)))[1]
            boxes = self.decode(anchors[best], deltas[best][:, None], (1.0, 1.0, 1.0, 1.0))[:, 0]
            boxes, scores = self.clip(boxes, size), logits[best]
            sides = boxes[:, 2:] - boxes[:, :2] + self.rules.plus
            own = (sides > self.rules.smallest).all(1)
            boxes, scores = boxes[own], scores[own]
            kept = self.suppress(boxes, scores, 0.7)[:after]
            found.append((boxes[kept], scores[kept]))
        boxes, scores = (torch.cat(part) for part in zip(*found))
        return boxes[scores.topk(min(after, len(scores)))[1]]

    def pool(self, levels, boxes, side):
        rois = torch.cat([torch.zeros(len(boxes), 1), boxes], 1)
        if not self.rules.is_fpn:
            return ops.roi_align(levels[0], rois, side, 1 / 16, self.rules.samples, self.rules.aligned)
        plus = self.rules.plus
        area = (boxes[:, 2] - boxes[:, 0] + plus) * (boxes[:, 3] - boxes[:, 1] + plus)
        of_box = torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-6)).clamp(2, 5)
        pooled = torch.zeros(len(boxes), levels[0].shape[1], side, side)
        for level in (2, 3, 4, 5):
            own = of_box == level
            pooled[own] = ops.roi_align(levels[level - 2], rois[own], side, 1 / (1 << level), self.rules.samples,
                                        self.rules.aligned)
        return pooled

    # ------------------------------------------------------------------------------------------------------ heads

    def roi_features(self, levels, boxes, blocks, stage):
        names = self.rules.names
        if not self.rules.is_fpn:
            return self.group(self.pool(levels, boxes, 14), 3, blocks[3]).mean((2, 3))
        x = F.relu(self.layer(names.fc(6, stage), self.pool(levels, boxes, 7)))
        return F.relu(self.layer(names.fc(7, stage), x))

    def box_heads(self, levels, boxes, size, blocks):
        """(scores P×rows, boxes P×rows or 1×4) of the row of heads, each on the boxes of the one before."""
        names, scores = self.rules.names, []
        for stage, weight in enumerate(self.rules.stages):
            stage = stage if len(self.rules.stages) > 1 else None
            x = self.roi_features(levels, boxes, blocks, stage)
            scores.append(self.output(names.head("class", stage), x, 2.0).softmax(1))
            deltas = self.output(names.head("box", stage), x, 1.0).reshape(len(x), -1, 4)
            decoded = self.clip(self.decode(boxes, deltas, (weight, weight, weight / 2, weight / 2)), size)
            boxes = decoded[:, 0]
        return sum(scores) / len(scores), decoded

    def detect(self, image, size, blocks):
        """(boxes, scores, labels 1..K, mask probabilities) in the pixels of the resized image, in own coordinates."""
        levels, names, rules = self.features(image, blocks), self.rules.names, self.rules
        proposals = self.proposals(levels, size)
        scores, boxes = self.box_heads(levels, proposals, size, blocks)
        found = []
        first = 1 if rules.background_first else 0
        for row in range(first, first + scores.shape[1] - 1):
            box_row = min(row, boxes.shape[1] - 1)
            own = scores[:, row] > 0.05
            kept = self.suppress(boxes[own, box_row], scores[own, row], 0.5)
            found.append((boxes[own, box_row][kept], scores[own, row][kept], torch.full([len(kept)], row - first + 1)))
        boxes, scores, labels = (torch.cat(part) for part in zip(*found))
        best = scores.topk(min(100, len(scores)))[1]
        boxes, scores, labels = boxes[best], scores[best], labels[best]
        x = self.pool(levels, boxes, 14)
        if rules.is_fpn:
            for i in range(4):
                x = F.relu(self.layer(names.mask(i + 1), x, padding=1))
        else:
            x = self.group(x, 3, blocks[3])
        name = names.mask("deconv")
        x = F.relu(F.conv_transpose2d(x, self.value(names.variable(name, "weight")),
                                      self.value(names.variable(name, "bias")), stride=2))
        masks = self.output(names.mask("last"), x, 3.0).sigmoid()
        return boxes, scores, labels, masks[torch.arange(len(labels)), labels - 1 + first]


# --------------------------------------------------------------------------------------------- images and masks


def target_size(height, width, short, longest, way):
    """(height, width) of the resized image."""
    if way == "maskrcnn-benchmark":
        least, most = min(height, width), max(height, width)
        if most / least * short > longest:
            short = int(round(longest * least / most))
        return (int(short * height / width), short) if width < height else (short, int(short * width / height))
    scale = min(short / min(height, width), longest / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def prepare(photo, short, longest, way, rules):
    """(1×3×H×W, BGR without mean and padded, the size before padding) of a uint8 H×W×3 BGR photo."""
    size = target_size(*photo.shape[:2], short, longest, way)
    mean = torch.tensor(rules.mean)[:, None, None]
    if way == "detectron":  # subtracts first and resizes float numbers
        image = torch.from_numpy(photo).permute(2, 0, 1).float() - mean
        image = F.interpolate(image[None], size, mode="bilinear", align_corners=False)
    else:
        pixels = np.asarray(Image.fromarray(photo).resize(size[::-1], Image.BILINEAR))
        image = (torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() - mean)[None]
    if rules.is_fpn:
        image = F.pad(image, [0, -size[1] % 32, 0, -size[0] % 32])
    return image, size


def paste(masks, boxes, height, width, plus):
    """Bitmaps, bool D×height×width, of mask probabilities D×M×M in boxes of the photo's pixels."""
    found = torch.zeros(len(boxes), height, width, dtype=torch.bool)
    for i, (mask, box) in enumerate(zip(masks, boxes)):
        if not plus:  # detectron2
            x = ((torch.arange(width) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1).expand(height, -1)
            y = ((torch.arange(height) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1)[:, None].expand(-1, width)
            found[i] = F.grid_sample(mask[None, None], torch.stack([x, y], -1)[None], align_corners=False)[0, 0] >= 0.5
            continue
        mask = F.pad(mask, [1, 1, 1, 1])
        half = (box[2:] - box[:2]) * 0.5 * (len(mask) / (len(mask) - 2))
        centre = (box[2:] + box[:2]) * 0.5
        x1, y1, x2, y2 = torch.cat([centre - half, centre + half]).to(torch.int32).tolist()
        w, h = max(x2 - x1 + 1, 1), max(y2 - y1 + 1, 1)
        grown = F.interpolate(mask[None, None], (h, w), mode="bilinear", align_corners=False)[0, 0] > 0.5
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2 + 1, width), min(y2 + 1, height)
        found[i, top:bottom, left:right] = grown[top - y1:bottom - y1, left - x1:right - x1]
    return found


@torch.no_grad()
def run(arrays, rules, photo, blocks, *, way, short, longest, spread=False):
    """({boxes, scores, labels, masks} in the photo's pixels, the arrays that `spread` has changed)."""
    model = Model(arrays, rules, spread)
    image, size = prepare(photo, short, longest, way, rules)
    boxes, scores, labels, masks = model.detect(image, size, blocks)
    height, width = photo.shape[:2]
    boxes = boxes * torch.tensor([width / size[1], height / size[0]] * 2)
    if not rules.plus:
        boxes = model.clip(boxes, (height, width))
    bitmaps = paste(masks, boxes, height, width, rules.plus)
    boxes = boxes + torch.tensor([0, 0, 1, 1]) * rules.plus  # as x, y, w, h = x1, y1, x2 - x1 + 1, y2 - y1 + 1
    return {"boxes": boxes.numpy(), "scores": scores.numpy(), "labels": labels.numpy(),
            "masks": np.packbits(bitmaps.numpy(), axis=-1)}, model.changed
