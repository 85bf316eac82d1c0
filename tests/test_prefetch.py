"""Worker processes: order, errors, and their end."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from FasterRCNN.loading.prefetch import DataError, StepsInOrder


@pytest.fixture(autouse=True)
def several_cores(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)


def take(steps, number):
    try:
        return list(itertools.islice(steps, number))
    finally:
        steps.stop()


def is_alive(pid):
    """Whether a process runs; one that ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_gone(pids):
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [pid for pid in pids if is_alive(pid)]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_steps_come_in_order_from_the_first_asked_for(num_workers):
    def make(step):
        time.sleep(0.02 if step % 3 == 0 else 0.001)
        return [step, os.getpid()]

    datapoints = take(StepsInOrder(make, start_step=7, num_workers=num_workers), 20)
    assert [int(step) for step, _ in datapoints] == list(range(7, 27))
    makers = {int(pid) for _, pid in datapoints}
    assert makers == {os.getpid()} if num_workers == 0 else os.getpid() not in makers
    assert len(makers) <= max(1, num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_iterating_again_goes_on(num_workers):
    steps = StepsInOrder(lambda step: [step], num_workers=num_workers)
    assert [next(iter(steps)), next(iter(steps)), *take(steps, 1)] == [[0], [1], [2]]


def test_no_more_workers_than_cores():
    steps = StepsInOrder(lambda step: [os.getpid()], num_workers=50)
    steps.start()
    assert len(steps._workers) == 3
    steps.stop()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_arrays_arrive_as_they_were_made(num_workers):
    made = [np.arange(6, dtype=np.uint8).reshape(2, 3)[:, ::2], np.zeros((0, 4), np.float32), np.int32(7)]
    (arrived,) = take(StepsInOrder(lambda step: made, num_workers=num_workers), 1)
    for array, same in zip(made, arrived, strict=True):
        assert (array.dtype, array.shape) == (same.dtype, same.shape)
        np.testing.assert_array_equal(array, same)


def fail_at_five(step):
    if step == 5:
        raise DataError("image id 5: a.jpg is broken")
    if step == 9:
        raise KeyError("a defect")
    return [step]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_arrives_after_the_steps_before_it(num_workers):
    steps = StepsInOrder(fail_at_five, num_workers=num_workers)
    iterator = iter(steps)
    assert [next(iterator) for _ in range(5)] == [[0], [1], [2], [3], [4]]
    with pytest.raises(DataError, match=r"^image id 5: a\.jpg is broken$"):
        next(iterator)
    steps.stop()


def test_a_defect_keeps_the_workers_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)a loader process failed:.*in fail_at_five.*KeyError: 'a defect'"):
        take(StepsInOrder(fail_at_five, start_step=9, num_workers=1), 1)


def test_a_killed_worker_is_not_waited_for():
    def make(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return [step]

    with pytest.raises(RuntimeError, match=r"a loader process was killed.*DATA\.NUM_WORKERS"):
        take(StepsInOrder(make, num_workers=2), 10)


def test_workers_leave_ctrl_c_to_their_parent():
    steps = StepsInOrder(lambda step: [os.getpid()], num_workers=2)
    iterator = iter(steps)
    (pid,) = next(iterator)
    os.kill(int(pid), signal.SIGINT)
    assert len([next(iterator) for _ in range(20)]) == 20
    steps.stop()


PROGRAM = """
import sys, time
from FasterRCNN.loading.prefetch import StepsInOrder
import os
import numpy as np
steps = StepsInOrder(lambda step: [os.getpid(), np.zeros(1 << 22)], num_workers=2)
for _ in range(2):
    print(next(iter(steps))[0], flush=True)
print("ready", flush=True)
if sys.argv[1] == "stay":
    time.sleep(60)
"""


@pytest.mark.parametrize("end", ["leave", "stay"])
def test_workers_end_with_their_parent(end):
    command = [sys.executable, "-c", PROGRAM, end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as parent:
        pids = [int(line) for line in iter(parent.stdout.readline, "ready\n")]
        if end == "stay":
            parent.kill()
        assert parent.wait(10) == (0 if end == "leave" else -signal.SIGKILL)
    assert len(pids) == 2 and wait_until_gone(pids) == []


def test_workers_end_with_what_they_work_for():
    steps = StepsInOrder(lambda step: [os.getpid()], num_workers=2)
    pids = [int(next(iter(steps))[0]) for _ in range(2)]
    assert all(map(is_alive, pids))
    del steps
    assert wait_until_gone(pids) == []
