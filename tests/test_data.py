"""Training batches: order, content, errors; the commands."""

import itertools
import json
import logging
import subprocess
import sys
from pathlib import Path

from config import default_config

import cv2
import numpy as np
import pytest

import data
from data import make_train_batches, make_train_dataflow
from FasterRCNN.imaging.mask_crops import unpack_mask
from FasterRCNN.loading.batches import TRAIN_INPUTS, BatchOrder, train_inputs
from FasterRCNN.loading.prefetch import DataError

ROOT = Path(__file__).parents[1]
SIZES = [(64, 96), (96, 64), (50, 100), (70, 70), (64, 96), (90, 60), (64, 80)]  # height, width
EMPTY_IMAGE = 3


@pytest.fixture
def folder(tmp_path):
    """Dark pictures with a bright rectangle whose halves are two objects; one without objects, one with a crowd."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i, (height, width) in enumerate(SIZES):
        picture = np.zeros((height, width, 3), np.uint8)
        x, y, w, h = 8 + i, 10, 20, 16 + i
        if i != EMPTY_IMAGE:
            picture[y : y + h, x : x + 2 * w] = 255
            for half in (0, 1):
                left = x + half * w
                corners = [left, y, left + w, y, left + w, y + h, left, y + h]
                annotations.append(
                    {"id": len(annotations), "image_id": 100 + i, "category_id": (4, 9)[half], "bbox": [left, y, w, h]}
                    | {"segmentation": [corners], "iscrowd": 0}
                )
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), picture)
        images.append({"id": 100 + i, "file_name": f"{i}.png", "height": height, "width": width})
    whole = {"size": list(SIZES[0]), "counts": [0, SIZES[0][0] * SIZES[0][1]]}
    crowd = {"id": 50, "image_id": 100, "category_id": 9, "bbox": [0, 0, 90, 60], "iscrowd": 1, "segmentation": whole}
    categories = [{"id": 4, "name": "left"}, {"id": 9, "name": "right"}]
    content = {"images": images, "annotations": [*annotations, crowd], "categories": categories}
    (tmp_path / "marks.json").write_text(json.dumps(content))
    return tmp_path


def spec_of(folder):
    return f"{folder / 'marks.json'}:{folder / 'images'}"


@pytest.fixture
def cfg(folder):
    cfg = default_config()
    small = {"DATA.NUM_WORKERS": 0, "PREPROC.TRAIN_SHORT_EDGE_SIZE": [100, 140], "PREPROC.MAX_SIZE": 192}
    cfg.update_dict({"DATA.TRAIN": [spec_of(folder)], "MODE_FPN": True, **small})
    return cfg


def batches_of(cfg, *, ims_per_gpu=1, seed=0):
    return make_train_batches(cfg, data.load_training_set(cfg), ims_per_gpu=ims_per_gpu, seed=seed)


def named(cfg, datapoint):
    return dict(zip(train_inputs(cfg.MODE_MASK), datapoint, strict=True))


def assert_same(datapoints, others):
    for datapoint, other in zip(datapoints, others, strict=True):
        for part, same in zip(datapoint, other, strict=True):
            assert part.dtype == same.dtype
            np.testing.assert_array_equal(part, same)


# ---------------------------------------------------------------- order


def test_each_pass_is_a_fresh_permutation():
    order = BatchOrder([np.arange(10)], batch_size=1, seed=3)
    passes = [tuple(int(order[step][0]) for step in range(start, start + 10)) for start in (0, 10, 20)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len(set(passes)) == 3
    other_seed = BatchOrder([np.arange(10)], batch_size=1, seed=4)
    assert tuple(int(other_seed[step][0]) for step in range(10)) not in passes


def test_any_step_can_be_asked_for_at_any_time():
    groups = [np.arange(5), np.arange(5, 12)]
    straight, crosswise = (BatchOrder(groups, batch_size=2, seed=0) for _ in range(2))
    expected = [straight[step] for step in range(40)]
    for step in (39, 0, 21, 3, 20):
        np.testing.assert_array_equal(crosswise[step], expected[step])


@pytest.mark.parametrize("sizes", [(5, 7), (1, 3), (4, 8), (2,)])
def test_groups_do_not_mix_and_nothing_is_left_out(sizes):
    starts = np.cumsum([0, *sizes])
    groups = [np.arange(start, stop) for start, stop in itertools.pairwise(starts)]
    order = BatchOrder(groups, batch_size=4, seed=0)
    kinds = []
    for number in range(6):
        steps = range(number * order.batches_per_pass, (number + 1) * order.batches_per_pass)
        batches = [order[step] for step in steps]
        assert set(np.concatenate(batches)) == set(range(starts[-1]))
        of_batch = [set(np.searchsorted(starts, batch, side="right")) for batch in batches]
        assert all(len(group) == 1 and len(batch) == 4 for group, batch in zip(of_batch, batches, strict=True))
        kinds.append([group.pop() for group in of_batch])
    if sizes == (5, 7):  # two batches of each group, in six passes hardly always in the same order
        assert len(set(map(tuple, kinds))) > 1


# ---------------------------------------------------------------- content


def test_few_image_sizes_for_a_compiler(cfg):
    cfg.update_dict({"PREPROC.TRAIN_SHORT_EDGE_SIZE": [40, 700], "PREPROC.MAX_SIZE": 600})
    plain = batches_of(cfg)
    cfg.TRAIN.XLA = True
    compiled = batches_of(cfg)
    sizes = set()
    for step in range(40):
        datum, same = (named(cfg, batches(step)) for batches in (compiled, plain))
        height, width = datum["image"].shape[1:3]
        # Sides are multiples of an eighth of 600 that is one of 32; the last would be beyond 600, rounded up to 608.
        assert all(side in (*range(64, 600, 64), 608) for side in (height, width))
        own = same["image"].shape[1:3]
        assert own[0] <= height and own[1] <= width
        np.testing.assert_array_equal(datum["image"][:, : own[0], : own[1]], same["image"])
        assert datum["image"].sum(dtype=np.int64) == same["image"].sum(dtype=np.int64)
        for name in set(datum) - {"image"}:
            np.testing.assert_array_equal(datum[name], same[name])
        sizes.add((height, width))
    assert (608 in {max(size) for size in sizes}) and len(sizes) > 5


def test_a_datapoint_has_the_promised_shapes(cfg):
    batches = batches_of(cfg, ims_per_gpu=2)
    assert train_inputs(True) == TRAIN_INPUTS
    for step in range(6):
        datum = named(cfg, batches(step))
        height, width = datum["image"].shape[1:3]
        assert height % 32 == 0 and width % 32 == 0
        shapes = {name: (part.dtype.name, part.shape) for name, part in datum.items()}
        assert shapes == {
            "image": ("uint8", (2, height, width, 3)),
            "image_size": ("int32", (2, 2)),
            "gt_boxes": ("float32", (2, 8, 4)),
            "gt_labels": ("int32", (2, 8)),
            "gt_masks": ("uint8", (2, 8, 112, 14)),
            "image_index": ("int32", (2,)),
            "seed": ("int32", ()),
        }
        assert (datum["image_size"].max(axis=0) <= (height, width)).all()
        assert (datum["image_size"].max(axis=0) > (height - 32, width - 32)).all()
        first, second = datum["image_index"]
        assert (SIZES[first][0] > SIZES[first][1]) == (SIZES[second][0] > SIZES[second][1])
        for image, (h, w) in zip(datum["image"], datum["image_size"], strict=True):
            assert not image[h:].any() and not image[:, w:].any()


def test_boxes_and_masks_follow_the_picture(cfg):
    """The two halves of each bright rectangle, found again in the resized and perhaps mirrored picture."""
    batches = batches_of(cfg)
    edges, mirrored = set(), set()
    for step in range(40):
        datum = {name: part[0] if part.ndim else part for name, part in named(cfg, batches(step)).items()}
        index, (height, width) = datum["image_index"], datum["image_size"]
        assert abs(height / width - SIZES[index][0] / SIZES[index][1]) < 0.02
        assert 100 <= min(height, width) <= 140 or max(height, width) == 192
        edges.add(int(min(height, width)))
        boxes = datum["gt_boxes"][:2]
        x, y, w, h = cv2.boundingRect((datum["image"][..., 0] > 127).astype(np.uint8))
        union = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
        np.testing.assert_allclose(union, [x, y, x + w, y + h], atol=1)
        left_is_first = boxes[0, 0] < boxes[1, 0]
        mirrored.add(not left_is_first)
        assert datum["gt_labels"].tolist() == [1, 2, -1, 0, 0, 0, 0, 0] if index == 0 else [1, 2] + [0] * 6
        masks = unpack_mask(datum["gt_masks"])
        assert masks[:2].mean() > 0.99 and not masks[2:].any()
    assert len(edges) > 5 and mirrored == {False, True}


def test_masks_are_mirrored_with_the_picture(cfg, folder):
    content = json.loads((folder / "marks.json").read_text())
    for annotation in content["annotations"]:
        if not annotation["iscrowd"]:
            x1, y1, x2, _, _, y2 = annotation["segmentation"][0][:6]
            annotation["segmentation"] = [[x1, y1, (x1 + x2) / 2, y1, (x1 + x2) / 2, y2, x1, y2]]
    (folder / "marks.json").write_text(json.dumps(content))
    batches = batches_of(cfg)
    seen = set()
    for step in range(10):
        datum = named(cfg, batches(step))
        mirrored = bool(datum["gt_boxes"][0, 0, 0] > datum["gt_boxes"][0, 1, 0])
        crop = unpack_mask(datum["gt_masks"])[0, 0]
        empty, full = (crop[:, :55], crop[:, 57:]) if mirrored else (crop[:, 57:], crop[:, :55])
        assert full.all() and not empty.any()
        seen.add(mirrored)
    assert seen == {False, True}


def test_c4_pads_only_to_the_largest_of_the_step(cfg):
    cfg.MODE_FPN = False
    alone = named(cfg, batches_of(cfg)(0))
    assert alone["image"].shape[1:3] == tuple(alone["image_size"][0])
    together = named(cfg, batches_of(cfg, ims_per_gpu=3)(0))
    assert together["image"].shape[1:3] == tuple(together["image_size"].max(axis=0))


def test_without_masks_segmentations_are_not_needed(cfg, folder):
    content = json.loads((folder / "marks.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (folder / "marks.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="none of its 12 objects has a mask; .*MODE_MASK=False"):
        batches_of(cfg)
    cfg.MODE_MASK = False
    datapoint = batches_of(cfg)(0)
    assert len(datapoint) == 6 and "gt_masks" not in train_inputs(False)


def test_images_without_objects_are_left_out_or_kept(cfg, caplog):
    with caplog.at_level(logging.INFO):
        batches = batches_of(cfg)
    assert "marks: left out 1 images without objects" in caplog.text
    assert EMPTY_IMAGE not in {int(batches(step)[-2][0]) for step in range(batches.order.batches_per_pass)}
    cfg.DATA.FILTER_EMPTY_ANNOTATIONS = False
    batches = batches_of(cfg)
    data_of_pass = [named(cfg, batches(step)) for step in range(batches.order.batches_per_pass)]
    (empty,) = [datum for datum in data_of_pass if datum["image_index"] == EMPTY_IMAGE]
    assert empty["gt_boxes"].shape == (1, 8, 4) and not empty["gt_labels"].any() and not empty["gt_masks"].any()


def test_nothing_but_empty_images_is_an_error(cfg, folder):
    content = json.loads((folder / "marks.json").read_text())
    (folder / "marks.json").write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match="marks: none of its 7 images has an object to train on"):
        batches_of(cfg)


def test_slots_grow_by_eights(cfg, folder):
    content = json.loads((folder / "marks.json").read_text())
    content["annotations"] = [{**content["annotations"][0], "id": i, "image_id": 102} for i in range(11)]
    (folder / "marks.json").write_text(json.dumps(content))
    datum = named(cfg, batches_of(cfg)(0))
    assert datum["gt_labels"].tolist() == [[1] * 11 + [0] * 5]
    assert datum["gt_masks"].shape == (1, 16, 112, 14)


# ---------------------------------------------------------------- errors


def break_missing(path):
    path.unlink()


def break_truncated(path):
    noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)
    path.write_bytes(cv2.imencode(".jpg", noise)[1].tobytes()[:3000])


def break_size(path):
    cv2.imwrite(str(path), np.zeros((30, 40, 3), np.uint8))


@pytest.mark.parametrize(
    ("break_file", "message"),
    [
        (break_missing, "no such image file"),
        (break_truncated, "truncated after 3000 bytes"),
        (break_size, r"is \(40, 30\) pixels \(width, height\), but annotated as \(100, 50\)"),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_stops_the_run_where_that_is_wanted(cfg, folder, break_file, message, num_workers):
    cfg.DATA.NUM_WORKERS = num_workers
    cfg.DATA.ON_ERROR = "stop"
    break_file(folder / "images" / "2.png")
    flow = make_train_dataflow(cfg, data.load_training_set(cfg), ims_per_gpu=1, seed=0)
    flow.reset_state()
    with pytest.raises(DataError, match=rf"^marks, image id 102: .*2\.png.*{message}"):
        list(itertools.islice(flow, 6))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_is_replaced_and_counted(cfg, folder, num_workers, caplog):
    cfg.DATA.NUM_WORKERS = num_workers
    cfg.DATA.MAX_BAD = 0.2
    dataset = data.load_training_set(cfg)
    good = make_train_batches(cfg, dataset, ims_per_gpu=2, seed=0)
    used = [good(step)[-2].tolist() for step in range(12)]
    break_missing(folder / "images" / "2.png")
    flow = make_train_dataflow(cfg, dataset, ims_per_gpu=2, seed=0)
    flow.reset_state()
    datapoints = list(itertools.islice(flow, 12))
    for datapoint, indices in zip(datapoints, used, strict=True):
        for index, planned in zip(datapoint[-2].tolist(), indices, strict=True):
            assert index == planned if planned != 2 else index != 2
    assert any(2 in indices for indices in used)
    assert flow.bad_images.count == 1 and 2 in flow.bad_images
    assert num_workers or caplog.text.count("replaced by another image: marks, image id 102: ") == 1
    again = make_train_dataflow(cfg, dataset, ims_per_gpu=2, seed=0)
    again.reset_state()
    assert_same(itertools.islice(again, 12), datapoints)


def test_too_many_bad_images_stop_the_run(cfg, folder):
    cfg.DATA.MAX_BAD = 0.2
    for number in (1, 2):
        break_truncated(folder / "images" / f"{number}.png")
    flow = make_train_dataflow(cfg, data.load_training_set(cfg), ims_per_gpu=1, seed=0)
    flow.reset_state()
    with pytest.raises(DataError, match=r"truncated.* \(2 of 6 images cannot be used, more than DATA.MAX_BAD=0.2"):
        list(itertools.islice(flow, 20))


def test_no_image_left_stops_the_run_whatever_is_allowed(cfg, folder):
    cfg.DATA.MAX_BAD = 1.0
    for number in range(len(SIZES)):
        break_missing(folder / "images" / f"{number}.png")
    with pytest.raises(DataError, match="6 of 6 images cannot be used"):
        batches_of(cfg)(0)


# ---------------------------------------------------------------- the data flow


@pytest.mark.parametrize("ims_per_gpu", [1, 2])
def test_a_run_goes_on_where_it_was_stopped_with_or_without_workers(cfg, ims_per_gpu):
    def flow(num_workers, **changes):
        cfg.DATA.NUM_WORKERS = num_workers
        options = {"ims_per_gpu": ims_per_gpu, "seed": 5, **changes}
        flow = make_train_dataflow(cfg, data.load_training_set(cfg), **options)
        flow.reset_state()
        return flow

    expected = list(itertools.islice(flow(0), 9))
    assert_same(itertools.islice(flow(2), 9), expected)
    assert_same(itertools.islice(flow(0, first=4), 5), expected[4:])
    assert_same(itertools.islice(flow(2, first=4), 5), expected[4:])
    assert len({int(datapoint[-1]) for datapoint in expected}) == 9
    others = list(itertools.islice(flow(0, seed=6), 9))
    assert any(datapoint[0].shape != other[0].shape for datapoint, other in zip(expected, others, strict=True))


@pytest.mark.parametrize("num_devices, ims_per_gpu", [(2, 1), (3, 2)])
def test_devices_share_what_one_device_would_get(cfg, num_devices, ims_per_gpu):
    cfg.DATA.NUM_WORKERS = 0
    dataset = data.load_training_set(cfg)
    alone = make_train_dataflow(cfg, dataset, ims_per_gpu=num_devices * ims_per_gpu, seed=5)
    ranks = [
        make_train_dataflow(
            cfg, dataset, ims_per_gpu=ims_per_gpu, seed=5, num_devices=num_devices, first=rank, every=num_devices
        )
        for rank in range(num_devices)
    ]
    together = make_train_dataflow(cfg, dataset, ims_per_gpu=ims_per_gpu, seed=5, num_devices=num_devices)
    for datapoint, *shares in itertools.islice(zip(alone, *ranks), 6):
        assert_same([next(iter(together)) for _ in ranks], shares)  # the replicated trainer takes one after the other
        assert np.concatenate([share[-2] for share in shares]).tolist() == datapoint[-2].tolist()
        assert {int(share[-1]) for share in shares} == {int(datapoint[-1])}
        whole = datapoint[0]
        for place, image in enumerate(image for share in shares for image in share[0]):
            height, width = image.shape[:2]
            assert np.array_equal(whole[place, :height, :width], image) and not whole[place, height:].any()


def test_earlier_steps_are_not_decoded(cfg, monkeypatch):
    read = []
    reader = lambda record, _: read.append(record) or cv2.imread(record.file_name)  # noqa: E731
    monkeypatch.setattr("FasterRCNN.loading.batches.read_photo", reader)
    flow = make_train_dataflow(cfg, data.load_training_set(cfg), ims_per_gpu=1, seed=0, first=10**6)
    flow.reset_state()
    next(iter(flow))
    assert len(read) == 1


# ---------------------------------------------------------------- commands


def run(*arguments):
    command = [sys.executable, ROOT / "data.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)


def test_help_waits_for_no_heavy_library():
    command = [sys.executable, "-X", "importtime", ROOT / "data.py", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert result.returncode == 0 and "draw" in result.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "argparse" in imported and not imported & {"tensorflow", "tensorpack", "matplotlib"}


def test_importing_data_does_not_import_tensorflow():
    program = "import sys, data; sys.exit('tensorflow' in sys.modules or 'tensorpack' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False).returncode == 0


def test_stats_counts_by_class(folder):
    result = run("--stats", spec_of(folder))
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert "marks: 7 images, 1 of them without objects" in result.stdout
    assert ["4", "left", "6", "0", "0", "6"] in lines
    assert ["9", "right", "6", "0", "1", "6"] in lines
    assert ["all", "12", "0", "1", "7"] in lines


def test_show_draws_what_the_network_sees(folder, tmp_path):
    options = ["--config", "MODE_FPN=True", "PREPROC.TRAIN_SHORT_EDGE_SIZE=[100,100]", "TRAIN.IMS_PER_GPU=2"]
    result = run("--show", spec_of(folder), "--output-dir", tmp_path / "shown", "--num", "2", *options)
    assert result.returncode == 0, result.stderr
    pictures = sorted((tmp_path / "shown").iterdir())
    assert [str(picture) for picture in pictures] == result.stdout.split()
    assert len(pictures) == 4
    colours = cv2.imread(str(pictures[0])).reshape(-1, 3)
    assert (colours.max(axis=1) > colours.min(axis=1) + 50).any()


def test_show_draws_boxes_alone(folder, tmp_path):
    result = run(
        "--show", spec_of(folder), "--output-dir", tmp_path / "shown", "--num", "1", "--config", "MODE_MASK=False"
    )
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "shown").iterdir())) == 1


def test_show_goes_on_past_images_that_cannot_be_read(folder, tmp_path):
    for number in range(1, 4):
        break_truncated(folder / "images" / f"{number}.png")
    result = run(
        "--show", spec_of(folder), "--output-dir", tmp_path / "shown", "--num", "6", "--config", "DATA.ON_ERROR=stop"
    )
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "shown").iterdir())) == 6
    assert "replaced by another image: marks, image id " in result.stderr


def test_check_prints_before_it_writes(folder):
    result = run("--check", spec_of(folder), "--output", folder / "marks.json" / "check.json")
    assert result.returncode == 2 and "marks.json" in result.stderr
    assert "used for" in result.stdout


def test_draw_writes_a_set_that_loads(tmp_path):
    result = run("--draw", tmp_path, "--num-train", "3", "--num-val", "2", "--size", "64")
    assert result.returncode == 0, result.stderr
    result = run("--stats", "coco_val2017", "--config", f"DATA.BASEDIR={tmp_path}")
    assert "coco_val2017: 2 images" in result.stdout


def test_mistakes_are_told_in_one_line(folder):
    result = run("--stats", "coco_train2018")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: unknown data set 'coco_train2018'") and result.stderr.count("\n") == 1
    for command in (["--stats"], ["--output-dir", folder / "shown", "--show"]):
        result = run(*command, spec_of(folder), "--config", "PREPROC.TRAIN_SHORT_EDGE_SIZE=[800,600]")
        assert result.returncode == 2 and "did you mean [600,800]?" in result.stderr
        assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_a_picture_that_cannot_be_written_is_an_error(folder):
    (folder / "shown" / "step0_0.png").mkdir(parents=True)
    result = run("--show", spec_of(folder), "--output-dir", folder / "shown")
    assert result.returncode == 2 and "step0_0.png: cannot be written" in result.stderr
