"""Files as tensorpack's model zoo publishes them: their names and shapes are written down here from the layers of its
released models, not taken from our graph, which must accept them all."""

import math

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import session, tiny_config

from FasterRCNN.engine.weights import read_weights, restore, select_for_prediction, select_for_training
from FasterRCNN.engine.zoo import padding_notice, with_background_box
from FasterRCNN.modeling.build import build_detector

R50, R101, R152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
K = 80
PUBLISHED_WIDTHS = {"channels": 64, "rpn": 1024, "pyramid": 256, "convs": 256, "fc": 1024, "mask": 256}
TINY_WIDTHS = {"channels": 8, "rpn": 16, "pyramid": 16, "convs": 16, "fc": 32, "mask": 16}
TINY_GN_WIDTHS = dict.fromkeys(TINY_WIDTHS, 32)

C4, CASCADE = {"MODE_FPN": False}, {"FPN.CASCADE": True}
CONV_GN_HEAD = {"FPN.FRCNN_HEAD_FUNC": "fastrcnn_4conv1fc_gn_head"}
GN = {"BACKBONE.NORM": "GN", "FPN.NORM": "GN", **CONV_GN_HEAD, "FPN.MRCNN_HEAD_FUNC": "maskrcnn_up4conv_gn_head"}

# The files of the tables, by the architecture that their row configures; the older release's spelling first.
COCO_FILES = {
    "COCO-R50C4-MaskRCNN-Standard.npz COCO-MaskRCNN-R50C41x.npz": (R50, C4),
    "COCO-R50FPN-MaskRCNN-Standard.npz COCO-MaskRCNN-R50FPN2x.npz": (R50, {}),
    "COCO-R50FPN-MaskRCNN-StandardGN.npz COCO-MaskRCNN-R50FPN2xGN.npz": (R50, GN),
    "COCO-MaskRCNN-R50FPN1xCas.npz": (R50, CASCADE),
    "COCO-MaskRCNN-R50FPN4xGNCasAug.npz": (R50, GN | CASCADE),
    "COCO-R101C4-MaskRCNN-Standard.npz COCO-MaskRCNN-R101C41x.npz": (R101, C4),
    "COCO-R101FPN-MaskRCNN-Standard.npz COCO-MaskRCNN-R101FPN1x.npz": (R101, {}),
    "COCO-R101FPN-MaskRCNN-BetterParams.npz COCO-MaskRCNN-R101FPN3xCasAug.npz": (R101, CASCADE),
    "COCO-R101FPN-MaskRCNN-ScratchGN.npz COCO-MaskRCNN-R101FPN9xGNCasAugScratch.npz": (R101, GN | CASCADE),
}
# The zoo has no ResNeXt: these names follow its habit, the variables those of tensorpack's Conv2D with `split`.
RESNEXT_32X4D = {"BACKBONE.NUM_GROUPS": 32, "BACKBONE.WIDTH_PER_GROUP": 4}
RESNEXT_32X8D = {"BACKBONE.NUM_GROUPS": 32, "BACKBONE.WIDTH_PER_GROUP": 8}
IMAGENET_FILES = {
    "ImageNet-R50-Pad.npz": (R50, {"BACKBONE.TF_PAD_MODE": True}),
    "ImageNet-R50-AlignPadding.npz": (R50, {}),
    "ImageNet-R101-AlignPadding.npz": (R101, {}),
    "ImageNet-R50-GroupNorm32-AlignPadding.npz": (R50, GN),
    "ImageNet-R101-GroupNorm32-AlignPadding.npz": (R101, GN),
    "ImageNet-ResNet50.npz": (R50, {"BACKBONE.TF_PAD_MODE": True}),
    "ImageNet-ResNet152.npz": (R152, {"BACKBONE.TF_PAD_MODE": True}),
    "ImageNet-ResNeXt50-32x4d.npz": (R50, RESNEXT_32X4D),
    "ImageNet-ResNeXt101-32x8d.npz": (R101, RESNEXT_32X8D),
}


# The layers that the files are made of ------------------------------------------------------------------------------


def norm(name, kind, channels):
    leaves = {"bn": ("gamma", "beta", "mean/EMA", "variance/EMA"), "gn": ("gamma", "beta")}[kind]
    return {f"{name}/{leaf}": (channels,) for leaf in leaves}


def biased(name, *shape, out=None):
    return {f"{name}/W": shape, f"{name}/b": (out or shape[-1],)}


def resnet_shapes(blocks, channels, kind="bn", groups=1, group_width=None):
    shapes = {"conv0/W": (7, 7, 3, channels)} | norm(f"conv0/{kind}", kind, channels)
    given = channels
    for group, count in enumerate(blocks):
        inner, out = groups * (group_width or channels) << group, 4 * channels << group
        for block in range(count):
            kernels = {"conv1": (1, 1, given, inner), "conv2": (3, 3, inner // groups, inner),
                       "conv3": (1, 1, inner, out)}
            if block == 0:
                kernels["convshortcut"] = (1, 1, given, out)
            for layer, kernel in kernels.items():
                name = f"group{group}/block{block}/{layer}"
                shapes |= {f"{name}/W": kernel} | norm(f"{name}/{kind}", kind, kernel[-1])
            given = out
    return shapes


def conv_tower(name, count, given, channels, has_gn, scope):
    shapes = {}
    for i in range(count):
        shapes |= biased(f"{scope}/{name}{i}", 3, 3, given if i == 0 else channels, channels)
        shapes |= norm(f"{scope}/gn{i}", "gn", channels) if has_gn else {}
    return shapes


def c4_shapes(width, classes):
    c5 = 32 * width["channels"]
    shapes = biased("rpn/conv0", 3, 3, c5 // 2, width["rpn"])
    shapes |= biased("rpn/class", 1, 1, width["rpn"], 15) | biased("rpn/box", 1, 1, width["rpn"], 60)
    shapes |= biased("fastrcnn/class", c5, classes + 1) | biased("fastrcnn/box", c5, 4 * (classes + 1))
    return shapes | mask_shapes(width, c5, classes, convs=0, has_gn=False)


def mask_shapes(width, given, classes, convs, has_gn):
    shapes = conv_tower("fcn", convs, given, width["mask"], has_gn, "maskrcnn")
    shapes |= biased("maskrcnn/deconv", 2, 2, width["mask"], width["mask"] if convs else given, out=width["mask"])
    return shapes | biased("maskrcnn/conv", 1, 1, width["mask"], classes)


def box_head_shapes(width, scope, has_gn_convs):
    if has_gn_convs:
        tower = conv_tower("conv", 4, width["pyramid"], width["convs"], True, scope)
        return tower | biased(f"{scope}/fc", 49 * width["convs"], width["fc"])
    return biased(f"{scope}/fc6", 49 * width["pyramid"], width["fc"]) | biased(
        f"{scope}/fc7", width["fc"], width["fc"])


def fpn_shapes(width, classes, has_gn, has_gn_convs, is_cascade):
    pyramid, shapes = width["pyramid"], {}
    for level in (2, 3, 4, 5):
        shapes |= biased(f"fpn/lateral_1x1_c{level}", 1, 1, width["channels"] << level, pyramid)
        shapes |= biased(f"fpn/posthoc_3x3_p{level}", 3, 3, pyramid, pyramid)
        for name in (f"fpn/gn_c{level}", f"fpn/gn_p{level}") if has_gn else ():
            shapes |= norm(name, "gn", pyramid)
    shapes |= biased("rpn/conv0", 3, 3, pyramid, pyramid)
    shapes |= biased("rpn/class", 1, 1, pyramid, 3) | biased("rpn/box", 1, 1, pyramid, 12)
    stages = [f"cascade_rcnn_stage{i}" for i in (1, 2, 3)] if is_cascade else ["fastrcnn"]
    for stage in stages:
        shapes |= box_head_shapes(width, f"{stage}/head" if is_cascade else stage, has_gn_convs)
        shapes |= biased(f"{stage}/outputs/class", width["fc"], classes + 1)
        shapes |= biased(f"{stage}/outputs/box", width["fc"], 4 if is_cascade else 4 * (classes + 1))
    return shapes | mask_shapes(width, pyramid, classes, convs=4, has_gn=has_gn)


def file_shapes(blocks, changes, width, classes=K):
    """Names and shapes of a detector's file whose row has these blocks and `changes` of the default configuration."""
    has_gn, has_gn_convs = changes.get("BACKBONE.NORM") == "GN", "FPN.FRCNN_HEAD_FUNC" in changes
    backbone = resnet_shapes(blocks, width["channels"], "gn" if has_gn else "bn",
                             changes.get("BACKBONE.NUM_GROUPS", 1), changes.get("BACKBONE.WIDTH_PER_GROUP"))
    if not changes.get("MODE_FPN", True):
        return backbone | c4_shapes(width, classes)
    return backbone | fpn_shapes(width, classes, has_gn, has_gn_convs, "FPN.CASCADE" in changes)


def imagenet_shapes(blocks, changes, width):
    shapes = file_shapes(blocks, changes, width)
    backbone = {name: shape for name, shape in shapes.items() if name.startswith(("conv0/", "group"))}
    return backbone | biased("linear", 32 * width["channels"], 1000)


# Our model of a row, and a file of one ------------------------------------------------------------------------------


def row_config(blocks, changes, width):
    """The changes to the tiny detector's configuration that make it the row's, of the given widths."""
    return {"BACKBONE.RESNET_NUM_BLOCKS": list(blocks), "DATA.NUM_CLASS": K, "BACKBONE.CHANNELS": width["channels"],
            "FPN.NUM_CHANNEL": width["pyramid"], "FPN.FRCNN_CONV_HEAD_DIM": width["convs"],
            "FPN.FRCNN_FC_HEAD_DIM": width["fc"], "MRCNN.HEAD_DIM": width["mask"], "RPN.HEAD_DIM": width["rpn"],
            **changes}


def tiny_width(changes):
    return TINY_GN_WIDTHS if "BACKBONE.NORM" in changes or "FPN.FRCNN_HEAD_FUNC" in changes else TINY_WIDTHS


def build(cfg):
    """A graph of the detector's predictions, and the shapes of its variables."""
    with tf.Graph().as_default() as graph:
        build_detector(cfg).detect(tf.placeholder(tf.uint8, [1, None, None, 3]), tf.placeholder(tf.int32, [1, 2]))
        return graph, {v.op.name: tuple(v.shape.as_list()) for v in tf.global_variables()}


def draw(shapes, seed=0):
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def write(path, arrays, spelling="{}"):
    np.savez(path, **{spelling.format(name): value for name, value in arrays.items()})
    return path


def restored(graph, weights):
    """The values of the graph's variables after the weights are restored into it."""
    with graph.as_default(), session() as running:
        restore(running, weights)
        return running.run({v.op.name: v for v in tf.global_variables()})


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("files", COCO_FILES)
def test_coco_model(files, tmp_path):
    blocks, changes = COCO_FILES[files]
    width = tiny_width(changes)
    arrays = draw(file_shapes(blocks, changes, width))
    weights = read_weights(write(tmp_path / files.split()[-1], arrays))
    graph, variables = build(tiny_config(row_config(blocks, changes, width)))
    selected, report = select_for_prediction(weights, variables)
    assert report.problems() == []
    assert same(restored(graph, selected), arrays)


@pytest.mark.parametrize("name", IMAGENET_FILES)
def test_imagenet_backbone(name, tmp_path):
    blocks, changes = IMAGENET_FILES[name]
    width = tiny_width(changes)
    arrays = draw(imagenet_shapes(blocks, changes, width))
    cfg = tiny_config(row_config(blocks, changes, width))
    selected, report = select_for_training(read_weights(write(tmp_path / name, arrays)), build(cfg)[1])
    assert report.unexpected == ()
    assert not [line for line in report.missing if line.startswith(("conv0/", "group"))]
    assert same(selected, {key: value for key, value in arrays.items() if not key.startswith("linear/")})
    assert padding_notice(tmp_path / name, cfg.BACKBONE.TF_PAD_MODE) is None


@pytest.mark.parametrize("name, size", [
    ("COCO-MaskRCNN-R50FPN2x.npz", 165362754), ("COCO-MaskRCNN-R50FPN2xGN.npz", 167363872),
    ("COCO-MaskRCNN-R101FPN9xGNCasAugScratch.npz", 355680386)])
def test_the_lists_have_the_size_of_the_published_files(name, size):
    """They are compressed, which saves 6 to 9 % of such numbers: none of the larger layers can be missing."""
    blocks, changes = next(row for files, row in COCO_FILES.items() if name in files)
    shapes = file_shapes(blocks, changes, PUBLISHED_WIDTHS)
    assert 0.91 < size / (4 * sum(map(math.prod, shapes.values()))) < 0.94


# Older forms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["{}:0", "tower0/{}", "tower0/{}:0"])
@pytest.mark.parametrize("changes", [C4, CASCADE], ids=["C4", "cascade"])
def test_names_with_what_older_releases_wrote_around_them(spelling, changes, tmp_path):
    arrays = draw(file_shapes((1, 1, 1, 1), changes, TINY_WIDTHS))
    weights = read_weights(write(tmp_path / "model.npz", arrays, spelling))
    assert same(weights, arrays)


@pytest.mark.parametrize("changes", [C4, {}], ids=["C4", "FPN"])
def test_box_head_without_background(changes, tmp_path):
    """Outputs of the first releases: the four of class k stand where the background's and the others' before it do."""
    shapes = file_shapes((1, 1, 1, 1), changes, TINY_WIDTHS)
    arrays = draw(shapes)
    scope = "fastrcnn" if changes else "fastrcnn/outputs"
    old = arrays | {name: arrays[name][..., 4:] for name in (f"{scope}/box/W", f"{scope}/box/b")}
    weights = read_weights(write(tmp_path / "model.npz", old))
    assert {name: value.shape for name, value in weights.items()} == shapes
    for name in (f"{scope}/box/W", f"{scope}/box/b"):
        assert not weights.pop(name)[..., :4].any()
        np.testing.assert_array_equal(read_weights(tmp_path / "model.npz")[name][..., 4:], arrays.pop(name)[..., 4:])
    assert same(weights, arrays)


def test_box_heads_that_are_left_alone():
    """Class-agnostic ones, which a single class could be taken for, and files without a classifier."""
    for arrays in (draw(file_shapes((1, 1, 1, 1), CASCADE, TINY_WIDTHS, classes=1)), {},
                   {"fastrcnn/box/b": np.ones(8, np.float32)},
                   {"fastrcnn/class/b": np.ones(3), "fastrcnn/box/b": np.ones(()), "fastrcnn/box/W": np.ones((2, 9))}):
        assert same(with_background_box(arrays), arrays)


def test_names_of_neither_spelling_are_refused(tmp_path):
    path = write(tmp_path / "R-50.npz", draw({"conv1_w": (8, 3, 7, 7), "res2_0_branch2a_w": (8, 8, 1, 1)}))
    model = file_shapes((1, 1, 1, 1), {}, TINY_WIDTHS)
    with pytest.raises(ValueError, match="R-50.npz has no variable of this model: it holds conv1_w, res2_0_branch2a_w; "
                                         "wanted are tensorpack's names, such as conv0/W"):
        select_for_training(read_weights(path), model, source="R-50.npz")


def test_squeeze_and_excitation_is_refused():
    given = imagenet_shapes(R50, {}, TINY_WIDTHS) | biased("group0/block0/fc1", 32, 2)
    with pytest.raises(ValueError, match="in the file, not in the model: group0 2"):
        select_for_training(draw(given), file_shapes(R50, {}, TINY_WIDTHS), source="ImageNet-ResNet50-SE.npz")


# What a file's name tells -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, trained_with", [
    ("ImageNet-R50-AlignPadding.npz", False), ("ImageNet-R101-GroupNorm32-AlignPadding.npz", False),
    ("ImageNet-R50-Pad.npz", True), ("ImageNet-ResNet50.npz", True), ("ImageNet-ResNet101.npz", True)])
def test_padding_that_contradicts_the_name(name, trained_with, tmp_path):
    assert padding_notice(tmp_path / name, trained_with) is None
    assert padding_notice(f"AlignPadding/{name}", not trained_with) == (
        f"{name} was trained with BACKBONE.TF_PAD_MODE={trained_with}; the configured {not trained_with} shifts its "
        f"features by a pixel: add BACKBONE.TF_PAD_MODE={trained_with}")


@pytest.mark.parametrize("name", ["model-90000", "COCO-MaskRCNN-R50FPN2x.npz", "my-ImageNet-ResNet50.npz", "",
                                  "R50-Pad.npz", "ImageNet-R50-Padua.npz", "ImageNet-ResNeXt101-32x8d.npz"])
def test_names_that_tell_no_padding(name):
    assert padding_notice(name, True) is padding_notice(name, False) is None


# What the weights themselves tell -----------------------------------------------------------------------------------


def zeros(shapes):
    """Arrays that take no memory, whatever their shape."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def advice(given, wanted):
    """The way out that is proposed for the weights of one row, of published widths, in the configuration of another."""
    blocks, changes = wanted
    cfg = tiny_config(row_config(blocks, changes, PUBLISHED_WIDTHS))
    weights, variables = zeros(file_shapes(*given, PUBLISHED_WIDTHS)), file_shapes(*wanted, PUBLISHED_WIDTHS)
    with pytest.raises(ValueError) as caught:
        select_for_prediction(weights, variables, config=cfg.to_dict(), source="it")
    return str(caught.value).splitlines()[0].removeprefix("it does not fit the configured model: these are ")


@pytest.mark.parametrize("given, wanted, keys", [
    ((R50, {}), (R50, CASCADE), "FPN weights: add FPN.CASCADE=False"),
    ((R50, CASCADE), (R50, {}), "FPN weights: add FPN.CASCADE=True"),
    ((R101, {}), (R50, {}), "FPN weights: add BACKBONE.RESNET_NUM_BLOCKS=[3,4,23,3]"),
    ((R50, C4), (R101, C4), "C4 weights: add BACKBONE.RESNET_NUM_BLOCKS=[3,4,6,3]"),
    ((R50, CONV_GN_HEAD), (R50, {}), "FPN weights: add FPN.FRCNN_HEAD_FUNC=fastrcnn_4conv1fc_gn_head"),
    ((R50, {}), (R50, CONV_GN_HEAD), "FPN weights: add FPN.FRCNN_HEAD_FUNC=fastrcnn_2fc_head"),
    ((R50, GN), (R50, {}), "FPN weights: add BACKBONE.NORM=GN FPN.NORM=GN "
     "FPN.FRCNN_HEAD_FUNC=fastrcnn_4conv1fc_gn_head FPN.MRCNN_HEAD_FUNC=maskrcnn_up4conv_gn_head"),
    ((R50, GN | CASCADE), (R50, GN), "FPN weights: add FPN.CASCADE=True"),
    ((R50, C4 | {"BACKBONE.NORM": "GN"}), (R50, C4), "C4 weights: add BACKBONE.NORM=GN"),
    ((R50, C4), (R50, {}), "C4 weights: add MODE_FPN=False"),
    ((R101, RESNEXT_32X8D), (R101, {}), "FPN weights: add BACKBONE.NUM_GROUPS=32 BACKBONE.WIDTH_PER_GROUP=8"),
    ((R101, {}), (R101, RESNEXT_32X8D), "FPN weights: add BACKBONE.NUM_GROUPS=1 BACKBONE.WIDTH_PER_GROUP=None"),
    ((R50, RESNEXT_32X4D), (R50, RESNEXT_32X8D), "FPN weights: add BACKBONE.WIDTH_PER_GROUP=4"),
    ((R50, {"BACKBONE.NORM": "SyncBN"}), (R50, C4 | {"BACKBONE.NORM": "SyncBN"}), "FPN weights: add MODE_FPN=True"),
])
def test_way_out(given, wanted, keys):
    assert advice(given, wanted) == keys


@pytest.mark.parametrize("given, wanted, keys", [
    ((R50, GN), (R50, {}), "BACKBONE.NORM=GN"),
    ((R50, {}), (R50, GN), "BACKBONE.NORM=FreezeBN"),
    ((R101, RESNEXT_32X8D), (R50, {}),
     "BACKBONE.RESNET_NUM_BLOCKS=[3,4,23,3] BACKBONE.NUM_GROUPS=32 BACKBONE.WIDTH_PER_GROUP=8"),
])
def test_way_out_for_a_backbone(given, wanted, keys):
    blocks, changes = wanted
    cfg = tiny_config(row_config(blocks, changes, PUBLISHED_WIDTHS))
    weights = zeros(imagenet_shapes(*given, PUBLISHED_WIDTHS))
    with pytest.raises(ValueError, match="configured model: these are ImageNet weights: add ") as caught:
        select_for_training(weights, file_shapes(blocks, changes, PUBLISHED_WIDTHS), config=cfg.to_dict())
    assert str(caught.value).splitlines()[0].endswith(f" add {keys}")


def test_spelled_out_widths_of_a_plain_resnet_are_no_contradiction():
    spelled_out = {"BACKBONE.NUM_GROUPS": 1, "BACKBONE.WIDTH_PER_GROUP": 64}
    assert advice((R101, {}), (R50, spelled_out)) == "FPN weights: add BACKBONE.RESNET_NUM_BLOCKS=[3,4,23,3]"
