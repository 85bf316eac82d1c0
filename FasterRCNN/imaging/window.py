"""A window for pictures, by Tk: opencv-python-headless, which needs no libraries of a display, has none."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

logger = logging.getLogger(__name__)


def has_display() -> bool:
    """Whether there is a display to open a window on."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_window(picture_dir: Path) -> Window | None:
    """A window, where one can be opened; where only that fails, a line says to look into picture_dir instead."""
    if not has_display():
        return None
    try:
        import tkinter
    except ImportError:
        logger.warning("no window: install python3-tk, or look at the pictures in %s", picture_dir)
        return None
    try:
        return Window()
    except tkinter.TclError as error:
        logger.warning("no window (%s): look at the pictures in %s", error, picture_dir)
        return None


class Window:
    """Shows pictures; q, Escape or closing the window ends it, and nothing more is shown.

    Raises TclError when there is no display that answers.
    """

    def __init__(self) -> None:
        import tkinter

        self._tk = tkinter
        self._root = tkinter.Tk()
        self._root.title("detections (a key or click: next, q or Escape: close)")
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._root.bind("<Button-1>", self._go_on)
        self._root.bind("<Key>", self._take_key)
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        self._is_open, self._is_waiting = True, False

    @property
    def is_open(self) -> bool:
        """Whether pictures can still be shown."""
        return self._is_open

    def show(self, picture: np.ndarray) -> None:
        """Shows a picture, BGR uint8 H×W×3, no larger than the screen, and waits for a key or a click."""
        self._is_waiting = True
        self.update(picture)
        while self._is_open and self._is_waiting:  # not Tk's own loop, which lets Ctrl-C wait for an event
            time.sleep(0.02)
            self._answer(self._root.update)

    def update(self, picture: np.ndarray) -> None:
        """Shows a picture as `show` does, without waiting: the next frame of a video."""
        self._answer(lambda: self._put(picture))

    def _put(self, picture: np.ndarray) -> None:
        most = self._root.winfo_screenwidth(), self._root.winfo_screenheight()
        ppm = cv2.imencode(".ppm", _shrink(picture, *most))[1].tobytes()  # soon made, unlike a PNG
        self._image = self._tk.PhotoImage(master=self._root, data=ppm)
        self._label.configure(image=self._image)
        self._root.update()

    def _answer(self, action: Callable[[], None]) -> None:
        """What Tk does, as long as the window is open; it closes with the display."""
        if not self._is_open:
            return
        try:
            action()
        except self._tk.TclError as error:
            if self._is_open:  # not closed by what the action itself let happen
                logger.warning("the window is closed: %s", error)
            self.close()

    def _take_key(self, event: object) -> None:
        if event.keysym in ("Escape", "q"):
            self.close()
        elif event.char:  # not Alt and the like alone
            self._go_on()

    def _go_on(self, *_: object) -> None:
        self._is_waiting = False

    def close(self) -> None:
        """Closes the window, if it is open."""
        self._is_open = False
        with suppress(self._tk.TclError):
            self._root.destroy()

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shrink(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """The picture, made smaller if it does not fit into nine tenths of width × height."""
    scale = min(0.9 * width / picture.shape[1], 0.9 * height / picture.shape[0])
    if scale >= 1:
        return picture
    size = [max(round(scale * side), 1) for side in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
