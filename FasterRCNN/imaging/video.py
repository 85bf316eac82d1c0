"""Videos, streams and cameras as frames, and pictures as videos; all by OpenCV, whose package brings FFmpeg.

Frames and pictures are uint8 H×W×3 BGR. Times are seconds from the first frame.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from FasterRCNN.imaging.read import IMAGE_SUFFIXES

__all__ = ["VIDEO_SUFFIXES", "VideoReader", "VideoWriter", "is_video", "is_video_name", "video_title"]

# FFmpeg's own complaints say less than ours; OpenCV reads this when the first video is opened or written.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".gif")
# What FFmpeg as OpenCV's package brings it can write; browsers play webm only.
CODECS = {".mp4": "mp4v", ".webm": "VP80", ".avi": "MJPG"}
DEFAULT_FPS = 25.0  # of sources that do not tell, as many cameras
MAX_FPS = 240.0  # some streams give their clock's rate instead
MISSING_SHARE = 0.01  # of the frames; containers' own counts are off by a few


def is_video_name(source: str) -> bool:
    """Whether a name is that of a video file, a stream (a URL) or a camera (a number)."""
    return _is_camera(source) or _is_stream(source) or source.lower().endswith(VIDEO_SUFFIXES)


def is_video(source: str) -> bool:
    """As `is_video_name`; a file of another suffix than a photo's or a video's is looked into."""
    if is_video_name(source):
        return not os.path.isdir(source)
    is_unknown = os.path.isfile(source) and not source.lower().endswith(IMAGE_SUFFIXES)
    return is_unknown and not cv2.haveImageReader(source) and _open(source) is not None


def video_title(source: str) -> str:
    """A video's name for files and messages: without folder, password and what is no letter, digit, dot or dash."""
    if _is_camera(source):
        return f"camera{source}"
    if _is_stream(source):
        address = source.split("://", 1)[1].split("?")[0].rsplit("@", 1)[-1]
        return re.sub(r"[^\w.-]+", "_", address).strip("_.") or "stream"
    return Path(source).stem


class VideoReader:
    """The frames of a video file, a stream or a camera.

    Attributes: title; fps; num_frames, of which `count` have been read (None: unknown); is_live: whether time does not
    wait, as with a camera. A context manager.
    """

    def __init__(self, source: str):
        """source: a file, a URL or a camera's number. Raises FileNotFoundError or ValueError when it cannot be read."""
        self.title, self.count, self._source = video_title(source), 0, _without_password(source)
        if not (_is_camera(source) or _is_stream(source) or os.path.exists(source)):
            raise FileNotFoundError(f"{source}: no such video file")
        capture = _open(source)
        if capture is None:
            raise ValueError(_why_not(source, self._source))
        self._capture = capture
        fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps = fps if 0 < fps <= MAX_FPS else DEFAULT_FPS
        self.num_frames = int(frames) if 0 < frames < 1e9 else None
        self.is_live = self.num_frames is None and not os.path.isfile(source)

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        """(time, frame) of each frame of a file; of what is live, the newest whenever one is asked for."""
        if self.is_live:
            yield from self._newest()
            return
        while (frame := self._read()) is not None:
            yield (self.count - 1) / self.fps, frame

    def shortfall(self) -> str:
        """What is to be said about frames that should have been there, once all are read; "" when nothing is."""
        if self.count == 0:
            return f"{self._source}: no frame can be read"
        missing = (self.num_frames or self.count) - self.count
        if missing <= 0:
            return ""
        return f"{self._source}: {missing} of {self.num_frames} frames cannot be read: the video is damaged or cut off"

    def is_damaged(self) -> bool:
        """Whether so many frames are missing that it is not the container's count that is off."""
        return self.count == 0 or (self.num_frames or 0) - self.count > MISSING_SHARE * self.count

    def close(self) -> None:
        """Frees the file or the camera."""
        self._capture.release()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> np.ndarray | None:
        was_read, frame = self._capture.read()
        if not was_read:
            return None
        self.count += 1
        return frame if frame.ndim == 3 else cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR)

    def _newest(self) -> Iterator[tuple[float, np.ndarray]]:
        """A thread takes the frames as they come, so that none waits in the camera's queue."""
        news, stop = threading.Condition(), threading.Event()
        latest: list = []

        def take_frames() -> None:
            frame: np.ndarray | None = np.empty(0)
            while frame is not None and not stop.is_set():
                frame = self._read()
                with news:
                    latest[:] = [(time.monotonic(), frame)]
                    news.notify()

        thread = threading.Thread(target=take_frames, daemon=True)
        thread.start()
        start = None
        try:
            while True:
                with news:
                    news.wait_for(lambda: latest)
                    taken, frame = latest.pop()
                if frame is None:
                    return
                start = taken if start is None else start
                yield taken - start, frame
        finally:
            stop.set()
            thread.join(timeout=5)


class VideoWriter:
    """Writes pictures of one size as a video that runs in time; the file is playable once it is closed.

    A picture stays until the time of the next, so frames left out at the source leave no gap. A context manager.
    """

    def __init__(self, path: str | Path, fps: float):
        """path: .mp4, .webm or .avi. Raises ValueError for another suffix."""
        self.path, self.fps, self.count = Path(path), fps, 0
        if self.path.suffix.lower() not in CODECS:
            raise ValueError(f"{path}: videos are written as {', '.join(CODECS)}; give a file of such a name")
        self._writer: cv2.VideoWriter | None = None
        self._previous: np.ndarray | None = None

    def write(self, picture: np.ndarray, at: float | None = None) -> None:
        """Adds a picture that is to be seen from the time `at`, by default next; ValueError if it cannot be written."""
        # FFmpeg halves the colours' resolution and would cut an odd side off.
        picture = cv2.copyMakeBorder(
            picture, 0, picture.shape[0] % 2, 0, picture.shape[1] % 2, cv2.BORDER_REPLICATE
        )
        if self._writer is None:
            self._writer = self._open(picture.shape[1::-1])
        elif self._previous.shape != picture.shape:
            picture = cv2.resize(picture, self._previous.shape[1::-1], interpolation=cv2.INTER_AREA)
        while at is not None and self._previous is not None and self.count < round(at * self.fps):
            self._add(self._previous)
        self._add(picture)
        self._previous = picture

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, size: tuple[int, int]) -> cv2.VideoWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        codec = cv2.VideoWriter.fourcc(*CODECS[self.path.suffix.lower()])
        writer = cv2.VideoWriter(str(self.path), cv2.CAP_FFMPEG, codec, self.fps, size)
        if not writer.isOpened():
            raise ValueError(f"{self.path} cannot be written: is the folder writable, and the picture {size} not huge?")
        return writer

    def _add(self, picture: np.ndarray) -> None:
        self._writer.write(picture)
        self.count += 1


def _is_camera(source: str) -> bool:
    return source.isdecimal() and not os.path.exists(source)


def _is_stream(source: str) -> bool:
    return "://" in source


def _open(source: str) -> cv2.VideoCapture | None:
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        capture = cv2.VideoCapture(int(source)) if _is_camera(source) else cv2.VideoCapture(source, cv2.CAP_FFMPEG)
    finally:
        cv2.utils.logging.setLogLevel(level)
    return capture if capture.isOpened() else None


def _why_not(source: str, shown: str) -> str:
    if _is_camera(source):
        return f"camera {source} cannot be opened: is it connected, free, and may this user read /dev/video{source}?"
    if _is_stream(source):
        return f"{shown}: the stream cannot be opened; is the address right, and the sender running?"
    return f"{shown}: not a video that OpenCV can read ({os.path.getsize(source)} bytes), or one cut off before its end"


def _without_password(source: str) -> str:
    return re.sub(r"://[^/@]*@", "://", source)
