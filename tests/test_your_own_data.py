"""Every command of docs/your_own_data.md, in its order, on a small drawn folder of BCCD's layout."""

import csv
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "your_own_data.md").read_text()
COMMANDS = re.findall(r"^\./(\w+\.py .*)$", PAGE, flags=re.MULTILINE)
COLOURS = {"RBC": (60, 60, 200), "WBC": (200, 60, 120), "Platelets": (120, 20, 80)}
SPLITS = {"train": 8, "val": 3, "test": 3}
# What a command of the page is given besides, so that it takes seconds.
SMALL = {
    "train.py": [
        "TRAIN.LR_SCHEDULE=[2]", "TRAIN.WARMUP=2", "TRAIN.STEPS_PER_EPOCH=2", "TRAIN.EVAL_PERIOD=2",
        "TRAIN.CHECKPOINT_PERIOD=1", "PREPROC.TRAIN_SHORT_EDGE_SIZE=[96,96]", "PREPROC.TEST_SHORT_EDGE_SIZE=96",
        "TRAIN.IMS_PER_GPU=2", "BACKBONE.CHANNELS=32", "FPN.NUM_CHANNEL=32", "TEST.RESULT_SCORE_THRESH=0.0",
        "DATA.NUM_WORKERS=1", "DATA.CACHE=none",
    ],
    "data.py": ["PREPROC.TRAIN_SHORT_EDGE_SIZE=[96,96]", "PREPROC.TEST_SHORT_EDGE_SIZE=96"],
}


def draw_photo(rng, path):
    """A photo with a few discs; returns (class name, corners) of each."""
    photo = np.full((96, 128, 3), 220, np.uint8)
    objects = []
    for name in rng.choice(list(COLOURS), size=3):
        radius = int(rng.integers(8, 16))
        x, y = (int(rng.integers(radius, side - radius)) for side in (128, 96))
        cv2.circle(photo, (x, y), radius, COLOURS[name], -1)
        objects.append((str(name), (x - radius, y - radius, x + radius + 1, y + radius + 1)))
    cv2.imwrite(str(path), photo)
    return objects


def write_xml(path, photo, objects):
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = photo.name
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", 128), ("height", 96), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    for name, (x1, y1, x2, y2) in objects:
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = name
        box = ElementTree.SubElement(entry, "bndbox")
        for key, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ElementTree.SubElement(box, key).text = str(value)
    ElementTree.ElementTree(root).write(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with BCCD/, configs/, my_datasets.py and its CSV files; one box has no area."""
    folder = tmp_path_factory.mktemp("own")
    bccd = folder / "BCCD"
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (bccd / name).mkdir(parents=True)
    rng, number = np.random.default_rng(0), 0
    for split, count in SPLITS.items():
        ids, rows = [], []
        for _ in range(count):
            photo = bccd / "JPEGImages" / f"BloodImage_{number:05d}.jpg"
            objects = draw_photo(rng, photo)
            rows += [[f"BCCD/JPEGImages/{photo.name}", name, *corners] for name, corners in objects]
            if number == 1:
                objects.append(("RBC", (50, 50, 51, 51)))
            write_xml(bccd / "Annotations" / f"{photo.stem}.xml", photo, objects)
            ids.append(photo.stem)
            number += 1
        (bccd / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(ids) + "\n")
        with open(folder / f"{split}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "my_datasets.py").write_text(re.search(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[1])
    return folder


@pytest.fixture(scope="module")
def outputs(folder):
    """What each command of the page printed, and its exit status."""
    outputs = {}
    for line in COMMANDS:
        script, *arguments = shlex.split(line)
        extra = SMALL.get(script, [])
        if extra and "--config" not in arguments:
            arguments.append("--config")
        command = [sys.executable, ROOT / script, *arguments, *extra]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
        outputs[line] = done.returncode, done.stdout, done.stderr
    return outputs


def of(outputs, beginning):
    (found,) = [output for line, output in outputs.items() if line.startswith(beginning)]
    return found


def test_the_page_has_its_commands():
    assert [command.split()[0] for command in COMMANDS] == [
        "data.py", "data.py", "data.py", "train.py", "predict.py", "predict.py", "eval.py", "data.py", "data.py",
        "train.py",
    ]


@pytest.mark.parametrize("key", ["DATA.CATALOG", "DATA.METRIC", "PREPROC.AUGMENT"])
def test_the_commands_use_the_keys_that_the_page_explains(key):
    assert any(f"{key}=" in command for command in COMMANDS)


def test_each_command_succeeds(outputs):
    for line, (status, stdout, stderr) in outputs.items():
        wanted = 1 if line.startswith("data.py --check voc") else 0  # the box without area
        assert status == wanted, f"./{line}\n{stdout[-2000:]}\n{stderr[-2000:]}"
        assert "Traceback" not in stderr, line


def test_the_flaw_is_found_and_left_out(outputs, folder):
    _, stdout, _ = of(outputs, "data.py --check voc")
    assert "box without area" in stdout and "BloodImage_00001.xml" in stdout and "1 error, " in stdout
    log = (folder / "train_log" / "bccd" / "log.txt").read_text()
    assert "left out 1 x box without area, the first: image id 'BloodImage_00001', annotation id 4" in (
        log + of(outputs, "train.py --config-file configs/bccd.yaml --logdir train_log/bccd")[2]
    )


def test_pictures_and_plots_are_drawn(outputs, folder):
    shown = sorted(path.name for path in (folder / "shown").iterdir())
    assert "BCCD_train.png" in shown and len(shown) == 4 * 4 + 1
    assert "RPN.ANCHOR" in of(outputs, "data.py --stats")[1]
    assert len(list((folder / "turned").iterdir())) == 2


def test_both_metrics_score_the_same_results(outputs, folder):
    _, stdout, _ = of(outputs, "predict.py --load")
    assert "AP50_11point" in stdout and "AP50_all" in stdout and "Platelets" in stdout
    metrics = json.loads((folder / "test.metrics.json").read_text())
    assert metrics["metric"] == "coco"  # the last command's
    assert {"RBC", "WBC", "Platelets"} == set(metrics["per_class"]["bbox"]["AP"])


def test_the_users_own_class_trains_as_the_export_does(folder):
    config = (folder / "train_log" / "mine" / "config.yaml").read_text()
    assert "my_datasets.py" in config and "Platelets" in config
    assert len(list((folder / "found").glob("*_detected.jpg"))) == sum(SPLITS.values())


def test_the_table_of_augmentations_is_complete():
    from FasterRCNN.imaging.transforms import parse_augmentations

    with pytest.raises(ValueError, match="Choices") as error:
        parse_augmentations(["nothing"])
    for signature in re.findall(r"\w+\([^)]*\)", str(error.value).split("Choices")[1]):
        assert f"`{signature}`" in PAGE
