"""Videos that the tests write: read back frame by frame, cut off, damaged and empty; and written in time."""

import os
import threading
import time

import cv2
import numpy as np
import pytest

from FasterRCNN.imaging import video
from FasterRCNN.imaging.video import VideoReader, VideoWriter, is_video, video_title


def grey(level, size=(48, 64)):
    return np.full((*size, 3), level, np.uint8)


def write_video(path, levels, fps=10.0, size=(48, 64)):
    with VideoWriter(path, fps) as writer:
        for level in levels:
            writer.write(grey(level, size))
    return path


def levels_of(path):
    with VideoReader(str(path)) as reader:
        return [round(float(frame.mean())) for _, frame in reader]


@pytest.mark.parametrize("suffix", video.CODECS)
def test_what_is_written_is_read(tmp_path, suffix):
    levels = [20, 80, 140, 200, 240]
    path = write_video(tmp_path / "new" / f"a{suffix}", levels)
    with VideoReader(str(path)) as reader:
        assert (reader.fps, reader.num_frames, reader.is_live, reader.title) == (10.0, 5, False, "a")
        times, frames = zip(*reader)
        assert reader.count == 5 and reader.shortfall() == "" and not reader.is_damaged()
    np.testing.assert_allclose(times, [0, 0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose([frame.mean() for frame in frames], levels, atol=6)
    assert frames[0].shape == (48, 64, 3) and frames[0].dtype == np.uint8


def test_odd_sides_get_a_line_more_and_other_sizes_are_fitted(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        for size in ((47, 63), (48, 64), (100, 100)):
            writer.write(grey(90, size))
    with VideoReader(str(tmp_path / "a.mp4")) as reader:
        assert [frame.shape for _, frame in reader] == [(48, 64, 3)] * 3


def test_a_picture_stays_until_the_time_of_the_next(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        for level, at in ((20, 0.0), (120, 0.31), (220, 0.4)):
            writer.write(grey(level), at)
    np.testing.assert_allclose(levels_of(tmp_path / "a.mp4"), [20, 20, 20, 120, 220], atol=6)


def test_a_file_of_another_kind_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"a.doc: videos are written as .mp4, .webm, .avi"):
        VideoWriter(tmp_path / "a.doc", 10)
    with VideoWriter(tmp_path / "none.mp4", 10):
        pass
    assert not (tmp_path / "none.mp4").exists()


def test_a_video_that_is_cut_off_is_told(tmp_path):
    path = write_video(tmp_path / "a.avi", range(0, 200, 4))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with VideoReader(str(path)) as reader:
        frames = list(reader)
        assert 10 < len(frames) < 40 and reader.is_damaged()
        missing = 50 - len(frames)
        assert reader.shortfall() == f"{path}: {missing} of 50 frames cannot be read: the video is damaged or cut off"


@pytest.mark.parametrize("content", [b"", b"no video" * 40])
def test_what_is_no_video_is_refused(tmp_path, content, capfd):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"a.mp4: not a video that OpenCV can read \({len(content)} bytes\)"):
        VideoReader(str(path))
    assert capfd.readouterr().err == ""


def test_missing_files_cameras_and_streams_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.mp4: no such video file"):
        VideoReader(str(tmp_path / "none.mp4"))
    with pytest.raises(ValueError, match="camera 97 cannot be opened: is it connected"):
        VideoReader("97")
    with pytest.raises(ValueError, match="^http://127.0.0.1:9/a.mp4: the stream cannot be opened"):
        VideoReader("http://user:secret@127.0.0.1:9/a.mp4")


def test_what_is_a_video(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.avi", [9, 9])
    os.rename("a.avi", "a.dat")
    cv2.imwrite("photo.png", grey(3))
    os.rename("photo.png", "photo.dat")
    (tmp_path / "text.dat").write_text("neither")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "7").write_text("a file, not a camera")
    for source in ("0", "a.dat", "b.MP4", "rtsp://host/live", "http://host/stream"):
        assert is_video(source), source
    for source in ("photo.dat", "text.dat", "folder.mp4", "7", "a.jpg", "missing"):
        assert not is_video(source), source


@pytest.mark.parametrize(
    "source, title",
    [
        ("0", "camera0"),
        ("videos/street.night.mp4", "street.night"),
        ("rtsp://me:secret@host:554/live/1?key=x", "host_554_live_1"),
        ("http://", "stream"),
    ],
)
def test_titles_have_neither_folder_nor_password(source, title):
    assert video_title(source) == title


class Camera:
    """Stands for cv2.VideoCapture: numbered frames that come by themselves, as long as `frames` says."""

    def __init__(self, frames, fps=30.0):
        self.taken, self.frames, self.fps, self.first_read = 0, frames, fps, threading.Event()

    def get(self, what):
        return self.fps if what == cv2.CAP_PROP_FPS else -1.0

    def read(self):
        time.sleep(0.002)
        if self.taken == self.frames:
            return False, None
        self.taken += 1
        return True, grey(self.taken)

    def release(self):
        self.frames = self.taken


@pytest.mark.parametrize("fps, expected", [(30.0, 30.0), (0.0, 25.0), (90000.0, 25.0)])
def test_of_a_camera_the_newest_frame_is_taken(monkeypatch, fps, expected):
    camera = Camera(100, fps)
    monkeypatch.setattr(video, "_open", lambda source: camera)
    with VideoReader("0") as reader:
        assert reader.is_live and reader.fps == expected and reader.num_frames is None
        times, levels = [], []
        for at, frame in reader:
            times.append(at)
            levels.append(int(frame.max()))
            time.sleep(0.02)
        assert reader.shortfall() == ""
    assert times[0] == 0 and times == sorted(times)
    assert levels == sorted(set(levels)) and len(levels) < 100


def test_a_camera_can_be_left_before_its_end(monkeypatch):
    camera = Camera(10**6)
    monkeypatch.setattr(video, "_open", lambda source: camera)
    with VideoReader("0") as reader:
        for _ in reader:
            break
    assert camera.taken < 10**6


def test_a_source_without_a_frame_is_told(monkeypatch):
    monkeypatch.setattr(video, "_open", lambda source: Camera(0))
    with VideoReader("0") as reader:
        assert list(reader) == []
        assert reader.shortfall() == "0: no frame can be read" and reader.is_damaged()
