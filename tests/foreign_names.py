"""Names and shapes of other programs' files, written down from their code, and random arrays for them. NumPy alone."""

import numpy as np

BLOCKS, CHANNELS, PYRAMID, FC, MASK, K = (2, 1, 1, 1), 4, 8, 16, 6, 3


def draw_model(shapes, seed):
    """Random arrays through which numbers keep their size; the same everywhere."""
    random = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            arrays[name] = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("running_var", "_s")) or "norm.weight" in name or ".bn" in name and "weight" in name:
            arrays[name] = random.uniform(0.5, 1.5, shape)
        else:
            arrays[name] = 0.2 * random.standard_normal(shape)
    return {name: value.astype(np.float32) for name, value in arrays.items()}


def resnet(name, groups=1, width=CHANNELS):
    """Kernel shapes, out×in×h×w, of a ResNet's convolutions: name(group, block, which) -> shape; which: 0 is the
    shortcut."""
    shapes, given = {name(None, None, None): (CHANNELS, 3, 7, 7)}, CHANNELS
    for group, blocks in enumerate(BLOCKS):
        inner, out = groups * width << group, 4 * CHANNELS << group
        for block in range(blocks):
            shapes[name(group, block, 1)] = (inner, given, 1, 1)
            shapes[name(group, block, 2)] = (inner, inner // groups, 3, 3)
            shapes[name(group, block, 3)] = (out, inner, 1, 1)
            if block == 0:
                shapes[name(group, block, 0)] = (out, given, 1, 1)
            given = out
    return shapes


def with_bias(shapes, weight="{}.weight", bias="{}.bias", transposed=()):
    return {form.format(name): value for name, shape in shapes.items()
            for form, value in ((weight, shape), (bias, (shape[1 if name in transposed else 0],)))}


def statistics(name, channels, leaves=("weight", "bias", "running_mean", "running_var")):
    return {f"{name}.{leaf}": (channels,) for leaf in leaves}


def detectron2_backbone(prefix, norm_leaves=("weight", "bias", "running_mean", "running_var"), last="", **options):
    def name(group, block, which):
        if group is None:
            return f"{prefix}stem.conv1"
        start = last if last and group == 3 else prefix
        return f"{start}res{group + 2}.{block}.{f'conv{which}' if which else 'shortcut'}"

    shapes = {}
    for layer, shape in resnet(name, **options).items():
        shapes |= {f"{layer}.weight": shape} | statistics(f"{layer}.norm", shape[0], norm_leaves)
    return shapes


def detectron2_fpn(*, cascade=False, masks=True, agnostic=False):
    layers = {}
    for level in range(2, 6):
        layers[f"backbone.fpn_lateral{level}"] = (PYRAMID, CHANNELS << level, 1, 1)
        layers[f"backbone.fpn_output{level}"] = (PYRAMID, PYRAMID, 3, 3)
    layers |= {"proposal_generator.rpn_head.conv": (PYRAMID, PYRAMID, 3, 3),
               "proposal_generator.rpn_head.objectness_logits": (3, PYRAMID, 1, 1),
               "proposal_generator.rpn_head.anchor_deltas": (12, PYRAMID, 1, 1)}
    for stage in (".0", ".1", ".2") if cascade else ("",):
        layers |= {f"roi_heads.box_head{stage}.fc1": (FC, 49 * PYRAMID), f"roi_heads.box_head{stage}.fc2": (FC, FC),
                   f"roi_heads.box_predictor{stage}.cls_score": (K + 1, FC),
                   f"roi_heads.box_predictor{stage}.bbox_pred": (4 if cascade or agnostic else 4 * K, FC)}
    if masks:
        layers |= {f"roi_heads.mask_head.mask_fcn{i}": (MASK, PYRAMID if i == 1 else MASK, 3, 3) for i in range(1, 5)}
        layers |= {"roi_heads.mask_head.deconv": (MASK, MASK, 2, 2), "roi_heads.mask_head.predictor": (K, MASK, 1, 1)}
    return detectron2_backbone("backbone.bottom_up.") | with_bias(layers)


def detectron2_c4():
    top = CHANNELS << 5
    layers = {"proposal_generator.rpn_head.conv": (top // 2, top // 2, 3, 3),
              "proposal_generator.rpn_head.objectness_logits": (15, top // 2, 1, 1),
              "proposal_generator.rpn_head.anchor_deltas": (60, top // 2, 1, 1),
              "roi_heads.box_predictor.cls_score": (K + 1, top), "roi_heads.box_predictor.bbox_pred": (4 * K, top),
              "roi_heads.mask_head.deconv": (top, MASK, 2, 2), "roi_heads.mask_head.predictor": (K, MASK, 1, 1)}
    return detectron2_backbone("backbone.", last="roi_heads.") | with_bias(
        layers, transposed=("roi_heads.mask_head.deconv",))


def torch_backbone(prefix, stem="", last="", **options):
    """torchvision's names, and maskrcnn-benchmark's, whose stem is a module of its own."""
    def name(group, block, which):
        if group is None:
            return f"{prefix}{stem}conv1"
        start = last if last and group == 3 else prefix
        return f"{start}layer{group + 1}.{block}.{f'conv{which}' if which else 'downsample.0'}"

    shapes = {}
    for layer, shape in resnet(name, **options).items():
        norm = layer.replace("downsample.0", "downsample.1").replace("conv", "bn")
        shapes |= {f"{layer}.weight": shape} | statistics(norm, shape[0])
    return shapes


def maskrcnn_benchmark_fpn():
    layers = {}
    for level in range(1, 5):
        layers[f"backbone.fpn.fpn_inner{level}"] = (PYRAMID, CHANNELS << level + 1, 1, 1)
        layers[f"backbone.fpn.fpn_layer{level}"] = (PYRAMID, PYRAMID, 3, 3)
    layers |= {"rpn.head.conv": (PYRAMID, PYRAMID, 3, 3), "rpn.head.cls_logits": (3, PYRAMID, 1, 1),
               "rpn.head.bbox_pred": (12, PYRAMID, 1, 1), "roi_heads.box.feature_extractor.fc6": (FC, 49 * PYRAMID),
               "roi_heads.box.feature_extractor.fc7": (FC, FC), "roi_heads.box.predictor.cls_score": (K + 1, FC),
               "roi_heads.box.predictor.bbox_pred": (4 * K + 4, FC)}
    layers |= {f"roi_heads.mask.feature_extractor.mask_fcn{i}": (MASK, PYRAMID if i == 1 else MASK, 3, 3)
               for i in range(1, 5)}
    layers |= {"roi_heads.mask.predictor.conv5_mask": (MASK, MASK, 2, 2),
               "roi_heads.mask.predictor.mask_fcn_logits": (K + 1, MASK, 1, 1)}
    anchors = {f"rpn.anchor_generator.cell_anchors.{i}": (3, 4) for i in range(5)}
    return torch_backbone("backbone.body.", stem="stem.") | with_bias(layers) | anchors


def maskrcnn_benchmark_gn():
    """With group normalisation everywhere, in the box head of two layers too."""
    shapes = {}
    for name, shape in maskrcnn_benchmark_fpn().items():
        layer, leaf = name.rsplit(".", 1)
        if leaf.startswith("running") or "cell_anchors" in name:
            continue
        if layer.startswith(("backbone.fpn", "roi_heads.box.feature", "roi_heads.mask.feature")):
            if leaf == "weight":
                shapes |= {f"{layer}.0.weight": shape} | statistics(f"{layer}.1", shape[0], ("weight", "bias"))
        else:
            shapes[name] = shape
    return shapes


def maskrcnn_benchmark_c4():
    top, head = CHANNELS << 5, "roi_heads.box.feature_extractor.head."
    layers = {"rpn.head.conv": (top // 2, top // 2, 3, 3), "rpn.head.cls_logits": (15, top // 2, 1, 1),
              "rpn.head.bbox_pred": (60, top // 2, 1, 1), "roi_heads.box.predictor.cls_score": (K + 1, top),
              "roi_heads.box.predictor.bbox_pred": (4 * K + 4, top)}
    return torch_backbone("backbone.body.", stem="stem.", last=head) | with_bias(layers)


def unread_biases(blobs):
    """What Detectron reads nothing of, but keeps: the biases of the ResNets that its models start from."""
    return {f"{name.removesuffix('_w')}_b": shape[:1] for name, shape in blobs.items()
            if name == "conv1_w" or "_branch" in name and name.endswith("_w")}


def detectron_backbone(norm="bn", norm_leaves=("s", "b"), **options):
    def name(group, block, which):
        return "conv1" if group is None else f"res{group + 2}_{block}_branch{['1', '2a', '2b', '2c'][which]}"

    shapes = {}
    for layer, shape in resnet(name, **options).items():
        scope = "res_conv1_bn" if (layer, norm) == ("conv1", "bn") else f"{layer}_{norm}"
        shapes |= {f"{layer}_w": shape, **{f"{scope}_{leaf}": shape[:1] for leaf in norm_leaves}}
    return shapes


def detectron_fpn(norm="bn", head_norm=False):
    """A Mask R-CNN with FPN; head_norm: with group normalisation in pyramid and heads, and the 4conv1fc head."""
    blobs, layers, last = {}, {}, {level: blocks - 1 for level, blocks in zip(range(2, 6), BLOCKS)}
    convs = {}
    for level in range(2, 6):
        convs[f"fpn_inner_res{level}_{last[level]}_sum{'_lateral' if level < 5 else ''}"] = (
            PYRAMID, CHANNELS << level, 1, 1)
        convs[f"fpn_res{level}_{last[level]}_sum"] = (PYRAMID, PYRAMID, 3, 3)
    convs |= {f"_[mask]_fcn{i}": (MASK, PYRAMID if i == 1 else MASK, 3, 3) for i in range(1, 5)}
    if head_norm:
        convs |= {f"head_conv{i}": (PYRAMID, PYRAMID, 3, 3) for i in range(1, 5)}
        for name, shape in convs.items():
            blobs |= {f"{name}_w": shape, f"{name}_gn_s": shape[:1], f"{name}_gn_b": shape[:1]}
    else:
        layers |= convs | {"fc7": (FC, FC)}
    layers |= {"conv_rpn_fpn2": (PYRAMID, PYRAMID, 3, 3), "rpn_cls_logits_fpn2": (3, PYRAMID, 1, 1),
               "rpn_bbox_pred_fpn2": (12, PYRAMID, 1, 1), "fc6": (FC, 49 * PYRAMID), "cls_score": (K + 1, FC),
               "bbox_pred": (4 * K + 4, FC), "conv5_mask": (MASK, MASK, 2, 2), "mask_fcn_logits": (K + 1, MASK, 1, 1)}
    return detectron_backbone(norm) | blobs | with_bias(layers, "{}_w", "{}_b")


def detectron_c4():
    top = CHANNELS << 5
    layers = {"conv_rpn": (top // 2, top // 2, 3, 3), "rpn_cls_logits": (15, top // 2, 1, 1),
              "rpn_bbox_pred": (60, top // 2, 1, 1), "cls_score": (K + 1, top), "bbox_pred": (4 * K + 4, top),
              "conv5_mask": (top, MASK, 2, 2), "mask_fcn_logits": (K + 1, MASK, 1, 1)}
    return detectron_backbone() | with_bias(layers, "{}_w", "{}_b", transposed=("conv5_mask",))


KINDS = {
    "detectron2 FPN": ("detectron2", detectron2_fpn()),
    "detectron2 Cascade": ("detectron2", detectron2_fpn(cascade=True)),
    "detectron2 agnostic": ("detectron2", detectron2_fpn(agnostic=True, masks=False)),
    "detectron2 C4": ("detectron2", detectron2_c4()),
    "detectron2 ImageNet": ("detectron2", detectron2_backbone("", groups=2, width=4)
                            | {"stem.fc.weight": (10, 128), "stem.fc.bias": (10,)}),
    "detectron2 GN": ("detectron2", detectron2_backbone("", ("weight", "bias"))),
    "maskrcnn-benchmark FPN": ("maskrcnn-benchmark", maskrcnn_benchmark_fpn()),
    "maskrcnn-benchmark C4": ("maskrcnn-benchmark", maskrcnn_benchmark_c4()),
    "maskrcnn-benchmark GN": ("maskrcnn-benchmark", maskrcnn_benchmark_gn()),
    "Detectron FPN": ("detectron", detectron_fpn() | unread_biases(detectron_fpn())),
    "Detectron GN": ("detectron", detectron_fpn("gn", head_norm=True)),
    "Detectron C4": ("detectron", detectron_c4()),
    "Detectron ImageNet": ("detectron", detectron_backbone() | unread_biases(detectron_backbone())
                           | {"fc1000_w": (10, 128)}),
    "detectron2 MSRA": ("detectron", detectron_backbone(
        norm_leaves=("gamma", "beta", "running_mean", "running_var")) | {"fc1000_w": (10, 128), "fc1000_b": (10,)}),
    "torchvision ImageNet": ("torchvision-imagenet", torch_backbone("") | {"fc.weight": (10, 128), "fc.bias": (10,)}),
}
