"""Users' own data sets: the forms of their module, what is read from them, and the message for each mistake."""

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from FasterRCNN.datasets.annotations import sound_objects, to_dataset
from FasterRCNN.datasets.custom import catalog_names, read_custom, user_image
from FasterRCNN.datasets.problems import Problems

HEADER = """
import numpy as np
from FasterRCNN.structures import BoxList

class Blocks:
    classes = ["red", "blue"]

    def __init__(self, count=3):
        self.count, self.decoded = count, []

    def __len__(self):
        return self.count

    def get_img_info(self, idx):
        return {"height": 20, "width": 30, "file_name": f"blocks/{idx}.jpg"}

    def boxes(self, idx):
        boxes = BoxList([[1, 2, 11, 8], [20, 10, 25, 20]][:idx], (30, 20), mode="xyxy")
        boxes.add_field("labels", np.array([2, 1])[:idx])
        return boxes

    def __getitem__(self, idx):
        self.decoded.append(idx)
        return np.full((20, 30, 3), 10 * idx, np.uint8), self.boxes(idx), idx
"""


def write(tmp_path, text, header=HEADER):
    file = tmp_path / "my_datasets.py"
    file.write_text(f"{header}\n{text}\n")
    return file


def read(file, name="mine"):
    return list(read_custom(name, file).read_images(Problems("")))


def fails(file, message, name="mine"):
    """Reading the set raises this; the module and the set are always named."""
    with pytest.raises(ValueError, match=message) as raised:
        read(file, name)
    assert str(raised.value).startswith(f"{file}: {name}")
    return raised.value


# ---------------------------------------------------------------- the module


FORMS = {
    "class": "DATASETS = {'mine': Blocks}",
    "function": "DATASETS = {'mine': lambda: Blocks(3)}",
    "dict of class": "DATASETS = {'mine': {'factory': Blocks, 'args': {'count': 3}}}",
    "dict of name": "DATASETS = {'mine': {'factory': 'Blocks'}}",
    "DatasetCatalog": """
class DatasetCatalog:
    DATA_DIR = "datasets"
    DATASETS = {"mine": {"count": 3}}

    @staticmethod
    def get(name):
        return dict(factory="Blocks", args=DatasetCatalog.DATASETS[name])
""",
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_module(tmp_path, form):
    file = write(tmp_path, FORMS[form])
    assert catalog_names(file) == ["mine"]
    annotations = read_custom("mine", str(file))
    assert (annotations.name, annotations.metric, annotations.source) == ("mine", "coco", f"{file}: mine")
    assert (annotations.categories.names, annotations.categories.ids) == (("red", "blue"), (1, 2))
    images = list(annotations.read_images(Problems("")))
    assert [(image.image_id, image.file_name, image.height, image.width) for image in images] == [
        (idx, f"blocks/{idx}.jpg", 20, 30) for idx in range(3)]
    assert [len(image.objects) for image in images] == [0, 1, 2]
    first, second = images[2].objects
    assert (first.annotation_id, first.category_id, first.bbox) == (1, 2, [1, 2, 10, 6])
    assert (second.annotation_id, second.category_id, second.bbox) == (2, 1, [20, 10, 5, 10])
    assert not (first.is_crowd or first.is_difficult or first.segmentation)


def test_a_module_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_my_datasets.py").write_text("COUNT = 2\n")
    file = write(tmp_path, "from neighbour_of_my_datasets import COUNT\nDATASETS = {'mine': lambda: Blocks(COUNT)}")
    assert len(read(file)) == 2


def test_a_module_may_hold_data_classes(tmp_path):
    file = write(tmp_path, """
from dataclasses import dataclass

@dataclass
class Few(Blocks):
    count: "int" = 1
    decoded: "list | None" = None

    def __post_init__(self):
        self.decoded = []

DATASETS = {"mine": Few}
""", header="from __future__ import annotations" + HEADER)
    assert len(read(file)) == 1


def test_missing_module(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.py: no such file; DATA.CATALOG names a Python module"):
        catalog_names(tmp_path / "nothing.py")


def test_module_that_is_no_python(tmp_path):
    (tmp_path / "sets.yaml").write_text("a: 1")
    with pytest.raises(ValueError, match="sets.yaml: not a Python module"):
        catalog_names(tmp_path / "sets.yaml")


@pytest.mark.parametrize("text, message", [
    ("import no_such_package", "importing it raised ModuleNotFoundError: No module named 'no_such_package'"),
    ("def", "importing it raised SyntaxError"),
    ("", r'no data sets in it: DATASETS = \{"my_train": MyDataset, ...\} is wanted, or a class DatasetCatalog'),
    ("DATASETS = [Blocks]", "no data sets in it"),
])
def test_module_with_mistakes(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as raised:
        catalog_names(file)
    assert str(raised.value).startswith(str(file))


@pytest.mark.parametrize("entry, message", [
    ("Blocks(3)", "is no class, no function without arguments, no dict of factory and args"),
    ("{'factory': 'Bricks'}", "its factory 'Bricks' is not in the module, whose classes are: BoxList, Blocks"),
    ("{'args': {}}", 'is not {"factory": a class or its name, "args": {...}}'),
    ("{'factory': Blocks, 'args': 3}", "is not {\"factory\""),
    ("{'factory': Blocks, 'args': {'size': 3}}", "making it raised TypeError: .*unexpected keyword argument 'size'"),
    ("object", r"object has no __getitem__, __len__, get_img_info; a data set has __getitem__\(idx\)"),
])
def test_entries_with_mistakes(tmp_path, entry, message):
    fails(write(tmp_path, f"DATASETS = {{'mine': {entry}}}"), message)


def test_unknown_name(tmp_path):
    file = write(tmp_path, "DATASETS = {'mine': Blocks, 'val': Blocks}")
    with pytest.raises(ValueError, match="no data set 'train'; there are mine, val"):
        read_custom("train", file)


# ---------------------------------------------------------------- classes


@pytest.mark.parametrize("attribute, names", [
    ("classes = ('red', 'blue')", ("red", "blue")),
    ("CLASSES = ['__background__', 'red', 'blue']", ("red", "blue")),
    ("map_class_id_to_name = {2: 'blue', 1: 'red'}", ("red", "blue")),
    ("def map_class_id_to_name(self, label): return ['-', 'red', 'blue', 'green'][label]", ("red", "blue")),
    ("", ("class 1", "class 2")),
])
def test_names_of_classes(tmp_path, attribute, names):
    body = HEADER.replace('classes = ["red", "blue"]', attribute)
    assert read_custom("mine", write(tmp_path, "DATASETS = {'mine': Blocks}", body)).categories.names == names


@pytest.mark.parametrize("attribute", ["classes = 'red'", "classes = 3", "map_class_id_to_name = {1: 'a', 3: 'b'}"])
def test_classes_with_mistakes(tmp_path, attribute):
    body = HEADER.replace('classes = ["red", "blue"]', attribute)
    fails(write(tmp_path, "DATASETS = {'mine': Blocks}", body), "its classes are .*a list of names is wanted")


def test_an_empty_set(tmp_path):
    file = write(tmp_path, "DATASETS = {'mine': lambda: Blocks(0)}", HEADER.replace("classes =", "_ ="))
    assert read(file) == []
    assert len(read_custom("mine", file).categories) == 0


# ---------------------------------------------------------------- what is read


def test_items_are_decoded_once(tmp_path):
    file = write(tmp_path, "made = Blocks()\nDATASETS = {'mine': lambda: made}")
    annotations = read_custom("mine", file)
    assert len(read(file)) == len(list(annotations.read_images(Problems("")))) == 3
    assert annotations.user_dataset._dataset.decoded == [0, 1, 2]


def test_ground_truth_alone_is_read_without_decoding(tmp_path):
    file = write(tmp_path, """
class Quick(Blocks):
    get_groundtruth = Blocks.boxes

    def get_img_info(self, idx):
        return {"height": np.int64(20), "width": np.int64(30)}

DATASETS = {"mine": Quick}
""")
    annotations = read_custom("mine", file)
    images = list(annotations.read_images(Problems("")))
    assert [image.file_name for image in images] == ["mine[0]", "mine[1]", "mine[2]"]
    assert [type(images[0].height), images[0].width] == [int, 30]
    assert len(images[2].objects) == 2
    assert annotations.user_dataset._dataset.decoded == []


FIELDS = """
class Fields(Blocks):
    def boxes(self, idx):
        boxes = BoxList([[1, 2, 10, 6], [20, 10, 5, 10]], (30, 20), mode="xywh")
        boxes.add_field("labels", [2, 1])
        boxes.add_field("difficult", np.array([0, 1]))
        boxes.add_field("is_crowd", np.array([True, False]))
        bitmaps = np.zeros((2, 20, 30), np.uint8)
        bitmaps[0, 2:8, 1:11] = 1
        bitmaps[1, 10:15, 20:25] = 1
        polygons = [[np.array([[1, 2], [11, 2], [11, 8]], np.float32)], None]
        boxes.add_field("masks", bitmaps if idx else polygons)
        return boxes

DATASETS = {"mine": Fields}
"""


def test_optional_fields(tmp_path):
    annotations = read_custom("mine", write(tmp_path, FIELDS))
    images = list(annotations.read_images(Problems("")))
    first, second = images[0].objects
    assert (first.bbox, second.bbox) == ([1, 2, 10, 6], [20, 10, 5, 10])
    assert (first.is_difficult, first.is_crowd, second.is_difficult, second.is_crowd) == (False, True, True, False)
    problems = Problems("")
    sound = sound_objects(images[0], annotations.categories, problems, with_masks=True)
    np.testing.assert_array_equal(sound[0].segmentation, [[[1, 2], [11, 2], [11, 8]]])
    assert sound[1].segmentation is None
    sound = sound_objects(images[1], annotations.categories, problems, with_masks=True)
    bitmap = mask_utils.decode(sound[1].segmentation)
    assert bitmap.sum() == 25 and bitmap[10:15, 20:25].all()
    assert not len(problems)


def test_records_name_the_set(tmp_path):
    annotations = read_custom("mine", write(tmp_path, FIELDS))
    dataset = to_dataset(annotations, annotations.categories, Problems(""))
    record = dataset.records[1]
    assert (record.source, record.image_id) == ("mine", 1)
    np.testing.assert_array_equal(record.labels, [2, 1])
    assert user_image(dataset.user_datasets["mine"], record.image_id).shape == (20, 30, 3)


def test_flawed_boxes_are_problems(tmp_path):
    boxes = '''
class Flawed(Blocks):
    def boxes(self, idx):
        boxes = BoxList([[1, 2, 11, 8], [5, 5, 5, 9], [9, 5, 3, 9], [np.nan, 1, 2, 3]], (30, 20))
        boxes.add_field("labels", np.ones(4))
        return boxes

DATASETS = {"mine": lambda: Flawed(1)}
'''
    annotations = read_custom("mine", write(tmp_path, boxes))
    problems = Problems(annotations.source)
    (record,) = to_dataset(annotations, annotations.categories, problems).records
    assert len(record) == 1
    assert [(problem.kind, problem.image_id, problem.annotation_id) for problem in problems] == [
        ("zero_area_box", 0, 2), ("negative_box", 0, 3), ("malformed_box", 0, 4)]
    assert {problem.file for problem in problems} == {annotations.source}


# ---------------------------------------------------------------- mistakes


def with_boxes(labels="[1]", size="(30, 20)", more=""):
    return f"""
class Wrong(Blocks):
    def boxes(self, idx):
        boxes = BoxList([[1, 2, 11, 8]], {size})
        {f'boxes.add_field("labels", np.array({labels}))' if labels else ''}
        {more}
        return boxes
"""


def with_method(method, value):
    return f"""
class Wrong(Blocks):
    def {method}(self, idx):
        return {value}
"""


INFO = "get_img_info gave .*: {\"height\": ..., \"width\": ...} in whole pixels is wanted"


@pytest.mark.parametrize("text, message", [
    (with_boxes("[0]"), "it has the label 0: 1..2 for red, blue are wanted, 0 is the background"),
    (with_boxes("[3]"), "it has the label 3: 1..2 for red, blue"),
    (with_boxes("[1.5]"), "it has the label 1.5"),
    (with_boxes("['red']"), "its field 'labels' is <U3 of shape .1,.: a number for each of 1 boxes is wanted"),
    (with_boxes("[[1]]"), "its field 'labels' is int64 of shape .1, 1."),
    (with_boxes(""), "its BoxList has no field 'labels'"),
    (with_boxes(size="(20, 30)"), r"of an image of \(20, 30\) .width, height., but get_img_info says \(30, 20\)"),
    (with_method("boxes", "[[1, 2, 3, 4]]"), "its boxes are a list: a BoxList of FasterRCNN.structures is wanted"),
    (with_method("boxes", "None"), "its boxes are a NoneType"),
    (with_method("boxes", "BoxList([1, 2, 3], (30, 20))"), "__getitem__ raised ValueError: boxes have the shape"),
    (with_method("__getitem__", "{'image': 1}"), r"__getitem__ gave dict: \(image, BoxList, idx\) is wanted"),
    (with_method("__getitem__", "(1,)"), "__getitem__ gave 1 values"),
    (with_method("__getitem__", "[][idx]"), "__getitem__ raised IndexError: list index out of range"),
    (with_method("get_groundtruth", "self.nothing"), "get_groundtruth raised AttributeError: .*no attribute 'nothing'"),
    (with_method("get_img_info", "None"), INFO),
    (with_method("get_img_info", "{'height': 20}"), INFO),
    (with_method("get_img_info", "{'height': 0, 'width': 30}"), INFO),
    (with_method("get_img_info", "{'height': '20', 'width': 30}"), INFO),
    (with_method("get_img_info", "1 / idx"), "get_img_info raised ZeroDivisionError"),
])
def test_mistakes_are_told_with_the_index(tmp_path, text, message):
    error = fails(write(tmp_path, text + "\nDATASETS = {'mine': Wrong}"), message)
    assert "mine[0]: " in str(error)
    assert (error.__cause__ is not None) == ("raised" in str(error))


def test_label_without_named_classes(tmp_path):
    body = HEADER.replace('classes = ["red", "blue"]', "")
    fails(write(tmp_path, with_boxes("[0]") + "\nDATASETS = {'mine': Wrong}", body), "label 0: whole numbers from 1")


# ---------------------------------------------------------------- images


class Pictures:
    def __init__(self, *images):
        self.images = images

    def __getitem__(self, idx):
        return self.images[idx], None, idx


RNG = np.random.default_rng(5)
BGR = RNG.integers(0, 256, (6, 9, 3), np.uint8)
GREY = RNG.integers(0, 256, (6, 9), np.uint8)
GREY_BGR = np.repeat(GREY[..., None], 3, axis=2)
RGB_PIL = Image.fromarray(np.ascontiguousarray(BGR[..., ::-1]))


@pytest.mark.parametrize("image, wanted", [
    (BGR, BGR),
    (BGR[::-1, ::-1], BGR[::-1, ::-1]),
    (np.dstack([BGR, GREY]), BGR),
    (GREY, GREY_BGR),
    (GREY[..., None], GREY_BGR),
    (GREY > 99, (GREY_BGR > 99) * np.uint8(255)),
    (RGB_PIL, BGR),
    (RGB_PIL.convert("RGBA"), BGR),
    (Image.fromarray(GREY), GREY_BGR),
    (Image.fromarray(GREY).convert("P"), GREY_BGR),
    (Image.fromarray(GREY > 99), (GREY_BGR > 99) * np.uint8(255)),
])
def test_images_become_bgr(image, wanted):
    got = user_image(Pictures(None, image), 1)
    assert got.dtype == np.uint8 and got.flags.c_contiguous
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("make", [
    lambda deep: deep, lambda deep: np.repeat(deep[..., None], 3, axis=2), lambda deep: Image.fromarray(deep)])
def test_more_than_8_bits_are_scaled_as_those_of_a_file(make, tmp_path):
    from FasterRCNN.imaging.read import read_image

    deep = (GREY.astype(np.uint16) + 1) * 13
    assert cv2.imwrite(str(tmp_path / "deep.png"), deep)
    np.testing.assert_array_equal(user_image(Pictures(make(deep)), 0), read_image(tmp_path / "deep.png"))


@pytest.mark.parametrize("image, got", [
    (np.zeros((3, 20, 30), np.float32), r"ndarray of shape \(3, 20, 30\), float32"),
    (np.zeros((20, 30, 3), np.float32), r"ndarray of shape \(20, 30, 3\), float32"),
    (np.zeros((3, 20, 30), np.uint8), r"ndarray of shape \(3, 20, 30\), uint8"),
    (np.zeros((0, 30, 3), np.uint8), r"ndarray of shape \(0, 30, 3\)"),
    (None, "NoneType"),
    ("a.jpg", "str"),
])
def test_images_that_are_none(image, got):
    with pytest.raises(ValueError, match=rf"Pictures\[0\]: its image is a {got}.* neither scaled nor made a tensor"):
        user_image(Pictures(image), 0)


def test_an_image_that_cannot_be_had_is_told_with_its_place(tmp_path):
    with pytest.raises(ValueError, match=r"Pictures\[1\]: __getitem__ raised IndexError"):
        user_image(Pictures(BGR), 1)
    text = with_method("__getitem__", "open('/nowhere/a.jpg')") + "    get_groundtruth = Blocks.boxes\n"
    file = write(tmp_path, text + "DATASETS = {'mine': Wrong}")
    dataset = read_custom("mine", file).user_dataset
    with pytest.raises(ValueError, match=r"my_datasets.py: mine\[2\]: __getitem__ raised FileNotFoundError") as raised:
        user_image(dataset, 2)
    assert isinstance(raised.value.__cause__, FileNotFoundError)


def test_items_whose_files_cannot_be_read_are_left_out_and_told(tmp_path):
    text = """
class Gappy(Blocks):
    def __getitem__(self, idx):
        if idx == 1:
            open("/nowhere/b.jpg")
        return super().__getitem__(idx)
"""
    annotations = read_custom("mine", write(tmp_path, text + "DATASETS = {'mine': Gappy}"))
    for _ in range(2):
        problems = Problems("mine")
        images = list(annotations.read_images(problems))
        assert [image.image_id for image in images] == [i for i in range(len(annotations.user_dataset)) if i != 1]
        (problem,) = problems
        assert (problem.kind, problem.image_id) == ("unreadable_image", 1)
        assert "mine[1]: __getitem__ raised FileNotFoundError" in problem.detail


def test_a_pil_image_is_loaded_late(tmp_path):
    """PIL opens lazily: a truncated file shows only when its pixels are wanted."""
    file = tmp_path / "a.png"
    Image.fromarray(RNG.integers(0, 256, (60, 60, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"Pictures\[0\]: loading its image raised OSError"):
        user_image(Pictures(Image.open(file)), 0)
