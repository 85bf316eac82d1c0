"""The processes of a Horovod job; any other run is a job of one.

Rank 0, the chief, decides and writes; what only it knows, or every rank must know of the others, goes through
`broadcast` and `gather`, which all ranks must call alike. No disk needs to be shared.
"""
from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import tensorflow.compat.v1 as tf

from FasterRCNN.engine.stall import Heart, StallWatch

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Processes:
    """rank: of this process, 0..size − 1; local_rank: among those of its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_chief(self) -> bool:
        return self.rank == 0

    def share(self, items):
        """Every size-th of the items, beginning with the rank's own; of fewer items than ranks some get none."""
        return items[self.rank :: self.size]

    def gather(self, data: bytes) -> list[bytes]:
        """The data of every rank, in the order of ranks, on every rank."""
        if self.size == 1:
            return [data]
        lengths = self._all_gather(np.array([len(data)], np.int64))
        whole = self._all_gather(np.frombuffer(data, np.uint8)).tobytes()
        ends = np.cumsum(lengths)
        return [whole[end - length : end] for end, length in zip(ends, lengths)]

    def broadcast(self, data: bytes) -> bytes:
        """The chief's data; what the others give is not looked at."""
        return self.gather(data if self.is_chief else b"")[0]

    def _all_gather(self, array: np.ndarray) -> np.ndarray:
        import horovod.tensorflow as hvd

        config = tf.ConfigProto(device_count={"GPU": 0})
        with tf.Graph().as_default(), tf.device("/cpu:0"), tf.Session(config=config) as session:
            given = tf.placeholder(array.dtype, [None])
            return session.run(hvd.allgather(given), {given: array})


def join_job() -> Processes:
    """Join the Horovod job that started this process. Raises ValueError where Horovod is not installed."""
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        raise ValueError(
            f"TRAINER=horovod needs Horovod, which cannot be imported here ({error}): build it with `make horovod`, or "
            "use TRAINER=replicated, which needs nothing more on one machine"
        ) from None
    hvd.init()
    return Processes(hvd.rank(), hvd.size(), hvd.local_rank())


@contextmanager
def watch_for_stalls(processes: Processes, *, timeout: float) -> Iterator[Heart]:
    """Watches over what is done within: a stall of `timeout` seconds ends the job and names who stalled; 0: never.

    Gives the Heart that is to be told what this process does. All ranks must call this alike.
    """
    heart, watch = Heart(processes.rank), None
    if not timeout:
        yield heart
        return
    about = b""
    if processes.is_chief:
        watch = StallWatch(processes.size, timeout=timeout)
        about = json.dumps([watch.address, watch.token, socket.gethostname()]).encode()
    heart.start(*json.loads(processes.broadcast(about)), timeout=timeout)
    try:
        yield heart
    except tf.errors.OpError:  # an exchange was given up: the error itself names nobody
        if silent := (watch or heart).silent_peers():
            logger.error("error: %s", silent)
        raise
    finally:
        heart.stop()
        if watch:
            watch.stop()
