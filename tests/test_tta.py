"""Test-time augmentation: one view against plain inference, several against NumPy, mirrored photos, the commands."""

import json

from config import ConfigError, default_config

import cv2
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from pycocotools import mask as mask_utils
from tiny import C4, random_image, restore_reference_values, session, tiny_config
from tiny_model import write_model

from FasterRCNN.engine.predictor import Predictor
from FasterRCNN.engine.tta import MIRRORED_AXES, AugmentedPredictor, View
from FasterRCNN.imaging.resize import resize_image
from FasterRCNN.modeling.build import build_detector
from FasterRCNN.structures import BoxList, to_image_list
from inference import build_predictor, load_predictor
from predict import run_prediction
from tools.compare_reference import reference_value

NAMES = {"DATA.CLASS_NAMES": ["a", "b", "c"], "DATA.CATEGORY_IDS": [1, 2, 3], "PREPROC.TEST_SHORT_EDGE_SIZE": 64}
MODELS = {
    "fpn, batches": {"TEST.IMS_PER_GPU": 2},
    "cascade in bfloat16": {"FPN.CASCADE": True, "TEST.PRECISION": "bf16"},
    "c4 without masks, batches": {**C4, "MODE_MASK": False, "TEST.IMS_PER_GPU": 3},
}
PHOTOS = [random_image(90, 130, 1), random_image(64, 50, 2), random_image(48, 120, 3)]
ALL_VIEWS = {"TEST.AUGMENT_SCALES": [48, 72], "TEST.AUGMENT_FLIPS": ["horizontal", "vertical"]}


def tiny_predictor(changes):
    cfg = tiny_config({**NAMES, **changes})
    detector = build_detector(cfg)
    with tf.Graph().as_default():
        detector.detect(tf.placeholder(tf.uint8, [1, None, None, 3]), tf.placeholder(tf.int32, [1, 2]))
        shapes = {v.op.name: v.shape.as_list() for v in tf.global_variables()}
    return build_predictor(cfg, {name: reference_value(name, shape) for name, shape in shapes.items()})


def bitmaps(detections):
    return detections.get_field("masks").bitmaps().astype(bool)


@pytest.mark.parametrize("name", MODELS)
def test_one_scale_without_flip_is_plain_inference(name):
    changes = MODELS[name]
    with tiny_predictor(changes) as plain, tiny_predictor({**changes, "TEST.AUGMENT_SCALES": [64]}) as one_view:
        assert (type(plain), type(one_view)) == (Predictor, AugmentedPredictor)
        for wanted, found in zip(plain.predict(PHOTOS), one_view.predict(PHOTOS), strict=True):
            assert len(wanted) > 1 and found.fields() == wanted.fields()
            np.testing.assert_array_equal(found.boxes, wanted.boxes)
            for field in ("scores", "labels"):
                np.testing.assert_array_equal(found.get_field(field), wanted.get_field(field))
                assert found.get_field(field).dtype == wanted.get_field(field).dtype
            if plain.with_masks:
                np.testing.assert_array_equal(bitmaps(found), bitmaps(wanted))


@pytest.mark.parametrize("flip, changes", [("horizontal", {"TEST.IMS_PER_GPU": 2}), ("vertical", C4)])
def test_of_a_mirrored_photo_all_is_mirrored(flip, changes):
    """The photo and its mirror image have the same two views, so what is seen is the same but for the frame."""
    axis = 1 - MIRRORED_AXES[flip]
    mirrored = [np.ascontiguousarray(np.flip(photo, axis)) for photo in PHOTOS]
    with tiny_predictor({**changes, "TEST.AUGMENT_FLIPS": [flip]}) as model:
        for wanted, found in zip(model.predict(PHOTOS), model.predict(mirrored), strict=True):
            assert len(wanted) > 1
            np.testing.assert_allclose(found.transpose(MIRRORED_AXES[flip]).boxes, wanted.boxes, atol=1e-3)
            np.testing.assert_allclose(found.get_field("scores"), wanted.get_field("scores"), atol=1e-5)
            assert found.get_field("labels").tolist() == wanted.get_field("labels").tolist()
            assert (np.flip(bitmaps(found), 1 + axis) != bitmaps(wanted)).mean() < 1e-3


def unsuppressed(scale):
    """All that the views of the first photo in one size show above the threshold, unmirrored, in its pixels."""
    everything = {"TEST.FRCNN_NMS_THRESH": 1.0, "TEST.RESULTS_PER_IM": 100, "PREPROC.TEST_SHORT_EDGE_SIZE": scale}
    photos = [PHOTOS[0], *(np.ascontiguousarray(np.flip(PHOTOS[0], 1 - axis)) for axis in (0, 1))]
    with tiny_predictor({"MODE_MASK": False, **everything}) as model:
        plain, *mirrored = model.predict(photos)
    return [plain, *(found.transpose(axis) for axis, found in enumerate(mirrored))]


def suppress(boxes, scores, labels, threshold):
    """The indices of the boxes that are left, by falling score, class by class, after the definition."""
    xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(float)
    overlap = mask_utils.iou(xywh, xywh, np.zeros(len(boxes)))
    kept = []
    for place in np.argsort(-scores, kind="stable"):
        if all(labels[place] != labels[other] or overlap[place, other] <= threshold for other in kept):
            kept.append(place)
    return kept


def test_boxes_of_all_views_are_suppressed_together():
    """Against plain inference of every view without suppression, joined by NumPy."""
    changes = {**ALL_VIEWS, "MODE_MASK": False, "TEST.FRCNN_NMS_THRESH": 0.4, "TEST.RESULTS_PER_IM": 9}
    with tiny_predictor(changes) as model:
        (found,) = model.predict(PHOTOS[:1])
    views = [view for scale in (48, 72) for view in unsuppressed(scale)]
    boxes = np.concatenate([view.boxes for view in views])
    scores, labels = (np.concatenate([view.get_field(name) for view in views]) for name in ("scores", "labels"))
    left = suppress(boxes, scores, labels, 0.4)
    kept = left[:9]
    assert 9 < len(left) < len(boxes) and all(0 < len(view) < 100 for view in views)
    np.testing.assert_allclose(found.get_field("scores"), scores[kept], atol=1e-5)
    np.testing.assert_allclose(found.boxes, boxes[kept], atol=1e-2)
    assert found.get_field("labels").tolist() == labels[kept].tolist()


def test_masks_are_the_mean_over_the_views():
    """Against the mask head run on each view, with the boxes moved there by NumPy."""
    with tiny_predictor(ALL_VIEWS) as model:
        _, outputs = model.run_batch(model.prepare([(0, PHOTOS[0])]))
    boxes = BoxList(outputs["boxes"][0], resize_image(PHOTOS[0], 48, 96).shape[1::-1])
    views = []
    for scale in (48, 72):
        seen = resize_image(PHOTOS[0], scale, 2 * scale)
        moved = boxes.resize(seen.shape[1::-1])
        views += [(seen, moved), *((np.flip(seen, 1 - axis), moved.transpose(axis)) for axis in (0, 1))]
    masks = masks_of(views, outputs["labels"])
    wanted = [np.flip(mask, 2 - axis) if axis in (0, 1) else mask for mask, axis in zip(masks, [None, 0, 1] * 2)]
    assert outputs["num_detections"][0] > 1 and np.ptp(wanted, axis=0).max() > 0.01
    np.testing.assert_allclose(outputs["masks"][0], np.mean(wanted, axis=0), atol=1e-4)


def masks_of(views, labels):
    """D×M×M of the boxes of each (image, BoxList)."""
    detector = build_detector(tiny_config())
    with tf.Graph().as_default() as graph, session() as running:
        image, size = tf.placeholder(tf.uint8, [1, None, None, 3]), tf.placeholder(tf.int32, [1, 2])
        boxes = tf.placeholder(tf.float32, [1, labels.shape[1], 4])
        _, levels, extent = detector.features(image, size)
        masks = detector.masks(levels, extent, boxes, tf.constant(labels, tf.int64))
        restore_reference_values(running, graph)
        padded = [to_image_list([seen], detector.pad_multiple) for seen, _ in views]
        return [running.run(masks, {image: pad.tensors, size: pad.image_sizes, boxes: moved.boxes[None]})[0]
                for pad, (_, moved) in zip(padded, views, strict=True)]


def test_what_is_moved_between_views_returns():
    random = np.random.default_rng(0)
    images = [to_image_list([random_image(*size, 0) for size in sizes], 32) for sizes in ([(40, 60), (64, 33)],
                                                                                      [(80, 121), (96, 50)])]
    boxes = random.uniform(0, 30, (2, 5, 4)).astype(np.float32)
    boxes[..., 2:] += boxes[..., :2]
    for axes in [(None, 0), (0, 1), (1, None), (0, 0)]:
        one, other = (View(*view) for view in zip(images, axes))
        there = one.boxes_to(other, boxes)
        assert (there[..., 2:] > there[..., :2]).all() and not np.allclose(there, boxes)
        np.testing.assert_allclose(other.boxes_to(one, there), boxes, atol=1e-4)


@pytest.mark.parametrize("changes, sizes", [
    ({"TEST.AUGMENT_SCALES": [32, 96], "PREPROC.MAX_SIZE": 96}, [(32, 64), (72, 144)]),  # 96 × 96 / 64
    ({"TEST.AUGMENT_FLIPS": ["vertical", "horizontal"]}, [(64, 128)] * 3),
])
def test_the_config_says_what_the_views_are(changes, sizes):
    with tiny_predictor({"MODE_MASK": False, **changes}) as model:
        views = model.prepare([(0, random_image(60, 120, 1))]).views
    assert [tuple(view.images.image_sizes[0]) for view in views] == sizes


def test_photos_in_which_nothing_is_found():
    with tiny_predictor({**ALL_VIEWS, "TEST.RESULT_SCORE_THRESH": 0.999, "TEST.IMS_PER_GPU": 2}) as model:
        for found, photo in zip(model.predict(PHOTOS), PHOTOS, strict=True):
            assert len(found) == len(found.get_field("masks")) == 0
            assert found.image_size == photo.shape[1::-1]
        assert model.predict([]) == []


def test_an_unknown_flip():
    with pytest.raises(ConfigError, match="TEST.AUGMENT_FLIPS.*one of horizontal, vertical"):
        default_config().update_args(["TEST.AUGMENT_FLIPS=[diagonal]"])


def test_the_command_takes_the_keys(tmp_path):
    model = write_model(tmp_path / "model.npz")
    cv2.imwrite(str(tmp_path / "photo.png"), PHOTOS[0])
    changes = ["TEST.AUGMENT_SCALES=[48,64]", "TEST.AUGMENT_FLIPS=[horizontal]"]
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    run_prediction(model, overrides=changes, inputs=[str(photo)], output_dir=out, show=False)
    written = json.loads((out / "coco_results.json").read_text())
    predictor, _ = load_predictor(model, changes)
    with predictor:
        (found,) = predictor.predict(PHOTOS[:1])
    np.testing.assert_allclose([item["score"] for item in written], found.get_field("scores"), atol=1e-5)
