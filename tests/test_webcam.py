"""demo/webcam.py on a small written video, with a predictor that finds what is white; with and without a display."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_predict import SquareFinder, write_video

from FasterRCNN.imaging.video import VideoReader

spec = importlib.util.spec_from_file_location("webcam", Path(__file__).parents[1] / "demo" / "webcam.py")
webcam = importlib.util.module_from_spec(spec)
spec.loader.exec_module(webcam)


class ContextFinder(SquareFinder):
    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def command(monkeypatch):
    """Runs the command without a display; what the model was loaded with is in `loaded`."""
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    loaded = []

    def load_predictor(path, overrides, config_file):
        loaded.append((path, overrides))
        return ContextFinder(), SimpleNamespace(TEST=SimpleNamespace(RESULT_SCORE_THRESH_VIS=0.5))

    monkeypatch.setattr(webcam, "load_predictor", load_predictor)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["webcam.py", "--load", "model", *map(str, args)])
        return webcam.main()

    run.loaded = loaded
    return run


def colour_of(frame):
    return int(np.ptp(frame.reshape(-1, 3).astype(int), axis=1).max())


def test_a_video_is_written_with_its_rate_in_the_corner(tmp_path, command, capsys):
    source, output = write_video(tmp_path / "walk.mp4"), tmp_path / "new" / "out.mp4"
    assert command("--source", source, "--output", output, "--min-image-size", 64) == 0
    assert command.loaded == [("model", ["PREPROC.TEST_SHORT_EDGE_SIZE=64", "TEST.IMS_PER_GPU=1"])]
    assert f"12 frames of walk -> {output}" in capsys.readouterr().out
    with VideoReader(str(output)) as reader:
        frames = [frame for _, frame in reader]
        assert reader.fps == 10.0 and len(frames) == 12
    assert colour_of(frames[0]) > 100 and colour_of(frames[-1]) < 40
    assert all((frame[:20, :60] > 150).any() for frame in frames[6:])  # nothing else is bright there


def test_confidence_is_of_what_is_drawn(tmp_path, command):
    source, output = write_video(tmp_path / "walk.mp4"), tmp_path / "out.mp4"
    assert command("--source", source, "--output", output, "--confidence", "0.8") == 0
    with VideoReader(str(output)) as reader:
        assert all(colour_of(frame) < 40 for _, frame in reader)


def test_without_a_display_there_must_be_an_output(tmp_path, command, capsys):
    with pytest.raises(SystemExit) as stop:
        command("--source", write_video(tmp_path / "walk.mp4"))
    assert stop.value.code == 2 and not command.loaded
    assert "there is no display to show a window on: say with --output OUT.mp4" in capsys.readouterr().err


def test_a_source_that_cannot_be_read_is_known_before_the_model_is_loaded(tmp_path, command):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match="empty.mp4: not a video"):
        command("--source", tmp_path / "empty.mp4", "--output", tmp_path / "out.mp4")
    assert not command.loaded


def test_the_window_shows_each_picture_until_it_is_closed(tmp_path, command, monkeypatch):
    class ThreePictures:
        shown, is_open = 0, True

        def update(self, picture):
            self.shown += 1
            self.is_open = self.shown < 3

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    window = ThreePictures()
    monkeypatch.setattr(webcam, "has_display", lambda: True)
    monkeypatch.setattr(webcam, "open_window", lambda folder: window)
    assert command("--source", write_video(tmp_path / "walk.mp4")) == 0
    assert window.shown == 3
    monkeypatch.setattr(webcam, "open_window", lambda folder: None)
    with pytest.raises(ValueError, match="no window can be opened: say with --output"):
        command("--source", tmp_path / "walk.mp4")


def test_ctrl_c_leaves_a_playable_video(tmp_path, command, monkeypatch):
    finds = iter([SquareFinder.find] * 5)

    def predict(self, images):
        if (find := next(finds, None)) is None:
            raise KeyboardInterrupt
        return [find(image) for image in images]

    monkeypatch.setattr(ContextFinder, "predict", predict)
    assert command("--source", write_video(tmp_path / "walk.mp4"), "--output", tmp_path / "out.mp4") == 0
    with VideoReader(str(tmp_path / "out.mp4")) as reader:
        assert len(list(reader)) == 5


def test_a_video_that_is_cut_off_is_told(tmp_path, command):
    source = Path(write_video(tmp_path / "cut.avi", 60))
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"of 60 frames cannot be read: .* are written"):
        command("--source", source, "--output", tmp_path / "out.mp4")
