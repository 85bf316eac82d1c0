"""Finds the process of a job that the others wait for, and ends a job in which nothing goes on.

All processes of a step wait in one exchange of gradients, which only says that somebody is missing. So every process
says once a second, besides the exchange, what it does and how far it is, to a socket of the chief's, which answers.
A job of one process is watched in the same way. No TensorFlow here.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TypeVar

import zmq

__all__ = ["FINISHED", "TRAINING", "WAITING", "Beat", "Heard", "Heart", "StallWatch", "find_stall"]

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_BEATS = 1.0
SILENT_SECONDS = 10.0  # after which a process counts as not answering
EXIT_STATUS = 3
SECONDS_TO_LOG = 10.0  # why a process ends
MOST_BYTES = 4096  # of a beat
# What a process does that is more than words for a message.
TRAINING, WAITING, FINISHED = "training", "waiting for the others", "finished"

T = TypeVar("T")


class AwakeClock:
    """Seconds in which this process was awake: those in which it was stopped (Ctrl-Z) are not a stall."""

    def __init__(self):
        self._seconds, self._last = 0.0, time.monotonic()

    def __call__(self) -> float:
        """The seconds so far; to be asked every second or so."""
        now = time.monotonic()
        self._seconds, self._last = self._seconds + min(now - self._last, SILENT_SECONDS / 2), now
        return self._seconds


@dataclass(frozen=True)
class Beat:
    """What a process does: its host, the step it is in or was last in, and words for what it does there.

    loading: its data flow is being waited for. batches: that the data flow gave. marks counts everything that was
    noted, so that it grows as long as there is any progress.
    """

    rank: int
    host: str
    step: int = 0
    doing: str = "starting"
    loading: bool = False
    batches: int = 0
    marks: int = 0


@dataclass(frozen=True)
class Heard:
    """A process's last beat, and when it was heard and last told of progress (seconds of a clock)."""

    beat: Beat
    at: float
    progress_at: float


class Heart:
    """What this process does; once `start` is called, the chief is told of it from a thread of its own."""

    def __init__(self, rank: int = 0):
        self._beat = asdict(Beat(rank, socket.gethostname()))
        self._is_over = threading.Event()
        self._clock, self._answered_at = AwakeClock(), 0.0
        self._chief_host = ""

    def note_step(self, step: int) -> None:
        """A step begins."""
        self._note(step=step, doing=TRAINING)

    def note(self, doing: str) -> None:
        """Something else is done, or goes on, in words: "evaluating"."""
        self._note(doing=doing)

    def loading(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches of a data flow; each and the wait for it are noted."""
        self._beat["loading"] = True
        for batch in batches:
            self._note(loading=False, batches=self._beat["batches"] + 1)
            yield batch
            self._beat["loading"] = True

    def _note(self, **changes: object) -> None:
        self._beat.update(changes, marks=self._beat["marks"] + 1)

    def start(self, address: str, token: str, chief_host: str, *, timeout: float) -> None:
        """Tells the chief, at a socket's address, from now on; token: that of its StallWatch.

        A chief that has answered once and does not for `timeout` seconds ends this process.
        """
        self._chief_host = chief_host
        self._thread = threading.Thread(target=self._tell, args=(address, token, timeout), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Says that this process is at its end."""
        self.note(FINISHED)
        self._is_over.set()
        self._thread.join()

    def silent_peers(self) -> str:
        """The chief, in words, if it has answered once and does not any more; else nothing."""
        silence = self._clock() - self._answered_at
        if not self._answered_at or silence < SILENT_SECONDS:
            return ""
        return f"rank 0 on {self._chief_host} has not answered for {silence:.0f} s"

    def _tell(self, address: str, token: str, timeout: float) -> None:
        with zmq.Context.instance().socket(zmq.DEALER) as channel:
            channel.setsockopt(zmq.LINGER, int(2000 * SECONDS_BETWEEN_BEATS))
            channel.set_hwm(1)  # what could not be sent is old
            channel.connect(address)
            while True:
                is_last = self._is_over.is_set()
                with suppress(zmq.Again):
                    channel.send_json([token, self._beat], zmq.NOBLOCK)
                now = self._clock()
                while channel.poll(0):
                    channel.recv()
                    self._answered_at = now
                if is_last:
                    return
                if self._answered_at and now - self._answered_at > timeout:
                    _end_process(f"{self.silent_peers()} (TRAIN.STALL_TIMEOUT is {timeout:g}): this process ends too")
                    return
                self._is_over.wait(SECONDS_BETWEEN_BEATS)


class StallWatch:
    """The chief's: hears of all processes and ends the job when it has stalled for `timeout` seconds.

    address, token: what the hearts of all processes need, the chief's own included.
    """

    def __init__(self, size: int, *, timeout: float, end_job: Callable[[str], None] | None = None):
        """end_job(message): by default logs it and ends this process, whereupon the launcher ends the others."""
        self.token = secrets.token_hex(8)
        self._size, self._timeout, self._end_job = size, timeout, end_job or _end_process
        self._clock, self._heard = AwakeClock(), {}
        self._inbox = zmq.Context.instance().socket(zmq.ROUTER)
        self._inbox.setsockopt(zmq.MAXMSGSIZE, MOST_BYTES)
        self.address = self._bind(size)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch, at the end of a run."""
        self._is_over.set()
        self._thread.join()

    def silent_peers(self) -> str:
        """The processes, in words, that were heard of and are no more; nothing if there are none."""
        now, heard = self._clock(), dict(self._heard)
        silent = [heard[rank] for rank in _silent(heard, self._size, now) if rank in heard]
        return "; ".join(_describe_silence(of_rank.beat.rank, of_rank, now) for of_rank in silent)

    def _bind(self, size: int) -> str:
        if size == 1:
            self._inbox.bind(address := f"inproc://{self.token}")
            return address
        host = own_address()
        return f"tcp://{host}:{self._inbox.bind_to_random_port(f'tcp://{host}')}"

    def _watch(self) -> None:
        with self._inbox:
            while not self._is_over.is_set():
                self._receive()
                if stall := find_stall(self._heard, self._size, now=self._clock(), timeout=self._timeout):
                    self._end_job(
                        f"stalled for {self._timeout:g} s (TRAIN.STALL_TIMEOUT): {stall}. The run ends here; --resume "
                        "goes on from its last checkpoint"
                    )
                    return

    def _receive(self) -> None:
        if not self._inbox.poll(int(1000 * SECONDS_BETWEEN_BEATS)):
            return
        try:
            sender, message = self._inbox.recv_multipart()
            token, fields = json.loads(message)
            if not secrets.compare_digest(token, self.token):
                return
            beat = Beat(**fields)
        except (ValueError, TypeError, RecursionError):
            return  # not of a process of this job
        self._inbox.send_multipart([sender, b""])
        now, before = self._clock(), self._heard.get(beat.rank)
        has_progress = before is None or before.beat.marks != beat.marks
        self._heard[beat.rank] = Heard(beat, now, now if has_progress else before.progress_at)


# ---------------------------------------------------------------- who is to blame


def find_stall(heard: Mapping[int, Heard], size: int, *, now: float, timeout: float) -> str:
    """Who holds a job of `size` processes up, in words; nothing as long as it goes on.

    heard: by rank. The job has stalled when for `timeout` seconds there was no progress anywhere, nothing was heard of
    a process that was heard of before, or one had no progress with what it does alone. now: seconds since the start.
    """
    running = [of_rank for of_rank in heard.values() if of_rank.beat.doing != FINISHED]
    if heard and not running:
        return ""
    last_progress = max([0.0, *(of_rank.progress_at for of_rank in heard.values())])
    if now - last_progress > timeout:
        return _blame(heard, size, now)
    overdue = [of_rank for of_rank in running if now - of_rank.at > timeout]
    if overdue:
        return "; ".join(_describe_silence(of_rank.beat.rank, of_rank, now) for of_rank in overdue)
    alone = [of_rank for of_rank in running if of_rank.beat.doing not in (TRAINING, WAITING)]
    hung = [of_rank.beat for of_rank in alone if now - of_rank.progress_at > timeout]
    return "; ".join(_describe(beat, size) for beat in hung)


def _blame(heard: Mapping[int, Heard], size: int, now: float) -> str:
    if silent := _silent(heard, size, now):
        return "; ".join(_describe_silence(rank, heard.get(rank), now) for rank in silent)
    beats = [heard[rank].beat for rank in sorted(heard) if heard[rank].beat.doing != FINISHED]
    furthest = max(beat.step for beat in beats)
    behind = (
        [beat for beat in beats if beat.step < furthest]
        or [beat for beat in beats if beat.doing != WAITING and WAITING in [other.doing for other in beats]]
        or [beat for beat in beats if beat.doing not in (TRAINING, WAITING)]
        or [beat for beat in beats if beat.doing == TRAINING and beat.loading]
    )
    if behind:
        return "; ".join(_describe(beat, size) for beat in behind)
    if size == 1:
        return f"the run is in step {furthest} and has its data: its device hangs"
    return (
        f"all ranks are in step {furthest} and have their data: the network or a device hangs (Horovod's warnings, if "
        "any, tell which ranks it misses)"
    )


def _silent(heard: Mapping[int, Heard], size: int, now: float) -> list[int]:
    """The ranks of which nothing is heard and that have not come to their end."""
    return [rank for rank in range(size) if rank not in heard or (
        now - heard[rank].at > SILENT_SECONDS and heard[rank].beat.doing != FINISHED)]


def _describe_silence(rank: int, heard: Heard | None, now: float) -> str:
    if heard is None:
        return f"rank {rank} was never heard of"
    beat, seconds = heard.beat, now - heard.at
    return f"rank {rank} on {beat.host} has not answered for {seconds:.0f} s; it was {beat.doing}, step {beat.step}"


def _describe(beat: Beat, size: int) -> str:
    name = f"rank {beat.rank} on {beat.host}" if size > 1 else "the run"
    if beat.doing != TRAINING:
        return f"{name} is {beat.doing}, after step {beat.step}"
    if beat.loading:
        return (f"{name} waits for its loader in step {beat.step}, after {beat.batches} batches (a blocked disk, or a "
                "loader process that is stopped)")
    return f"{name} is still in step {beat.step}"


def own_address() -> str:
    """This machine's IPv4 address on the way to the job's rendezvous server, which all its processes reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ.get("HOROVOD_GLOO_RENDEZVOUS_ADDR") or socket.gethostname(), 9))  # nothing is sent
        return probe.getsockname()[0]


def _end_process(message: str) -> None:
    # The disk of the log may be what is blocked, and the main thread hold the lock of its handler.
    threading.Timer(SECONDS_TO_LOG, os._exit, [EXIT_STATUS]).start()
    logger.error("error: %s", message)
    logging.shutdown()
    os._exit(EXIT_STATUS)
