"""Detections to numbers: round trips, hand-computed cases, an own AP in NumPy, and pycocotools."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import eval as scoring
from FasterRCNN import evaluation
from FasterRCNN.datasets.annotations import Annotations, RawImage, RawObject
from FasterRCNN.datasets.coco import read_coco
from FasterRCNN.structures import BoxList, Categories

ROOT = Path(__file__).parents[1]
CATEGORIES = Categories(names=("ship", "buoy", "whale"), ids=(0, 7, 90))
HEIGHT, WIDTH = 200, 300


def polygon_of(box):
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def annotation(number, image_id, category_id, box, **more):
    x, y, w, h = box
    fields = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(box), "area": w * h}
    return fields | {"iscrowd": 0, "segmentation": [polygon_of(box)]} | more


def write_annotations(path, annotations, image_ids=(10, 11), categories=CATEGORIES):
    """An annotation file without info and licenses."""
    images = [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in image_ids]
    listed = [{"id": i, "name": name} for i, name in zip(categories.ids, categories.names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": listed}))
    return path


def read(file, **options):
    return read_coco(file, file.parent, name=file.stem, **options)


def score(results, file, *, absolute_coord=True, **options):
    return scoring.evaluate(results, read(file, absolute_coord=absolute_coord), **options)


def rle_of(box):
    rle = mask_utils.merge(mask_utils.frPyObjects([polygon_of(box)], HEIGHT, WIDTH))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def result(image_id, category_id, box, score=0.9):
    fields = {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score}
    return fields | {"segmentation": rle_of(box)}


OBJECTS = [
    (10, 0, (10.0, 20.0, 30.0, 20.0)),  # small: 600
    (10, 7, (100.0, 50.0, 60.0, 70.0)),  # medium: 4200
    (11, 0, (20.0, 30.0, 150.0, 120.0)),  # large: 18000
    (11, 0, (200.0, 10.0, 40.0, 50.0)),
]
GOOD, ODD = (20, 20, 8, 8), (60, 60, 8, 8)


@pytest.fixture
def annotation_file(tmp_path):
    # Ids from 0 on: pycocotools by itself takes a match with annotation id 0 for no match.
    return write_annotations(tmp_path / "truth.json", [annotation(i, *entry) for i, entry in enumerate(OBJECTS)])


def boxes_found(boxes, scores, labels, masks=None):
    detections = BoxList(np.array(boxes, np.float32).reshape(-1, 4), (WIDTH, HEIGHT))
    detections.add_field("scores", np.array(scores, np.float32))
    detections.add_field("labels", np.array(labels, np.int32))
    if masks is not None:
        detections.add_field("masks", masks)
    return detections


def test_detections_become_coco_results():
    masks = [{"size": [HEIGHT, WIDTH], "counts": rle_of((1, 2, 4, 6))["counts"].encode()}]
    detections = boxes_found([[1.23456, 2, 5, 8]], [0.75], [2], masks)
    nothing = boxes_found([], [], [], [])

    results = scoring.results_to_json({np.int64(11): detections, 12: nothing}, CATEGORIES)

    assert json.loads(json.dumps(results)) == [
        {
            "image_id": 11,
            "category_id": 7,
            "bbox": [1.235, 2.0, 3.765, 6.0],
            "score": 0.75,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": masks[0]["counts"].decode()},
        }
    ]
    (unmasked,) = scoring.results_to_json({"a": boxes_found([[1, 2, 5, 8]], [1], [1])}, CATEGORIES)
    assert unmasked["bbox"] == [1, 2, 4, 6] and "segmentation" not in unmasked


def test_perfect_detections_have_ap_one(annotation_file):
    metrics = score([result(*entry) for entry in OBJECTS], annotation_file, categories=CATEGORIES)

    for kind in ("bbox", "segm"):
        numbers = metrics.overall()[kind]
        limits = ["AR1", "AR10", "AR100"]
        assert list(numbers) == ["AP", "AP50", "AP75", "APs", "APm", "APl", *limits, "ARs", "ARm", "ARl"]
        # ship: 2 of 3 objects (one of 2 in image 11) with one detection an image; buoy: all.
        assert numbers.pop("AR1") == pytest.approx((2 / 3 + 1) / 2)
        assert list(numbers.values()) == pytest.approx([1.0] * 11)
        assert metrics.per_class[kind]["AP"] == {"ship": pytest.approx(1.0), "buoy": pytest.approx(1.0), "whale": None}
    assert metrics.scalars()["segm/AP50"] == pytest.approx(1.0)
    table = scoring.format_metrics(metrics)
    assert "APs" in table and "whale" in table and "n/a" in table


def test_hand_computed_ap(tmp_path):
    """Two objects; detections in order of score: a hit, a miss, a hit. Precision 1 to recall 1/2, then 2/3."""
    file = write_annotations(tmp_path / "truth.json", [annotation(i, *e) for i, e in enumerate(OBJECTS[2:])])
    results = [
        result(*OBJECTS[2], score=0.9),
        result(10, 0, (250, 150, 20, 20), score=0.8),
        result(*OBJECTS[3], score=0.7),
    ]
    metrics = score(results, file)
    # 51 of the 101 recall points lie in [0, 1/2].
    assert metrics.bbox["AP"] == pytest.approx((51 * 1 + 50 * 2 / 3) / 101)
    assert metrics.bbox["APs"] is None
    assert metrics.segm["AP"] == pytest.approx(metrics.bbox["AP"])


def test_shifted_boxes_count_up_to_their_iou(tmp_path):
    """A 100 x 100 box moved by 12 pixels has IoU 88 / 112 = 0.786: right at 0.5, 0.55, ... 0.75, wrong above."""
    file = write_annotations(tmp_path / "truth.json", [annotation(1, 10, 0, (50, 50, 100, 100))])
    metrics = score([result(10, 0, (62, 50, 100, 100))], file)
    for numbers in (metrics.bbox, metrics.segm):
        assert numbers["AP"] == pytest.approx(0.6)
        assert (numbers["AP50"], numbers["AP75"]) == pytest.approx((1.0, 1.0))


def plain_ap(truth, found, threshold):
    """AP of one class by the definition; truth: image id to N x 4 boxes (x, y, w, h), found: (score, image id, box)."""

    def iou(a, b):
        overlap = np.maximum(0, np.minimum(a[:2] + a[2:], b[:2] + b[2:]) - np.maximum(a[:2], b[:2])).prod()
        return overlap / (a[2:].prod() + b[2:].prod() - overlap)

    taken, hits = set(), []
    for _, image_id, box in sorted(found, key=lambda entry: -entry[0]):
        free = [(iou(box, other), j) for j, other in enumerate(truth.get(image_id, [])) if (image_id, j) not in taken]
        best, j = max(free, default=(0, None))
        hits.append(best >= threshold)
        if hits[-1]:
            taken.add((image_id, j))
    recall = np.cumsum(hits) / sum(len(boxes) for boxes in truth.values())
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    # NumPy's own points, as COCO has them: 0.29 and 29 / 100 need not be the same float.
    points = np.linspace(0, 1, 101)
    return np.mean([precision[recall >= point].max(initial=0) for point in points])


@pytest.mark.parametrize("seed", [0, 1])
def test_agrees_with_an_own_implementation(tmp_path, seed):
    rng = np.random.default_rng(seed)
    image_ids = range(100, 112)
    annotations, results = [], []
    for image_id in image_ids:
        for category_id in CATEGORIES.ids:
            for _ in range(rng.integers(0, 5)):
                box = np.round(np.r_[rng.uniform(0, 100, 2), rng.uniform(20, 90, 2)], 2)
                annotations.append(annotation(len(annotations), image_id, category_id, box.tolist()))
                for _ in range(rng.integers(0, 3)):
                    moved = np.round(box + np.r_[rng.normal(0, 6, 2), 0, 0], 2)
                    results.append(result(image_id, category_id, moved.tolist(), score=float(rng.random())))
    file = write_annotations(tmp_path / "truth.json", annotations, image_ids)

    metrics = score(results, file, iou_types=["bbox"])

    expected = {}
    for name, category_id in zip(CATEGORIES.names, CATEGORIES.ids):
        truth = {}
        for entry in annotations:
            if entry["category_id"] == category_id:
                truth.setdefault(entry["image_id"], []).append(np.array(entry["bbox"]))
        found = [(r["score"], r["image_id"], np.array(r["bbox"])) for r in results if r["category_id"] == category_id]
        expected[name] = np.mean([plain_ap(truth, found, t) for t in np.linspace(0.5, 0.95, 10)])
    assert metrics.per_class["bbox"]["AP"] == pytest.approx(expected, abs=1e-6)
    assert metrics.bbox["AP"] == pytest.approx(np.mean(list(expected.values())), abs=1e-6)
    assert 0.05 < metrics.bbox["AP"] < 0.95
    assert metrics.segm == {} and "mask" not in scoring.format_metrics(metrics)


def test_mean_over_classes_is_the_overall_ap(annotation_file):
    results = [
        result(*OBJECTS[0]),
        result(*OBJECTS[1], score=0.5),
        result(10, 7, (0, 0, 9, 9)),
        result(10, 90, (0, 0, 9, 9)),
    ]
    metrics = score(results, annotation_file)
    for kind, overall in metrics.overall().items():
        values = [ap for ap in metrics.per_class[kind]["AP"].values() if ap is not None]
        assert len(values) == 2 and overall["AP"] == pytest.approx(np.mean(values))


def test_crowds_are_ignored_and_uncompressed_rle_is_read(tmp_path):
    crowd_mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    crowd_mask[100:180, 200:290] = 1
    changes = 1 + np.flatnonzero(np.diff(crowd_mask.ravel(order="F")))
    runs = np.diff(np.r_[0, changes, crowd_mask.size]).tolist()
    segmentation = {"size": [HEIGHT, WIDTH], "counts": runs}
    crowd = annotation(5, 10, 0, (200, 100, 90, 80), iscrowd=1, segmentation=segmentation)
    file = write_annotations(tmp_path / "truth.json", [annotation(0, *OBJECTS[0]), crowd])
    inside = result(10, 0, (210, 110, 30, 30), score=0.99)

    metrics = score([result(*OBJECTS[0]), inside, inside], file)
    assert (metrics.bbox["AP"], metrics.segm["AP"]) == pytest.approx((1.0, 1.0))


def test_objects_without_a_mask_are_ignored_for_masks_with_a_warning(tmp_path, caplog):
    annotations = [annotation(3, *OBJECTS[0]), annotation(4, *OBJECTS[2], segmentation=[])]
    file = write_annotations(tmp_path / "truth.json", annotations)
    metrics = score([result(*OBJECTS[0])], file)
    assert metrics.segm["AP"] == pytest.approx(1.0) and metrics.bbox["AP"] < 0.9
    assert "1 of 2 objects have no mask" in caplog.text and "annotation 4 of image 11" in caplog.text

    maskless = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in annotations]
    file = write_annotations(tmp_path / "boxes.json", maskless)
    assert score([result(*OBJECTS[0])], file, iou_types=["bbox"]).bbox["AP50"] > 0
    with pytest.raises(ValueError, match=r"no object in .*boxes.json has a mask: .*MODE_MASK=False"):
        score([result(*OBJECTS[0])], file)


def test_mask_area_decides_small_medium_large(tmp_path):
    """A thin diagonal mask of a large box is a small object, whatever the box in the results says."""
    triangle = [10.0, 10.0, 150.0, 150.0, 150.0, 155.0]
    truth = annotation(1, 10, 0, (10, 10, 140, 145), segmentation=[triangle], area=350.0)
    file = write_annotations(tmp_path / "truth.json", [truth])
    rle = mask_utils.merge(mask_utils.frPyObjects([triangle], HEIGHT, WIDTH))
    right = result(10, 0, (10, 10, 140, 145), score=0.5) | {"segmentation": rle}
    # Wrong, and small by its mask: it must count against the small objects although its box is large.
    wrong = result(10, 0, (100, 0, 10, 10), score=0.9) | {"bbox": [0, 0, 200, 150]}
    metrics = score([right, wrong], file)
    assert metrics.segm["APs"] == pytest.approx(0.5)


def test_no_detections(annotation_file):
    metrics = score([], annotation_file)
    assert (metrics.bbox["AP"], metrics.segm["AP"], metrics.bbox["AR100"]) == (0.0, 0.0, 0.0)
    assert metrics.per_class["bbox"]["AP"] == {"ship": 0.0, "buoy": 0.0, "whale": None}
    assert scoring.format_metrics(metrics).startswith("Nothing was detected: every AP is 0.")


def test_no_ground_truth(tmp_path):
    file = write_annotations(tmp_path / "truth.json", [])
    metrics = score([result(10, 0, (1, 2, 3, 4))], file)
    assert metrics.bbox["AP"] is None and metrics.scalars() == {}
    assert "n/a" in scoring.format_metrics(metrics)


def test_more_than_100_detections(tmp_path):
    boxes = [(20.0 * (i % 15), 10.0 * (i // 15), 18.0, 8.0) for i in range(150)]
    file = write_annotations(tmp_path / "truth.json", [annotation(i, 10, 0, box) for i, box in enumerate(boxes)])
    results = [result(10, 0, box, score=1 - i / 1000) for i, box in enumerate(boxes)]
    metrics = score(results, file, max_detections=150)
    assert (metrics.bbox["AR150"], metrics.bbox["AP"], metrics.segm["AP"]) == pytest.approx((1.0, 1.0, 1.0))
    assert score(results, file, max_detections=5).bbox["AR100"] == pytest.approx(2 / 3)


def test_classes_of_one_name_stay_apart(tmp_path):
    twins = Categories(names=("cup", "cup"), ids=(1, 2))
    file = write_annotations(tmp_path / "truth.json", [annotation(0, 10, 1, (1, 1, 9, 9))], categories=twins)
    metrics = score([result(10, 1, (1, 1, 9, 9))], file, categories=twins)
    assert metrics.per_class["bbox"]["AP"] == {"cup (id 1)": pytest.approx(1.0), "cup (id 2)": None}


def test_classes_of_the_model_that_the_file_lacks_are_not_scored(annotation_file):
    wider = Categories(names=("plane", *CATEGORIES.names), ids=(55, *CATEGORIES.ids))
    results = [result(*entry) for entry in OBJECTS] + [result(10, 55, (1, 1, 9, 9))]
    metrics = score(results, annotation_file, categories=wider)
    assert metrics.bbox["AP"] == pytest.approx(1.0) and "plane" not in metrics.per_class["bbox"]["AP"]
    with pytest.raises(ValueError, match="category_ids are not in .*: 55"):
        score(results, annotation_file)


def test_mistakes_are_named(tmp_path, annotation_file):
    good = result(*OBJECTS[0])
    boxes_only = {key: value for key, value in good.items() if key != "segmentation"}
    cases = [
        ([good | {"image_id": 99}], r"1 of the results' image_ids are not in .*truth.json: 99.*DATA.VAL"),
        ([good | {"category_id": 3}], r"1 of the results' category_ids are not in .*truth.json: 3"),
        ({"a": 1}, "COCO results are a list with one entry per detection, not dict"),
        ([good, {"image_id": 10}], "result number 1 has no category_id, bbox, score, segmentation"),
        ([good, boxes_only], "result number 1 has no segmentation: score boxes alone with MODE_MASK=False"),
        ([3], "result number 0 has no image_id"),
    ]
    for results, message in cases:
        with pytest.raises(ValueError, match=message):
            score(results, annotation_file)
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such annotation file"):
        score([good], tmp_path / "none.json")
    with pytest.raises(ValueError, match=r"categories are not those of .*truth.json .*id 7: rock / buoy"):
        other = Categories(names=("ship", "rock", "whale"), ids=CATEGORIES.ids)
        score([good], annotation_file, categories=other)

    bad = tmp_path / "bad.json"
    for text, message in [
        ("[1", "bad.json: not a JSON file"),
        ("[]", "bad.json: no list 'images'; a COCO instances file has"),
        ('{"images": [{"id": 4}], "annotations": [], "categories": []}', r"bad.json, images\[0\]: no 'file_name' in"),
    ]:
        bad.write_text(text)
        with pytest.raises(ValueError, match=message):
            score([good], bad)


def test_coordinates_as_fractions_of_the_image(tmp_path):
    size = np.array([WIDTH, HEIGHT] * 2)
    annotations = []
    for i, (image_id, category_id, box) in enumerate(OBJECTS):
        polygon = (np.reshape(polygon_of(box), (-1, 2)) / size[:2]).ravel().tolist()
        fractions = (box / size).tolist()
        annotations.append(annotation(i, image_id, category_id, fractions, segmentation=[polygon]))
    file = write_annotations(tmp_path / "truth.json", annotations)
    results = [result(*entry) for entry in OBJECTS]
    metrics = score(results, file, absolute_coord=False)
    assert (metrics.bbox["AP"], metrics.segm["AP"], metrics.bbox["APl"]) == pytest.approx((1, 1, 1))
    assert score(results, file).bbox["AP"] == 0


# ---------------------------------------------------------------- annotations of any format


def annotations_of(*objects, metric="coco", categories=CATEGORIES, **more):
    """A set of images 10 and 11; objects: (image id, category id, box, {RawObject's other fields})."""
    images = [RawImage(image_id, f"{image_id}.jpg", HEIGHT, WIDTH) for image_id in (10, 11)]
    for number, (image_id, category_id, box, fields) in enumerate(objects):
        segmentation = fields.pop("segmentation", [polygon_of(box)])
        raw = RawObject(number, category_id, box, segmentation, **fields)
        next(image for image in images if image.image_id == image_id).objects.append(raw)
    return Annotations("shapes", "shapes.xml", categories, lambda problems: iter(images), metric=metric, **more)


def test_difficult_objects_count_neither_way():
    """The difficult one, found, is ignored, at every IoU threshold; found again it is wrong, where a crowd is not."""
    truth = annotations_of((10, 0, GOOD, {}), (10, 0, ODD, {"is_difficult": True}))
    once = [result(10, 0, ODD, score=0.9), result(10, 0, GOOD, score=0.5)]
    for found, ap in ((once, 1), (once[1:], 1), (once[:1] + once, 1 / 2), (once[:1], 0)):
        metrics = scoring.evaluate(found, truth)
        assert (metrics.bbox["AP"], metrics.segm["AP"]) == pytest.approx((ap, ap))
    assert metrics.num_objects == {"ship": 1, "buoy": 0, "whale": 0}
    only_difficult = scoring.evaluate(once, annotations_of((10, 0, ODD, {"is_difficult": True})))
    assert only_difficult.bbox["AP"] is None

    crowd = annotations_of((10, 0, GOOD, {}), (10, 0, ODD, {"is_crowd": True}))
    assert scoring.evaluate(once[:1] + once, crowd).bbox["AP"] == pytest.approx(1)


def test_the_set_or_the_user_chooses_the_metric():
    truth = [(image_id, category_id, box, {}) for image_id, category_id, box in OBJECTS]
    results = [result(*OBJECTS[0]), result(*OBJECTS[1], score=0.5), result(10, 7, (0, 0, 9, 9), score=0.6)]
    voc = scoring.evaluate(results, annotations_of(*truth, metric="voc"))
    # One of three ships; the buoy behind a wrong detection.
    expected = {"AP50_all": (1 / 3 + 1 / 2) / 2, "AP50_11point": (4 / 11 + 1 / 2) / 2}
    assert voc.metric == "voc" and voc.bbox == voc.segm == pytest.approx(expected)
    assert voc.per_class["bbox"]["AP50_11point"] == {"ship": pytest.approx(4 / 11), "buoy": 0.5, "whale": None}
    assert voc.main == ("segm", "AP50_all") and voc.scalars()["segm/AP50_all"] == voc.segm["AP50_all"]
    coco = scoring.evaluate(results, annotations_of(*truth))
    assert coco.metric == "coco" and coco.main == ("segm", "AP") and len(coco.bbox) == 12
    assert scoring.evaluate(results, annotations_of(*truth), metric="voc") == voc
    assert scoring.evaluate(results, annotations_of(*truth, metric="voc"), metric="coco") == coco
    boxes = scoring.evaluate(results, annotations_of(*truth), metric="voc", iou_types=["bbox"])
    assert boxes.main == ("bbox", "AP50_all") and boxes.segm == {} and boxes.bbox == voc.bbox
    with pytest.raises(ValueError, match="unknown metric 'VOC': DATA.METRIC is auto, coco, voc"):
        scoring.evaluate(results, annotations_of(*truth), metric="VOC")


def test_tables_and_files_hold_all_numbers(tmp_path):
    truth = [(image_id, category_id, box, {}) for image_id, category_id, box in OBJECTS]
    for metric, columns in (("coco", ["AP"]), ("voc", ["AP50_all", "AP50_11point"])):
        metrics = scoring.evaluate([result(*OBJECTS[0])], annotations_of(*truth, metric=metric))
        overall, by_class = scoring.format_metrics(metrics).split("\n\n")
        assert [line.split()[0] for line in overall.splitlines()[2:]] == list(metrics.bbox)
        heading, _, ship, buoy, whale = by_class.splitlines()
        titles = [f"{kind} {name}" for kind in ("box", "mask") for name in columns]
        assert re.split("  +", heading) == ["class", "objects", *titles]
        value = f"{metrics.per_class['bbox'][columns[0]]['ship']:.4f}"
        assert ship.split()[:3] == ["ship", "3", value] and buoy.split()[:3] == ["buoy", "1", "0.0000"]
        assert whale.split() == ["whale", "0", *["n/a"] * len(titles)]
        written = json.loads(scoring.write_metrics(metrics, tmp_path / "out.json").read_text())
        assert scoring.Metrics(**written) == metrics


def test_categories_in_any_order():
    """Ids that do not ascend, as those of a user's own set need not."""
    swapped = Categories(names=("whale", "ship", "buoy"), ids=(90, 0, 7))
    truth = [(image_id, category_id, box, {}) for image_id, category_id, box in OBJECTS]
    for metric, name in (("coco", "AP"), ("voc", "AP50_all")):
        metrics = scoring.evaluate([result(*OBJECTS[1])], annotations_of(*truth, metric=metric, categories=swapped))
        assert metrics.per_class["bbox"][name] == {"ship": 0.0, "buoy": pytest.approx(1), "whale": None}
        assert metrics.num_objects == {"ship": 3, "buoy": 1, "whale": 0}


def test_a_set_without_annotations_cannot_be_scored(tmp_path):
    file = write_annotations(tmp_path / "test-dev.json", [])
    content = json.loads(file.read_text())
    del content["annotations"]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"test-dev.json has no annotations to score against; .* can be uploaded"):
        score([], file)
    assert scoring.score_truth(read(file)) is None
    (tmp_path / "out.json").write_text("[]")
    done = run_command(tmp_path / "out.json", "--config", f"DATA.VAL={file}:{tmp_path}")
    assert done.returncode == 2 and "error: " in done.stderr and "no annotations to score against" in done.stderr


@pytest.mark.parametrize("metric", ["coco", "voc"])
def test_the_truth_scores_one(metric):
    """More objects than COCO counts, crowds and difficult objects among them, and an object without a mask."""
    boxes = [(20.0 * (i % 15), 10.0 * (i // 15), 18.0, 8.0) for i in range(150)]
    crowd, difficult = (11, 7, boxes[0], {"is_crowd": True}), (11, 7, boxes[9], {"is_difficult": True})
    maskless = (11, 0, boxes[3], {"segmentation": None})
    truth = annotations_of(
        *[(10, 0, box, {}) for box in boxes], crowd, difficult, (11, 7, boxes[2], {}), maskless, metric=metric
    )
    assert scoring.score_truth(truth) == scoring.score_truth(truth, with_masks=False) == pytest.approx(1)
    assert scoring.score_truth(annotations_of(crowd, difficult, metric=metric)) is None
    assert scoring.score_truth(annotations_of(metric=metric)) is None

    without_area = annotations_of((10, 0, boxes[0], {"segmentation": [[0.1, 0.1, 0.2, 0.1, 0.2, 0.2]]}), metric=metric)
    assert scoring.score_truth(without_area) == 0 and scoring.score_truth(without_area, with_masks=False) > 0.99


def test_by_vocs_rules_an_object_annotated_twice_is_told():
    truth = annotations_of((10, 0, GOOD, {}), (10, 0, GOOD, {}))
    assert scoring.score_truth(truth) == pytest.approx(1)
    assert scoring.score_truth(truth, metric="voc") == pytest.approx(1 / 2)


# ---------------------------------------------------------------- the command


def run_command(*args):
    return subprocess.run(
        [sys.executable, ROOT / "eval.py", *map(str, args)], capture_output=True, text=True, timeout=60
    )


def test_the_command(tmp_path, annotation_file):
    results = tmp_path / "out.json"
    results.write_text(json.dumps([result(*entry) for entry in OBJECTS[1:]]))
    val = f"DATA.VAL={annotation_file}:{tmp_path}"

    done = run_command(results, "--config", val)
    assert done.returncode == 0, done.stderr
    assert "mask IoU and matching" in done.stdout and "writing the metrics" in done.stdout
    assert "mask AP" in done.stdout and "buoy" in done.stdout and "out.metrics.json" in done.stdout
    written = json.loads((tmp_path / "out.metrics.json").read_text())
    assert written["per_class"]["segm"]["AP"]["buoy"] == pytest.approx(1.0)
    assert 0 < written["bbox"]["AP"] < 1 and written["num_detections"] == 3

    assert "mask" not in run_command(results, "--config", val, "MODE_MASK=False").stdout
    done = run_command(results, "--config", val, "DATA.METRIC=voc")
    assert done.returncode == 0 and "mask AP50_11point" in done.stdout, done.stderr
    results.write_text("[]")
    done = run_command(results, "--config", val)
    assert done.returncode == 0 and "Nothing was detected" in done.stdout


def test_the_command_scores_a_voc_folder_by_vocs_rules(tmp_path):
    """xmin is counted from 1, and xmax lies within: x = xmin - 1, width = xmax - xmin + 1."""
    objects = "".join(
        f"<object><name>ship</name><difficult>{difficult}</difficult><bndbox><xmin>{x}</xmin><ymin>11</ymin>"
        f"<xmax>{x + 39}</xmax><ymax>30</ymax></bndbox></object>"
        for x, difficult in ((21, 0), (91, 0), (161, 1))
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    xml = f"<annotation><filename>a.png</filename>{size}{objects}</annotation>"
    (tmp_path / "Annotations" / "a.xml").write_text(xml)
    (tmp_path / "JPEGImages" / "a.png").write_bytes(b"not looked at")
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("a\n")
    boxes = {0.9: (160, 10, 40, 20), 0.8: (20, 10, 40, 20), 0.7: (20, 11, 40, 20)}
    results = [{"image_id": "a", "category_id": 1, "bbox": box, "score": score} for score, box in boxes.items()]
    (tmp_path / "out.json").write_text(json.dumps(results))
    for metric, expected in (("auto", {"AP50_all": 1 / 2, "AP50_11point": 6 / 11}), ("coco", {"AP50": 51 / 101})):
        options = f"DATA.VAL=voc:{tmp_path}:test", "MODE_MASK=False", f"DATA.METRIC={metric}"
        done = run_command(tmp_path / "out.json", "--config", *options)
        assert done.returncode == 0 and "ship" in done.stdout, done.stderr
        written = json.loads((tmp_path / "out.metrics.json").read_text())
        assert {name: written["bbox"][name] for name in expected} == pytest.approx(expected)
        assert written["num_objects"] == {"ship": 2}


def test_mistakes_of_the_command_are_one_line(tmp_path, annotation_file):
    good = tmp_path / "out.json"
    good.write_text("{}")
    val = f"DATA.VAL={annotation_file}:{tmp_path}"
    for args, message in [
        ((tmp_path / "none.json", "--config", val), "results file"),
        ((good, "--config", val), "a list with one entry per detection, not dict"),
        ((good, good, "--config", val), "2 results files but 1 sets in DATA.VAL"),
    ]:
        done = run_command(*args)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
        assert done.stderr.count("\n") == 1


def test_help_needs_no_tensorflow():
    code = "import sys; sys.argv=['eval.py', '--help']; import eval\n"
    code += "try: eval.main()\nfinally: assert 'tensorflow' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "DATA.VAL" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "changes",
    [{"bbox": bbox} for bbox in ([], None, "1234", [1, 2, float("nan"), 4], [1, 2, 0, 4], [WIDTH + 1, 2, 3, 4])],
)
def test_malformed_objects_are_left_out_with_a_warning(tmp_path, caplog, changes):
    annotations = [annotation(1, 10, 0, ODD, **changes), annotation(2, 10, 0, GOOD)]
    file = write_annotations(tmp_path / "truth.json", annotations)
    metrics = score([result(10, 0, GOOD)], file)
    assert (metrics.bbox["AP"], metrics.segm["AP"]) == pytest.approx((1, 1))
    assert re.search("left out 1 x .*box.*, the first: image id 10, annotation id 1", caplog.text)


@pytest.mark.parametrize(
    "changes", [{"area": None}, {"area": "x"}, {"id": "ann-1"}, {"id": None}, {"segmentation": polygon_of(ODD)}]
)
def test_odd_objects_count(tmp_path, changes):
    annotations = [annotation(1, 10, 0, ODD, **changes), annotation(2, 10, 0, GOOD)]
    file = write_annotations(tmp_path / "truth.json", annotations)
    metrics = score([result(10, 0, ODD), result(10, 0, GOOD)], file)
    for numbers in (metrics.bbox, metrics.segm):
        assert (numbers["AP"], numbers["APs"], numbers["AR100"]) == pytest.approx((1, 1, 1))
    missed = score([result(10, 0, GOOD)], file)
    assert (missed.bbox["AR100"], missed.segm["AR100"]) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [3]}, "result number 0: bbox .* must be four numbers"),
        ({"bbox": 3}, "must be four numbers"),
        ({"score": None}, "score None one"),
        ({"score": float("nan")}, "score nan one"),
        ({"image_id": [10]}, r"image_id \[10\] must be a whole number or text"),
        ({"category_id": "0"}, "category_id '0' a whole number"),
        ({"segmentation": [polygon_of(GOOD)]}, "must be a compressed RLE of the image's size"),
        ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}}, "must be a compressed RLE"),
        ({"segmentation": {"size": [WIDTH, HEIGHT], "counts": "0"}}, r"\{\"size\": \[200, 300\], \"counts\""),
    ],
)
def test_malformed_results_are_refused(annotation_file, changes, message):
    with pytest.raises(ValueError, match=message):
        score([result(10, 0, GOOD) | changes], annotation_file)


def test_numbers_in_place_of_results_are_refused_in_one_line(tmp_path, annotation_file):
    (tmp_path / "out.json").write_text("[1, 2]")
    done = run_command(tmp_path / "out.json", "--config", f"DATA.VAL={annotation_file}:{tmp_path}")
    assert done.returncode == 2 and done.stderr.count("\n") <= 2
    assert "error: result number 0 has no image_id" in done.stderr


# ---------------------------------------------------------------- against pycocotools


def plain_pycocotools(annotation_file, results, kind):
    """pycocotools' twelve numbers, and its precision (T x R x K x A x M)."""
    if kind == "segm":  # left in, the boxes would give the masks their areas
        results = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
    with contextlib.redirect_stdout(None):
        truth = COCO(str(annotation_file))
        evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats, evaluation.eval["precision"]


IMAGE_IDS = (3, 1, 10, 9, 70, 12, 500, 77)  # out of order, with gaps


def draw_boxes(rng, count):
    """Whole-numbered boxes of all three kinds of area, many of them equal in part."""
    side = rng.choice([8, 30, 32, 40, 96, 100, 150], (count, 2))
    corner = rng.integers(0, np.maximum(1, (WIDTH, HEIGHT) - side))
    return np.concatenate([corner, side], axis=1)


def draw_set(seed):
    """Annotations and results of 8 images: the first without objects, the second without results, the last crowded."""
    rng = np.random.default_rng(seed)
    annotations, results = [], []
    for image_id in IMAGE_IDS:
        is_crowded = image_id == IMAGE_IDS[-1]
        boxes = draw_boxes(rng, 0 if image_id == IMAGE_IDS[0] else 40 if is_crowded else rng.integers(1, 12))
        for box in boxes.tolist():
            category_id = int(rng.choice([0, 7]))  # none of 90
            iscrowd = int(rng.random() < 0.2)
            area = float(box[2] * box[3] * rng.choice([0.5, 1]))
            annotations.append(annotation(len(annotations) + 1, image_id, category_id, box, iscrowd=iscrowd, area=area))
            for _ in range(0 if image_id == IMAGE_IDS[1] else 5):
                moved = (np.array(box) + rng.integers(-2, 3, 4) * rng.integers(0, 6)).clip((0, 0, 2, 2)).tolist()
                found_id = category_id if rng.random() < 0.8 else int(rng.choice(CATEGORIES.ids))
                results.append(result(image_id, found_id, moved, score=round(float(rng.random()), 1)))
        if is_crowded:  # more than 100 of one category
            results += [result(image_id, 7, box, score=round(float(rng.random()), 1))
                        for box in draw_boxes(rng, 120).tolist()]
    rng.shuffle(results)
    return annotations, results


@pytest.mark.parametrize("seed", range(6))
def test_the_numbers_are_those_of_pycocotools(tmp_path, seed):
    annotations, results = draw_set(seed)
    file = write_annotations(tmp_path / "truth.json", annotations, IMAGE_IDS)
    metrics = score(results, file)
    for kind, numbers in metrics.overall().items():
        expected, precision = plain_pycocotools(file, results, kind)
        assert list(numbers.values()) == pytest.approx(expected.tolist(), abs=1e-6)
        assert len(set(numbers.values())) > 8 and 0.05 < numbers["AP"] < 0.9
        by_class = [None if (p == -1).all() else pytest.approx(p.mean(), abs=1e-6)
                    for p in np.moveaxis(precision[:, :, :, 0, -1], 2, 0)]
        assert list(metrics.per_class[kind]["AP"].values()) == by_class and by_class[2] is None


def test_equal_scores_count_in_the_order_of_pycocotools(tmp_path):
    annotations, results = draw_set(0)
    file = write_annotations(tmp_path / "truth.json", annotations, IMAGE_IDS)
    results = [entry | {"score": 0.5} for entry in results]
    numbers = score(results, file).overall()
    for kind in ("bbox", "segm"):
        expected, _ = plain_pycocotools(file, results, kind)
        assert list(numbers[kind].values()) == pytest.approx(expected.tolist(), abs=1e-6)


def test_of_two_objects_with_equal_iou_the_later_is_taken(tmp_path):
    """The first detection lies between the objects, the second on the left one, which only the later order leaves."""
    left, right = (40, 40, 40, 40), (48, 40, 40, 40)
    results = [result(10, 0, (44, 40, 40, 40), score=0.9), result(10, 0, left, score=0.8)]
    recalls = []
    for boxes in ([left, right], [right, left]):
        file = write_annotations(tmp_path / "truth.json", [annotation(i, 10, 0, b) for i, b in enumerate(boxes, 1)])
        for kind, numbers in score(results, file).overall().items():
            expected, _ = plain_pycocotools(file, results, kind)
            assert list(numbers.values()) == pytest.approx([e if e > -1 else None for e in expected], abs=1e-6)
        recalls.append(numbers["AR100"])
    # The first is right at the seven thresholds to 0.8. There the second finds the left object, or at four the right
    # one; above, it finds the left one either way.
    assert recalls == pytest.approx([(7 + 7 + 3) / 20, (7 + 4 + 3) / 20])


def test_text_as_image_ids(tmp_path):
    annotations, results = draw_set(1)
    text_ids = [entry | {"image_id": f"photo {entry['image_id']}"} for entry in annotations]
    file = write_annotations(tmp_path / "truth.json", text_ids, [f"photo {i}" for i in IMAGE_IDS])
    results = [entry | {"image_id": f"photo {entry['image_id']}"} for entry in results]
    expected, _ = plain_pycocotools(file, results, "segm")
    assert list(score(results, file).segm.values()) == pytest.approx(expected.tolist(), abs=1e-6)


def test_the_numbers_do_not_depend_on_the_workers(tmp_path, monkeypatch):
    annotations, results = draw_set(2)
    file = write_annotations(tmp_path / "truth.json", annotations, IMAGE_IDS)
    few_in_this_process = score(results, file, num_workers=3)
    monkeypatch.setattr(scoring, "FEW_DETECTIONS", 0)
    monkeypatch.setattr(evaluation, "CHUNK", 50)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    processes, match = set(), evaluation.CocoMatcher.match

    def match_and_tell(self, chunk):
        (tmp_path / f"process {os.getpid()}").touch()
        return match(self, chunk)

    monkeypatch.setattr(evaluation.CocoMatcher, "match", match_and_tell)
    for num_workers in (0, 1, 2, 3):
        assert score(results, file, num_workers=num_workers) == few_in_this_process
        new = {int(path.name.split()[1]) for path in tmp_path.glob("process *")} - processes
        # Boxes and masks have workers of their own.
        assert len(new) == 2 * num_workers if num_workers > 1 else new <= {os.getpid()}
        processes |= new


def test_chunks_end_between_images_and_classes(tmp_path, monkeypatch):
    annotations, results = draw_set(3)
    images = [{"id": i, "height": HEIGHT, "width": WIDTH} for i in IMAGE_IDS]
    dataset = {"images": images, "annotations": annotations, "categories": [{"id": i} for i in CATEGORIES.ids]}
    whole = evaluation.CocoMatcher(dataset, results, "bbox", [1, 10, 100])
    (expected,) = whole.match(0)
    for size in (1, 7, 150, len(results)):
        monkeypatch.setattr(evaluation, "CHUNK", size)
        matcher = evaluation.CocoMatcher(dataset, results, "bbox", [1, 10, 100])
        parts = [matcher.match(chunk)[0] for chunk in range(matcher.num_chunks)]
        np.testing.assert_array_equal(np.concatenate(parts), expected)
        assert matcher.match(matcher.num_chunks)[0].shape == (0, *expected.shape[1:])
    assert whole.num_chunks == 1 and len(expected) == whole.num_detections < len(results)


def test_an_error_in_a_worker_process_is_told(annotation_file, monkeypatch):
    def fail(self, chunk):
        raise IndexError("chunk is odd")

    monkeypatch.setattr(scoring, "FEW_DETECTIONS", 0)
    monkeypatch.setattr(evaluation.CocoMatcher, "match", fail)
    with pytest.raises(RuntimeError, match="chunk is odd"):
        score([result(*OBJECTS[0])], annotation_file, num_workers=2)


def test_the_time_of_each_part(annotation_file):
    watch = scoring.Stopwatch()
    score([result(*entry) for entry in OBJECTS], annotation_file, watch=watch)
    assert list(watch.seconds) == [
        "reading the annotations",
        "checking the results",
        "box IoU and matching",
        "accumulation",
        "mask IoU and matching",
    ]
    assert watch.total() == pytest.approx(sum(watch.seconds.values())) and "together" in watch.table()


def test_the_command_writes_a_report_beside_the_results(tmp_path, monkeypatch, capsys, annotation_file):
    results_file = tmp_path / "out.json"
    results_file.write_text(json.dumps([result(*entry) for entry in OBJECTS]))
    command = ["eval.py", str(results_file), "--config", f"DATA.VAL={annotation_file}:{tmp_path}"]
    monkeypatch.setattr(sys, "argv", [*command[:2], "--no-report", *command[2:]])
    assert scoring.main() == 0 and not (tmp_path / "out.report").exists()
    assert "report" not in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*command[:2], "--no-pictures", *command[2:]])
    assert scoring.main() == 0
    page = scoring.report_path(results_file) / "report.html"
    assert f"report: {page}" in capsys.readouterr().out
    assert "ship" in page.read_text(encoding="utf-8")
    content = json.loads((page.parent / "report.json").read_text(encoding="utf-8"))
    metrics = json.loads((tmp_path / "out.metrics.json").read_text(encoding="utf-8"))
    assert content["overall"] == {kind: metrics[kind] for kind in ("bbox", "segm") if metrics[kind]}


def test_curves_follow_the_results_as_they_were_given(annotation_file):
    """Out of order, with one that no object has, and one of a class that the file lacks."""
    wider = Categories(names=("plane", *CATEGORIES.names), ids=(55, *CATEGORIES.ids))
    results = [
        result(*OBJECTS[1], score=0.2),
        result(10, 55, (1, 1, 9, 9)),
        result(10, 7, (0, 0, 9, 9), score=0.9),
        result(*OBJECTS[2], score=0.7),
    ]
    metrics = score(results, annotation_file, categories=wider)
    for curves in metrics.curves.values():
        assert curves.outcomes.tolist() == [[evaluation.HIT] * 2, [evaluation.IGNORED] * 2, [evaluation.MISS] * 2,
                                            [evaluation.HIT] * 2]
        assert np.isnan(curves.precision[:, 2]).all()
    assert "curves" not in metrics.to_dict()
