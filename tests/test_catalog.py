"""Data sets by name and by path, one or several."""

import json

import pytest

from FasterRCNN.datasets.catalog import COCO_IMAGE_FOLDERS, load_dataset, load_datasets


def write_set(annotation_file, image_dir, image_ids, names=("cat", "dog"), category_ids=(1, 2)):
    image_dir.mkdir(parents=True, exist_ok=True)
    annotation_file.parent.mkdir(parents=True, exist_ok=True)
    box = {"bbox": [1, 1, 5, 5], "segmentation": [[1, 1, 6, 1, 6, 6]], "iscrowd": 0}
    content = {
        "images": [{"id": i, "file_name": f"COCO_{i:012d}.jpg", "height": 10, "width": 10} for i in image_ids],
        "annotations": [{"id": i, "image_id": i, "category_id": category_ids[-1], **box} for i in image_ids],
        "categories": [{"id": i, "name": name} for i, name in zip(category_ids, names, strict=True)],
    }
    annotation_file.write_text(json.dumps(content))
    return f"{annotation_file}:{image_dir}"


@pytest.mark.parametrize("name", COCO_IMAGE_FOLDERS)
def test_coco_names_follow_cocos_layout(tmp_path, name):
    split = name.removeprefix("coco_")
    folder = {"minival2014": "val2014", "valminusminival2014": "val2014", "val2017_100": "val2017"}.get(split, split)
    write_set(tmp_path / f"annotations/instances_{split}.json", tmp_path / folder, [3])
    dataset = load_dataset(name, basedir=tmp_path)
    assert dataset.name == name
    assert dataset.records[0].file_name == str(tmp_path / folder / "COCO_000000000003.jpg")


def test_own_data_by_path_need_no_basedir(tmp_path, monkeypatch):
    spec = write_set(tmp_path / "mine/instances_toys.json", tmp_path / "mine/photos", [3])
    assert load_dataset(spec, basedir="").name == "instances_toys"
    monkeypatch.chdir(tmp_path)
    relative = load_dataset("mine/instances_toys.json:mine/photos", basedir="/nowhere")
    assert relative.records[0].file_name == "mine/photos/COCO_000000000003.jpg"


@pytest.mark.parametrize("spec", ["coco_train2018", "mine.json", "mine.json:", ":photos", ""])
def test_an_unknown_name_is_answered_with_the_choices(spec):
    with pytest.raises(ValueError, match="unknown data set .*coco_train2017, .*path/to/instances.json:path/to/images"):
        load_dataset(spec, basedir="")


def test_a_missing_annotation_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such annotation file .*annotations/instances_val2017\.json"):
        load_dataset("coco_val2017", basedir=tmp_path)


def test_several_sets_join_in_order(tmp_path):
    first = write_set(tmp_path / "a.json", tmp_path / "a", [1, 2])
    second = write_set(tmp_path / "b.json", tmp_path / "b", [2], names=("dog", "cat"), category_ids=(4, 9))
    joined = load_datasets([first, second], basedir="")
    assert joined.name == "a+b"
    assert [record.image_id for record in joined.records] == [1, 2, 2]
    assert [joined.categories.name_of_label(record.labels[0]) for record in joined.records] == ["dog", "dog", "cat"]
    assert joined.categories.ids == (1, 2)
    alone = load_datasets([first], basedir="")
    assert alone.annotation_file == str(tmp_path / "a.json")


def test_sets_of_other_categories_do_not_join(tmp_path):
    first = write_set(tmp_path / "a.json", tmp_path / "a", [1])
    second = write_set(tmp_path / "b.json", tmp_path / "b", [2], names=("cat", "wolf"))
    with pytest.raises(ValueError, match=r"b\.json: its categories differ .*id 2: wolf / dog"):
        load_datasets([first, second], basedir="")


def test_objects_without_masks_are_for_evaluation_alone(tmp_path):
    spec = write_set(tmp_path / "a.json", tmp_path / "a", [1])
    content = json.loads((tmp_path / "a.json").read_text())
    content["annotations"][0]["segmentation"] = []
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert load_dataset(spec, basedir="").records[0].segmentations == [None]
    with pytest.raises(ValueError, match=r"a\.json, image id 1, annotation id 1: .*no segmentation.*MODE_MASK=False"):
        load_datasets([spec], basedir="")


def test_no_set_at_all():
    with pytest.raises(ValueError, match="no data set is given"):
        load_datasets([], basedir="")


def test_a_missing_named_set_names_those_that_are_there(tmp_path):
    (tmp_path / "annotations").mkdir()
    with pytest.raises(FileNotFoundError, match=r"coco_train2017: no such annotation file .*DATA.BASEDIR=/path"):
        load_dataset("coco_train2017", basedir=tmp_path)
    (tmp_path / "annotations" / "instances_valminusminival2014.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has those of coco_valminusminival2014: name them in DATA.TRAIN"):
        load_dataset("coco_train2017", basedir=tmp_path)
