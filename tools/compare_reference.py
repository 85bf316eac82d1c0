#!/usr/bin/env python3
"""Compare this program's numbers with those of the reference implementation.

    python tools/compare_reference.py CASE.npz
    python tools/compare_reference.py LOSSES.npz --train-case train_case.npz

A case holds the configuration, an image and what the reference computed from weights that follow from each variable's
name and shape (`reference_value`). Prints the greatest difference of every tensor; exit status 0 only within tolerance.
"""
import argparse
import re
import sys
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import config  # noqa: E402

FEATURE_TOLERANCE = 1e-3  # of the greatest value
NUM_COCO_CLASSES = 80
LOSS_NAMES = {"rpn/loss_cls": "rpn_label", "rpn/loss_box": "rpn_box", "box/loss_cls": "frcnn_label",
              "box/loss_box": "frcnn_box", "mask/loss": "mask", "wd": "wd"}


def reference_value(name, shape):
    """Return the float32 array that a variable of this name and shape holds in every reference case."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    kind = name.rsplit("/", 1)[-1]
    if kind == "gamma":
        # Small at the end of a residual block, so that activations stay bounded.
        value = random.uniform(*((0.15, 0.35) if "/conv3/" in name else (0.8, 1.2)), shape)
    elif name.endswith("variance/EMA"):
        value = random.uniform(0.8, 1.2, shape)
    elif kind in ("beta", "EMA", "b"):
        value = random.normal(0.0, 0.05, shape)
    elif kind == "W":
        value = random.normal(0.0, np.sqrt(_kernel_gain(name) / np.prod(shape[:-1])), shape)
    else:
        raise ValueError(f"no rule gives the reference value of variable {name!r}")
    return value.astype(np.float32)


def _kernel_gain(name):
    if "/class/" in name:
        return 0.4 if name.startswith("rpn/") else 2.0
    if "/box/" in name:
        return 0.05
    if name.startswith("maskrcnn/conv/"):
        return 3.0
    return 1.0 if "lateral" in name or "posthoc" in name else 2.0


@dataclass
class Comparison:
    """The table of what was compared: name, figure, what it must reach, whether it does."""

    rows: list = field(default_factory=list)

    def at_most(self, name, value, limit):
        self.rows.append((name, f"{value:.3g}", f"<= {limit:.3g}", bool(value <= limit)))

    def at_least(self, name, value, limit):
        self.rows.append((name, f"{value:.4g}", f">= {limit:.4g}", bool(value >= limit)))

    def same(self, name, ours, reference):
        difference = sorted(set(ours) ^ set(reference))
        shown = f"{len(difference)} differ" + (f": {', '.join(map(str, difference[:4]))}" if difference else "")
        self.rows.append((name, shown, "the same", not difference))

    def report(self):
        """Print the table; return the exit status."""
        print(tabulate([(*row[:3], "ok" if row[3] else "FAIL") for row in self.rows],
                       headers=["tensor", "figure", "tolerance", ""], disable_numparse=True))
        failed = sum(not row[3] for row in self.rows)
        print(f"{len(self.rows) - failed} passed, {failed} failed")
        return 1 if failed else 0


def case_config(case, *, is_training):
    """Return the finalized configuration of a case."""
    cfg = config.default_config()
    cfg.update_args([str(item) for item in case["config"]])
    cfg.update_dict({"DATA.NUM_CLASS": NUM_COCO_CLASSES})
    config.finalize_configs(cfg, is_training=is_training, starts_from_weights=True)
    return cfg


def reference_session(tf):
    """Return a session whose variables hold the reference values (an optimizer's own: their start values)."""
    from FasterRCNN.engine.weights import restore

    session = tf.Session()
    session.run(tf.global_variables_initializer())
    variables = [v for v in tf.global_variables() if not v.op.name.endswith("/Momentum")]
    restore(session, {v.op.name: reference_value(v.op.name, v.shape.as_list()) for v in variables})
    return session


def pad_image(image, multiple):
    """Return the image as a batch of one, zero-padded to a multiple, and its size before."""
    height, width = image.shape[:2]
    padded = np.zeros((1, -(-height // multiple) * multiple, -(-width // multiple) * multiple, 3), np.uint8)
    padded[0, :height, :width] = image
    return padded, np.array([[height, width]], np.int32)


def box_agreement(a, b):
    """Return the IoU of every pair of boxes in NumPy, M×4, N×4 -> M×N; 1 where both have no area and corners agree."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - common
    # Clipping leaves some proposals beyond the image without area.
    same_corners = np.abs(a[:, None] - b[None]).max(axis=2) <= 0.1
    return np.where(union > 0, common / np.maximum(union, 1e-9), same_corners)


def compare_inference(case):
    """Run a case's image and compare every tensor; returns the Comparison."""
    import tensorflow.compat.v1 as tf

    from FasterRCNN.modeling.build import build_detector

    cfg = case_config(case, is_training=False)
    tf.disable_eager_execution()
    detector = build_detector(cfg)
    image, image_size = pad_image(case["image_bgr"], detector.pad_multiple)
    with tf.variable_scope(tf.get_variable_scope(), reuse=tf.AUTO_REUSE):
        maps, levels, extent = detector.features(tf.constant(image), tf.constant(image_size))
        proposals = detector.propose(detector.rpn_head(levels, extent), tf.constant(image_size), training=False)
        given = tf.constant(case["proposal_boxes"][None, :len(case["all_boxes"])])
        boxes, deltas, scores = detector.score_boxes(
            levels, extent, given, tf.fill(given.shape[:2], True), tf.constant(image_size))
        all_boxes = detector.box_stages[-1].decode(boxes, deltas, tf.constant(image_size))
        final = detector.detect(tf.constant(image), tf.constant(image_size))
    names = {f"c{i}": x for i, x in enumerate(maps, start=2)}
    names.update({f"p{i}": x for i, x in enumerate(levels, start=2) if cfg.MODE_FPN})
    tensors = {name: x for name, x in names.items() if f"{name}_value" in case}
    result = Comparison()
    result.same("variables", [f"{v.op.name} {'x'.join(map(str, v.shape.as_list()))}" for v in tf.global_variables()],
                [str(v) for v in case["variables"]])
    with reference_session(tf) as session:
        maps, boxes, valid, all_boxes, all_scores, final = session.run(
            (tensors, proposals.boxes[0], proposals.valid[0], all_boxes[0], scores[0], final))
    compare_maps(result, case, maps)
    compare_proposals(result, case, boxes[valid])
    result.at_most("scores of given proposals", np.abs(all_scores - case["all_scores"]).max(), 1e-3)
    if all_boxes.shape[1] == 1:  # class-agnostic: the reference repeats the box for every class
        all_boxes = np.repeat(all_boxes, case["all_boxes"].shape[1], axis=1)
    result.same("boxes of given proposals, shape", all_boxes.shape, case["all_boxes"].shape)
    if all_boxes.shape == case["all_boxes"].shape:
        result.at_most("boxes of given proposals, pixels", np.abs(all_boxes - case["all_boxes"]).max(), 0.1)
    compare_detections(result, case, {name: value[0] for name, value in final.items()})
    return result


def compare_maps(result, case, maps):
    """Compare the sampled values of the feature maps (B×h×w×C here, NCHW there)."""
    for name, ours in maps.items():
        ours = ours.transpose(0, 3, 1, 2)
        result.same(f"{name} shape", ours.shape, case[f"{name}_shape_nchw"].tolist())
        reference = case[f"{name}_value"]
        if list(ours.shape) == case[f"{name}_shape_nchw"].tolist():
            values = ours[tuple(case[f"{name}_index_nchw"].T)]
            result.at_most(name, np.abs(values - reference).max() / np.abs(reference).max(), FEATURE_TOLERANCE)


def compare_proposals(result, case, boxes):
    """Compare the sets of proposals, in any order."""
    result.at_least("proposals", len(boxes), len(case["proposal_boxes"]))
    partner = box_agreement(case["proposal_boxes"], boxes).max(axis=1)
    result.at_least("proposals with a partner", np.mean(partner >= 0.99), 0.99)


def compare_detections(result, case, final):
    """Compare the final detections: same label, IoU ≥ 0.99, score within 1e-3, and the masks of those matched."""
    count = int(final["num_detections"])
    result.at_least("detections", count, 1 if len(case["boxes"]) else 0)
    if count == 0 or not len(case["boxes"]):
        return
    iou = box_agreement(case["boxes"], final["boxes"][:count])
    alike = (case["labels"][:, None] == final["labels"][None, :count])
    alike &= np.abs(case["scores"][:, None] - final["scores"][None, :count]) <= 1e-3
    iou = np.where(alike, iou, 0)
    matched = iou.max(axis=1) >= 0.99
    result.at_least("detections with a partner", matched.mean(), 0.98)
    if "masks" in case and matched.any():
        ours = final["masks"][iou.argmax(axis=1)[matched]]
        difference = np.abs(ours - case["masks"][matched].astype(np.float32)).mean(axis=(1, 2))
        result.at_most("masks of matched detections, mean", difference.mean(), 2e-3)


def compare_training(case, train_case):
    """Compare the losses of as many draws as the case has; returns the Comparison."""
    import tensorflow.compat.v1 as tf

    from FasterRCNN.engine.optim import weight_decay_loss
    from FasterRCNN.modeling.build import build_detector

    cfg = case_config(case, is_training=True)
    tf.disable_eager_execution()
    detector = build_detector(cfg, is_training=True)
    inputs, draw = training_inputs(train_case, detector.pad_multiple, cfg), tf.placeholder(tf.int32, [])
    if not cfg.MODE_MASK:
        del inputs["gt_masks"]
    losses, _ = detector.losses(**{name: tf.constant(value) for name, value in inputs.items()},
                                image_seeds=tf.stack([[draw, 0]]))
    losses["wd"] = weight_decay_loss(tf.trainable_variables(), cfg.TRAIN.WEIGHT_DECAY)
    result = Comparison()
    result.same("trainable variables", [v.op.name for v in tf.trainable_variables()],
                [str(name) for name in case["trainable"]])
    reference = dict(zip((str(name) for name in case["names"]), case["draws"].T))
    names = {name: reference_loss_name(name, list(reference)) for name in losses}
    with reference_session(tf) as session:
        draws = [session.run(losses, {draw: i}) for i in range(len(case["draws"]))]
    for name, values in ((name, np.array([d[name] for d in draws])) for name in losses):
        compare_loss(result, name, values, reference[names[name]])
    return result


def reference_loss_name(name, given):
    """Return which of the case's names stands for a loss of this program; ValueError when none or several could."""
    if name in LOSS_NAMES:
        found = [LOSS_NAMES[name]] if LOSS_NAMES[name] in given else []
    else:  # box/stageN/loss_KIND of a cascade
        stage, kind = re.fullmatch(r"box/stage(\d)/loss_(cls|box)", name).groups()
        words = {"cls": ("label", "cls", "class"), "box": ("box",)}[kind]
        found = [other for other in given if stage in re.findall(r"\d", other) and any(word in other for word in words)]
    if len(found) != 1:
        raise ValueError(f"the case's losses {', '.join(given)} hold {len(found)} that may be {name}: one is wanted")
    return found[0]


def compare_loss(result, name, ours, reference):
    """Compare a loss by its mean over the draws: within a share or, where sampling varies it, 4 standard errors."""
    share = {"wd": 1e-4, "mask/loss": 0.01, "rpn/loss_cls": 0, "box/loss_cls": 0}.get(name, 0.005)
    count = max(len(reference) - 1, 1)
    standard_error = np.sqrt(reference.var() / count + ours.var() / count)
    limit = max(share * abs(reference.mean()), 4 * standard_error, 1e-6)
    result.at_most(f"{name}: |{ours.mean():.6g} - {reference.mean():.6g}|", abs(ours.mean() - reference.mean()), limit)


def training_inputs(train_case, pad_multiple, cfg):
    """Return the arrays of a training step, as the loader makes them, of a case's image and objects."""
    from FasterRCNN.imaging.mask_crops import crop_masks, pack_mask
    from FasterRCNN.masks import Masks

    image, image_size = pad_image(train_case["image_bgr"], pad_multiple)
    boxes = train_case["boxes"]
    slots = -(-len(boxes) // 8) * 8
    gt_boxes, gt_labels = np.zeros((1, slots, 4), np.float32), np.zeros((1, slots), np.int32)
    gt_boxes[0, :len(boxes)], gt_labels[0, :len(boxes)] = boxes, train_case["labels"]
    polygons = [[train_case[f"polygon{i}"]] for i in range(len(boxes))]
    height, width = train_case["image_bgr"].shape[:2]
    masks = pack_mask(crop_masks(Masks(polygons, (width, height)), boxes))
    gt_masks = np.zeros((1, slots, *masks.shape[1:]), np.uint8)
    gt_masks[0, :len(boxes)] = masks
    return {"image": image, "image_size": image_size, "gt_boxes": gt_boxes, "gt_labels": gt_labels,
            "gt_masks": gt_masks}


def read_case(path, keys):
    """Return the arrays of an .npz; ValueError when it is none, or lacks some of `keys`."""
    try:
        case = dict(np.load(path, allow_pickle=False))
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} is no reference case: {error}") from None
    if "draws" not in case and (lacking := [key for key in keys if key not in case]):
        raise ValueError(f"{path} is not the case expected here: it lacks {', '.join(lacking)}")
    return case


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", help="a reference case (.npz)")
    parser.add_argument("--train-case", help="the image and objects (.npz) of a case of training losses")
    args = parser.parse_args()
    case = read_case(args.case, ["draws", "names"] if args.train_case else ["image_bgr", "config"])
    if "draws" in case:
        if not args.train_case:
            raise ValueError(f"{args.case} holds training losses: give the image with --train-case train_case.npz")
        return compare_training(case, read_case(args.train_case, ["image_bgr", "boxes", "labels"])).report()
    return compare_inference(case).report()


if __name__ == "__main__":
    sys.exit(config.run_command(main))
