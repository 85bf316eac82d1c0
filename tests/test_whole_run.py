"""The commands one after another, as a user types them: draw, train, stop, resume, evaluate, score, predict."""
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tensorflow.python.summary.summary_iterator import summary_iterator
from tiny import TinyModel

from FasterRCNN.engine.npz import save_npz
from FasterRCNN.engine.weights import read_config, read_weights

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "MODE_FPN=True", "BACKBONE.NORM=GN", "BACKBONE.FREEZE_AT=0", "BACKBONE.RESNET_NUM_BLOCKS=[1,1,1,1]",
    "BACKBONE.CHANNELS=32", "FPN.NUM_CHANNEL=32", "FPN.FRCNN_FC_HEAD_DIM=32", "MRCNN.HEAD_DIM=32",
    "RPN.ANCHOR_SIZES=[16,24,32,48,64]", "RPN.BATCH_PER_IM=32", "FRCNN.BATCH_PER_IM=32",
    "RPN.TRAIN_PER_LEVEL_NMS_TOPK=50", "RPN.TEST_PER_LEVEL_NMS_TOPK=50", "PREPROC.TRAIN_SHORT_EDGE_SIZE=[96,96]",
    "PREPROC.TEST_SHORT_EDGE_SIZE=96", "PREPROC.MAX_SIZE=128", "TRAIN.IMS_PER_GPU=2", "TRAIN.WARMUP=2",
    "TRAIN.STEPS_PER_EPOCH=3", "TRAIN.CHECKPOINT_PERIOD=1", "TRAIN.EVAL_PERIOD=2", "TRAIN.SUMMARY_PERIOD=1",
    "DATA.NUM_WORKERS=0", "TEST.IMS_PER_GPU=2", "TEST.RESULT_SCORE_THRESH=0.0", "TEST.RESULT_SCORE_THRESH_VIS=0.0",
]
SOURCES = ("rpn", "box", "mask")  # of the scalars that the detector gives


def command(script, *arguments, status=0):
    """Run one of the commands and return what it printed."""
    result = subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], capture_output=True, text=True)
    output = result.stdout + result.stderr
    assert result.returncode == status, output[-3000:]
    return output


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder in COCO's layout with a few drawn shapes."""
    base = tmp_path_factory.mktemp("shapes")
    command("data.py", "--draw", base, "--num-train", 6, "--num-val", 3, "--size", 96)
    return base


@pytest.fixture(scope="module")
def run(base):
    """The folder of a run of six steps, and what the command printed."""
    logdir = base / "run"
    output = command("train.py", "--logdir", logdir, "--config", *TINY, f"DATA.BASEDIR={base}",
                     "TRAIN.LR_SCHEDULE=[1,2]")  # steps of 8 images: 8 of 2
    return logdir, output


def test_training_leaves_a_run_folder_that_describes_itself(run, base):
    logdir, output = run
    assert "schedule for a global batch of 2" in output and "training on the CPU" in output
    about, = json.loads((logdir / "run.json").read_text())["starts"]
    assert about["seed"] == 0 and any(name.startswith("tensorflow") for name in about["versions"])
    config = read_config(logdir)
    assert config["DATA"]["CATEGORY_IDS"] == [3, 7, 12, 18, 25, 31]
    assert read_config(next(logdir.glob("model-8.index")))["DATA"]["CLASS_NAMES"] == config["DATA"]["CLASS_NAMES"]
    steps = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 9))


def documented_scalars(written):
    """The names in the tables of docs/training.md that stand there as written so."""
    rows = (line.split("|")[1:3] for line in (ROOT / "docs" / "training.md").read_text().splitlines() if "|" in line)
    names = (names for names, when in rows if when.strip(" `") == written)
    return {name for cell in names for name in re.findall("`([^`]+)`", cell)}


def test_a_run_writes_the_documented_scalars_and_no_others(run):
    boxes = documented_scalars("COCO")
    wanted = documented_scalars("always") | documented_scalars("MODE_MASK=True")
    evaluated = boxes | {name.replace("bbox/", "segm/") for name in boxes}
    steps = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
    written = set().union(*steps) - {"step", "time"}
    assert set(steps[0]) - {"step", "time"} == wanted
    of_sizes = {f"{kind}/A{which}{size}" for kind in ("bbox", "segm") for which in "PR" for size in "ml"}  # if there
    assert evaluated - of_sizes <= set(steps[-1]) - wanted
    assert written - wanted <= evaluated
    summaries = [value for path in run[0].glob("events.*") for event in summary_iterator(str(path))
                 for value in event.summary.value]
    assert {value.tag for value in summaries if value.HasField("simple_value")} == written


@pytest.mark.parametrize("changes, conditions", [
    ({"MODE_MASK": False}, ["always"]),
    ({"FPN.CASCADE": True}, ["always", "MODE_MASK=True"]),
])
def test_names_of_other_models_are_documented(changes, conditions):
    wanted = {name for when in conditions for name in documented_scalars(when) if name.split("/")[0] in SOURCES}
    if "FPN.CASCADE" in changes:
        heads = {name for name in wanted if name.startswith("box/")}
        wanted = wanted - heads | {name.replace("box/", f"box/stage{i}/") for name in heads for i in (1, 2, 3)}
    model = TinyModel(changes)
    assert {*model.losses, *model.metrics} == wanted


def test_pictures_of_each_evaluation_are_in_tensorboard(run):
    found = {}
    for path in run[0].glob("events.*"):
        for event in summary_iterator(str(path)):
            found.update({(value.tag, event.step): value.image for value in event.summary.value
                          if value.HasField("image")})
    assert {step for _, step in found} == {6, 8}  # TRAIN.EVAL_PERIOD of 2 epochs of 3 steps, and the end
    assert {tag.split("/")[0] for tag, _ in found} == {"image"} and len(found) == 2 * 3
    picture = next(iter(found.values()))
    pixels = cv2.imdecode(np.frombuffer(picture.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape[1] > 2 * 96 and pixels.std() > 20


def test_curves_of_a_run(run, tmp_path):
    output = command("train.py", "--plot", run[0], "--output-dir", tmp_path)
    files = [Path(line) for line in output.splitlines()]
    assert [file.stem for file in files] == ["losses", "evaluation", "speed", "heads"]
    assert all(cv2.imread(str(file)) is not None for file in files)
    output = command("train.py", "--plot", tmp_path, status=2)
    assert "holds no run" in output and "Traceback" not in output
    output = command("train.py", "--plot", run[0], "--resume", status=2)
    assert "--plot only draws" in output


def test_resumed_run_goes_the_same_way(run, base):
    """Stopped at a step and resumed, a run does what one that was not stopped does."""
    logdir = base / "stopped"
    shutil.copytree(run[0], logdir)
    for path in [*logdir.glob("model-8.*"), *logdir.glob("model-6.*")]:
        path.unlink()
    command("train.py", "--logdir", logdir, "--resume")
    paths = run[0] / "model-3", run[0] / "model-8", logdir / "model-8"
    start, whole, resumed = (read_weights(path) for path in paths)
    assert whole.keys() == resumed.keys()

    def distance(a, b):
        return np.sqrt(sum(np.sum((a[name] - b[name]) ** 2) for name in a))

    assert distance(resumed, whole) < 1e-6 * distance(start, whole)
    steps = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    rates = {step["step"]: step["learning_rate"] for step in steps if "learning_rate" in step}
    whole_steps = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
    assert rates == {step["step"]: step["learning_rate"] for step in whole_steps if "learning_rate" in step}


def test_a_run_folder_is_not_overwritten_by_mistake(run, base):
    output = command("train.py", "--logdir", run[0], "--config", *TINY, f"DATA.BASEDIR={base}", status=2)
    assert "--resume" in output and "--overwrite" in output and "Traceback" not in output


def test_what_does_not_fit_spoils_no_run(run, base, tmp_path):
    logdir = tmp_path / "run"
    shutil.copytree(run[0], logdir)
    before = {path.name: path.read_bytes() for path in logdir.iterdir() if path.is_file()}
    output = command("train.py", "--logdir", logdir, "--resume", "--config", "MODE_MASK=False", "FPN.NUM_CHANNEL=64",
                     status=2)
    assert "resume with the configuration of the run" in output and "Traceback" not in output
    output = command("train.py", "--logdir", logdir, "--overwrite", "--load", run[0], "--config", *TINY,
                     f"DATA.BASEDIR={base}", "FPN.NUM_CHANNEL=64", status=2)
    assert "does not fit" in output and "Traceback" not in output
    assert before == {path.name: path.read_bytes() for path in logdir.iterdir() if path.is_file()}


@pytest.mark.parametrize("option", ["--resume", "--overwrite"])
def test_options_of_training_are_refused_without_training(run, option):
    output = command("train.py", "--predict", "x.jpg", "--load", run[0], option, status=2)
    assert "--predict and --evaluate do not train" in output


def test_evaluate_then_score_the_file_again(run, base):
    results = base / "out.json"
    output = command("train.py", "--evaluate", results, "--load", run[0])
    assert "AP50" in output and "arrow" in output
    detections = json.loads(results.read_text())
    assert {d["category_id"] for d in detections} <= {3, 7, 12, 18, 25, 31} and detections
    first = json.loads((base / "out.metrics.json").read_text())
    command("eval.py", results, "--config", f"DATA.BASEDIR={base}", "DATA.VAL=coco_val2017")
    assert json.loads((base / "out.metrics.json").read_text())["bbox"] == first["bbox"]


def test_predict_draws_and_writes_json(run, base, tmp_path):
    photos = sorted((base / "val2017").glob("*.jpg"))[:2]
    command("train.py", "--predict", *photos, "--load", run[0], "--output-dir", tmp_path, "--no-show")
    for photo in photos:
        assert cv2.imread(str(next(tmp_path.glob(f"{photo.stem}*.jpg")))) is not None
        assert json.loads(next(tmp_path.glob(f"{photo.stem}*.json")).read_text())


def test_weights_that_carry_no_config_are_told_their_classes(run, base, tmp_path):
    save_npz(tmp_path / "model.npz", read_weights(run[0]))
    photo = next((base / "val2017").glob("*.jpg"))
    command("predict.py", photo, "--load", tmp_path / "model.npz", "--output-dir", tmp_path, "--no-show",
            "--config", *TINY, "DATA.CLASS_NAMES=['a','b','c','d','e','f']", "DATA.CATEGORY_IDS=[10,20,30,40,50,60]")
    text = next(tmp_path.glob(f"{photo.stem}*.json")).read_text()
    assert '"circle"' not in text and any(f'"{name}"' in text for name in "abcdef")


OTHER_WAYS = [
    "TRAIN.LR_DECAY=cosine", "TRAIN.GRADIENT_CLIP=5", "TRAIN.WEIGHT_DECAY=0.001", "TRAIN.MOMENTUM=0.8", "TRAIN.SEED=3",
    "TRAIN.BASE_LR=0.02", "TRAIN.WARMUP_INIT_LR=0.001", "TRAIN.STARTING_EPOCH=2", "TRAIN.NUM_GPUS=0",
    "DATA.NUM_WORKERS=1", "DATA.FILTER_EMPTY_ANNOTATIONS=False", "DATA.ABSOLUTE_COORD=False", "TEST.MASK_THRESH=0.4",
    "MRCNN.PASTE=padded", "PREPROC.RESIZE=float", "PREPROC.SIZE_ROUNDING=short",
]


def test_fine_tuning_on_other_classes_leaves_out_and_names_the_last_layers(run, base, tmp_path):
    """And with every other way of training, on boxes in fractions, and an image without objects among them."""
    annotations = json.loads((base / "annotations" / "instances_train2017.json").read_text())
    size = {image["id"]: (image["width"], image["height"]) for image in annotations["images"]}
    empty = annotations["images"][0]["id"]
    annotations["annotations"] = [a for a in annotations["annotations"] if a["image_id"] != empty]
    for annotation in annotations["annotations"]:
        sides = np.array(size[annotation["image_id"]])
        annotation["category_id"] = 0
        annotation["bbox"] = (np.reshape(annotation["bbox"], (2, 2)) / sides).ravel().tolist()
        polygons = [np.reshape(polygon, (-1, 2)) / sides for polygon in annotation["segmentation"]]
        annotation["segmentation"] = [polygon.ravel().tolist() for polygon in polygons]
    annotations["categories"] = [{"id": 0, "name": "shape"}]
    subset = tmp_path / "one_class.json"
    subset.write_text(json.dumps(annotations))
    data = f"{subset}:{base / 'train2017'}"
    output = command("train.py", "--load", run[0], "--logdir", tmp_path / "tuned", "--config", *TINY, *OTHER_WAYS,
                     f"DATA.TRAIN={data}", f"DATA.VAL={data}", "TRAIN.LR_SCHEDULE=[2]")
    assert "fastrcnn/outputs" in output and "maskrcnn/conv" in output
    assert read_config(tmp_path / "tuned")["DATA"]["CLASS_NAMES"] == ["shape"]
    assert (tmp_path / "tuned" / "best.index").is_file()


def test_a_backbone_serves_as_backbone_weights(run, base, tmp_path):
    backbone = {name: value for name, value in read_weights(run[0]).items() if name.startswith(("conv0/", "group"))}
    save_npz(tmp_path / "backbone.npz", backbone)
    output = command("train.py", "--logdir", tmp_path / "run", "--config", *TINY, f"DATA.BASEDIR={base}",
                     f"BACKBONE.WEIGHTS={tmp_path / 'backbone.npz'}", "BACKBONE.FREEZE_AT=2", "TRAIN.LR_SCHEDULE=[1]")
    assert "backbone.npz" in output
    trained = read_weights(tmp_path / "run")
    frozen = [name for name in backbone if name.startswith(("conv0/", "group0/"))]
    assert frozen and all(np.array_equal(trained[name], backbone[name]) for name in frozen)
    output = command("train.py", "--predict", "x.jpg", "--load", tmp_path / "backbone.npz", status=2)
    assert "BACKBONE.WEIGHTS" in output and "Traceback" not in output


def test_weights_of_another_model_are_refused_with_the_keys_that_fit(run):
    output = command("train.py", "--predict", "x.jpg", "--load", run[0], "--config", "MODE_FPN=False", status=2)
    assert "MODE_FPN=True" in output and "Traceback" not in output
