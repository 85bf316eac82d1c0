"""Two processes of a Horovod job, started as a user starts them, against one process with all the images."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_whole_run import TINY, base, command  # noqa: F401  (base is a fixture)

from FasterRCNN.engine import processes
from FasterRCNN.engine.weights import read_weights

ROOT = Path(__file__).resolve().parent.parent
HOROVODRUN = [Path(sys.executable).with_name("horovodrun"), "--gloo", "-np", "2", "-H", "localhost:2"]
# 12 steps of 2 images; without normalisation nothing hides a wrong average.
TRAIN = [*TINY, "BACKBONE.NORM=None", "TRAIN.LR_SCHEDULE=[2,3]", "TRAIN.EVAL_PERIOD=4"]


def start_job(*arguments):
    return subprocess.Popen(
        [*HOROVODRUN, sys.executable, ROOT / "train.py", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def job(*arguments, status=0):
    """Run train.py in two processes and return what both printed."""
    process = start_job(*arguments)
    output, _ = process.communicate(timeout=400)
    assert (process.returncode == 0) == (status == 0), output[-4000:]
    return output


def lines_of(logdir):
    return [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(base):  # noqa: F811
    """(folder of a run of one process with 2 images a step, folder of one of two processes with 1, its output)."""
    alone, together = base / "alone", base / "together"
    command("train.py", "--logdir", alone, "--config", *TRAIN, f"DATA.BASEDIR={base}")
    output = job("--logdir", together, "--config", *TRAIN, f"DATA.BASEDIR={base}", "TRAIN.IMS_PER_GPU=1",
                 "TRAINER=horovod")
    return alone, together, output


def test_two_processes_hold_the_weights_of_one(runs):
    alone, together, output = runs
    assert "training in 2 process(es) of a Horovod job" in output and "global batch of 2" in output
    start, expected, actual = (read_weights(path) for path in (alone / "model-3", alone / "model-12",
                                                               together / "model-12"))
    assert expected.keys() == actual.keys()
    moved = np.sqrt(sum(np.sum((expected[name] - start[name]) ** 2) for name in expected))
    apart = np.sqrt(sum(np.sum((expected[name] - actual[name]) ** 2) for name in expected))
    assert 0 < apart < 1e-3 * moved


def test_batches_added_up_over_two_processes_are_those_of_one_step(base, runs):  # noqa: F811
    """Two processes that add up two batches of one image, against one process with four images a step."""
    alone, together = base / "four", base / "added"
    shared = [*TRAIN, f"DATA.BASEDIR={base}", "DATA.VAL=[]", "TRAIN.LR_SCHEDULE=[1,2]"]
    command("train.py", "--logdir", alone, "--config", *shared, "TRAIN.IMS_PER_GPU=4")
    job("--logdir", together, "--config", *shared, "TRAIN.IMS_PER_GPU=1", "TRAIN.ACCUM=2", "TRAINER=horovod")
    start, expected, actual = (read_weights(path) for path in (runs[0] / "model-3", alone, together))
    assert sum(np.abs(expected[name] - actual[name]).max() > 0 for name in expected) > 0
    apart = np.sqrt(sum(np.sum((expected[name] - actual[name]) ** 2) for name in expected))
    moved = np.sqrt(sum(np.sum((expected[name] - start[name]) ** 2) for name in expected))
    assert apart < 1e-3 * moved


def test_losses_and_metrics_are_those_of_one_process(runs):
    alone, together, _ = runs
    first_alone, first_together = lines_of(alone)[0], lines_of(together)[0]
    assert first_together["learning_rate"] == first_alone["learning_rate"]
    assert first_together["gradient_norm"] == pytest.approx(first_alone["gradient_norm"], rel=1e-3)
    assert first_together["wd"] == pytest.approx(first_alone["wd"], rel=1e-5)


def test_each_process_evaluates_a_share(runs):
    """Three images over two processes: the numbers are those of the same weights in one process."""
    _, together, _ = runs
    result = json.loads((together / "eval" / "step-12.json").read_text())
    assert len({detection["image_id"] for detection in result}) == 3
    output = command("predict.py", "--load", together / "model-12", "--evaluate", together / "again.json")
    assert "box AP" in output
    again = json.loads((together / "again.json").read_text())
    assert [d["image_id"] for d in again] == [d["image_id"] for d in result]
    assert [d["score"] for d in again] == pytest.approx([d["score"] for d in result], abs=1e-4)


def test_only_the_chief_writes(runs):
    alone, together, output = runs
    names = [{path.name.partition(".out.tfevents")[0] for path in logdir.iterdir()} - {"again.json"}
             for logdir in (alone, together)]
    assert {name.split(".")[0] for name in names[0]} == {name.split(".")[0] for name in names[1]} - {"again"}
    about, = json.loads((together / "run.json").read_text())["starts"]
    assert "TRAINER=horovod" in str(about)
    assert output.count("schedule for a global batch") == 1


def test_a_killed_process_ends_the_job_and_resume_goes_on(base, runs):  # noqa: F811
    logdir = base / "killed"
    process = start_job("--logdir", logdir, "--config", *TRAIN, f"DATA.BASEDIR={base}", "TRAIN.IMS_PER_GPU=1",
                        "TRAINER=horovod", "TRAIN.LR_SCHEDULE=[20000]", "TRAIN.EVAL_PERIOD=10000")
    try:
        wait_for(lambda: (logdir / "model-3.index").exists() or process.poll() is not None, 200)
        victims = [pid for pid in children(process.pid) if "HOROVOD_RANK=1" in environment(pid)]
        assert victims, process.communicate()[0][-3000:]
        os.kill(victims[0], signal.SIGKILL)
        start = time.monotonic()
        output, _ = process.communicate(timeout=60)
        assert process.returncode != 0 and time.monotonic() - start < 60, output[-2000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    reached = max(int(path.stem.split("-")[1]) for path in logdir.glob("model-*.index"))
    steps = reached + 3
    output = job("--logdir", logdir, "--resume", "--config", f"TRAIN.LR_SCHEDULE=[{-(-steps * 2 // 8)}]")
    assert f"finished at step {-(-steps * 2 // 8) * 4}" in output


@pytest.mark.parametrize("victim, words", [
    ("process", "rank 1 on {host} has not answered for"), ("loader", "rank 1 on {host} waits for its loader in step"),
])
def test_a_stalled_rank_is_named_and_the_job_ended(base, tmp_path, victim, words):  # noqa: F811
    """Rank 1, or the process that loads its data, is stopped."""
    process = start_job(
        "--logdir", tmp_path / "run", "--config", *TRAIN, f"DATA.BASEDIR={base}", "TRAIN.IMS_PER_GPU=1",
        "TRAINER=horovod", "TRAIN.LR_SCHEDULE=[20000]", "TRAIN.EVAL_PERIOD=10000", "DATA.NUM_WORKERS=1",
        "TRAIN.STALL_TIMEOUT=25")
    stopped = 0
    try:
        wait_for(lambda: (tmp_path / "run" / "model-3.index").exists() or process.poll() is not None, 200)
        of_rank = [pid for pid in children(process.pid) if "HOROVOD_RANK=1\0" in environment(pid)]
        assert len(of_rank) == 2, process.communicate()[0][-3000:]
        trainer, = (pid for pid in of_rank if set(children(pid)) & set(of_rank))
        stopped = trainer if victim == "process" else next(pid for pid in of_rank if pid != trainer)
        os.kill(stopped, signal.SIGSTOP)
        output, _ = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        if stopped and Path(f"/proc/{stopped}").exists():
            os.kill(stopped, signal.SIGKILL)
    assert process.returncode != 0
    assert words.format(host=socket.gethostname()) in output, output[-3000:]
    assert "rank 0 on" not in output


def children(pid):
    """The processes below a process."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *children(child)]
    return found


def environment(pid):
    try:
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes()
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
        return text if b"train.py" in command_line and b"/sh\0" not in command_line[:12] else ""
    except OSError:
        return ""


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_bad_data_on_one_process_ends_the_job_with_its_message(base, tmp_path):  # noqa: F811
    annotations = json.loads((base / "annotations" / "instances_train2017.json").read_text())
    folder = tmp_path / "images"
    folder.mkdir()
    for number, image in enumerate(annotations["images"]):
        content = (base / "train2017" / image["file_name"]).read_bytes()
        (folder / image["file_name"]).write_bytes(content if number != 2 else content[:100])
    (tmp_path / "train.json").write_text(json.dumps(annotations))
    output = job("--logdir", tmp_path / "run", "--config", *TRAIN, "TRAIN.IMS_PER_GPU=1", "TRAINER=horovod",
                 "DATA.VAL=[]", f"DATA.TRAIN={tmp_path / 'train.json'}:{folder}", "TRAIN.HALF_ON_WIRE=True", status=1)
    assert f"image id {annotations['images'][2]['id']}" in output


def test_without_horovod_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "horovod", None)
    monkeypatch.setitem(sys.modules, "horovod.tensorflow", None)
    with pytest.raises(ValueError, match="TRAINER=horovod needs Horovod.*build it with `make horovod`, or use"):
        processes.join_job()


@pytest.mark.parametrize("count, size", [(5, 2), (1, 3), (0, 2), (6, 6)])
def test_shares_are_disjoint_and_whole(count, size):
    shares = [processes.Processes(rank, size).share(list(range(count))) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_there_is_nobody_to_ask():
    alone = processes.Processes()
    assert alone.is_chief and alone.gather(b"abc") == [b"abc"] and alone.broadcast(b"") == b""
