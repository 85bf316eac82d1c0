"""A Horovod job over two hosts that share nothing but a cable: own addresses, own disks, ssh between them."""
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from hosts import ADDRESSES, PORT, end_hosts, start_hosts, what_is_missing
from test_whole_run import TINY, base, command  # noqa: F401  (base is a fixture)

from FasterRCNN.engine.weights import read_weights

ROOT = Path(__file__).resolve().parent.parent
MISSING = what_is_missing()
pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)
TRAIN = [*TINY, "BACKBONE.NORM=None", "TRAIN.EVAL_PERIOD=4"]  # without normalisation nothing hides a wrong average
EIGHT_STEPS, TWELVE_STEPS = "TRAIN.LR_SCHEDULE=[2]", "TRAIN.LR_SCHEDULE=[2,3]"  # in steps of 8 images; 2 each here
HOROVODRUN = [Path(sys.executable).with_name("horovodrun"), "--gloo", "--disable-cache", "-np", 2,
             "-H", ",".join(f"{address}:1" for address in ADDRESSES), "-p", PORT]


def train_on(hosts, folder, *arguments):
    """Run ./train.py of `project`, a folder that each host has on its own disk, on both; return what both print."""
    return hosts[0].run(*HOROVODRUN, "-i", folder / "key", sys.executable, "./train.py", *arguments,
                        folder=folder / "disk" / "project")


@pytest.fixture(scope="module")
def own_disks(base, tmp_path_factory):  # noqa: F811
    """(folder, the disk of each host): both disks hold the code and the data, and appear as folder/disk."""
    folder = tmp_path_factory.mktemp("hosts")
    (folder / "disk").mkdir()
    disks = [folder / "disk1", folder / "disk2"]
    for disk in disks:
        shutil.copytree(base, disk / "shapes")
        (disk / "project").mkdir()
        for script in ROOT.glob("*.py"):
            shutil.copy2(script, disk / "project")
        shutil.copytree(ROOT / "FasterRCNN", disk / "project" / "FasterRCNN")
    return folder, disks


@pytest.fixture(scope="module")
def outputs(own_disks):
    """What a run of eight steps printed, and its continuation to twelve."""
    folder, disks = own_disks
    hosts = start_hosts(disks, folder / "disk", folder)
    try:
        started = train_on(hosts, folder, "--logdir", "run", "--config", *TRAIN, EIGHT_STEPS, "TRAINER=horovod",
                           f"DATA.BASEDIR={folder / 'disk' / 'shapes'}", "TRAIN.IMS_PER_GPU=1")
        resumed = train_on(hosts, folder, "--logdir", "run", "--resume", "--config", TWELVE_STEPS)
    finally:
        end_hosts(hosts)
    return started, resumed


def test_two_hosts_hold_the_weights_of_one_process(base, own_disks, outputs):  # noqa: F811
    """Through a stop at step 8, after which only the chief's disk has the weights to go on from."""
    started, resumed = outputs
    assert "training in 2 process(es) of a Horovod job" in started and "global batch of 2" in started
    assert "finished at step 8\n" in started and "finished at step 12\n" in resumed
    alone, together = base / "alone", own_disks[1][0] / "project" / "run"
    command("train.py", "--logdir", alone, "--config", *TRAIN, TWELVE_STEPS, f"DATA.BASEDIR={base}")
    start = read_weights(alone / "model-3")
    for step in (6, 12):
        expected, actual = (read_weights(logdir / f"model-{step}") for logdir in (alone, together))
        assert expected.keys() == actual.keys()
        moved = np.sqrt(sum(np.sum((expected[name] - start[name]) ** 2) for name in expected))
        apart = np.sqrt(sum(np.sum((expected[name] - actual[name]) ** 2) for name in expected))
        assert 0 < apart < 0.02 * moved


def test_only_the_disk_of_the_chief_is_written_to(own_disks, outputs):
    chief, other = own_disks[1]
    written = {path.name for path in (chief / "project" / "run").iterdir()}
    assert {"model-8.index", "model-12.index", "metrics.jsonl", "run.json", "eval"} <= written
    assert files(other) == {path for path in files(chief) if "run" not in path.parts}


def files(disk):
    return {path.relative_to(disk) for path in disk.rglob("*") if path.is_file() and path.suffix != ".pyc"}
