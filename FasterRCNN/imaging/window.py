"""A window for pictures, by Tk: opencv-python-headless, which needs no libraries of a display, has none."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

logger = logging.getLogger(__name__)


def open_window(picture_dir: Path) -> Window | None:
    """A window, where one can be opened; where only that fails, a line says to look into picture_dir instead."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
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
    """Shows pictures, one until a key or a click; Escape or closing the window ends it, and `show` does nothing more.

    Raises TclError when there is no display that answers.
    """

    def __init__(self) -> None:
        import tkinter

        self._tk = tkinter
        self._root = tkinter.Tk()
        self._root.title("detections (a key or click: next, Escape: close)")
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._root.bind("<Button-1>", self._go_on)
        self._root.bind("<Key>", self._take_key)
        self._root.protocol("WM_DELETE_WINDOW", self.close)
        self._is_open, self._is_waiting = True, False

    def show(self, picture: np.ndarray) -> None:
        """Shows a picture, BGR uint8 H×W×3, no larger than the screen, and waits."""
        if not self._is_open:
            return
        try:
            most = self._root.winfo_screenwidth(), self._root.winfo_screenheight()
            png = cv2.imencode(".png", _shrink(picture, *most))[1].tobytes()
            self._image = self._tk.PhotoImage(master=self._root, data=png)
            self._label.configure(image=self._image)
            self._is_waiting = True
            while self._is_open and self._is_waiting:  # not Tk's own loop, which lets Ctrl-C wait for an event
                self._root.update()
                time.sleep(0.02)
        except self._tk.TclError as error:
            logger.warning("the window is closed: %s", error)
            self.close()

    def _take_key(self, event: object) -> None:
        if event.keysym == "Escape":
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
