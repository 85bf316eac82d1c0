"""Training steps' data made ahead by worker processes. No TensorFlow here, nor in the workers' work."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess

import cv2
import msgpack
import numpy as np
import zmq

__all__ = ["DataError", "StepsInOrder"]

BATCHES_AHEAD = 2  # waiting at either end of a worker's queue
POLL_MILLISECONDS = 1000


class DataError(ValueError):
    """Data of the user's that cannot be used, in a message that says all."""


class StepsInOrder:
    """make(start_step), make(start_step + 1), ... without end: lists of arrays, in that order.

    num_workers: 0 makes them in this process; never more than CPU cores. Of n workers each makes every n-th step and
    sends it through a queue of its own; taking from the queues in turn keeps the order, which tensorpack's parallel
    data flows do not, nor do they notice a killed worker. Workers are forked, so that they share `make` and all the
    records that it knows with this process; they end with it, however it ends.

    Iterating raises DataError as `make` raised it, RuntimeError for another error in a worker or a killed worker, each
    after the steps before it. Iterating again goes on where it was left.
    """

    def __init__(self, make: Callable[[int], list], *, start_step: int = 0, num_workers: int = 0):
        self._make = make
        self._start_step = start_step
        self._num_workers = min(num_workers, os.cpu_count() or 1)
        self._steps = itertools.count(start_step)
        self._workers: list[tuple[BaseProcess, zmq.Socket]] = []

    def start(self) -> None:
        """Starts the workers, which begin at once; best called before TensorFlow has threads. Does nothing again."""
        if self._workers or self._num_workers == 0:
            return
        folder = tempfile.TemporaryDirectory(prefix="loader-")  # other users cannot open the sockets in it
        fork = multiprocessing.get_context("fork")
        for index in range(self._num_workers):
            # The shared context is never terminated, which would wait for sockets that another thread may still read.
            inbox = _open(zmq.Context.instance(), zmq.PULL)
            inbox.bind(_address(folder.name, index))
            steps = itertools.count(self._start_step + index, self._num_workers)
            task = (self._make, steps, folder.name, index, os.getpid())
            process = fork.Process(target=_work, args=task, daemon=True)
            process.start()
            self._workers.append((process, inbox))
        self._finalizer = weakref.finalize(self, _end, [process for process, _ in self._workers], folder)
        self._turns = itertools.cycle(self._workers)

    def stop(self) -> None:
        """Ends the workers; leaving the last reference to this object does the same."""
        if self._workers:
            self._finalizer()

    def __iter__(self) -> StepsInOrder:
        return self

    def __next__(self) -> list:
        if self._num_workers == 0:
            return self._make(next(self._steps))
        self.start()
        return _receive(*next(self._turns))


def _address(folder: str, index: int) -> str:
    return f"ipc://{folder}/{index}"


def _open(context: zmq.Context, kind: int) -> zmq.Socket:
    socket = context.socket(kind)
    socket.set_hwm(BATCHES_AHEAD)
    return socket


def _receive(process: BaseProcess, inbox: zmq.Socket) -> list[np.ndarray]:
    while not inbox.poll(POLL_MILLISECONDS):
        if not process.is_alive() and not inbox.poll(0):
            raise RuntimeError("a loader process was killed, perhaps for want of memory: set DATA.NUM_WORKERS lower")
    header, *frames = inbox.recv_multipart(copy=False)
    header = msgpack.unpackb(header.buffer)
    if "data_error" in header:
        raise DataError(header["data_error"])
    if "defect" in header:
        raise RuntimeError(f"a loader process failed:\n{header['defect']}")
    return [
        np.frombuffer(frame.buffer, dtype).reshape(shape)
        for frame, (dtype, shape) in zip(frames, header["arrays"], strict=True)
    ]


def _end(processes: list[BaseProcess], folder: tempfile.TemporaryDirectory) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
    folder.cleanup()


# ---------------------------------------------------------------- in the worker


def _work(make: Callable[[int], list], steps: Iterable[int], folder: str, index: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    cv2.setNumThreads(0)
    gc.freeze()  # leaves the parent's objects alone: their memory stays shared, and none is finalized here
    threading.Thread(target=_exit_with, args=(parent, folder), daemon=True).start()
    with zmq.Context() as context, _open(context, zmq.PUSH) as outbox:
        outbox.connect(_address(folder, index))
        try:
            for step in steps:
                # Not ascontiguousarray, which makes a number an array of one.
                arrays = [np.asarray(array, order="C") for array in make(step)]
                _send(outbox, {"arrays": [(array.dtype.str, np.shape(array)) for array in arrays]}, arrays)
        except DataError as error:
            _send(outbox, {"data_error": str(error)})
        except Exception:
            _send(outbox, {"defect": traceback.format_exc()})


def _send(outbox: zmq.Socket, header: dict, arrays: Iterable[np.ndarray] = ()) -> None:
    outbox.send_multipart([msgpack.packb(header), *arrays], copy=False)


def _exit_with(parent: int, folder: str) -> None:
    """Ends this worker when its parent is gone without having said so (killed, crashed)."""
    while os.getppid() == parent:
        time.sleep(1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
