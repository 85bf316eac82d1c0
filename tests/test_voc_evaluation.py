"""Pascal VOC's average precision: against the kit's formula on whole-numbered boxes, and cases worked out by hand."""

import numpy as np
import pytest
from pycocotools import mask as mask_utils

from FasterRCNN import evaluation
from FasterRCNN.voc_evaluation import VocMatcher

HEIGHT, WIDTH = 80, 120
CLASSES = range(5)


def xywh(inclusive):
    """(xmin, ymin, xmax, ymax), whole, from 1 on, both ends within -> x, y, width, height in continuous pixels."""
    xmin, ymin, xmax, ymax = inclusive
    return [xmin - 1, ymin - 1, xmax - xmin + 1, ymax - ymin + 1]


def rle_of(box):
    x, y, w, h = box
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
    bitmap[y : y + h, x : x + w] = 1
    return mask_utils.encode(np.asfortranarray(bitmap))


def entry(image_id, category_id, inclusive, **more):
    box = xywh(inclusive)
    fields = {"image_id": image_id, "category_id": category_id, "bbox": box, "segmentation": rle_of(box)}
    return fields | more


def truth_entry(image_id, category_id, inclusive, *, is_difficult=False, iscrowd=0):
    return entry(image_id, category_id, inclusive, area=1, iscrowd=iscrowd, is_difficult=is_difficult)


def run(truth, found, iou_type="bbox", categories=CLASSES):
    """Numbers of all classes, and of each."""
    images = [{"id": f"photo {i}", "height": HEIGHT, "width": WIDTH} for i in range(20)]
    dataset = {"images": images, "annotations": truth, "categories": [{"id": i} for i in categories]}
    matcher = VocMatcher(dataset, found, iou_type)
    outcomes = [matcher.match(chunk)[0] for chunk in range(matcher.num_chunks)]
    return matcher.numbers(np.concatenate(outcomes))


# ---------------------------------------------------------------- the kit's formula


def kit_overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    area_a, area_b = ((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b))
    return width * height / (area_a + area_b - width * height)


def kit_curve(truth, found):
    """Recall and precision of a class. truth: (image, box, difficult); found: (image, box, score)."""
    total = sum(1 for _, _, difficult in truth if not difficult)
    found_before = set()
    right, wrong, recall, precision = 0, 0, [], []
    for image, box, _ in sorted(found, key=lambda detection: detection[2], reverse=True):
        largest, which = 0.0, None
        for number, (other_image, other, _) in enumerate(truth):
            if other_image == image and kit_overlap(box, other) > largest:
                largest, which = kit_overlap(box, other), number
        if largest < 0.5:
            wrong += 1
        elif not truth[which][2]:
            if which in found_before:
                wrong += 1
            else:
                right += 1
            found_before.add(which)
        recall.append(right / total)
        precision.append(right / max(right + wrong, 1))
    return np.array(recall), np.array(precision)


def kit_11_points(recall, precision):
    values = [precision[recall >= point].max() if (recall >= point).any() else 0 for point in np.arange(0, 1.1, 0.1)]
    return sum(values) / 11


def kit_area(recall, precision):
    recall, precision = np.r_[0, recall, 1], np.r_[0, precision, 0]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))


def draw_box(rng):
    xmin, ymin = rng.integers(1, WIDTH - 30), rng.integers(1, HEIGHT - 30)
    return np.array([xmin, ymin, xmin + rng.integers(4, 30), ymin + rng.integers(4, 30)])


def draw_set(seed):
    """Objects (image, class, box, difficult) and detections (image, class, box, score), no two scores alike.

    Class 2 has no object, class 3 no detection, class 4 difficult objects alone.
    """
    rng = np.random.default_rng(seed)
    objects, found = [], []
    for number in range(18):  # of 20: the last two images are empty
        for _ in range(rng.integers(0, 8)):
            category, box = int(rng.choice([0, 1, 3, 4], p=[0.6, 0.2, 0.1, 0.1])), draw_box(rng)
            objects.append((f"photo {number}", category, box, category == 4 or rng.random() < 0.25))
            for _ in range(rng.integers(0, 4)):
                moved = box + rng.integers(-3, 4, 4) * rng.integers(0, 3)
                moved[2:] = np.maximum(moved[:2] + 1, moved[2:])
                category_found = category if rng.random() < 0.9 else 2
                found.append((f"photo {number}", category_found, np.clip(moved, 1, (WIDTH, HEIGHT) * 2)))
    found += [(f"photo {number}", int(rng.choice([0, 1, 2])), draw_box(rng)) for number in range(20) for _ in range(3)]
    scores = rng.permutation(len(found)) / len(found)
    found = [(*detection, score) for detection, score in zip(found, scores) if detection[1] != 3]
    return objects, found


def as_entries(objects, found):
    truth = [truth_entry(image, k, box.tolist(), is_difficult=difficult) for image, k, box, difficult in objects]
    return truth, [entry(image, k, box.tolist(), score=score) for image, k, box, score in found]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(8))
def test_the_numbers_are_those_of_the_kit(seed, iou_type):
    """The masks are full rectangles: their IoUs are those of the boxes."""
    objects, found = draw_set(seed)
    overall, by_class = run(*as_entries(objects, found), iou_type)
    expected = {"AP50_all": [], "AP50_11point": []}
    for k in CLASSES:
        truth = [(image, box, difficult) for image, category, box, difficult in objects if category == k]
        if all(difficult for _, _, difficult in truth):
            values = None, None
        else:
            curve = kit_curve(truth, [(image, box, score) for image, category, box, score in found if category == k])
            values = kit_area(*curve), kit_11_points(*curve)
        for name, value in zip(expected, values):
            expected[name].append(value)
    for name, values in expected.items():
        assert by_class[name] == [None if value is None else pytest.approx(value, abs=1e-12) for value in values]
        assert by_class[name][2] is by_class[name][4] is None and by_class[name][3] == 0
        known = [value for value in values if value is not None]
        assert overall[name] == pytest.approx(np.mean(known)) and 0.1 < max(known) < 0.95


def test_chunks_change_nothing(monkeypatch):
    truth, found = as_entries(*draw_set(0))
    whole = run(truth, found)
    for size in (1, 7, len(found)):
        monkeypatch.setattr(evaluation, "CHUNK", size)
        assert run(truth, found) == whole


# ---------------------------------------------------------------- by hand

BOX, BESIDE = (11, 11, 30, 30), (61, 11, 80, 30)


def ap(truth, found, iou_type="bbox"):
    """AP50_all and AP50_11point of class 0 in one image; found: best first."""
    found = [entry("photo 0", 0, box, score=1 - i / 100) for i, box in enumerate(found)]
    overall, by_class = run(truth, found, iou_type)
    assert overall == {name: values[0] for name, values in by_class.items()}
    return overall["AP50_all"], overall["AP50_11point"]


def test_both_forms_by_hand():
    """Right, wrong, right: precision 1 up to recall 1/2, where 6 of the 11 points lie, then 2/3."""
    truth = [truth_entry("photo 0", 0, box) for box in (BOX, BESIDE)]
    assert ap(truth, [BOX, (1, 60, 9, 70), BESIDE]) == pytest.approx((1 / 2 + 2 / 3 / 2, (6 + 5 * 2 / 3) / 11))


def test_half_is_enough():
    truth = [truth_entry("photo 0", 0, BOX)]
    assert ap(truth, [(11, 11, 30, 20)]) == pytest.approx((1, 1))
    assert ap(truth, [(11, 11, 30, 19)]) == (0, 0)


def test_a_second_detection_is_wrong_even_where_another_object_is_free():
    """Both detections overlap the left object most; the second would do for the right one, and for COCO it does."""
    left, right = (11, 11, 30, 30), (15, 11, 34, 30)
    truth = [truth_entry("photo 0", 0, box) for box in (left, right)]
    assert ap(truth, [left, (12, 11, 31, 30)]) == pytest.approx((1 / 2, 6 / 11))


def test_difficult_objects_count_neither_way():
    truth = [truth_entry("photo 0", 0, BOX), truth_entry("photo 0", 0, BESIDE, is_difficult=True)]
    assert ap(truth, [BESIDE, BESIDE, BOX]) == pytest.approx((1, 1))
    assert ap(truth, [BOX]) == pytest.approx((1, 1))
    assert ap(truth[1:], [BESIDE]) == (None, None)


def test_wrong_detections_inside_a_crowd_are_ignored():
    crowd = truth_entry("photo 0", 0, (41, 1, 100, 60), iscrowd=1)
    truth = [crowd, truth_entry("photo 0", 0, BOX), truth_entry("photo 0", 0, BESIDE)]
    inside, half_inside, outside = (45, 40, 54, 49), (36, 40, 45, 49), (35, 40, 44, 49)
    for iou_type in ("bbox", "segm"):
        assert ap(truth, [inside, half_inside, BOX, BESIDE], iou_type) == pytest.approx((1, 1))
        assert ap(truth, [outside, BOX, BESIDE], iou_type) == pytest.approx((2 / 3, 2 / 3))
    assert ap([crowd], [inside]) == (None, None)


def test_masks_of_like_boxes_may_miss():
    """An L of 39 pixels and the full 20 x 20 box around it."""
    bitmap = np.zeros((HEIGHT, WIDTH), np.uint8)
    bitmap[10:30, 10] = bitmap[10, 10:30] = 1
    truth = [truth_entry("photo 0", 0, BOX) | {"segmentation": mask_utils.encode(np.asfortranarray(bitmap))}]
    assert ap(truth, [BOX]) == pytest.approx((1, 1))
    assert ap(truth, [BOX], "segm") == (0, 0)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_nothing_found_and_nothing_to_find(iou_type):
    truth = [truth_entry("photo 0", 0, BOX)]
    assert ap(truth, [], iou_type) == (0, 0)
    assert ap([], [BOX], iou_type) == (None, None)
    assert ap([], [], iou_type) == (None, None)
    overall, by_class = run([], [], iou_type, categories=[])
    assert overall == {"AP50_all": None, "AP50_11point": None} and by_class["AP50_all"] == []


def test_any_number_of_detections_counts():
    boxes = [(1 + 6 * (i % 20), 1 + 6 * (i // 20), 5 + 6 * (i % 20), 5 + 6 * (i // 20)) for i in range(250)]
    truth = [truth_entry("photo 0", 0, box) for box in boxes]
    assert ap(truth, boxes) == pytest.approx((1, 1))
