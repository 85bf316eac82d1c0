"""Every kind of flaw, one at a time in a drawn set, is reported once, with its place and value; and nothing else is."""

import copy
import json
import struct
from functools import partial

import cv2
import numpy as np
import pytest

from FasterRCNN.datasets.annotations import Annotations, RawImage, RawObject
from FasterRCNN.datasets.check import SetToCheck, check_sets
from FasterRCNN.datasets.check_report import CheckedSet, CheckReport, format_report, report_to_json
from FasterRCNN.datasets.coco import read_coco
from FasterRCNN.datasets.problems import KINDS, Problem
from FasterRCNN.loading.prefetch import StepsInOrder
from FasterRCNN.structures import Categories

WIDTH, HEIGHT = 60, 40
BOX = [10, 5, 20, 16]
POLYGON = [10, 5, 30, 5, 30, 21, 10, 21]


def content_of(first_id=1, num_images=3):
    """COCO content: images first_id, first_id + 1, ... with one object each, whose id is ten times the image's."""
    ids = range(first_id, first_id + num_images)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": HEIGHT, "width": WIDTH} for i in ids]
    annotations = [
        {"id": 10 * i, "image_id": i, "category_id": 2 - bool(i % 3), "bbox": [*BOX], "segmentation": [[*POLYGON]]}
        for i in ids
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def photo_of(seed):
    """Noise: hard to compress, so that half a file is half a picture."""
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def draw(folder, content, change=None):
    """Writes the images, applies change(content, folder), writes the annotations; gives the reader."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in content["images"]:
        cv2.imwrite(str(folder / image["file_name"]), photo_of(image["id"]))
    if change is not None:
        change(content, folder)
    (folder / "a.json").write_text(json.dumps(content))
    return partial(read_coco, folder / "a.json", folder, name=folder.name)


def check(*sets, with_masks=True, num_workers=0, **options):
    return check_sets(sets, with_masks=with_masks, num_workers=num_workers, steps_in_order=StepsInOrder, **options)


def check_one(folder, change, **options):
    return check(SetToCheck("spec", draw(folder, content_of(), change)), **options)


def found(report):
    return [problem for one in report.sets for problem in one.problems]


# ---------------------------------------------------------------- flaws


def in_second(**values):
    """Changes the object of image 2."""
    return lambda content, folder: content["annotations"][1].update(copy.deepcopy(values))


def write_second(data):
    """Writes other bytes as image 2."""
    return lambda content, folder: (folder / "2.jpg").write_bytes(data(folder) if callable(data) else data)


def half(folder):
    data = (folder / "2.jpg").read_bytes()
    return data[: len(data) // 2]


def with_orientation(data, orientation):
    """A JPEG with an EXIF block of one entry."""
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    block = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


def turn_second(orientation, **annotated):
    def change(content, folder):
        (folder / "2.jpg").write_bytes(with_orientation((folder / "2.jpg").read_bytes(), orientation))
        content["images"][1].update(annotated)

    return change


def rename_second(name):
    return lambda content, folder: (folder / "2.jpg").rename(folder / name)


def other_suffix(content, folder):
    cv2.imwrite(str(folder / "2.png"), photo_of(2))
    (folder / "2.png").rename(folder / "2.jpg")


def repeat_first(content, folder):
    (folder / "2.jpg").write_bytes((folder / "1.jpg").read_bytes())


def set_image(**values):
    return lambda content, folder: content["images"][1].update(values)


def add(part, **values):
    return lambda content, folder: content[part].append({**content[part][1], **values})


def list_second_again(content, folder):
    add("images", id=4)(content, folder)
    add("annotations", id=40, image_id=4)(content, folder)


def drop_second_object(content, folder):
    del content["annotations"][1]


def as_fractions(content, folder):
    sides = [WIDTH, HEIGHT] * 4
    for annotation in content["annotations"]:
        annotation["bbox"] = [value / side for value, side in zip(annotation["bbox"], sides)]
        annotation["segmentation"] = [[value / side for value, side in zip(POLYGON, sides)]]


def rename_class(content, folder):
    content["categories"][1]["name"] = "Cat "


RLE_OF_NOTHING = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
SECOND, SECOND_OBJECT = {"image_id": 2}, {"image_id": 2, "annotation_id": 20}

# (kind, change, ids, a part of the detail)
FLAWS = [
    ("missing_image", rename_second("x.jpg"), SECOND, ""),
    ("missing_image", rename_second("2.JPG"), SECOND, "2.JPG is there"),
    ("missing_image", rename_second("2.jpeg"), SECOND, "2.jpeg is there"),
    ("missing_image", set_image(file_name="images/2.jpg"), SECOND, "set/2.jpg is there"),
    ("missing_image", set_image(file_name="images\\2.jpg"), SECOND, "set/2.jpg is there"),
    ("missing_image", set_image(file_name="images/x.jpg"), SECOND, "there is no folder"),
    ("empty_image", write_second(b""), SECOND, ""),
    ("truncated_image", write_second(half), SECOND, " bytes"),
    ("damaged_image", write_second(lambda folder: half(folder) + b"\xff\xd9"), SECOND, "Corrupt JPEG data"),
    ("unreadable_image", write_second(b"<html>not found</html>"), SECOND, "22 bytes, looks like HTML"),
    ("unreadable_image", write_second(b"no picture"), SECOND, "10 bytes"),
    ("image_size", set_image(height=HEIGHT + 2), SECOND, "is 60 x 40, annotated as 60 x 42"),
    ("image_size", turn_second(6, width=HEIGHT + 9), SECOND, "is 40 x 60, annotated as 49 x 40"),
    ("exif_rotation", turn_second(6, width=HEIGHT, height=WIDTH), SECOND, "orientation 6: annotated as it is shown"),
    ("exif_rotation", turn_second(8), SECOND, "orientation 8: annotated as it is stored, 60 x 40, and read so"),
    ("exif_rotation", turn_second(3), SECOND, "orientation 3: its size does not tell"),
    ("image_suffix", other_suffix, SECOND, "named as JPEG, holds PNG"),
    ("repeated_image", repeat_first, SECOND, "the same picture as"),
    ("repeated_image", list_second_again, {"image_id": 4}, "the same file as image id 2"),
    ("image_id", add("images", file_name="4.jpg"), SECOND, "4.jpg"),
    ("annotation_id", add("annotations", bbox=[9, 5, 21, 16]), SECOND_OBJECT, ""),
    ("malformed_entry", add("annotations", category_id="dog"), SECOND_OBJECT, "annotations[3]: category_id is 'dog'"),
    ("malformed_entry", add("annotations", id=[20]), SECOND, "annotations[3]: id is '[20]'"),
    ("malformed_entry", set_image(width=60.5), SECOND, "images[1]: width is '60.5', not a whole number of pixels"),
    ("no_size", set_image(width=None), SECOND, ""),
    ("unknown_image", add("annotations", id=40, image_id=4), {"image_id": 4, "annotation_id": 40}, ""),
    ("unknown_image", add("annotations", id=40, image_id="2"), {"image_id": "2", "annotation_id": 40}, "2 is listed"),
    ("unknown_category", in_second(category_id=7), SECOND_OBJECT, "category id 7"),
    ("no_objects", drop_second_object, SECOND, ""),
    ("no_objects", in_second(iscrowd=1), SECOND, "crowd regions only"),
    ("malformed_box", in_second(bbox=[1, 2, 3]), SECOND_OBJECT, "[1, 2, 3]"),
    ("malformed_box", in_second(bbox=[1, 2, float("nan"), 3]), SECOND_OBJECT, "nan"),
    ("malformed_box", lambda content, folder: content["annotations"][1].pop("bbox"), SECOND_OBJECT, "None"),
    ("negative_box", in_second(bbox=[30, 5, -20, 16]), SECOND_OBJECT, "[30, 5, -20, 16]"),
    ("zero_area_box", in_second(bbox=[30, 5, 0, 16]), SECOND_OBJECT, "[30, 5, 0, 16]"),
    ("box_outside", in_second(bbox=[70, 5, 20, 16]), SECOND_OBJECT, "[70, 5, 20, 16]"),
    ("box_beyond", in_second(bbox=[-7, 5, 37, 16]), SECOND_OBJECT, "[-7, 5, 37, 16]"),
    ("tiny_box", in_second(bbox=[10, 5, 20, 0.5], segmentation=[[10, 5, 30, 5, 30, 5.5]]), SECOND_OBJECT, "20 x 0.5"),
    ("repeated_object", add("annotations", id=21), {"image_id": 2, "annotation_id": 21}, "those of annotation id 20"),
    ("fraction_boxes", as_fractions, {}, "0.525"),
    ("odd_area", in_second(area=-320), SECOND_OBJECT, "area -320"),
    ("no_mask", in_second(segmentation=[]), SECOND_OBJECT, ""),
    ("malformed_mask", in_second(segmentation=[["x"] * 6]), SECOND_OBJECT, "x"),
    ("malformed_mask", in_second(segmentation={"size": [HEIGHT, WIDTH], "counts": "0"}), SECOND_OBJECT, "2400"),
    ("malformed_mask", in_second(segmentation={"size": [HEIGHT, WIDTH], "counts": "`<T"}), SECOND_OBJECT, "2400"),
    ("short_polygon", in_second(segmentation=[POLYGON, [10, 5, 30, 5]]), SECOND_OBJECT, "2 points"),
    ("flat_polygon", in_second(segmentation=POLYGON), SECOND_OBJECT, ""),
    ("rle_size", in_second(segmentation={"size": [WIDTH, HEIGHT], "counts": "0"}), SECOND_OBJECT, "[60, 40]"),
    ("mask_beyond", in_second(bbox=[10, 5, 16, 16]), SECOND_OBJECT, "by 4 pixels: mask within [10, 5, 30, 21]"),
    ("mask_outside", in_second(bbox=[40, 5, 16, 16]), SECOND_OBJECT, "box [40, 5, 56, 21]"),
    ("empty_mask", in_second(segmentation=RLE_OF_NOTHING), SECOND_OBJECT, ""),
    ("empty_mask", in_second(segmentation=[[10, 5, 20, 5, 30, 5]]), SECOND_OBJECT, ""),
    ("empty_mask", in_second(segmentation=[[10, 5, 20, 13, 30, 21]]), SECOND_OBJECT, ""),
    ("similar_classes", rename_class, {}, "'cat', 'Cat '"),
    ("unused_classes", add("categories", id=3, name="cow"), {}, "1 of 3: 'cow'"),
    ("no_annotations", lambda content, folder: content.pop("annotations"), {}, "it has no list 'annotations'"),
]
# Of two sets, and those that the readers of other formats find (their tests show them).
ELSEWHERE = {
    "shared_image", "class_names", "missing_classes", "class_ids", "truth_score", "unreadable_set", "corner_boxes",
    "image_name", "missing_annotation", "unreadable_annotation", "mask_file", "mask_object",
    "no_images",
}


@pytest.mark.parametrize("kind, change, ids, detail", FLAWS, ids=[f"{i}-{flaw[0]}" for i, flaw in enumerate(FLAWS)])
def test_each_flaw_is_reported_once_with_its_place_and_value(tmp_path, kind, change, ids, detail):
    report = check_one(tmp_path / "set", change)
    (problem,) = found(report)
    assert problem.kind == kind
    assert {"image_id": problem.image_id, "annotation_id": problem.annotation_id} == {
        "image_id": None, "annotation_id": None, **ids}
    assert str(tmp_path) in problem.file
    assert detail in problem.detail
    assert report.exit_code == KINDS[kind].is_error
    assert KINDS[kind].title in format_report(report) and KINDS[kind].title


def test_no_kind_goes_without_a_test():
    assert {flaw[0] for flaw in FLAWS} | ELSEWHERE == set(KINDS)


def test_objects_are_told_with_their_image(tmp_path):
    (problem,) = found(check_one(tmp_path, in_second(bbox=[30, 5, 0, 16])))
    assert problem.file == str(tmp_path / "2.jpg")


# ---------------------------------------------------------------- whole sets


def test_a_clean_set_is_quiet(tmp_path):
    report = check_one(tmp_path / "mine", None)
    (one,) = report.sets
    assert (one.name, one.num_images, one.num_objects, one.class_names) == ("mine", 3, 3, ("cat", "dog"))
    assert found(report) == [] and report.exit_code == 0
    text = format_report(report, details_file="check.json")
    assert "No problems found." in text and "check.json" not in text


def test_a_set_without_images_cannot_be_trained_on(tmp_path):
    report = check(SetToCheck("", draw(tmp_path, content_of(num_images=0))), score_truth=lambda annotations: None)
    assert [problem.kind for problem in found(report)] == ["no_images"] and report.exit_code == 1


def test_no_set_gives_an_empty_report():
    report = check()
    assert report.sets == [] and report.exit_code == 0 and format_report(report)


def test_masks_are_only_required_where_they_are_trained_but_looked_at_always(tmp_path):
    assert found(check_one(tmp_path / "a", in_second(segmentation=None), with_masks=False)) == []
    report = check_one(tmp_path / "b", in_second(segmentation=RLE_OF_NOTHING), with_masks=False)
    assert [problem.kind for problem in found(report)] == ["empty_mask"]
    assert report.exit_code == 0 and report_to_json(report)["kinds"][0]["severity"] == "warning"
    assert "Masks are not trained (MODE_MASK=False)" in (text := format_report(report)) and "Warning: mask wi" in text


def test_a_set_without_any_mask_is_told_once(tmp_path):
    def drop_masks(content, folder):
        for annotation in content["annotations"]:
            del annotation["segmentation"]

    (problem,) = found(check_one(tmp_path, drop_masks))
    assert problem == Problem("no_mask", str(tmp_path / "a.json"), detail="none of the set's 3 objects has one")


def test_images_without_truth_are_not_told_to_be_without_objects(tmp_path):
    read = draw(tmp_path, content_of(), lambda content, folder: content.pop("annotations"))
    assert found(check(SetToCheck("", read, "validation"), score_truth=pytest.fail)) == []



def test_objects_of_an_image_that_is_left_out_are_told_with_it(tmp_path):
    def without_size_and_photo(content, folder):
        set_image(height=0)(content, folder)
        (folder / "2.jpg").unlink()

    (problem,) = found(check_one(tmp_path, without_size_and_photo))
    assert (problem.kind, problem.image_id, problem.file) == ("missing_image", 2, str(tmp_path / "2.jpg"))


def test_a_name_as_windows_writes_it_is_found(tmp_path):
    def move(content, folder):
        (folder / "photos").mkdir()
        rename_second("photos/2.jpg")(content, folder)
        set_image(file_name="photos\\2.jpg")(content, folder)

    assert found(check_one(tmp_path, move)) == []


def test_only_sets_to_train_on_must_use_all_classes(tmp_path):
    first, second = two_sets(tmp_path, add("categories", id=3, name="cow"))
    assert [problem.kind for problem in found(check(second))] == []
    both = found(check(second, first, SetToCheck("", first.read, "training")))
    assert "unused_classes" not in [problem.kind for problem in both]


def test_boxes_written_as_corners_are_pointed_out(tmp_path):
    content = content_of(num_images=12)
    for annotation in content["annotations"]:
        annotation.update(bbox=[25, 20, 45, 36], segmentation=None)
    report = check(SetToCheck("", draw(tmp_path, content)), with_masks=False)
    assert [problem.kind for problem in found(report)] == ["box_beyond"] * 12 + ["corner_boxes"]
    assert "12 of 12 boxes" in found(report)[-1].detail


@pytest.mark.parametrize("reach, is_told", [(1.0, False), (1.35, False), (1.5, True)])
def test_a_mask_may_leave_its_box_by_a_pixel_and_a_share_of_the_side(tmp_path, reach, is_told):
    change = in_second(segmentation=[[10, 5, 30 + reach, 5, 30, 21, 10, 21]])  # the box is 20 wide
    assert [problem.kind for problem in found(check_one(tmp_path, change))] == ["mask_beyond"] * is_told


def test_a_set_that_cannot_be_read_is_told_and_the_others_are_checked(tmp_path):
    good = draw(tmp_path / "good", content_of(), in_second(bbox=[30, 5, 0, 16]))
    bad = partial(read_coco, "no.json", "images", name="no")
    report = check(SetToCheck("no.json:images", bad), SetToCheck("", good))
    (problem,) = report.sets[0].problems
    assert (problem.kind, problem.file) == ("unreadable_set", "no.json:images")
    assert "no such annotation file" in problem.detail
    assert [problem.kind for problem in report.sets[1].problems] == ["zero_area_box"]
    assert report.exit_code == 1


@pytest.mark.parametrize("score, detail", [
    (1.0, None), (None, None), (0.98, "AP 0.980000"), (1 - 1e-5, "AP 0.999990"), (ValueError("why"), "why"),
])
def test_the_truth_must_score_one(tmp_path, score, detail):
    def score_truth(annotations):
        assert annotations.categories.names == ("cat", "dog")
        if isinstance(score, ValueError):
            raise score
        return score

    problems = found(check_one(tmp_path, None, score_truth=score_truth))
    assert [problem.kind for problem in problems] == ["truth_score"] * (detail is not None)
    assert all(detail in problem.detail for problem in problems)


# ---------------------------------------------------------------- several sets


def two_sets(tmp_path, change=None, roles=("training", "validation")):
    """Sets of images of their own, the second changed."""
    first = draw(tmp_path / "first", content_of())
    second = draw(tmp_path / "second", content_of(first_id=4), change)
    return SetToCheck("", first, roles[0]), SetToCheck("", second, roles[1])


def share_an_image(content, folder):
    (folder / "5.jpg").write_bytes((folder.parent / "first" / "1.jpg").read_bytes())


@pytest.mark.parametrize("roles, kind", [
    (("training", "validation"), "shared_image"),
    (("", ""), "shared_image"),
    (("training", "training"), "repeated_image"),
])
def test_an_image_in_two_sets_under_another_name_is_found(tmp_path, roles, kind):
    (problem,) = found(check(*two_sets(tmp_path, share_an_image, roles)))
    assert (problem.kind, problem.image_id) == (kind, 5)
    assert str(tmp_path / "first" / "1.jpg") in problem.detail and "image id 1 of first" in problem.detail


def test_sets_that_agree_are_quiet(tmp_path):
    assert found(check(*two_sets(tmp_path))) == []


def set_categories(*pairs):
    def change(content, folder):
        content["categories"] = [{"id": i, "name": name} for i, name in pairs]

    return change


@pytest.mark.parametrize("categories, expected", [
    ([(1, "cat"), (2, "Dog")], [("class_names", "'Dog' (id 2) is no class of first, which has 'dog': another spell")]),
    ([(1, "cat"), (2, "hound")], [("class_names", "'hound' (id 2) is no class of first, where the id 2 is 'dog'")]),
    ([(1, "cat"), (2, "dog"), (3, "cow")], [("class_names", "'cow' (id 3) is no class of first")]),
    ([(1, "dog"), (2, "cat")], [("class_ids", "'dog' is 1 here and 2 there, 'cat' is 2 here and 1 there")]),
    ([(1, "cat"), (2, "dog")], []),
])
def test_classes_are_compared_by_name(tmp_path, categories, expected):
    problems = found(check(*two_sets(tmp_path, set_categories(*categories))))
    assert [problem.kind for problem in problems] == [kind for kind, _ in expected]
    assert all(detail in problem.detail for problem, (_, detail) in zip(problems, expected))


def test_a_class_that_only_the_first_set_has_is_a_warning(tmp_path):
    def only_cats(content, folder):
        content["categories"].pop()
        for annotation in content["annotations"]:
            annotation["category_id"] = 1

    report = check(*two_sets(tmp_path, only_cats))
    assert [(problem.kind, problem.detail) for problem in found(report)] == [("missing_classes", "first has 'dog'")]
    assert report.exit_code == 0


# ---------------------------------------------------------------- the loop over the images


def flaw_all(content, folder):
    (folder / "4.jpg").write_bytes(b"")
    (folder / "5.jpg").unlink()
    (folder / "39.jpg").write_bytes((folder / "38.jpg").read_bytes())
    content["annotations"][0]["bbox"] = [1, 2, 0, 0]


def test_the_number_of_workers_changes_nothing(tmp_path):
    read = draw(tmp_path, content_of(num_images=40), flaw_all)
    reports = [check(SetToCheck("", read), num_workers=number) for number in (0, 2)]
    assert [problem.kind for problem in found(reports[0])] == [
        "zero_area_box", "empty_image", "missing_image", "repeated_image"]
    assert reports[0] == reports[1]


def test_the_workers_are_ended_when_the_user_stops_it(tmp_path):
    class Interrupted(StepsInOrder):
        stopped = False

        def __next__(self):
            raise KeyboardInterrupt

        def stop(self):
            Interrupted.stopped = True

    sets = [SetToCheck("", draw(tmp_path, content_of()))]
    with pytest.raises(KeyboardInterrupt):
        check_sets(sets, with_masks=True, steps_in_order=Interrupted)
    assert Interrupted.stopped


class Photos:
    """A user's data set: image 1 cannot be had, image 2 is image 0 again, image 3 is of another size."""

    def __getitem__(self, idx):
        if idx == 1:
            raise OSError("the disk is gone")
        return photo_of(idx % 2)[: HEIGHT - (idx == 3)], None, idx

    def __len__(self):
        return 4


def test_images_of_a_users_own_data_set_come_from_it():
    images = [RawImage(idx, f"mine[{idx}]", HEIGHT, WIDTH, [RawObject(1, 1, BOX)]) for idx in range(4)]
    annotations = Annotations(
        "mine", "my.py", Categories(["cat"], [1]), lambda problems: iter(images), user_dataset=Photos()
    )
    problems = found(check(SetToCheck("mine", lambda: annotations), with_masks=False))
    assert [(problem.kind, problem.image_id) for problem in problems] == [
        ("unreadable_image", 1), ("repeated_image", 2), ("image_size", 3)]
    assert "the disk is gone" in problems[0].detail


# ---------------------------------------------------------------- the report


def flawed_report(tmp_path):
    report = check_one(tmp_path / "set", in_second(bbox=[30, 5, 0, 16]))
    report.sets[0].problems[:0] = [Problem("no_objects", f"{number}.jpg", number) for number in range(9)]
    return report


def test_the_text_says_what_and_where_and_what_to_do(tmp_path):
    text = format_report(flawed_report(tmp_path), details_file="out/check.json", width=120)
    error, warning = text.index("box without area"), text.index("image without objects")
    assert error < warning
    assert "draw it again, or delete it" in text
    assert f"{tmp_path}/set/2.jpg, image id 2, annotation id 20: bbox (x, y, width, height) [30, 5, 0, 16]" in text
    assert "  4.jpg, image id 4\n  and 4 more" in text and "5.jpg" not in text
    assert text.endswith("1 error, 9 warnings; all of them in out/check.json")


def test_the_json_holds_every_problem(tmp_path):
    report = flawed_report(tmp_path)
    content = json.loads(json.dumps(report_to_json(report), allow_nan=False))
    assert content == report_to_json(report)
    assert content["exit_code"] == 1
    assert content["sets"][0] | {"source": ""} == {
        "name": "set", "source": "", "role": "", "images": 3, "objects": 3, "classes": ["cat", "dog"]}
    assert [(entry["kind"], entry["severity"], entry["count"]) for entry in content["kinds"]] == [
        ("zero_area_box", "error", 1), ("no_objects", "warning", 9)]
    again = [
        Problem(entry["kind"], entry["file"], entry["image_id"], entry["annotation_id"], entry["detail"])
        for entry in content["problems"]
    ]
    assert sorted(again, key=str) == sorted(found(report), key=str)


def test_odd_ids_can_be_written():
    report = CheckReport([CheckedSet("a", "a", problems=[Problem("annotation_id", "a", 1, float("nan"))])])
    assert json.loads(json.dumps(report_to_json(report), allow_nan=False))["problems"][0]["annotation_id"] == "nan"


@pytest.mark.parametrize("kinds, exit_code", [
    ([], 0), (["no_objects", "exif_rotation"], 0), (["no_objects", "no_mask"], 1),
])
def test_only_errors_make_it_fail(tmp_path, kinds, exit_code):
    report = check_one(tmp_path, None)
    report.sets[0].problems = [Problem(kind, "a.jpg", 1) for kind in kinds]
    assert report.exit_code == exit_code
