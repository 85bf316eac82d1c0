"""The report's numbers against slow own ones on random data, and its files read back."""

import base64
import csv
import json
import re
from collections import Counter
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

import eval as scoring
from FasterRCNN.datasets.annotations import Annotations, RawImage, RawObject
from FasterRCNN.report import make_report
from FasterRCNN.report.analysis import analyse
from FasterRCNN.report.files import BACKGROUND, to_dict
from FasterRCNN.report.page import write_report
from FasterRCNN.structures import Categories

HEIGHT, WIDTH = 120, 160
CATEGORIES = Categories(names=("whale", "Bär & <b>", "ship"), ids=(90, 3, 7))  # by id: Bär, ship, whale
NAMES_BY_ID = ["Bär & <b>", "ship", "whale"]


def annotations_of(objects, *, num_images=3, categories=CATEGORIES, metric="coco", folder="nowhere"):
    """objects: (image id, category id, box, fields of RawObject)."""
    images = {i: RawImage(i, f"{folder}/{i}.jpg", HEIGHT, WIDTH) for i in range(1, num_images + 1)}
    for number, (image_id, category_id, box, fields) in enumerate(objects):
        images[image_id].objects.append(RawObject(number, category_id, list(box), **fields))
    return Annotations("sea", "sea.json", categories, lambda problems: iter(images.values()), metric=metric)


def result(image_id, category_id, box, score=0.9):
    return {"image_id": image_id, "category_id": category_id, "bbox": list(box), "score": score}


def analysed(results, annotations, **options):
    metrics = scoring.evaluate(results, annotations, iou_types=["bbox"])
    return analyse(results, annotations, metrics, **options)


def random_set(seed, *, num_images=25, crowds=True):
    """Objects that crowd each other, and detections of them, of other classes, and of nothing."""
    rng = np.random.default_rng(seed)
    objects, results = [], []
    for image_id in range(1, num_images + 1):
        for _ in range(rng.integers(0, 7)):
            box = np.r_[rng.uniform(0, 80, 2), rng.uniform(12, 40, 2)].round(2)
            kind = rng.random() if crowds else 1
            fields = {"is_crowd": True} if kind < 0.1 else {"is_difficult": True} if kind < 0.2 else {}
            category_id = int(rng.choice(CATEGORIES.ids))
            objects.append((image_id, category_id, box.tolist(), fields))
            for _ in range(rng.integers(0, 4)):
                moved = box + np.r_[rng.normal(0, 2, 2), rng.normal(0, 2, 2)]
                found_as = category_id if rng.random() < 0.6 else int(rng.choice(CATEGORIES.ids))
                # Scores of two digits, so that some are equal.
                results.append(result(image_id, found_as, moved.round(2).tolist(), round(rng.random(), 2)))
        for _ in range(rng.integers(0, 3)):
            box = np.r_[rng.uniform(0, 100, 2), rng.uniform(8, 30, 2)].round(2).tolist()
            results.append(result(image_id, int(rng.choice(CATEGORIES.ids)), box, round(rng.random(), 2)))
    return objects, results


def iou(a, b):
    """Of x, y, w, h."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def part_inside(box, region):
    w = min(box[0] + box[2], region[0] + region[2]) - max(box[0], region[0])
    h = min(box[1] + box[3], region[1] + region[3]) - max(box[1], region[1])
    return max(w, 0) * max(h, 0) / (box[2] * box[3])


def slow_confusion(objects, results, threshold):
    """{(true name, predicted name): count} by COCO's rules, an object at a time; None: background."""
    counts = Counter()
    for image_id in {entry[0] for entry in objects} | {entry["image_id"] for entry in results}:
        truth = [list(entry) for entry in objects if entry[0] == image_id]
        free = [entry for entry in truth if not entry[3]]
        difficult = [entry for entry in truth if "is_difficult" in entry[3]]
        crowds = [entry for entry in truth if "is_crowd" in entry[3]]
        own = [entry for entry in results if entry["image_id"] == image_id and entry["score"] >= threshold]
        left = []
        for found in sorted(own, key=lambda entry: -entry["score"]):
            category_id, box = found["category_id"], found["bbox"]

            def best(entries, box=box, category_id=category_id):
                near = [(iou(box, e[2]), e) for e in entries if e[1] == category_id and iou(box, e[2]) >= 0.5]
                return max(near, key=lambda pair: pair[0])[1] if near else None

            if hit := best(free):
                free.remove(hit)
                counts[category_id, category_id] += 1
            elif ignored := best(difficult):
                difficult.remove(ignored)
            elif not any(e[1] == category_id and part_inside(box, e[2]) >= 0.5 for e in crowds):
                left.append(found)
        for found in left:
            near = [e for e in free if e[1] != found["category_id"] and iou(found["bbox"], e[2]) >= 0.5]
            taken = max(near, key=lambda e: iou(found["bbox"], e[2]), default=None)
            if taken:
                free.remove(taken)
            counts[taken and taken[1], found["category_id"]] += 1
        for entry in free:
            counts[entry[1], None] += 1
    return counts


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("threshold", [0, 0.4])
def test_confusion_agrees_with_an_own_implementation(seed, threshold):
    objects, results = random_set(seed)
    analysis = analysed(results, annotations_of(objects, num_images=25), score_threshold=threshold)
    expected = slow_confusion(objects, results, threshold)
    places = [*sorted(CATEGORIES.ids), None]
    assert analysis.confusion.tolist() == [[expected[row, column] for column in places] for row in places]
    assert np.count_nonzero(analysis.confusion) > 9
    for k, row in enumerate(analysis.classes):
        column = analysis.confusion[:, k]
        point = row.chosen
        assert (point.true_positives, point.false_positives) == (column[k], column.sum() - column[k])
    wrong = analysis.confusion[:-1, :-1].sum() - np.trace(analysis.confusion)
    assert wrong == sum(count for (a, b), count in expected.items() if None not in (a, b) and a != b)


@pytest.mark.parametrize("metric", ["coco", "voc"])
@pytest.mark.parametrize("seed", range(3))
def test_every_object_is_found_or_missed_once(seed, metric):
    objects, results = random_set(seed + 10)
    analysis = analysed(results, annotations_of(objects, num_images=25, metric=metric), score_threshold=0.3)
    counts = Counter(category_id for _, category_id, _, fields in objects if not fields)
    expected = [counts[category_id] for category_id in sorted(CATEGORIES.ids)]
    assert [row.num_objects for row in analysis.classes] == expected
    assert [row.chosen.true_positives + row.chosen.false_negatives for row in analysis.classes] == expected
    assert [row.best.true_positives + row.best.false_negatives for row in analysis.classes] == expected
    assert analysis.confusion[:-1].sum(axis=1).tolist() == expected
    assert np.diag(analysis.confusion)[:-1].tolist() == [row.chosen.true_positives for row in analysis.classes]
    assert sum(row.num_objects for row in analysis.sizes) == sum(expected) == analysis.num_objects
    assert sum(row.num_found for row in analysis.sizes) == np.trace(analysis.confusion)
    for name in ("true_positives", "false_positives", "false_negatives"):
        assert getattr(analysis.total, name) == sum(getattr(row.chosen, name) for row in analysis.classes)


@pytest.mark.parametrize("metric", ["coco", "voc"])
def test_mean_over_classes_is_the_overall_number(metric):
    objects, results = random_set(5)
    analysis = analysed(results, annotations_of(objects, num_images=25, metric=metric))
    names = list(analysis.classes[0].numbers["bbox"])
    assert names == (["AP", "AP50", "AP75", "APs", "APm", "APl"] if metric == "coco" else ["AP50_all", "AP50_11point"])
    for name in names:
        values = [row.numbers["bbox"][name] for row in analysis.classes]
        known = [value for value in values if value is not None]
        assert analysis.overall["bbox"][name] == (pytest.approx(np.mean(known)) if known else None)
    assert 0.05 < analysis.overall["bbox"][names[0]] < 0.95


def test_curves_are_those_of_the_average_precision():
    objects, results = random_set(6)
    curves = analysed(results, annotations_of(objects, num_images=25)).curves["bbox"]
    numbers = analysed(results, annotations_of(objects, num_images=25)).overall["bbox"]
    assert curves.iou_thresholds == (0.5, 0.75)
    assert curves.precision.mean(axis=(1, 2)).tolist() == pytest.approx([numbers["AP50"], numbers["AP75"]])
    voc = analysed(results, annotations_of(objects, num_images=25, metric="voc"))
    assert voc.curves["bbox"].precision.shape == (1, 3, 101)
    eleven = voc.curves["bbox"].precision[0, :, ::10].mean()
    # A recall that is reached exactly may be a different float among 11 points than among 101.
    assert eleven == pytest.approx(voc.overall["bbox"]["AP50_11point"], abs=5e-3)


def test_best_f1_is_the_best_of_all_thresholds():
    objects, results = random_set(7)
    annotations = annotations_of(objects, num_images=25)
    scores = sorted({entry["score"] for entry in results})
    by_threshold = [analysed(results, annotations, score_threshold=score) for score in scores]
    best = by_threshold[0].best
    assert best == max((analysis.total for analysis in by_threshold), key=lambda point: (point.f1, point.threshold))
    for k, row in enumerate(by_threshold[0].classes):
        assert row.best.f1 == max(analysis.classes[k].chosen.f1 for analysis in by_threshold)


def test_histograms_count_right_and_wrong_detections():
    objects, results = random_set(8)
    analysis = analysed(results, annotations_of(objects, num_images=25), score_threshold=0)
    assert analysis.true_scores.sum() == analysis.total.true_positives
    assert analysis.false_scores.sum() == analysis.total.false_positives
    one = analysed([result(1, 7, (5, 5, 30, 30), 0.97)], annotations_of([(1, 7, (5, 5, 30, 30), {})]))
    assert one.true_scores.tolist() == [0] * 19 + [1] and not one.false_scores.any()


def test_worst_images_are_those_with_most_errors():
    box, other = (10, 10, 30, 30), (80, 60, 40, 40)
    objects = [(1, 7, box, {}), (2, 7, box, {}), (2, 90, other, {}), (3, 7, box, {})]
    results = [
        result(1, 7, box),
        result(1, 7, other, 0.8),
        result(1, 90, (100, 5, 20, 20), 0.6),
        result(3, 3, box, 0.7),
        result(3, 3, other, 0.2),
    ]
    worst = analysed(results, annotations_of(objects)).worst
    assert [(image.image_id, image.kind) for image in worst] == [
        (1, "false positives"),
        (2, "misses"),
        (3, "wrong classes"),
    ]
    assert worst[0].details == ["ship 0.80", "whale 0.60"] and worst[1].details == ["ship", "whale"]
    assert worst[2].details == ["ship taken for Bär & <b> 0.70"]
    assert worst[2].counts == {"false positives": 0, "misses": 0, "wrong classes": 1}
    assert analysed(results, annotations_of(objects), images_per_error=0).worst == []


# ---------------------------------------------------------------- nothing there


ONE_CLASS = Categories(names=("ship",), ids=(7,))
EMPTY = {
    "no detection": ([(1, 7, (5, 5, 30, 30), {})], [], CATEGORIES),
    "no truth": ([], [result(1, 7, (5, 5, 30, 30))], CATEGORIES),
    "neither": ([], [], CATEGORIES),
    "one class": ([(1, 7, (5, 5, 30, 30), {})], [result(1, 7, (5, 5, 30, 30))], ONE_CLASS),
    "classes without truth": ([(1, 7, (5, 5, 30, 30), {})], [result(1, 90, (5, 5, 30, 30))], CATEGORIES),
    "crowds alone": ([(1, 7, (5, 5, 30, 30), {"is_crowd": True})], [result(1, 7, (5, 5, 30, 30))], CATEGORIES),
}


@pytest.mark.parametrize("metric", ["coco", "voc"])
@pytest.mark.parametrize("case", EMPTY)
def test_empty_cases(tmp_path, case, metric):
    objects, results, categories = EMPTY[case]
    annotations = annotations_of(objects, categories=categories, metric=metric)
    page = make_report(results, annotations, scoring.evaluate(results, annotations, iou_types=["bbox"]), tmp_path)
    content = json.loads((tmp_path / "report.json").read_text("utf-8"))
    num_counted = sum(not fields for *_, fields in objects)
    assert content["at_threshold"]["true_positives"] + content["at_threshold"]["false_negatives"] == num_counted
    assert bool(content["diagnosis"]["causes"]) == (case != "one class")
    assert "nan" not in page.read_text("utf-8").lower().replace("dominant", "")
    assert (content["at_threshold"]["recall"] is None) == (num_counted == 0)


def test_no_image(tmp_path):
    annotations = annotations_of([], num_images=0)
    metrics = scoring.evaluate([], annotations, iou_types=["bbox"])
    assert make_report([], annotations, metrics, tmp_path).is_file()


# ---------------------------------------------------------------- why the score is low


def damaged(results, change):
    return [entry | {"bbox": change(*entry["bbox"])} for entry in results]


def perfect_results(objects):
    return [result(image_id, category_id, box) for image_id, category_id, box, _ in objects]


CAUSES = {
    "corners": (lambda found: damaged(found, lambda x, y, w, h: [x, y, x + w, y + h]), "corners x1, y1, x2, y2"),
    "fractions": (
        lambda found: damaged(found, lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT]),
        "fractions of the image",
    ),
    "exchanged": (lambda found: damaged(found, lambda x, y, w, h: [y, x, h, w]), "x and y are exchanged"),
    "mirrored": (lambda found: damaged(found, lambda x, y, w, h: [WIDTH - x - w, y, w, h]), "mirrored"),
    "scale": (lambda found: damaged(found, lambda x, y, w, h: [2 * v for v in (x, y, w, h)]), "about 2.00 times"),
    "images": (
        lambda found: [entry | {"image_id": entry["image_id"] % 25 + 1} for entry in found],
        "image ids are one off",
    ),
    "classes": (
        lambda found: [entry | {"category_id": {3: 7, 7: 90, 90: 3}[entry["category_id"]]} for entry in found],
        "classes are permuted: .*Bär & <b> as ship; ship as whale; whale as Bär",
    ),
    "nowhere": (lambda found: damaged(found, lambda x, y, w, h: [0, 0, 3, 3]), "do not lie on the objects"),
    "some images": (lambda found: [entry for entry in found if entry["image_id"] == 2][:1], "Only 1 of the"),
    "nothing": (lambda found: [], "Nothing was detected"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_the_likeliest_cause_of_a_low_score_is_named(case):
    rng = np.random.default_rng(3)
    objects = []
    for image_id in range(1, 26):
        for _ in range(3):
            box = np.r_[rng.uniform(0, 90), rng.uniform(0, 60), rng.uniform(14, 26), rng.uniform(30, 50)]
            objects.append((image_id, int(rng.choice(CATEGORIES.ids)), box.round(2).tolist(), {}))
    change, text = CAUSES[case]
    annotations = annotations_of(objects, num_images=25)
    assert analysed(perfect_results(objects), annotations).diagnosis.causes == []
    causes = analysed(change(perfect_results(objects)), annotations).diagnosis.causes
    assert re.search(text, causes[0])


def test_low_scores_are_named():
    objects, _ = random_set(9, crowds=False)
    results = [result(image_id, 3, (1, 1, 4, 4), 0.03) for image_id, *_ in objects]
    diagnosis = analysed(results, annotations_of(objects, num_images=25)).diagnosis
    assert any("Every score is low, the highest 0.030" in cause for cause in diagnosis.causes)
    assert diagnosis.facts["scores"] == "0.030 to 0.030, median 0.030"


# ---------------------------------------------------------------- files


class Page(HTMLParser):
    """Checks that tags are closed in their order, counts them, and collects the text."""

    VOID = {"meta", "br", "img"}

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.tags = [], [], Counter()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def photos(tmp_path):
    """All photos but that of image 2."""
    rng = np.random.default_rng(0)
    for number in range(1, 26):
        if number != 2:
            cv2.imwrite(str(tmp_path / f"{number}.jpg"), rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    return tmp_path


def test_files_hold_what_the_analysis_does(tmp_path):
    objects, results = random_set(11)
    analysis = analysed(results, annotations_of(objects, num_images=25))
    write_report(analysis, tmp_path / "new" / "out.report")
    folder = tmp_path / "new" / "out.report"
    content = json.loads((folder / "report.json").read_text("utf-8"))
    assert content == json.loads(json.dumps(to_dict(analysis)))
    assert np.array_equal(content["confusion"]["counts"], analysis.confusion)

    def rows(name):
        with open(folder / name, newline="", encoding="utf-8-sig") as file:
            return list(csv.reader(file))

    heading, *matrix = rows("confusion.csv")
    assert heading[1:] == [row[0] for row in matrix] == [*NAMES_BY_ID, BACKGROUND]
    assert np.array_equal([list(map(int, row[1:])) for row in matrix], analysis.confusion)
    with open(folder / "per_class.csv", newline="", encoding="utf-8-sig") as file:
        for entry, row in zip(csv.DictReader(file), analysis.classes, strict=True):
            assert (entry["class"], int(entry["objects"])) == (row.name, row.num_objects)
            assert float(entry["bbox_AP"]) == row.numbers["bbox"]["AP"]
            assert int(entry["false_negatives"]) == row.chosen.false_negatives
            assert float(entry["best_f1"]) == row.best.f1
    curves = rows("curves.csv")[1:]
    assert len(curves) == 2 * 3 * 101
    by_iou = [[float(row[4]) for row in curves if row[2] == iou] for iou in ("0.5", "0.75")]
    numbers = analysis.overall["bbox"]
    assert [np.mean(values) for values in by_iou] == pytest.approx([numbers["AP50"], numbers["AP75"]], abs=1e-5)


def test_the_page_stands_alone_and_names_are_escaped(photos):
    objects, results = random_set(12)
    annotations = annotations_of(objects, num_images=25, folder=photos)
    metrics = scoring.evaluate(results, annotations, iou_types=["bbox"])
    text = make_report(results, annotations, metrics, photos / "out.report").read_text("utf-8")
    page = Page(text)
    assert not re.search(r"https?:|@import|url\(|src=\"(?!data:)|href=", text)
    assert page.tags["svg"] == 1 + 3 + 1 and page.tags["img"] >= 4
    words = " ".join(page.text)
    for part in ("Bär & <b>", "Precision over recall", "By object size", "Scores", "Confusion", "Worst images"):
        assert part in words
    assert "Bär &amp; &lt;b&gt;" in text and "Bär & <b>" not in text
    for name, value in metrics.bbox.items():
        assert name in words and (value is None or f"{100 * value:.1f}" in words)


def test_pictures_are_drawn_and_missing_photos_told(photos):
    box = (20, 20, 60, 60)
    objects = [(i, 7, box, {}) for i in (1, 2, 3)]
    annotations = annotations_of(objects, folder=photos)
    metrics = scoring.evaluate([], annotations, iou_types=["bbox"])
    text = make_report([], annotations, metrics, photos / "a").read_text("utf-8")
    jpegs = re.findall(r'src="data:image/jpeg;base64,([^"]+)" width="(\d+)" height="(\d+)"', text)
    assert len(jpegs) == 2
    for jpeg, width, height in jpegs:
        picture = cv2.imdecode(np.frombuffer(base64.b64decode(jpeg), np.uint8), cv2.IMREAD_COLOR)
        assert picture.shape == (int(height), int(width), 3) and 2 * WIDTH < picture.shape[1] <= 1200
    assert text.count("The photo cannot be shown") == 1 and "2.jpg" in text
    plain = make_report([], annotations, metrics, photos / "b", with_pictures=False).read_text("utf-8")
    assert "data:image" not in plain and "cannot be shown" not in plain and "Worst images" in plain


def test_masks_have_curves_and_columns_of_their_own(photos):
    polygon = [20, 20, 80, 20, 80, 80, 20, 80]
    objects = [(1, 7, (20, 20, 60, 60), {"segmentation": [polygon]})]
    annotations = annotations_of(objects, folder=photos)
    rle = scoring.compressed_rle([polygon], HEIGHT, WIDTH)
    mask = {"size": rle["size"], "counts": rle["counts"].decode()}
    results = [
        result(1, 7, (20, 20, 60, 60)) | {"segmentation": mask},
        result(3, 7, (20, 20, 60, 60)) | {"segmentation": mask},
    ]
    metrics = scoring.evaluate(results, annotations)
    page = make_report(results, annotations, metrics, photos / "out.report")
    content = json.loads(page.with_name("report.json").read_text("utf-8"))
    assert set(content["curves"]) == {"bbox", "segm"} == set(content["classes"][1]["numbers"])
    assert set(content["sizes"][0]["aps"]) == {"bbox", "segm"}
    text = page.read_text("utf-8")
    assert "mask AP50" in text and text.count("data:image/jpeg") == 1


def test_many_classes_are_bounded(tmp_path):
    categories = Categories(names=[f"class {i}" for i in range(300)], ids=range(300))
    objects = [(1 + i % 3, i, (20, 20, 30, 30), {}) for i in range(300)]
    results = [result(1 + i % 3, (i + 3) % 300, (20, 20, 30, 30)) for i in range(300)]
    annotations = annotations_of(objects, categories=categories)
    analysis = analysed(results, annotations)
    text = write_report(analysis, tmp_path).read_text("utf-8")
    page = Page(text)
    assert page.tags["svg"] == 2 + 100 and "Without the 276 classes least confused" in text
    assert len((tmp_path / "confusion.csv").read_text("utf-8").splitlines()) == 302
