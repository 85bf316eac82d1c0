"""SavedModel and frozen graph: raw pixels and encoded bytes in, the predictor's detections out, by TensorFlow alone."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from config import default_config, finalize_configs

import cv2
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from bright_box import WEIGHTS, BrightBoxDetector
from PIL import Image
from tiny import TINY, random_image, reference_value

import export as command
from FasterRCNN.engine import export, export_check, serving_graph
from FasterRCNN.engine.export_check import CheckPhoto, Differences
from FasterRCNN.engine.npz import save_npz
from FasterRCNN.engine.predictor import Predictor, build_constant_graph
from FasterRCNN.engine.serving_resize import Resizing
from FasterRCNN.imaging.read import decode_image
from FasterRCNN.imaging.resize import resize_image
from FasterRCNN.modeling.build import build_detector
from FasterRCNN.ops.kernels import SOURCES
from FasterRCNN.ops.roi_align import portable_form
from FasterRCNN.structures import Categories
from inference import build_predictor

ROOT = Path(__file__).resolve().parent.parent
CATEGORIES = Categories(names=["cat", "dög", "sofa"], ids=[17, 3, 90])
PHOTOS = [random_image(90, 120, 0), random_image(140, 100, 1), random_image(60, 64, 2)]


def tiny_config(**changes):
    cfg = default_config()
    cfg.update_dict({**TINY, "MODE_MASK": True, "PREPROC.TEST_SHORT_EDGE_SIZE": 96, "TEST.IMS_PER_GPU": 2, **changes})
    cfg.DATA.CLASS_NAMES, cfg.DATA.CATEGORY_IDS = CATEGORIES.names, CATEGORIES.ids
    finalize_configs(cfg, is_training=False)
    return cfg


def serving_of(cfg, weights):
    detector = build_detector(cfg, form=portable_form())
    resizing = Resizing(96, cfg.PREPROC.MAX_SIZE, cfg.PREPROC.RESIZE, cfg.PREPROC.SIZE_ROUNDING)
    network, _, _ = build_constant_graph(
        detector, weights, batch_size=None, image_dtype=resizing.dtype.as_numpy_dtype
    )
    return serving_graph.build_serving_graph(
        network, resizing, pad_multiple=detector.pad_multiple, inclusive_boxes=cfg.ROIALIGN.INCLUSIVE
    )


@pytest.fixture(scope="module")
def tiny():
    """A model whose heads are strong enough to find something: cfg, weights."""
    cfg = tiny_config()
    with tf.Graph().as_default():
        build_detector(cfg).detect(tf.placeholder(tf.uint8, [1, None, None, 3]), tf.placeholder(tf.int32, [1, 2]))
        weights = {v.op.name: reference_value(v.op.name, v.shape.as_list()) for v in tf.global_variables()}
    return SimpleNamespace(cfg=cfg, weights=weights)


@pytest.fixture(scope="module")
def serving(tiny):
    return serving_of(tiny.cfg, tiny.weights)


@pytest.fixture(scope="module")
def saved_model(serving, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    export.write_saved_model(serving, folder, CATEGORIES)
    return folder


@pytest.fixture(scope="module")
def predictor(tiny):
    with build_predictor(tiny.cfg, tiny.weights) as predictor:
        yield predictor


@pytest.fixture(scope="module")
def expected(predictor):
    return predictor.predict(PHOTOS)


def check(outputs, expected):
    for i, detections in enumerate(expected):
        count = outputs["num_detections"][i]
        assert count == len(detections) > 2
        np.testing.assert_allclose(outputs["boxes"][i, :count], detections.boxes, atol=0.01)
        np.testing.assert_allclose(outputs["scores"][i, :count], detections.get_field("scores"), atol=1e-4)
        np.testing.assert_array_equal(outputs["labels"][i, :count], detections.get_field("labels"))
        assert outputs["masks"].shape[:2] == outputs["scores"].shape


def encode(photo, suffix=".png"):
    return cv2.imencode(suffix, photo)[1].tobytes()


ONLY_TENSORFLOW = """
import sys
import numpy as np
import tensorflow as tf
folder, photos, result = sys.argv[1:]
files = [open(f"{photos}/{i}.png", "rb").read() for i in range(3)]
model = tf.saved_model.load(folder)
found = model.signatures["encoded"](tf.constant(files))
one = model.signatures["serving_default"](tf.io.decode_png(files[0], channels=3)[None])
assert not {"FasterRCNN", "config", "tensorpack"} & {name.split(".")[0] for name in sys.modules}
arrays = {name: value.numpy() for name, value in found.items()}
np.savez(result, **arrays, **{f"one_{name}": value.numpy() for name, value in one.items()})
"""


def test_a_process_that_has_only_tensorflow(saved_model, expected, tmp_path):
    for i, photo in enumerate(PHOTOS):
        (tmp_path / f"{i}.png").write_bytes(encode(photo))
    (tmp_path / "program.py").write_text(ONLY_TENSORFLOW)
    result = tmp_path / "result.npz"
    done = subprocess.run(
        [sys.executable, "program.py", str(saved_model), str(tmp_path), str(result)],
        cwd=tmp_path, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    with np.load(result, allow_pickle=False) as arrays:
        check({name: arrays[name] for name in ("boxes", "scores", "labels", "num_detections", "masks")}, expected)
        check({name[4:]: arrays[name] for name in arrays if name.startswith("one_")}, expected[:1])


def test_a_batch_of_raw_photos(saved_model, predictor):
    photos = [PHOTOS[0], PHOTOS[0][::-1], PHOTOS[0][:, ::-1]]
    with export.open_saved_model(saved_model) as run:
        check(run(images=np.stack(photos)[..., ::-1]), predictor.predict(map(np.ascontiguousarray, photos)))


def test_nothing_found(tiny, tmp_path):
    cfg = tiny_config(**{"TEST.RESULT_SCORE_THRESH": 0.9999999})
    export.write_saved_model(serving_of(cfg, tiny.weights), tmp_path / "model", CATEGORIES)
    with export.open_saved_model(tmp_path / "model") as run:
        outputs = run(images=PHOTOS[0][None])
    assert outputs["num_detections"] == [0] and not outputs["labels"].any() and not outputs["boxes"].any()


def test_the_precision_that_is_asked_for(tiny, saved_model, tmp_path):
    cfg = tiny_config(**{"TEST.PRECISION": "bf16"})
    serving = serving_of(cfg, tiny.weights)
    types = {node.attr["T"].type for node in serving.graph.as_graph_def().node if node.op == "Conv2D"}
    assert types == {tf.bfloat16.as_datatype_enum}
    export.write_saved_model(serving, tmp_path / "model", CATEGORIES)
    with build_predictor(cfg, tiny.weights) as predictor, export.open_saved_model(tmp_path / "model") as run:
        check(run(images=PHOTOS[0][None, ..., ::-1]), predictor.predict(PHOTOS[:1]))


@pytest.mark.parametrize("changes", [
    {"PREPROC.RESIZE": "float", "PREPROC.SIZE_ROUNDING": "floor", "ROIALIGN.ALIGNED": False, "RPN.FIT_STRIDES": True},
    {"PREPROC.RESIZE": "pillow", "PREPROC.SIZE_ROUNDING": "short", "ROIALIGN.INCLUSIVE": True},
], ids=["torchvision", "maskrcnn-benchmark"])
def test_conventions_of_other_programs(tiny, tmp_path, changes):
    cfg = tiny_config(**changes)
    export.write_saved_model(serving_of(cfg, tiny.weights), tmp_path / "model", CATEGORIES)
    with build_predictor(cfg, tiny.weights) as predictor, export.open_saved_model(tmp_path / "model") as run:
        photos = [CheckPhoto(str(i), photo, encode(photo)) for i, photo in enumerate(PHOTOS[:2])]
        tolerance = export_check.TOLERANCES["fp32"]
        table = export_check.check_export(run, predictor, photos, tolerance=tolerance, alone=cfg.RPN.FIT_STRIDES)
    assert "finds nothing" not in table


def test_the_frozen_graph(serving, expected, tmp_path):
    export.write_frozen(serving, tmp_path / "model.pb", CATEGORIES)
    classes = ("class_names", "category_ids")
    with export.open_frozen(tmp_path / "model.pb", [*serving.outputs, *classes]) as run:
        found = run(images=PHOTOS[0][None, ..., ::-1])
        check(found, expected[:1])
        check(run(encoded=[encode(photo) for photo in PHOTOS]), expected)
    assert [name.decode() for name in found["class_names"]] == ["cat", "dög", "sofa"]
    assert found["category_ids"].tolist() == [17, 3, 90]


def test_class_names_are_assets(saved_model):
    assert (saved_model / "assets" / "labels.txt").read_text(encoding="utf-8") == "cat\ndög\nsofa\n"
    entries = json.loads((saved_model / "assets" / "categories.json").read_text(encoding="utf-8"))
    assert entries[1] == {"label": 2, "id": 3, "name": "dög"}


def test_bytes_that_are_no_image(saved_model):
    with export.open_saved_model(saved_model) as run, pytest.raises(tf.errors.InvalidArgumentError):
        run(encoded=[b"no image"])


# ---------------------------------------------------------------- resizing and decoding


def run_graph(build, *values):
    with tf.Graph().as_default(), tf.Session() as session:
        return session.run(build(*map(tf.constant, values)))


@pytest.mark.parametrize("rounding", ["nearest", "floor", "short"])
@pytest.mark.parametrize("method", ["opencv", "float", "pillow"])
def test_resizing_is_the_predictors(method, rounding):
    resizing = Resizing(80, 133, method, rounding)
    graph = tf.Graph()
    with graph.as_default():
        image = tf.placeholder(tf.uint8, [None, None, 3])
        resized = resizing.resize(image, resizing.new_size(tf.shape(image)[:2]))
    with tf.Session(graph=graph) as session:
        for shape in [(48, 64), (120, 100), (33, 50), (3, 100), (1, 1), (80, 90), (301, 200)]:
            photo = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
            found = session.run(resized, {image: photo})
            expected = resize_image(photo, 80, 133, method=method, rounding=rounding)
            assert found.dtype == expected.dtype and found.shape == expected.shape, shape
            most = 0.01 if method == "float" else 0  # of 255
            np.testing.assert_allclose(found, expected, atol=most, rtol=0, err_msg=str(shape))


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_a_jpeg_is_decoded_and_turned_as_opencv_does(orientation):
    exif, data = Image.Exif(), io.BytesIO()
    exif[0x010E] = "what is seen"
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(PHOTOS[0]).save(data, "JPEG", exif=exif)
    found = run_graph(serving_graph.decode_photo, data.getvalue())
    np.testing.assert_array_equal(found, decode_image(data.getvalue())[0][..., ::-1])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_png_of_any_channels(channels):
    photo = np.dstack([PHOTOS[0], PHOTOS[0][..., :1]])[..., :channels]
    found = run_graph(serving_graph.decode_photo, encode(photo))
    np.testing.assert_array_equal(found[..., ::-1], np.broadcast_to(photo[..., :3], found.shape))


# ---------------------------------------------------------------- the check


def detections(scores, shift=0.0):
    boxes = np.array([[0, 0, 10, 10], [20, 0, 60, 30]], np.float32)[: len(scores)] + np.float32(shift)
    return {"boxes": boxes, "scores": np.float32(scores), "labels": np.arange(1, len(scores) + 1)}


def test_differences_are_those_of_the_same_object():
    first, second = detections([0.5, 0.4]), detections([0.41, 0.5], shift=0.25)
    second = {name: value[::-1] for name, value in second.items()}
    found = export_check.compare(first, second)
    assert (found.boxes, found.missing) == (0.25, 0) and found.scores == pytest.approx(0.1)


def test_an_object_that_only_one_has_counts_above_a_score():
    empty = detections([])
    assert export_check.compare(detections([0.5, 0.05]), empty).missing == 1
    assert export_check.compare(empty, detections([0.5, 0.2])).missing == 2
    assert export_check.compare(empty, empty) == Differences()


def test_another_label_or_place_is_another_object():
    other = detections([0.5, 0.4])
    assert export_check.compare(other | {"labels": np.array([3, 2])}, other).missing == 2
    assert export_check.compare(detections([0.5, 0.4], shift=10), other).missing == 4


def test_boxes_without_area_are_compared():
    flat = {"boxes": np.float32([[0, 0, 0, 40]]), "scores": np.float32([0.9]), "labels": np.array([1])}
    assert export_check.compare(flat, flat) == Differences()


@pytest.fixture
def photos():
    return [CheckPhoto(f"{i}.png", photo, encode(photo)) for i, photo in enumerate(PHOTOS[:2])]


def test_a_table_tells_the_differences(predictor, saved_model, photos):
    with export.open_saved_model(saved_model) as run:
        table = export_check.check_export(run, predictor, photos, tolerance=export_check.TOLERANCES["fp32"])
    heading, _, *rows = [line.split() for line in table.splitlines()]
    assert heading[:2] == ["photo", "detections"] and [row[0] for row in rows] == ["0.png", "1.png", "allowed"]


@pytest.mark.parametrize("alone, most", [(False, 2), (True, 1)])
def test_bytes_go_in_beside_those_of_the_next_photo(predictor, saved_model, photos, alone, most):
    def noted(**inputs):
        counts.extend(len(value) for name, value in inputs.items() if name == "encoded")
        return run(**inputs)

    counts = []
    with export.open_saved_model(saved_model) as run:
        export_check.check_export(
            noted, predictor, photos, tolerance=export_check.TOLERANCES["fp32"], alone=alone)
    assert counts == [most] * len(photos)


def test_photos_without_detections_are_told():
    outputs = {"boxes": np.zeros([2, 1, 4]), "scores": np.zeros([2, 1]), "labels": np.zeros([2, 1], int)}
    outputs["num_detections"] = np.zeros(2, int)
    with Predictor(BrightBoxDetector(), WEIGHTS, categories=CATEGORIES, short_edge=64, max_size=120, pad_multiple=32,
                   ims_per_batch=1, with_masks=False) as predictor:
        photo = CheckPhoto("dark.png", np.zeros([40, 50, 3], np.uint8), b"")
        table = export_check.check_export(lambda **_: outputs, predictor, [photo], tolerance=Differences())
    assert table.endswith("name others, in which it does.")


@pytest.mark.parametrize("wrong", ["images", "encoded"])
def test_an_export_that_differs_is_refused_and_removed(predictor, saved_model, photos, tmp_path, wrong):
    def tilted(**inputs):
        outputs = run(**inputs)
        return outputs | {"scores": outputs["scores"] * (0.9 if wrong in inputs else 1)}

    with export.open_saved_model(saved_model) as run, \
            pytest.raises(ValueError, match=r"(?s)more than is allowed, and was removed:\n.*1\.png"), \
            export_check.kept_if_good(tmp_path / "new" / "model.pb") as place:
        place.write_text("an export")
        export_check.check_export(tilted, predictor, photos, tolerance=export_check.TOLERANCES["fp32"])
    assert not list((tmp_path / "new").iterdir())


def test_a_good_export_is_moved_to_its_place(tmp_path):
    with export_check.kept_if_good(tmp_path / "model.pb") as place:
        place.write_text("an export")
    assert [file.name for file in tmp_path.iterdir()] == ["model.pb"]
    with pytest.raises(ValueError, match="model.pb is there already: remove it"), \
            export_check.kept_if_good(tmp_path / "model.pb"):
        pass


# ---------------------------------------------------------------- the command


def test_the_command_writes_all_it_is_asked_for(tiny, tmp_path, capsys):
    weights, photo = tmp_path / "model.npz", tmp_path / "photo.jpg"
    save_npz(weights, tiny.weights, tiny.cfg.to_dict())
    cv2.imwrite(str(photo), PHOTOS[0])
    saved, frozen = tmp_path / "deep" / "saved", tmp_path / "frozen.pb"
    assert command.export_model(weights, [str(photo)], saved_model=str(saved), frozen=str(frozen)) == 0
    printed = capsys.readouterr().out
    assert printed.count("photo.jpg") == 2 and f"written: {frozen}" in printed and frozen.is_file()
    assert (saved / "assets" / "labels.txt").is_file()
    with pytest.raises(ValueError, match="saved is there already"):
        command.export_model(weights, saved_model=str(saved))


@pytest.mark.parametrize("machine, operation", [
    ("cpu", "SparseMatrixMatMul"), ("gpu", "CropAndResize"), (None, "SparseMatrixMatMul")])
def test_an_export_has_operations_of_tensorflow_for_the_machine_it_will_run_on(tiny, tmp_path, machine, operation):
    save_npz(tmp_path / "model.npz", tiny.weights, tiny.cfg.to_dict())
    file = tmp_path / "frozen.pb"
    assert command.export_model(tmp_path / "model.npz", frozen=str(file), machine=machine) == 0
    graph = tf.GraphDef.FromString(file.read_bytes())
    types = {node.op for node in graph.node}
    assert types & {"SparseMatrixMatMul", "CropAndResize"} == {operation}
    own = {name for source in SOURCES for name in re.findall(r'REGISTER_OP\("(\w+)"\)', source.read_text("utf-8"))}
    assert "StemPool" in own and not types & own


@pytest.mark.parametrize("change, words", [
    ("TEST.PRECISION=bf16", "TEST.PRECISION is bf16: ONNX is written in fp32 only"),
    ("ROIALIGN.SAMPLES=0", "ROIALIGN.SAMPLES is 0, .*: ONNX needs their number"),
])
def test_what_onnx_cannot_be_written_of(tiny, tmp_path, monkeypatch, change, words):
    monkeypatch.setattr("FasterRCNN.engine.onnx_export.PACKAGES", ())
    save_npz(tmp_path / "model.npz", tiny.weights, tiny.cfg.to_dict())
    with pytest.raises(ValueError, match=words):
        command.export_model(tmp_path / "model.npz", overrides=[change], onnx=str(tmp_path / "a.onnx"))


@pytest.mark.parametrize("options, words", [
    (["--export-frozen", "a.pb", "--benchmark"], "exports are runs of their own: give one of them"),
    (["--export-onnx", "a.onnx", "--export-for", "gpu"], "--export-for is of --export-saved-model and --export-frozen"),
    (["--export-frozen", "a.pb", "--top-k", "3", "--no-show"], "--no-show, --top-k: an export draws nothing"),
    (["--evaluate", "out.json", "--confidence", "0.3"], "--confidence: --evaluate without photos draws nothing"),
    ([], "nothing to do: name photos or videos"),
])
def test_options_that_do_not_go_together(options, words):
    done = subprocess.run([sys.executable, "predict.py", "--load", "model", *options], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 2 and words in done.stderr


def test_pictures_are_drawn_where_no_photo_is_named(tmp_path):
    photos = command.read_photos(())
    assert [photo.pixels.shape[:2] for photo in photos] == list(command.DRAWN_SIZES)
    np.testing.assert_array_equal(decode_image(photos[0].encoded)[0], photos[0].pixels)


def test_a_jpeg_keeps_its_bytes(tmp_path):
    for name in ("a.jpg", "b.bmp"):
        cv2.imwrite(str(tmp_path / name), PHOTOS[0])
    jpeg, other = command.read_photos([str(tmp_path)])
    assert jpeg.encoded == (tmp_path / "a.jpg").read_bytes()
    np.testing.assert_array_equal(decode_image(other.encoded)[0], PHOTOS[0])
