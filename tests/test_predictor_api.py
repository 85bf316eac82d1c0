"""The Python interface: what users call, with a detector whose answer is known, and from several threads at once."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import config

import cv2
import numpy as np
import pytest
from bright_box import PHOTOS, WEIGHTS, BrightBoxDetector
from PIL import Image
from test_structures_doc import run_examples
from tiny_model import CLASS_NAMES, photos, write_model

from FasterRCNN.engine.npz import save_npz
from FasterRCNN.imaging.visualize import draw_detections
from FasterRCNN.masks import Masks
from FasterRCNN.structures import BoxList
from predictor import Predictor

DOC = Path(__file__).resolve().parent.parent / "docs" / "python.md"
KEYS = [
    "PREPROC.TEST_SHORT_EDGE_SIZE=64", "PREPROC.MAX_SIZE=128", "MODE_FPN=True",
    "DATA.CLASS_NAMES=[dim,bright]", "DATA.CATEGORY_IDS=[3,8]",
]  # fmt: skip


@pytest.fixture
def bright_path(tmp_path, monkeypatch):
    """A model that finds bright rectangles, scored 0.75 as "bright" and 0.375 as "dim"."""
    monkeypatch.setattr("FasterRCNN.modeling.build.build_detector", lambda cfg: BrightBoxDetector())
    cfg = config.default_config()
    cfg.update_args(KEYS)
    save_npz(tmp_path / "bright.npz", {name: WEIGHTS[name] for name in list(WEIGHTS)[:2]}, cfg.to_dict())
    return tmp_path / "bright.npz"


@pytest.fixture
def bright(bright_path):
    with Predictor(bright_path, min_image_size=None) as predictor:
        yield predictor


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = write_model(tmp_path_factory.mktemp("model") / "tiny.npz")
    with Predictor(path, confidence_threshold=0.0, min_image_size=None, batch_size=2) as predictor:
        yield predictor


def same(a, b):
    assert a.image_size == b.image_size and len(a) == len(b)
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
    np.testing.assert_allclose(a.get_field("scores"), b.get_field("scores"), atol=1e-5)
    assert a.get_field("labels").tolist() == b.get_field("labels").tolist()
    assert np.mean(np.asarray(a.get_field("masks")) != np.asarray(b.get_field("masks"))) < 1e-3


def test_a_photos_detections(bright):
    image, (x1, y1, x2, y2) = PHOTOS[0]
    detections = bright.compute_prediction(image)
    assert isinstance(detections, BoxList) and detections.mode == "xyxy" and detections.image_size == image.shape[1::-1]
    np.testing.assert_allclose(detections.boxes, [[x1, y1, x2, y2]], atol=4)
    np.testing.assert_allclose(detections.get_field("scores"), [0.75])
    assert [bright.categories.name_of_label(label) for label in detections.get_field("labels")] == ["bright"]
    assert isinstance(detections.get_field("masks"), Masks)
    mask = np.asarray(detections.get_field("masks"))[0]
    assert mask.shape == image.shape[:2] and mask.sum() == pytest.approx((x2 - x1) * (y2 - y1), rel=0.1)
    assert (bright.class_names, bright.with_masks) == (("dim", "bright"), True)


def test_a_photo_without_objects(bright):
    image, _ = PHOTOS[1]
    detections = bright.compute_prediction(image)
    assert len(detections) == 0 and detections.fields() == ["scores", "labels", "masks"]
    assert bright.compute_predictions([]) == []
    picture = bright.run_on_opencv_image(image)
    assert picture.dtype == np.uint8 and not picture.any()


def test_the_threshold_is_inclusive_and_may_change(bright):
    image, _ = PHOTOS[0]
    for threshold, count in ((0.76, 0), (0.75, 1), (0.375, 2), (0, 2)):
        bright.confidence_threshold = threshold
        assert len(bright.compute_prediction(image)) == count
    everything = bright.compute_prediction(image)
    assert len(bright.select_top_predictions(everything, 0.5)) == 1
    ascending = bright.select_top_predictions(everything[[1, 0]])
    assert ascending.get_field("scores").tolist() == [0.75, 0.375]
    with pytest.raises(ValueError, match="confidence_threshold is 70: a score from 0 to 1 is wanted"):
        bright.select_top_predictions(everything, 70)


def test_the_drawn_picture_is_that_of_the_chosen_detections(bright):
    image, _ = PHOTOS[0]
    before = image.copy()
    picture = bright.run_on_opencv_image(image)
    detections = bright.compute_prediction(image)
    np.testing.assert_array_equal(picture, draw_detections(image, detections, bright.categories, score_threshold=0.7))
    bright.confidence_threshold = 0.3
    assert (bright.run_on_opencv_image(image) != picture).any()
    np.testing.assert_array_equal(image, before)


def test_a_batch_gives_what_each_photo_gives(bright_path, tiny):
    with Predictor(bright_path, min_image_size=None, batch_size=3) as predictor:
        assert predictor.cfg.TEST.IMS_PER_GPU == 3
        found = predictor.compute_predictions(image for image, _ in PHOTOS)
    assert [len(detections) for detections in found] == [box is not None for _, box in PHOTOS]
    for detections, (image, _) in zip(found, PHOTOS):
        assert detections.image_size == image.shape[1::-1]

    together = tiny.compute_predictions(photos())
    assert sum(map(len, together)) > 30 and tiny.class_names == CLASS_NAMES
    for detections, image in zip(together, photos()):
        assert (np.diff(detections.get_field("scores")) <= 0).all()
        same(detections, tiny.compute_prediction(image))


def test_threads_get_what_each_gets_alone(tiny):
    images = photos()
    alone = [tiny.compute_prediction(image) for image in images]

    def use(thread):
        order = [(thread + step) % len(images) for step in range(2 * len(images))]
        found = [(i, tiny.compute_prediction(images[i])) for i in order]
        return found + list(zip(order, tiny.compute_predictions(images[i] for i in order)))

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(use, range(4)):
            assert len(found) == 4 * len(images)
            for i, detections in found:
                same(detections, alone[i])


def test_image_sizes(bright_path):
    assert Predictor(bright_path).cfg.PREPROC.TEST_SHORT_EDGE_SIZE == 800
    with Predictor(bright_path, 0.7, None, config=["TEST.MASK_THRESH=0.4"]) as predictor:
        assert (predictor.cfg.PREPROC.TEST_SHORT_EDGE_SIZE, predictor.cfg.TEST.MASK_THRESH) == (64, 0.4)


GREY = np.zeros((4, 5), np.uint8)


@pytest.mark.parametrize(("image", "message"), [
    ("photo.jpg", "'photo.jpg' is a path and no image: .* read it with FasterRCNN.imaging.read.read_image"),
    (Path("a/b.png"), "'a/b.png' is a path"),
    (None, "the image is NoneType: .*cv2.imread gives None for a file that it cannot read"),
    (Image.new("RGB", (5, 4)), "the image is Image: .*BGR.* of a PIL image: np.asarray"),
    ([GREY], "the image is list: .*compute_predictions takes several images"),
    (GREY, r"the image is uint8 \(4, 5\): .* of a grey one: cv2.cvtColor\(image, cv2.COLOR_GRAY2BGR\)"),
    (np.zeros((4, 5, 4), np.uint8), "COLOR_BGRA2BGR"),
    (np.zeros((4, 5, 3), np.float32), r"the image is float32 \(4, 5, 3\): .*, of values from 0 to 255"),
    (np.zeros((2, 4, 5, 3), np.uint8), "compute_predictions takes several images"),
    (np.zeros((0, 5, 3), np.uint8), r"the image is uint8 \(0, 5, 3\): uint8 H×W×3"),
])  # fmt: skip
def test_what_is_no_photo_is_told_the_way_out(tiny, image, message):
    with pytest.raises(ValueError, match=message):
        tiny.compute_prediction(image)


def test_the_hints_hold(tiny):
    assert tiny.compute_prediction(cv2.cvtColor(GREY, cv2.COLOR_GRAY2BGR)).boxes.shape[1] == 4
    rgb = Image.fromarray(photos()[0][..., ::-1])
    same(tiny.compute_prediction(np.asarray(rgb.convert("RGB"))[..., ::-1]), tiny.compute_prediction(photos()[0]))


@pytest.mark.parametrize(("images", "message"), [
    (photos()[0], r"compute_predictions got one image \(60, 90, 3\): give a list, or use compute_prediction"),
    ("photos/*.jpg", re.escape("'photos/*.jpg' is a path")),
])  # fmt: skip
def test_one_image_instead_of_several(tiny, images, message):
    with pytest.raises(ValueError, match=message):
        tiny.compute_predictions(images)


def test_wrong_arguments(bright_path, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights at .*none.npz: give .* or a run folder"):
        Predictor(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="confidence_threshold is 1.5"):
        Predictor(bright_path, 1.5)
    with pytest.raises(ValueError, match="PREPROC.TEST_SHORT_EDGE_SIZE"):
        Predictor(bright_path, min_image_size="large")


def test_a_closed_predictor_says_so(bright_path):
    with Predictor(bright_path) as predictor:
        pass
    predictor.close()
    with pytest.raises(RuntimeError, match="closed"):
        predictor.compute_prediction(PHOTOS[0][0])


def test_the_pages_examples_show_what_they_say(tmp_path, monkeypatch):
    write_model(tmp_path / "model.npz")
    (tmp_path / "photos").mkdir()
    for name, image in zip(("street.png", "photos/a.png", "photos/b.png"), photos()):
        cv2.imwrite(str(tmp_path / name), image)
    monkeypatch.chdir(tmp_path)
    text = DOC.read_text(encoding="utf-8")
    (failed, attempted), report = run_examples(text)
    assert not failed, report
    assert attempted == len(re.findall(r"^>>> ", text, re.MULTILINE)) > 10
    assert (tmp_path / "drawn.png").is_file()
