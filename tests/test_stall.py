"""Who holds up a job, from what its processes say of themselves."""

import queue
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow.compat.v1 as tf

from FasterRCNN.engine import stall
from FasterRCNN.engine.processes import Processes, watch_for_stalls
from FasterRCNN.engine.stall import FINISHED, TRAINING, WAITING, AwakeClock, Beat, Heard, Heart, StallWatch, find_stall

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 60


def stalled(*beats, at=100, progress_at=30, now=100, size=None):
    """What is said of processes that were heard of at `at` and had their last progress at `progress_at`."""
    heard = {beat.rank: Heard(beat, at, progress_at) for beat in beats}
    return find_stall(heard, size or len(beats), now=now, timeout=TIMEOUT)


@pytest.mark.parametrize("beats, words", [
    ([Beat(0, "a", 7, TRAINING), Beat(1, "b", 6, "saving a checkpoint")],
     "rank 1 on b is saving a checkpoint, after step 6"),
    ([Beat(0, "a", 7, TRAINING), Beat(1, "b", 6, TRAINING)], "rank 1 on b is still in step 6"),
    ([Beat(0, "a", 7, TRAINING), Beat(1, "b", 7, TRAINING, loading=True, batches=6)],
     "rank 1 on b waits for its loader in step 7, after 6 batches (a blocked disk, or a loader process that is "
     "stopped)"),
    ([Beat(0, "a", 7, WAITING), Beat(1, "b", 7, "evaluating"), Beat(2, "c", 7, TRAINING)],
     "rank 1 on b is evaluating, after step 7; rank 2 on c is still in step 7"),
    ([Beat(0, "a", 0, "building the model"), Beat(1, "b", 0, TRAINING)],
     "rank 0 on a is building the model, after step 0"),
    ([Beat(0, "a", 7, FINISHED), Beat(1, "b", 5, TRAINING, loading=True, batches=4), Beat(2, "c", 5, TRAINING)],
     "rank 1 on b waits for its loader in step 5, after 4 batches (a blocked disk, or a loader process that is "
     "stopped)"),
    ([Beat(0, "a", 7, TRAINING, loading=True, batches=6)],
     "the run waits for its loader in step 7, after 6 batches (a blocked disk, or a loader process that is stopped)"),
    ([Beat(0, "a", 7, TRAINING)], "the run is in step 7 and has its data: its device hangs"),
    ([Beat(0, "a", 7, FINISHED)], ""),
])
def test_who_is_behind_when_nothing_goes_on(beats, words):
    assert stalled(*beats) == words
    assert stalled(*beats, progress_at=50) == ""


@pytest.mark.parametrize("doing", [TRAINING, WAITING])
def test_when_nobody_is_behind_the_network_is(doing):
    assert stalled(Beat(0, "a", 7, doing), Beat(1, "b", 7, doing)).startswith("all ranks are in step 7 and have their")


def test_who_is_not_heard_of_is_named():
    assert stalled(Beat(0, "a", 7, TRAINING), size=2) == "rank 1 was never heard of"
    heard = {0: Heard(Beat(0, "a", 7, TRAINING), 100, 100), 1: Heard(Beat(1, "b", 7, TRAINING), 30, 30)}
    words = "rank 1 on b has not answered for 70 s; it was training, step 7"
    assert find_stall(heard, 2, now=100, timeout=TIMEOUT) == words  # though rank 0 goes on
    assert find_stall(heard, 2, now=85, timeout=TIMEOUT) == ""
    gone = {**heard, 1: Heard(Beat(1, "b", 7, FINISHED), 30, 30)}
    assert find_stall(gone, 2, now=100, timeout=TIMEOUT) == ""


def test_one_that_hangs_is_named_while_others_go_on():
    lively = Heard(Beat(0, "a", 7, "evaluating"), 100, 99)
    for doing, words in [("evaluating", "rank 1 on b is evaluating, after step 7"), (WAITING, ""), (TRAINING, "")]:
        heard = {0: lively, 1: Heard(Beat(1, "b", 7, doing), 100, 30)}
        assert find_stall(heard, 2, now=100, timeout=TIMEOUT) == words


def test_a_job_that_begins_has_time():
    assert find_stall({}, 2, now=TIMEOUT, timeout=TIMEOUT) == ""
    assert find_stall({}, 2, now=TIMEOUT + 1, timeout=TIMEOUT) == "rank 0 was never heard of; rank 1 was never heard of"


def test_a_heart_notes_what_is_loaded():
    heart, seen = Heart(), []

    def batches():
        for number in range(3):
            seen.append((heart._beat["loading"], heart._beat["batches"]))
            yield number

    for number in heart.loading(batches()):
        assert (heart._beat["loading"], heart._beat["batches"]) == (False, number + 1)
    assert seen == [(True, 0), (True, 1), (True, 2)]
    assert heart._beat["marks"] == 3


def test_time_in_which_a_process_was_stopped_does_not_count(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(stall.time, "monotonic", lambda: now[0])
    clock = AwakeClock()
    for seconds, counted in [(1, 1), (2, 3), (3600, 3 + stall.SILENT_SECONDS / 2), (1, 4 + stall.SILENT_SECONDS / 2)]:
        now[0] += seconds
        assert clock() == counted


BEATING = """
import sys, time
from FasterRCNN.engine.stall import TRAINING, Heart
rank, address, token = sys.argv[1:]
heart = Heart(int(rank))
heart.start(address, token, "here", timeout=600)
heart.note_step(3)
while True:
    time.sleep(0.1)
    if rank == "0":
        heart.note(TRAINING)
"""


def test_a_lively_job_is_left_alone_and_a_stopped_process_found(monkeypatch):
    """Two processes, of which one makes progress until it is stopped, and a stranger who is not listened to."""
    monkeypatch.setenv("HOROVOD_GLOO_RENDEZVOUS_ADDR", "127.0.0.1")
    monkeypatch.setattr(stall, "SILENT_SECONDS", 4)
    messages = queue.Queue()
    watch = StallWatch(2, timeout=8, end_job=messages.put)
    beating = [
        subprocess.Popen([sys.executable, "-c", BEATING, str(rank), watch.address, token], cwd=ROOT)
        for rank, token in [(0, watch.token), (1, watch.token), (5, "another job")]
    ]
    try:
        with pytest.raises(queue.Empty):
            messages.get(timeout=10)
        beating[0].send_signal(signal.SIGSTOP)
        message = messages.get(timeout=60)
    finally:
        watch.stop()
        for process in beating:
            process.kill()
            process.wait()
    assert message.startswith("stalled for 8 s (TRAIN.STALL_TIMEOUT): rank 0 on ")
    assert "has not answered for" in message and "it was training, step 3." in message
    assert "rank 1" not in message and "rank 5" not in message and "--resume" in message


def test_the_chief_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(stall, "SILENT_SECONDS", 0.5)
    monkeypatch.setattr(stall, "SECONDS_BETWEEN_BEATS", 0.05)
    messages = queue.Queue()
    monkeypatch.setattr(stall, "_end_process", messages.put)
    watch, heart = StallWatch(1, timeout=600), Heart(1)
    heart.start(watch.address, watch.token, "here", timeout=1)
    with pytest.raises(queue.Empty):
        messages.get(timeout=2)
    assert heart.silent_peers() == ""
    watch.stop()
    message = messages.get(timeout=60)
    assert message.startswith("rank 0 on here has not answered for") and "TRAIN.STALL_TIMEOUT is 1" in message
    heart.stop()


BLOCKED_LOG = """
import logging, threading
from FasterRCNN.engine import stall

class BlockedDisk(logging.Handler):
    def emit(self, record):
        threading.Event().wait()

stall.SECONDS_TO_LOG = 0.5
logging.basicConfig()
logging.getLogger().addHandler(BlockedDisk())
stall._end_process("stalled")
"""


def test_a_log_on_a_blocked_disk_does_not_keep_a_process():
    done = subprocess.run([sys.executable, "-c", BLOCKED_LOG], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == stall.EXIT_STATUS and "error: stalled" in done.stderr


def test_an_exchange_that_was_given_up_names_who_is_silent(monkeypatch, caplog):
    monkeypatch.setattr(stall.StallWatch, "silent_peers", lambda watch: "rank 1 on b has not answered for 30 s")
    with pytest.raises(tf.errors.UnknownError), watch_for_stalls(Processes(), timeout=600):
        raise tf.errors.UnknownError(None, None, "Gloo timed out")
    assert "error: rank 1 on b has not answered for 30 s" in caplog.text


def test_nothing_is_watched_with_a_timeout_of_0(monkeypatch):
    monkeypatch.setattr(stall, "zmq", None)
    with watch_for_stalls(Processes(), timeout=0) as heart:
        heart.note_step(1)
        assert list(heart.loading([1, 2])) == [1, 2]
