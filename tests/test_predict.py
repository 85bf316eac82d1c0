"""Photos and data sets through the library and the command, with a detector whose answer is known."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

from config import default_config, finalize_configs

import cv2
import numpy as np
import pytest
from bright_box import CATEGORIES, PHOTOS, WEIGHTS, BrightBoxDetector
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

import inference
import media
import predict
from FasterRCNN.datasets.catalog import load_dataset
from FasterRCNN.datasets.coco_categories import COCO_CATEGORIES
from FasterRCNN.engine.npz import save_npz
from FasterRCNN.imaging import window
from FasterRCNN.imaging.video import VideoReader, VideoWriter
from FasterRCNN.structures import BoxList, Categories

ROOT = Path(__file__).parents[1]
SETTINGS = ["PREPROC.TEST_SHORT_EDGE_SIZE=64", "PREPROC.MAX_SIZE=128", "MODE_FPN=True"]
NAMED = ["DATA.CLASS_NAMES=[dim,bright]", "DATA.CATEGORY_IDS=[3,8]"]


@pytest.fixture(autouse=True)
def known_detector(monkeypatch):
    monkeypatch.setattr("FasterRCNN.modeling.build.build_detector", lambda cfg: BrightBoxDetector())


@pytest.fixture
def model(tmp_path):
    """A weights file that carries its config."""
    cfg = default_config()
    cfg.update_args(SETTINGS + NAMED)
    path = tmp_path / "model.npz"
    save_npz(path, {name: WEIGHTS[name] for name in list(WEIGHTS)[:2]}, cfg.to_dict())
    return path


@pytest.fixture
def photo_dir(tmp_path):
    """PHOTOS as 0.png ... 6.png, and one file that is no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, (image, _) in enumerate(PHOTOS):
        cv2.imwrite(str(folder / f"{i}.png"), image)
    (folder / "notes.txt").write_text("not a photo")
    return folder


def write_annotations(path, *, category_ids=(3, 8), names=CATEGORIES.names):
    """The rectangles of PHOTOS as objects of the class bright."""
    images, annotations = [], []
    for i, (image, box) in enumerate(PHOTOS):
        images.append({"id": 50 + i, "file_name": f"{i}.png", "height": image.shape[0], "width": image.shape[1]})
        if box is not None:
            x1, y1, x2, y2 = box
            sides = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            polygon = {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]], "iscrowd": 0}
            annotations.append({"id": i, "image_id": 50 + i, "category_id": category_ids[1], **sides, **polygon})
    categories = [{"id": category_id, "name": name} for category_id, name in zip(category_ids, names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_predict_files(tmp_path, model, photo_dir):
    predictor, _ = predict.load_predictor(model)
    assert predictor.categories == Categories(names=("dim", "bright"), ids=(3, 8))
    with predictor:
        done = predict.predict_files(predictor, [photo_dir], tmp_path / "out" / "deep")

    files = [str(photo_dir / f"{i}.png") for i in range(len(PHOTOS))]
    assert list(done.pictures) == files and not done.failures
    entries = json.loads(done.detections_file.read_text())
    assert [entry["file_name"] for entry in entries] == files
    assert json.loads((tmp_path / "out/deep/0_detected.json").read_text()) == entries[0]
    assert (entries[0]["height"], entries[0]["width"]) == (128, 200)
    first, second = entries[0]["detections"]
    assert (first["name"], first["category_id"], first["score"]) == ("bright", 8, 0.75)
    assert (second["name"], second["category_id"]) == ("dim", 3)
    np.testing.assert_allclose(first["bbox"], [20, 30, 70, 80], atol=4)
    assert mask_utils.area(first["segmentation"]) == pytest.approx(70 * 80, rel=0.1)
    assert entries[1]["detections"] == []

    coco = COCO(str(tmp_path / "out/deep/coco_images.json"))
    results = coco.loadRes(str(tmp_path / "out/deep/coco_results.json"))
    assert [image["file_name"] for image in coco.loadImgs(range(1, len(PHOTOS) + 1))] == files
    assert coco.loadCats([3, 8]) == [{"id": 3, "name": "dim"}, {"id": 8, "name": "bright"}]
    assert {key: results.loadAnns(results.getAnnIds(imgIds=1))[0][key] for key in ("category_id", "bbox", "score")} == {
        key: first[key] for key in ("category_id", "bbox", "score")
    }
    assert results.getAnnIds(imgIds=2) == []

    # Blue to red, a drawn picture is no longer grey; one without detections is.
    drawn, plain = (cv2.imread(str(done.pictures[file])) for file in files[:2])
    assert (drawn.max(axis=2) - drawn.min(axis=2)).max() > 50
    assert (plain.max(axis=2) - plain.min(axis=2)).max() == 0


def test_unreadable_photos_are_named_and_the_rest_predicted(tmp_path, model, photo_dir, capsys):
    bad, missing = photo_dir / "bad.jpg", photo_dir / "missing.jpg"
    bad.write_bytes(b"no image")
    inputs = [str(photo_dir / "0.png"), str(bad), str(missing), str(photo_dir / "2.png")]
    status = predict.run_prediction(model, inputs=inputs, output_dir=tmp_path / "out", show=False)

    assert status == 1
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and str(bad) in errors[0] and str(missing) in errors[1]
    assert "0_detected.png" in captured.out and "2_detected.png" in captured.out
    assert len(json.loads((tmp_path / "out/detections.json").read_text())) == 2


def test_inputs_are_files_folders_and_globs(tmp_path, photo_dir):
    one = str(photo_dir / "1.png")
    assert predict.expand_inputs([one, photo_dir / "[12].png"]) == [one, str(photo_dir / "2.png")]
    assert len(predict.expand_inputs([photo_dir])) == len(PHOTOS)
    bracketed = photo_dir / "a[1].png"
    bracketed.write_bytes(b"")
    assert predict.expand_inputs([bracketed]) == [str(bracketed)]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"no image \(.jpg, .*\) or video \(.mp4, .*\) in folder .*empty"):
        predict.expand_inputs([empty])
    with pytest.raises(ValueError, match=r"no file matches .*z\*"):
        predict.expand_inputs([tmp_path / "z*"])


def write_video(path, number=12, size=(48, 64), fps=10.0):
    """White squares that move to the right on black; the second half of the frames is empty."""
    with VideoWriter(path, fps) as writer:
        for i in range(number):
            frame = np.zeros((*size, 3), np.uint8)
            if i < number // 2:
                frame[10:30, 4 * i : 4 * i + 20] = 255
            writer.write(frame)
    return str(path)


class SquareFinder:
    """Stands for a Predictor: what is white is found as label 2 at a score of 0.75, and as label 1 at half of it."""

    categories, ims_per_batch, with_masks = Categories(("dim", "bright"), (3, 8)), 4, False

    def predict(self, images):
        return list(self.predict_stream(images))

    def predict_stream(self, images):
        return map(self.find, images)

    @staticmethod
    def find(image):
        x, y, width, height = cv2.boundingRect((image[:, :, 0] > 128).astype(np.uint8))
        count = 2 if width else 0
        found = BoxList(np.tile(np.float32([[x, y, x + width, y + height]]), (count, 1)), image.shape[1::-1])
        found.add_field("scores", np.float32([0.75, 0.375])[:count])
        found.add_field("labels", np.int32([2, 1])[:count])
        return found


def frames_of(path):
    with VideoReader(str(path)) as reader:
        return [frame for _, frame in reader]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_video_is_drawn_at_its_rate_with_a_line_for_each_frame(tmp_path):
    source = write_video(tmp_path / "walk.avi")
    done = predict.predict_files(SquareFinder(), [source], tmp_path / "out")
    assert not done.failures and done.videos == {source: tmp_path / "out/walk_detected.mp4"}
    assert done.detections_file is None and not (tmp_path / "out/detections.json").exists()
    with VideoReader(str(done.videos[source])) as reader:
        assert (reader.fps, reader.num_frames) == (10.0, 12)
    lines = lines_of(tmp_path / "out/walk_detected.jsonl")
    assert [line["frame"] for line in lines] == list(range(12))
    np.testing.assert_allclose([line["time"] for line in lines], np.arange(12) / 10)
    assert [len(line["detections"]) for line in lines] == [2] * 6 + [0] * 6
    np.testing.assert_allclose([line["detections"][0]["bbox"][0] for line in lines[:6]], np.arange(6) * 4, atol=2)
    assert lines[0]["detections"][0]["name"] == "bright" and (lines[0]["height"], lines[0]["width"]) == (48, 64)
    colour = [int(np.ptp(frame.reshape(-1, 3).astype(int), axis=1).max()) for frame in frames_of(done.videos[source])]
    assert min(colour[:6]) > 100 and max(colour[6:]) < 40


def test_broken_missing_and_cut_off_videos_do_not_stop_the_others(tmp_path):
    good, cut = write_video(tmp_path / "good.mp4"), write_video(tmp_path / "cut.avi", 60)
    Path(cut).write_bytes(Path(cut).read_bytes()[: Path(cut).stat().st_size // 2])
    (tmp_path / "empty.mp4").touch()
    inputs = [str(tmp_path / "empty.mp4"), cut, str(tmp_path / "none.mp4"), good]
    done = predict.predict_files(SquareFinder(), inputs, tmp_path / "out")
    assert list(done.failures) == inputs[:3] and list(done.videos) == [cut, good]
    assert "of 60 frames cannot be read" in done.failures[cut]
    assert 0 < len(frames_of(done.videos[cut])) == len(lines_of(tmp_path / "out/cut_detected.jsonl")) < 60
    assert not list((tmp_path / "out").glob("empty*")) and not list((tmp_path / "out").glob("none*"))


def test_ctrl_c_leaves_a_playable_video(tmp_path):
    class Interrupted(SquareFinder):
        def predict_stream(self, images):
            for number, found in enumerate(super().predict_stream(images)):
                if number == 8:
                    raise KeyboardInterrupt
                yield found

    source = write_video(tmp_path / "walk.mp4")
    with pytest.raises(KeyboardInterrupt):
        predict.predict_files(Interrupted(), [source], tmp_path / "out")
    written = frames_of(tmp_path / "out/walk_detected.mp4")
    assert 1 <= len(written) == len(lines_of(tmp_path / "out/walk_detected.jsonl")) <= 8


def test_a_selection_is_of_classes_and_of_the_best():
    found = BoxList(np.zeros((4, 4)), (9, 9))
    found.add_field("scores", np.float32([0.2, 0.9, 0.5, 0.9]))
    found.add_field("labels", np.int32([1, 2, 1, 1]))
    scores = lambda **how: media.Selection(**how).of(found).get_field("scores").tolist()  # noqa: E731
    np.testing.assert_allclose(scores(), [0.2, 0.9, 0.5, 0.9])
    np.testing.assert_allclose(scores(top_k=2), [0.9, 0.9])
    np.testing.assert_allclose(scores(top_k=2, labels=frozenset({1})), [0.5, 0.9])
    assert scores(labels=frozenset({3})) == []
    assert len(media.Selection(top_k=3).of(found[:0])) == 0


def test_classes_are_found_by_name():
    categories = Categories(("traffic light", "Hund"), (5, 9))
    assert media.labels_of(["hund", "traffic light"], categories) == {1, 2}
    with pytest.raises(ValueError, match="no class 'trafic light'. Did you mean 'traffic light'.* traffic light, Hund"):
        media.labels_of(["trafic light"], categories)
    with pytest.raises(ValueError, match="no class 'zzz'. Its classes: traffic light, Hund"):
        media.labels_of(["zzz"], categories)


def test_options_choose_what_is_drawn_and_kept(tmp_path, model, photo_dir):
    photo = str(photo_dir / "0.png")
    for name, options, kept, is_drawn in [
        ("all", predict.PictureOptions(confidence=0.9), ["bright", "dim"], False),
        ("best", predict.PictureOptions(top_k=1, min_image_size=96), ["bright"], True),
        ("dim", predict.PictureOptions(classes=["dim"]), ["dim"], False),
    ]:
        assert predict.run_prediction(model, inputs=[photo], output_dir=tmp_path / name, options=options) == 0
        (entry,) = json.loads((tmp_path / name / "detections.json").read_text())
        assert [found["name"] for found in entry["detections"]] == kept
        drawn = cv2.imread(str(tmp_path / name / "0_detected.png"))
        assert (np.ptp(drawn.astype(int), axis=2).max() > 50) == is_drawn
    with pytest.raises(ValueError, match="no class 'brihgt'. Did you mean 'bright'"):
        predict.run_prediction(model, inputs=[photo], options=predict.PictureOptions(classes=["brihgt"]))


@pytest.mark.parametrize(
    "text, least, kind, most, message",
    [
        ("1.5", 0, float, 1, "'1.5' is no number from 0 to 1"),
        ("nan", 0, float, 1, "'nan' is no number"),
        ("0", 1, int, float("inf"), "'0' is no whole number of at least 1"),
        ("many", 1, int, float("inf"), "'many' is no whole number"),
    ],
)
def test_numbers_of_the_command_line(text, least, kind, most, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        predict.number_from(least, kind, most)(text)
    assert predict.number_from(0, float, 1)("0.25") == 0.25


def test_names_stay_apart():
    assert inference.unique_names(["a", "A", "a_2", "a", "b"]) == ["a", "A_2", "a_2_2", "a_3", "b"]


def test_evaluate_each_set(tmp_path, model, photo_dir, capsys):
    """A second set with the same classes under other ids gets its own ids in its results."""
    first = write_annotations(tmp_path / "first.json")
    other = write_annotations(tmp_path / "other.json", category_ids=(7, 0))
    sets = f"DATA.VAL=['{first}:{photo_dir}','{other}:{photo_dir}']"
    output = tmp_path / "out.json"

    assert predict.run_prediction(model, overrides=[sets], evaluate=output) == 0

    printed = capsys.readouterr().out
    assert "AP50" in printed and "mask AP" in printed and "bright" in printed
    for name, category_ids in (("first", {3, 8}), ("other", {7, 0})):
        results = json.loads((tmp_path / f"out.{name}.json").read_text())
        assert {result["category_id"] for result in results} == category_ids
        assert {result["image_id"] for result in results} == {50, 52, 53, 54, 55, 56}
        metrics = json.loads((tmp_path / f"out.{name}.metrics.json").read_text())
        assert metrics["bbox"]["AP50"] == metrics["segm"]["AP50"] == pytest.approx(1.0)
        assert metrics["per_class"]["bbox"]["AP"]["dim"] is None
    assert not output.exists()

    boxes_only = [f"DATA.VAL={first}:{photo_dir}", "MODE_MASK=False"]
    assert predict.run_prediction(model, overrides=boxes_only, evaluate=output) == 0
    assert "mask" not in capsys.readouterr().out
    assert "segmentation" not in json.loads(output.read_text())[0]


def test_unreadable_images_of_a_set_count_as_empty(tmp_path, model, photo_dir, caplog):
    dataset = load_dataset(f"{write_annotations(tmp_path / 'a.json')}:{photo_dir}")
    with predict.load_predictor(model)[0] as predictor:
        (photo_dir / "0.png").unlink()
        notes = []
        metrics = inference.evaluate_model(predictor, dataset, tmp_path / "out.json", note=notes.append)
        assert notes[: len(dataset)] == ["evaluating"] * (len(dataset) - 1) + ["scoring an evaluation"]
        # 5 of 6 objects: precision 1 up to recall 5/6, 84 of 101 points.
        assert metrics.bbox["AP50"] == pytest.approx(84 / 101)
        assert "0.png" in caplog.text
        for file in photo_dir.glob("*.png"):
            file.unlink()
        with pytest.raises(ValueError, match=r"no image of a can be read; the first: .*0.png"):
            inference.evaluate_model(predictor, dataset, tmp_path / "out.json")


def test_a_model_that_finds_nothing(tmp_path, model, photo_dir, capsys):
    weights = {name: WEIGHTS[name] for name in list(WEIGHTS)[:2]} | {"bright/threshold": np.array([300], np.float32)}
    cfg = default_config()
    cfg.update_args(SETTINGS + NAMED + [f"DATA.VAL={write_annotations(tmp_path / 'a.json')}:{photo_dir}"])
    save_npz(model, weights, cfg.to_dict())
    assert predict.run_prediction(model, evaluate=tmp_path / "out.json") == 0
    assert "Nothing was detected: every AP is 0." in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text()) == []


def test_other_classes_than_the_models_are_an_error(tmp_path, model, photo_dir):
    file = write_annotations(tmp_path / "a.json", names=("dim", "dark"))
    with pytest.raises(ValueError, match="dark"):
        predict.run_prediction(model, overrides=[f"DATA.VAL={file}:{photo_dir}"], evaluate=tmp_path / "out.json")


def test_config_of_the_weights_then_file_then_overrides(tmp_path, model):
    file = tmp_path / "more.yaml"
    file.write_text("TEST: {RESULTS_PER_IM: 7, IMS_PER_GPU: 2}")
    predictor, cfg = predict.load_predictor(model, ["TEST.IMS_PER_GPU=3"], file)
    assert (cfg.PREPROC.TEST_SHORT_EDGE_SIZE, cfg.TEST.RESULTS_PER_IM, cfg.TEST.IMS_PER_GPU) == (64, 7, 3)
    assert (predictor.ims_per_batch, predictor.with_masks) == (3, True)


def test_names_for_weights_without_a_config(tmp_path, photo_dir, caplog):
    """tensorpack's published files: names come from the annotations; without them 80 classes are COCO's."""
    path = tmp_path / "plain.npz"
    save_npz(path, {name: WEIGHTS[name] for name in list(WEIGHTS)[:2]})
    predictor, cfg = predict.load_predictor(path, SETTINGS)
    assert predictor.categories == COCO_CATEGORIES and len(COCO_CATEGORIES) == cfg.DATA.NUM_CLASS == 80
    assert COCO_CATEGORIES.by_id[90] == "toothbrush" and COCO_CATEGORIES.by_id[28] == "umbrella"
    assert "carries no config" in caplog.text and "COCO's" in caplog.text

    annotations = write_annotations(tmp_path / "a.json")
    predictor, _ = predict.load_predictor(path, [*SETTINGS, f"DATA.TRAIN={annotations}:{photo_dir}"])
    assert predictor.categories.by_id == {3: "dim", 8: "bright"}

    cfg = default_config()
    heads = {"fastrcnn/outputs/class/b": np.zeros(4)}
    assert inference.find_categories(cfg, heads).by_id == {1: "class 1", 2: "class 2", 3: "class 3"}


def test_weights_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "other.npz"
    save_npz(path, {"bright/score": WEIGHTS["bright/score"]})
    with pytest.raises(ValueError, match="(?s)other.npz.*missing.*bright 1"):
        predict.load_predictor(path, SETTINGS)
    with pytest.raises(FileNotFoundError, match=r"none.npz"):
        predict.load_predictor(tmp_path / "none.npz")


def test_build_predictor_for_the_training_callback():
    cfg = default_config()
    cfg.update_args([*SETTINGS, *NAMED, "MODE_MASK=False"])
    finalize_configs(cfg, is_training=False)
    with inference.build_predictor(cfg, WEIGHTS) as predictor:
        (found,) = predictor.predict([PHOTOS[0][0]])
    assert found.get_field("labels").tolist() == [2, 1] and not found.has_field("masks")


def test_no_window_is_no_mistake(monkeypatch, tmp_path, caplog):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert window.open_window(tmp_path) is None and not caplog.text
    monkeypatch.setenv("DISPLAY", ":9999")
    monkeypatch.setitem(sys.modules, "tkinter", None)
    assert window.open_window(tmp_path) is None
    assert f"no window: install python3-tk, or look at the pictures in {tmp_path}" in caplog.text


def test_a_display_that_does_not_answer(monkeypatch, tmp_path, caplog):
    tk = FakeTk()
    tk.Tk.side_effect = tk.TclError("no display")
    monkeypatch.setitem(sys.modules, "tkinter", tk)
    monkeypatch.setenv("DISPLAY", ":9999")
    assert window.open_window(tmp_path) is None
    assert f"no window (no display): look at the pictures in {tmp_path}" in caplog.text


class FakeTk(MagicMock):
    """Stands for tkinter; each `update` of the window is answered by the next of `events`."""

    class TclError(Exception):
        pass


@pytest.mark.parametrize(
    "events, shown",
    [
        (["<Key> a", "<Button-1>", "<Key> Escape"], 3),
        (["", "<Key> Alt_L", "<Key> a", "WM_DELETE_WINDOW"], 2),
        (["<Key> a", "error"], 2),
        (["<Key> a"] * len(PHOTOS), len(PHOTOS)),
    ],
)
def test_pictures_are_shown_until_the_window_is_closed(tmp_path, model, photo_dir, monkeypatch, events, shown):
    tk, queue = FakeTk(), iter(events)
    root = tk.Tk.return_value
    root.winfo_screenwidth.return_value, root.winfo_screenheight.return_value = 100, 200

    def update():
        handlers = dict(call.args for call in [*root.bind.call_args_list, *root.protocol.call_args_list])
        event, _, key = next(queue).partition(" ")
        if event == "error":
            raise tk.TclError("lost")
        elif event == "WM_DELETE_WINDOW":
            handlers[event]()
        elif event:
            handlers[event](SimpleNamespace(keysym=key, char=key if len(key) == 1 else ""))

    root.update = update
    monkeypatch.setitem(sys.modules, "tkinter", tk)
    monkeypatch.setenv("DISPLAY", ":9999")
    with predict.load_predictor(model)[0] as predictor:
        done = predict.predict_files(predictor, [photo_dir], tmp_path / "out", show=True)
    assert len(done.pictures) == len(PHOTOS) and root.destroy.called
    pngs = [np.frombuffer(call.kwargs["data"], np.uint8) for call in tk.PhotoImage.call_args_list]
    assert len(pngs) == shown
    assert cv2.imdecode(pngs[0], cv2.IMREAD_COLOR).shape == (58, 90, 3)  # 128 × 200, made to fit


def test_where_nothing_can_be_written_is_known_first(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "load_predictor", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match=f"{tmp_path} is a folder: give a file, such as {tmp_path}/results.json"):
        predict.run_prediction("model", evaluate=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/out.json cannot be written \(.*\): give another file"):
        predict.run_prediction("model", evaluate=tmp_path / "file" / "out.json")


def test_a_set_most_of_which_is_missing_is_an_error(tmp_path, model, photo_dir, capsys):
    dataset = f"DATA.VAL={write_annotations(tmp_path / 'a.json')}:{photo_dir}"
    output = tmp_path / "new" / "out.json"
    for i in range(4):
        (photo_dir / f"{i}.png").unlink()
        assert predict.run_prediction(model, overrides=[dataset], evaluate=output) == (1 if i == 3 else 0)
    assert "error: 4 of 7 images of a cannot be read and count as without detections" in capsys.readouterr().err


def test_comparisons_leave_out_what_cannot_be_read(tmp_path, model, photo_dir):
    dataset = load_dataset(f"{write_annotations(tmp_path / 'a.json')}:{photo_dir}")
    (photo_dir / "1.png").write_bytes(b"no image")
    with predict.load_predictor(model)[0] as predictor:
        pictures = inference.draw_comparisons(predictor, dataset, 3, score_threshold=0.5)
        assert len(inference.draw_comparisons(predictor, dataset, 100, score_threshold=0.5)) == len(PHOTOS) - 1
    assert list(pictures) == [50, 52]
    assert pictures[50].shape[1] >= 2 * 200


def test_a_photo_of_another_size_than_annotated_is_not_evaluated(tmp_path, model, photo_dir):
    file = write_annotations(tmp_path / "a.json")
    annotations = json.loads(file.read_text())
    image = annotations["images"][0]
    image["width"], image["height"] = image["height"], image["width"]
    file.write_text(json.dumps(annotations))
    dataset = load_dataset(f"{file}:{photo_dir}", with_truth=False)
    failures = {}
    with predict.load_predictor(model)[0] as predictor:
        inference.evaluate_model(predictor, dataset, tmp_path / "out.json", failures=failures)
    (reason,) = failures.values()
    assert "annotated as" in reason


def run_command(*args):
    command = [sys.executable, ROOT / "predict.py", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command_names_mistakes_in_one_line(tmp_path, photo_dir):
    done = run_command(tmp_path / "z*", "--load", tmp_path / "none.npz")
    assert done.returncode == 2 and done.stderr == f"error: no file matches {tmp_path}/z*\n"
    done = run_command("--load", tmp_path / "none.npz")
    assert done.returncode == 2 and "nothing to do" in done.stderr
    done = run_command(photo_dir, "--load", tmp_path / "none.npz")
    assert done.returncode == 2 and "no weights at" in done.stderr and "Traceback" not in done.stderr


def test_help_needs_no_tensorflow():
    code = "import sys; sys.argv=['predict.py', '--help']; import predict\n"
    code += "try: predict.main()\nfinally: assert 'tensorflow' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--evaluate" in done.stdout, done.stderr
