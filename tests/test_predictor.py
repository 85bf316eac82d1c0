"""Photos to detections, with a detector whose answer is known."""

import threading
import time

from config import default_config, finalize_configs

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from bright_box import CATEGORIES, MASK_SIDE, PHOTOS, SLOTS, WEIGHTS, BrightBoxDetector, photo
from pycocotools import mask as mask_utils

from FasterRCNN.engine.predictor import Predictor, build_constant_graph, map_ahead
from FasterRCNN.imaging.postprocess import paste_mask
from FasterRCNN.modeling.build import build_detector
from FasterRCNN.structures import FLIP_LEFT_RIGHT
from inference import build_predictor

TINY_FPN = {
    "MODE_FPN": True,
    "DATA.NUM_CLASS": 3,
    "BACKBONE.CHANNELS": 32,
    "BACKBONE.RESNET_NUM_BLOCKS": [1, 1, 1, 1],
    "FPN.NUM_CHANNEL": 32,
    "FPN.FRCNN_FC_HEAD_DIM": 32,
    "MRCNN.HEAD_DIM": 32,
    "TEST.RESULT_SCORE_THRESH": 0.0,
    "TEST.RESULTS_PER_IM": 10,
}


def predictor(weights=WEIGHTS, **changes):
    settings = {"short_edge": 64, "max_size": 120, "pad_multiple": 32, "ims_per_batch": 1, "with_masks": True}
    return Predictor(BrightBoxDetector(), weights, categories=CATEGORIES, **settings | changes)


def check(detections, truth, height, width):
    assert detections.image_size == (width, height) and detections.mode == "xyxy"
    scores, labels = detections.get_field("scores"), detections.get_field("labels")
    masks = detections.get_field("masks").segmentations
    assert (detections.boxes.dtype, scores.dtype, labels.dtype) == (np.float32, np.float32, np.int32)
    if truth is None:
        assert detections.boxes.shape == (0, 4) and len(masks) == 0
        return
    assert detections.boxes.shape == (2, 4)
    # A pixel of the resized image is up to 2.6 pixels of the photo.
    np.testing.assert_allclose(detections.boxes[0], truth, atol=4)
    np.testing.assert_allclose(scores, [0.75, 0.375])
    assert labels.tolist() == [2, 1]
    assert masks[0]["size"] == [height, width]
    mask = mask_utils.decode(masks[0])
    x1, y1, x2, y2 = np.round(detections.boxes[0]).astype(int)
    inside = np.zeros((height, width), np.uint8)
    inside[y1:y2, x1:x2] = 1
    assert np.logical_and(mask, inside).sum() / np.logical_or(mask, inside).sum() > 0.9


@pytest.mark.parametrize("ims_per_batch", [1, 2, 3])
def test_boxes_and_masks_are_in_the_photos_pixels_and_order(ims_per_batch):
    with predictor(ims_per_batch=ims_per_batch) as model:
        found = model.predict(image for image, _ in PHOTOS)
    assert len(found) == len(PHOTOS)
    for detections, (image, truth) in zip(found, PHOTOS):
        check(detections, truth, *image.shape[:2])


def test_batch_size_changes_nothing():
    images = [image for image, _ in PHOTOS]
    with predictor() as one, predictor(ims_per_batch=4) as four:
        for a, b in zip(one.predict(images), four.predict(images)):
            np.testing.assert_array_equal(a.boxes, b.boxes)
            assert a.get_field("masks").segmentations == b.get_field("masks").segmentations


@pytest.mark.parametrize("method", ["opencv", "pillow", "float"])
def test_ways_to_resize(method):
    with predictor(resize_method=method, size_rounding="floor", ims_per_batch=2) as model:
        batch = model.prepare(list(enumerate(image for image, _ in PHOTOS[:2])))
        assert batch.images.tensors.dtype == (np.float32 if method == "float" else np.uint8)
        assert batch.images.image_sizes.tolist() == [[64, 100], [64, 64]]
        for detections, (image, truth) in zip(model.predict([image for image, _ in PHOTOS]), PHOTOS):
            check(detections, truth, *image.shape[:2])


def test_boxes_that_scale_by_their_last_pixel():
    """Twice as large as in the network: pixels 10 to 29 become 20 to 58, so the box ends at 59."""
    image = photo(128, 200, (20, 30, 60, 110))
    with predictor() as plain, predictor(inclusive_boxes=True) as inclusive:
        (expected,), (found,) = plain.predict([image]), inclusive.predict([image])
    assert found.boxes == pytest.approx(expected.boxes - [0, 0, 1, 1])


@pytest.mark.parametrize("paste", ["exact", "rounded", "padded"])
def test_ways_to_paste(paste):
    image = photo(120, 200, (20, 30, 60, 110))
    with predictor(paste=paste, inclusive_boxes=True) as model:
        (found,) = model.predict([image])
    last_pixel = [0, 0, 1, 1]
    frames = {"exact": found.boxes, "rounded": np.rint(found.boxes), "padded": found.boxes - last_pixel}[paste]
    mask = paste_mask(np.ones((4, 4), np.float32), frames[0].astype(np.float32), 120, 200, padded=paste == "padded")
    np.testing.assert_array_equal(mask_utils.decode(found.get_field("masks").segmentations[0]), mask)


def test_no_images():
    with predictor() as model:
        assert model.predict([]) == []


def test_boxes_without_masks():
    with predictor(with_masks=False) as model:
        (detections,) = model.predict([PHOTOS[0][0]])
    assert detections.get_field("labels").tolist() == [2, 1] and not detections.has_field("masks")


def test_detections_follow_their_photo():
    (image, truth), (height, width) = PHOTOS[0], PHOTOS[0][0].shape[:2]
    with predictor() as model:
        (detections,) = model.predict([image])
    mirrored = detections.transpose(FLIP_LEFT_RIGHT)
    np.testing.assert_allclose(mirrored.boxes[0], [width - truth[2], truth[1], width - truth[0], truth[3]], atol=4)
    bitmaps = [found.get_field("masks").bitmaps() for found in (detections, mirrored)]
    np.testing.assert_array_equal(bitmaps[1], bitmaps[0][:, :, ::-1])
    halved = detections.resize((width // 2, height // 2))[0]
    np.testing.assert_allclose(halved.boxes[0], np.array(truth) / 2, atol=2)
    np.testing.assert_allclose(halved.get_field("masks").boxes(), halved.boxes, atol=2)


def test_images_are_padded_to_the_multiple_and_batched_by_shape():
    shapes = []
    with predictor(ims_per_batch=2) as model:
        run = model.network_only
        model.network_only = lambda image, size: shapes.append((image.shape, size.tolist())) or run(image, size)
        tall, wide = photo(200, 100), photo(100, 200)
        model.predict([tall, wide, tall, wide, wide])
    # The shorter side would be 64, the longer 128: 120 is the greatest allowed.
    assert [shape for shape, _ in shapes] == [(2, 128, 64, 3), (2, 64, 128, 3), (1, 64, 128, 3)]
    assert shapes[0][1] == [[120, 60]] * 2 and shapes[2][1] == [[60, 120]]


def test_few_large_images_are_read_ahead(monkeypatch):
    monkeypatch.setattr("FasterRCNN.engine.predictor.WINDOW_PIXELS", 3 * 100 * 100)
    taken = []
    with predictor(ims_per_batch=2) as model:
        windows = model.batches(taken.append(i) or photo(100, 100) for i in range(9))
        assert [number for number, _ in next(windows)] == [0, 1] and taken == [0, 1, 2, 3]
        assert [[number for number, _ in batch] for batch in windows] == [[2, 3], [4, 5], [6, 7], [8]]


@pytest.mark.parametrize("shape", [(3, 1000), (1000, 3), (1, 1)])
def test_strips_that_resizing_leaves_narrower_than_a_stride(shape):
    """C4, which pads a single image to no multiple: nothing may be left to pool from."""
    cfg = default_config()
    cfg.update_dict({**TINY_FPN, "MODE_FPN": False, "RPN.HEAD_DIM": 32, "PREPROC.TEST_SHORT_EDGE_SIZE": 24})
    cfg.update_dict({"PREPROC.MAX_SIZE": 200})
    finalize_configs(cfg, is_training=False)
    detector = build_detector(cfg)
    with tf.Graph().as_default(), tf.Session() as session:
        detector.detect(tf.zeros([1, 64, 64, 3], tf.uint8), tf.constant([[64, 64]]))
        session.run(tf.global_variables_initializer())
        weights = session.run({variable.op.name: variable for variable in tf.global_variables()})
    settings = {"short_edge": 24, "max_size": 200, "pad_multiple": 1, "ims_per_batch": 1, "with_masks": True}
    with Predictor(detector, weights, categories=CATEGORIES, **settings) as model:
        (found,) = model.predict([np.full((*shape, 3), 255, np.uint8)])
    assert np.isfinite(found.boxes).all() and len(found.get_field("masks")) == len(found)


def test_a_stream_is_answered_before_it_ends():
    taken = []

    def camera():
        while True:
            taken.append(len(taken))
            yield PHOTOS[0][0]

    with predictor() as model:
        stream = model.predict_stream(camera())
        for _ in range(3):
            check(next(stream), PHOTOS[0][1], 128, 200)
        stream.close()
    assert len(taken) < 25


class MeetingDetector(BrightBoxDetector):
    """The first batch of each of two devices goes on only when that of the other runs, too."""

    def __init__(self):
        self._barrier = threading.Barrier(2)

    def detect(self, image, image_size):
        is_first = threading.Lock()  # of this device

        def meet():
            # No later batch: one that comes late finds the others gone, and no more are started ahead of its result.
            return self._barrier.wait(timeout=60) if is_first.acquire(blocking=False) else 0

        with tf.control_dependencies([tf.numpy_function(meet, [], tf.int64)]):
            return super().detect(image, image_size)


@pytest.mark.parametrize("ims_per_batch", [1, 2])
def test_several_devices_share_the_batches(monkeypatch, ims_per_batch):
    """Two devices, both of the CPU: the photos' detections in their order, two batches at a time."""
    two_cpus = tf.ConfigProto(device_count={"CPU": 2})
    monkeypatch.setattr("FasterRCNN.engine.predictor.session_config", lambda visible: two_cpus)
    options = {"short_edge": 64, "max_size": 120, "pad_multiple": 32, "ims_per_batch": ims_per_batch}
    devices = ["/cpu:0", "/cpu:1"]
    with Predictor(MeetingDetector(), WEIGHTS, categories=CATEGORIES, with_masks=True, devices=devices,
                   **options) as model:
        placed = [{op.device for op in network.session.graph.get_operations()} for network in model._networks]
        found = model.predict(image for image, _ in PHOTOS + PHOTOS[:1])
    assert placed == [{"/device:CPU:0"}, {"/device:CPU:1"}]
    assert len(found) == len(PHOTOS) + 1
    for detections, (image, truth) in zip(found, PHOTOS + PHOTOS[:1], strict=True):
        check(detections, truth, *image.shape[:2])


class CountingDetector(BrightBoxDetector):
    """Takes its time; `most` batches were in it together."""

    def __init__(self):
        self._lock, self._running, self.most = threading.Lock(), 0, 0

    def detect(self, image, image_size):
        with tf.control_dependencies([tf.numpy_function(self._count, [], [])]):
            return super().detect(image, image_size)

    def _count(self):
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
        time.sleep(0.3)
        with self._lock:
            self._running -= 1


@pytest.mark.parametrize("changes, at_once", [([], 2), (["TEST.BATCHES_AT_ONCE=1"], 1)])
def test_processors_run_batches_at_once(monkeypatch, changes, at_once):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    detector = CountingDetector()
    monkeypatch.setattr("FasterRCNN.modeling.build.build_detector", lambda _: detector)
    cfg = default_config()
    cfg.update_dict({"PREPROC.TEST_SHORT_EDGE_SIZE": 64, "PREPROC.MAX_SIZE": 120,
                     "DATA.CLASS_NAMES": list(CATEGORIES.names), "DATA.CATEGORY_IDS": list(CATEGORIES.ids)})
    cfg.update_args(changes)
    finalize_configs(cfg, is_training=False)
    with build_predictor(cfg, WEIGHTS) as model:
        found = model.predict(image for image, _ in PHOTOS)
    assert detector.most == at_once
    for detections, (image, truth) in zip(found, PHOTOS, strict=True):
        check(detections, truth, *image.shape[:2])


def test_a_network_that_raised_is_used_again():
    size = np.array([[64, 64]], np.int32)
    with predictor(devices=[None, None]) as model:
        for _ in range(3):
            with pytest.raises(ValueError, match="Cannot feed value of shape"):
                model.network_only(np.zeros((1, 64, 64, 2), np.uint8), size)
        assert model.network_only(np.zeros((1, 64, 64, 3), np.uint8), size)["num_detections"].tolist() == [0]


def test_network_only():
    with predictor() as model:
        outputs = model.network_only(photo(64, 96, (1, 2, 31, 42))[None], np.array([[64, 96]], np.int32))
    assert list(outputs) == ["boxes", "scores", "labels", "num_detections", "masks"]
    assert outputs["boxes"][0, 0].tolist() == [1, 2, 31, 42]
    assert outputs["masks"].shape == (1, SLOTS, MASK_SIDE, MASK_SIDE)


def test_weights_are_constants_made_once():
    graph, inputs, outputs = build_constant_graph(BrightBoxDetector(), WEIGHTS, batch_size=1)
    kinds = [op.type for op in graph.get_operations()]
    assert not {"VariableV2", "VarHandleOp"} & set(kinds)
    constants = [op.name for op in graph.get_operations() if op.type == "Const"]
    assert [name for name in constants if "threshold" in name] == ["bright/threshold"]
    assert inputs[0].shape.as_list() == [1, None, None, 3]
    assert "canvas" in outputs
    assert build_constant_graph(BrightBoxDetector(), WEIGHTS, batch_size=None)[1][0].shape[0] is None


class TwoConvolutions:
    """A kernel that a normalisation multiplies, shared by a branch, as the detector's layers have them."""

    def detect(self, image, image_size):
        with tf.variable_scope("conv"):
            kernel, scale = tf.get_variable("W", [3, 3, 3, 2]), tf.get_variable("bn/gamma", [2])
        x = tf.nn.conv2d(tf.cast(image, tf.float32), kernel * scale, 1, "SAME")

        def branch():
            with tf.variable_scope("conv", reuse=True):
                return x * tf.get_variable("bn/gamma", [2])

        return {"x": tf.cond(image_size[0, 0] > 4, branch, lambda: x)}


def test_constants_give_what_variables_give():
    rng = np.random.default_rng(0)
    weights = {"conv/W": rng.normal(size=(3, 3, 3, 2)).astype("f"), "conv/bn/gamma": np.array([2, 3], np.float32)}
    feed = [rng.integers(0, 255, (1, 8, 8, 3)).astype(np.uint8), np.array([[8, 8]], np.int32)]

    graph, inputs, outputs = build_constant_graph(TwoConvolutions(), weights, batch_size=1)
    with tf.Session(graph=graph) as session:
        frozen = session.run(outputs["x"], dict(zip(inputs, feed)))

    with tf.Graph().as_default(), tf.Session() as session:
        output = TwoConvolutions().detect(*(tf.constant(value) for value in feed))["x"]
        for variable in tf.global_variables():
            variable.load(weights[variable.op.name], session)
        expected = session.run(output)
    np.testing.assert_allclose(frozen, expected, rtol=1e-5, atol=1e-2)


def test_a_built_detector_gives_what_its_variables_give():
    cfg = default_config()
    cfg.update_dict(TINY_FPN)
    finalize_configs(cfg, is_training=False)
    rng = np.random.default_rng(1)
    feed = [rng.integers(0, 255, (1, 96, 128, 3)).astype(np.uint8), np.array([[96, 120]], np.int32)]
    with tf.Graph().as_default(), tf.Session() as session:
        outputs = build_detector(cfg).detect(*(tf.constant(value) for value in feed))
        session.run(tf.global_variables_initializer())
        weights = session.run({variable.op.name: variable for variable in tf.global_variables()})
        expected = session.run(outputs)

    graph, inputs, outputs = build_constant_graph(build_detector(cfg), weights, batch_size=1)
    with tf.Session(graph=graph) as session:
        found = session.run(outputs, dict(zip(inputs, feed)))
    assert found["num_detections"] == expected["num_detections"] > 0
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-4)
    assert found["masks"].shape == expected["masks"].shape


def test_weights_that_do_not_fit_are_named():
    lacking = {name: value for name, value in WEIGHTS.items() if name != "bright/score"}
    with pytest.raises(ValueError, match=r"(?s)model.npz.*missing.*bright"):
        predictor(lacking, source="model.npz")
    wrong = WEIGHTS | {"bright/score": np.zeros(7, np.float32)}
    with pytest.raises(ValueError, match="(?s)bright/score is 7, the model's 1"):
        predictor(wrong)


@pytest.mark.parametrize(
    "image, given",
    [
        (None, "NoneType"),
        (np.zeros((5, 5), np.uint8), r"uint8 \(5, 5\)"),
        (np.zeros((5, 5, 4), np.uint8), r"uint8 \(5, 5, 4\)"),
        (np.zeros((5, 5, 3), np.float32), r"float32 \(5, 5, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), r"empty: its shape is \(0, 5, 3\)"),
    ],
)
def test_images_of_another_kind_are_refused(image, given):
    with predictor() as model, pytest.raises(ValueError, match=f"image number 1 is {given}"):
        model.predict([PHOTOS[0][0], image])


def test_map_ahead_keeps_order_bounds_and_errors():
    gate, started = threading.Event(), []

    def slow_first(item):
        started.append(item)
        if item == 0:
            gate.wait(10)
        return item * item

    gate_timer = threading.Timer(0.2, gate.set)
    gate_timer.start()
    results = map_ahead(slow_first, range(20), threads=2)
    assert next(results) == 0
    assert len(started) <= 5  # 2 threads, 4 wait, one is out
    assert list(results) == [i * i for i in range(1, 20)]
    gate_timer.join()
    assert list(map_ahead(len, [], threads=1)) == []
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda item: 1 // item, [1, 0], threads=1))
