"""Data sets by name and by path, one or several."""

import json

from config import default_config

import pytest

import data
from FasterRCNN.datasets.catalog import COCO_IMAGE_FOLDERS, align_categories, join_datasets, load_dataset
from FasterRCNN.structures import Categories


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
    parts = {"minival2014": "val2014", "valminusminival2014": "val2014", "val2017_100": "val2017"}
    folder = {**parts, "test-dev2017": "test2017"}.get(split, split)
    prefix = "image_info" if "test" in split else "instances"
    write_set(tmp_path / f"annotations/{prefix}_{split}.json", tmp_path / folder, [3])
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
    with pytest.raises(ValueError, match="unknown data set .*coco_train2017, .*instances.json:path/to/images, voc:DIR"):
        load_dataset(spec, basedir="")


def test_a_missing_annotation_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such annotation file .*annotations/instances_val2017\.json"):
        load_dataset("coco_val2017", basedir=tmp_path)


@pytest.mark.parametrize("file, name", [
    ("chess/train/_annotations.coco.json", "chess_train"),
    ("chess/valid/_annotations.coco.json", "chess_valid"),
    ("task_7/annotations/instances_default.json", "task_7"),
    ("project-1/result.json", "project-1"),
    ("toys/annotations/train.json", "train"),
])
def test_files_that_tools_name_alike_are_told_apart_by_their_folder(tmp_path, monkeypatch, file, name):
    write_set(tmp_path / file, tmp_path / "photos", [3])
    assert load_dataset(f"{tmp_path / file}:{tmp_path / 'photos'}").name == name
    monkeypatch.chdir((tmp_path / file).parent)
    assert load_dataset(f"{(tmp_path / file).name}:{tmp_path / 'photos'}").name == name


BENCHMARK_CATALOG = """
import os

class DatasetCatalog(object):
    DATA_DIR = "datasets"
    DATASETS = {
        "coco_toys": {"img_dir": "coco/toys", "ann_file": "coco/annotations/toys.json"},
        "voc_toys": {"data_dir": "voc/VOC2007", "split": "train"},
        "coco_broken": {"img_dir": "", "ann_file": ""},
    }

    @staticmethod
    def get(name):
        data_dir, attrs = DatasetCatalog.DATA_DIR, DatasetCatalog.DATASETS[name]
        if name == "coco_broken":
            return dict(factory="COCODataset", args=dict(root="photos"))
        if "coco" in name:
            args = dict(
                root=os.path.join(data_dir, attrs["img_dir"]), ann_file=os.path.join(data_dir, attrs["ann_file"])
            )
            return dict(factory="COCODataset", args=args)
        args = dict(data_dir=os.path.join(data_dir, attrs["data_dir"]), split=attrs["split"])
        return dict(factory="PascalVOCDataset", args=args)
"""


@pytest.fixture
def benchmark_catalog(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "paths_catalog.py"
    path.write_text(BENCHMARK_CATALOG)
    return path


def test_the_catalog_of_maskrcnn_benchmark_names_cocos_files(benchmark_catalog, tmp_path):
    write_set(tmp_path / "datasets/coco/annotations/toys.json", tmp_path / "datasets/coco/toys", [3])
    dataset = load_dataset("coco_toys", basedir="/nowhere", catalog=benchmark_catalog)
    assert (dataset.name, dataset.reread().name, dataset.categories.names) == ("coco_toys", "coco_toys", ("cat", "dog"))
    assert dataset.records[0].file_name == "datasets/coco/toys/COCO_000000000003.jpg"
    with pytest.raises(ValueError, match="coco_broken: a COCODataset has the args ann_file and root, this one {'root'"):
        load_dataset("coco_broken", catalog=benchmark_catalog)


def test_the_catalog_of_maskrcnn_benchmark_names_vocs_folders(benchmark_catalog, tmp_path):
    folder = tmp_path / "datasets/voc/VOC2007"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    (folder / "ImageSets/Main/train.txt").write_text("a\n")
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax>"
    (folder / "Annotations/a.xml").write_text(
        "<annotation><size><width>9</width><height>9</height></size>"
        f"<object><name>cat</name><bndbox>{box}</bndbox></object></annotation>"
    )
    dataset = load_dataset("voc_toys", catalog=benchmark_catalog)
    assert (dataset.name, dataset.reread().metric, dataset.records[0].image_id) == ("voc_toys", "voc", "a")
    assert dataset.records[0].boxes.tolist() == [[0, 0, 4, 4]]


def load_training_sets(*specs):
    cfg = default_config()
    cfg.update_dict({"DATA.TRAIN": list(specs)})
    return data.load_training_set(cfg)


def test_several_sets_join_in_order(tmp_path):
    first = write_set(tmp_path / "a.json", tmp_path / "a", [1, 2])
    second = write_set(tmp_path / "b.json", tmp_path / "b", [2], names=("dog", "cat"), category_ids=(4, 9))
    joined = load_training_sets(first, second)
    assert joined.name == "a+b"
    assert [record.image_id for record in joined.records] == [1, 2, 2]
    assert [joined.categories.name_of_label(record.labels[0]) for record in joined.records] == ["dog", "dog", "cat"]
    assert joined.categories.ids == (1, 2)
    alone = load_training_sets(first)
    assert alone.reread().source == str(tmp_path / "a.json")


def test_sets_of_other_classes_do_not_join(tmp_path):
    first = write_set(tmp_path / "a.json", tmp_path / "a", [1])
    second = write_set(tmp_path / "b.json", tmp_path / "b", [2], names=("cat", "wolf"))
    with pytest.raises(ValueError, match=r"b\.json: its classes are not .* Only here: wolf; only in training: dog"):
        load_training_sets(first, second)


def test_a_set_may_lack_classes_of_the_other(tmp_path):
    wanted = Categories(names=("cat", "dog", "car"), ids=(1, 2, 3))
    own = Categories(names=("car", "cat"), ids=(1, 2))
    aligned = align_categories(own, wanted, "a.json")
    assert aligned.names == wanted.names
    assert [aligned.label_of_id(i) for i in own.ids] == [3, 1]
    assert len(set(aligned.ids)) == 3


def test_no_set_at_all():
    with pytest.raises(ValueError, match="no data set is given"):
        join_datasets([])


def test_a_missing_named_set_names_those_that_are_there(tmp_path):
    (tmp_path / "annotations").mkdir()
    with pytest.raises(FileNotFoundError, match=r"coco_train2017: no such annotation file .*DATA.BASEDIR=/path"):
        load_dataset("coco_train2017", basedir=tmp_path)
    (tmp_path / "annotations" / "instances_valminusminival2014.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has those of coco_valminusminival2014: name them in DATA.TRAIN"):
        load_dataset("coco_train2017", basedir=tmp_path)
