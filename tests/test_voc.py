"""Pascal VOC's layouts, boxes, masks and the flaws of its files."""

import logging

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from FasterRCNN.datasets.annotations import sound_objects, to_dataset
from FasterRCNN.datasets.problems import KINDS, Problems
from FasterRCNN.datasets.voc import read_voc

WIDTH, HEIGHT = 40, 30
BOX = (3, 5, 12, 20)
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"


def object_xml(name="cell", box=BOX, extra=""):
    corners = "".join(f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def annotation_xml(*objects, filename="", size=SIZE):
    return f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"


def draw(file, height=HEIGHT, width=WIDTH):
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), np.full((height, width, 3), 90, np.uint8))


def write(folder, stem, *objects, images="JPEGImages", annotations="Annotations", suffix=".jpg", **rest):
    """An annotated image; returns its XML file."""
    draw(folder / images / f"{stem}{suffix}")
    file = folder / annotations / f"{stem}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(annotation_xml(*(objects or [object_xml()]), **{"filename": f"{stem}{suffix}", **rest}))
    return file


def write_split(folder, name, lines):
    file = folder / "ImageSets" / "Main" / f"{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def folder(tmp_path):
    """Three images, a and b in train, c in val."""
    made = tmp_path / "cells"
    for stem in "abc":
        write(made, stem)
    write_split(made, "train", ["a", "b"])
    write_split(made, "val", ["c"])
    return made


def read(folder, split="all"):
    """The images and what is wrong with them and their objects."""
    annotations = read_voc(folder, split)
    problems = Problems(annotations.source)
    images = list(annotations.read_images(problems))
    for image in images:
        sound_objects(image, annotations.categories, problems, with_masks=True)
    return images, list(problems)


def image_ids(folder, split):
    return [image.image_id for image in read(folder, split)[0]]


# ---------------------------------------------------------------- layouts


def test_a_split_is_read_in_its_order(folder):
    write_split(folder, "train", ["b", "", "a"])
    annotations = read_voc(folder, "train")
    assert (annotations.name, annotations.metric, annotations.has_truth) == ("cells_train", "voc", True)
    assert (annotations.categories.names, annotations.categories.ids) == (("cell",), (1,))
    b, a = annotations.read_images(Problems(""))
    assert (b.image_id, b.file_name, b.height, b.width) == ("b", str(folder / "JPEGImages/b.jpg"), HEIGHT, WIDTH)
    assert a.image_id == "a"
    assert [image.image_id for image in annotations.read_images(Problems(""))] == ["b", "a"]  # anew at each call


def test_an_empty_split_has_no_images(folder):
    write_split(folder, "none", [])
    assert read(folder, "none") == ([], [])


@pytest.mark.parametrize("split", ["", "all"])
def test_all_images_need_no_list(folder, split):
    assert image_ids(folder, split) == ["a", "b", "c"]


def test_the_second_column_of_class_files_is_passed_over(folder):
    write(folder, "a 1")
    write_split(folder, "cell_train", ["a  1", "b -1", "c\t0", "a 1"])
    assert image_ids(folder, "cell_train") == ["a", "b", "c", "a 1"]  # the last is the name of a file


def test_lines_may_have_suffixes(folder):
    write_split(folder, "train", ["a.jpg", "b.JPG", "c.xml"])
    assert image_ids(folder, "train") == ["a", "b", "c"]


def test_other_lists_than_main(folder):
    for name in ("Segmentation/train", "own"):
        file = folder / "ImageSets" / f"{name}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text("b\n")
        assert image_ids(folder, name) == ["b"]


@pytest.mark.parametrize("above", ["", "VOCdevkit"])
def test_devkit(tmp_path, above):
    devkit = tmp_path / above
    for year in (2007, 2012):
        write(devkit / f"VOC{year}", f"{year}_000001", object_xml("dog"))
        write_split(devkit / f"VOC{year}", "trainval", [f"{year}_000001"])
        if year == 2007:
            assert image_ids(tmp_path, "trainval") == ["2007_000001"]  # the only one
    assert image_ids(tmp_path, "2012_trainval") == ["2012_000001"]
    assert image_ids(devkit, "2007_trainval") == ["2007_000001"]
    assert image_ids(devkit / "VOC2012", "trainval") == ["2012_000001"]
    assert read_voc(tmp_path, "2007_trainval").name == "VOC2007_trainval"
    with pytest.raises(ValueError, match="several sets: name one of them, as voc:.*VOC2007:trainval, voc:.*VOC2012:tr"):
        read_voc(tmp_path, "trainval")


def test_folders_of_xml_beside_images(tmp_path):
    for part, name in (("train", "cat"), ("valid", "zebra")):
        write(tmp_path / "export", f"{part}_jpg.rf.1a", object_xml(name), images=part, annotations=part)
    annotations = read_voc(tmp_path / "export", "valid")
    assert annotations.name == "export_valid"
    assert annotations.categories.names == ("cat", "zebra")  # those of train too
    assert image_ids(tmp_path / "export", "train") == ["train_jpg.rf.1a"]
    assert image_ids(tmp_path / "export" / "valid", "") == ["valid_jpg.rf.1a"]
    with pytest.raises(FileNotFoundError, match="no XML files in a folder 'test' of it; there are voc:.*:train, voc:"):
        read_voc(tmp_path / "export", "test")


def test_other_names_of_folders(tmp_path):
    write(tmp_path, "a", images="images", annotations="annotations", suffix=".png")
    (image,), problems = read(tmp_path, "all")
    assert image.file_name == str(tmp_path / "images" / "a.png")
    assert not problems


def test_folders_inside_folders(folder):
    write(folder, "more/d")
    assert image_ids(folder, "all") == ["a", "b", "c", "more/d"]


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder; a VOC set is named voc:DIR:SPLIT"):
        read_voc(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match="no XML files in it nor in a folder Annotations.* is empty"):
        read_voc(tmp_path, "train")
    draw(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match="holds a.jpg"):
        read_voc(tmp_path, "train")


def test_missing_split_tells_the_splits_without_those_of_one_class(folder):
    write_split(folder, "cell_train", ["a 1"])
    with pytest.raises(FileNotFoundError, match="no split 'tran'.*There are voc:.*cells:train, voc:.*cells:val$"):
        read_voc(folder, "tran")


def test_missing_split_without_image_sets(tmp_path):
    write(tmp_path, "a")
    with pytest.raises(FileNotFoundError, match=f"no split 'train'.*There are voc:{tmp_path}:all"):
        read_voc(tmp_path, "train")


# ---------------------------------------------------------------- classes


def test_classes_are_those_of_all_files(folder):
    write(folder, "c", object_xml("Zelle"), object_xml(" anther "))
    assert read_voc(folder, "train").categories.names == ("Zelle", "anther", "cell")


def test_parts_of_an_object_are_no_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    write(tmp_path, "a", object_xml(extra=part))
    (image,), _ = read(tmp_path)
    assert [entry.bbox for entry in image.objects] == [[2, 4, 10, 16]]
    assert read_voc(tmp_path).categories.names == ("cell",)


def test_no_objects_at_all(tmp_path):
    write(tmp_path, "a", "")
    assert len(read_voc(tmp_path).categories) == 0
    (image,), problems = read(tmp_path)
    assert image.objects == [] and not problems


# ---------------------------------------------------------------- boxes


def test_a_box_covers_the_pixels_of_both_ends(tmp_path):
    """Painted as VOC says, in pixels from 1 with both ends inside, and measured in the picture."""
    file = write(tmp_path, "a")
    xmin, ymin, xmax, ymax = BOX
    picture = np.zeros((HEIGHT, WIDTH), np.uint8)
    for y in range(ymin, ymax + 1):
        for x in range(xmin, xmax + 1):
            picture[y - 1, x - 1] = 1
    (image,), problems = read(tmp_path)
    assert tuple(image.objects[0].bbox) == cv2.boundingRect(picture)
    assert image.annotation_file == str(file) and not problems


def test_fractions_and_flags(tmp_path):
    write(tmp_path, "a", object_xml(box=(1.5, "2", "10.25", " 20 "), extra="<difficult>1</difficult>"), object_xml())
    (image,), problems = read(tmp_path)
    assert image.objects[0].bbox == [0.5, 1, 9.75, 19]
    assert [entry.is_difficult for entry in image.objects] == [True, False]
    assert [entry.annotation_id for entry in image.objects] == [1, 2]
    assert not problems


def test_boxes_counted_from_zero_are_cut_silently(tmp_path):
    write(tmp_path, "a", object_xml(box=(0, 0, WIDTH, HEIGHT)))
    annotations = read_voc(tmp_path)
    problems = Problems("")
    dataset = to_dataset(annotations, annotations.categories, problems)
    np.testing.assert_array_equal(dataset.records[0].boxes, [[0, 0, WIDTH, HEIGHT]])
    assert not list(problems)


@pytest.mark.parametrize("box, kind, detail", [
    ((5, 5, 5, 20), "zero_area_box", "[4, 4, 0, 16]"),
    ((5, 20, 9, 20), "zero_area_box", "[4, 19, 5, 0]"),
    ((9, 5, 5, 20), "negative_box", "[8, 4, -4, 16]"),
    (("a", 5, 5, 20), "malformed_box", "'xmin': 'a'"),
    (("nan", 5, 5, 20), "malformed_box", "nan"),
    ((5, 5, 20), "malformed_box", "'ymax': ''"),
    ((), "malformed_box", "'xmin': ''"),
    ((50, 5, 60, 20), "box_outside", "image 40 x 30"),
    ((5, 5, 60, 20), "box_beyond", "20 pixels beyond"),
])
def test_flawed_boxes_are_told_with_their_file(tmp_path, box, kind, detail):
    file = write(tmp_path, "a", object_xml(), object_xml(box=box))
    _, (problem,) = read(tmp_path)
    assert (problem.kind, problem.file, problem.image_id, problem.annotation_id) == (kind, str(file), "a", 2)
    assert detail in problem.detail


def test_object_without_box_or_name(tmp_path):
    write(tmp_path, "a", "<object><name>cell</name></object>", "<object><bndbox/></object>")
    _, problems = read(tmp_path)
    assert [problem.kind for problem in problems] == ["malformed_box", "unknown_category"]
    assert problems[1].detail == "no class is named"


# ---------------------------------------------------------------- files


def kinds(problems):
    return [problem.kind for problem in problems]


def test_missing_and_broken_annotations(folder):
    write_split(folder, "train", ["a", "ghost", "b", "a"])
    (folder / "Annotations" / "b.xml").write_text("<annotation>\n<object>\n</annotation>")
    images, problems = read(folder, "train")
    assert [image.image_id for image in images] == ["a"]
    assert [(problem.kind, problem.image_id) for problem in problems] == [
        ("missing_annotation", "ghost"), ("unreadable_annotation", "b"), ("image_id", "a")]
    assert problems[0].file == str(folder / "Annotations" / "ghost.xml")
    assert problems[1].detail == "line 3: mismatched tag"


@pytest.mark.parametrize("content, detail", [
    (b"", "line 1: no element found"),
    (b"<notes/>", "line 1: the root element is <notes>, not <annotation>"),
    (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "unknown encoding: klingon; save it as UTF-8"),
    (b'<?xml version="1.0" encoding="gbk"?><annotation/>', "not supported; save it as UTF-8"),
    ("<annotation><folder>M\xfcnchen</folder></annotation>".encode("latin-1"), "it is not UTF-8; save it as UTF-8"),
    (b'<!DOCTYPE a [<!ENTITY x "boo"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>', "declares the entity 'x'"),
    (b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]><annotation>&x;</annotation>', "declares the entity"),
    (b'<!DOCTYPE a [<!ENTITY % p "boo"> %p;]><annotation/>', "declares the entity 'p'"),
    ('<!DOCTYPE a [<!ENTITY x "boo">]><annotation/>'.encode("utf-16"), "declares the entity 'x'"),
], ids=[
    "empty", "another root", "encoding", "multi-byte encoding", "not UTF-8", "entities of entities", "external",
    "parameter", "utf-16",
])
def test_unreadable_annotations(folder, content, detail):
    (folder / "Annotations" / "b.xml").write_bytes(content)
    images, (problem,) = read(folder)
    assert [image.image_id for image in images] == ["a", "c"]
    assert problem.kind == "unreadable_annotation"
    assert detail in problem.detail


def test_images_without_annotation_are_told_where_all_are_wanted(folder):
    draw(folder / "JPEGImages" / "d.png")
    _, (problem,) = read(folder, "all")
    assert (problem.kind, problem.file) == ("missing_annotation", str(folder / "JPEGImages" / "d.png"))
    assert not read(folder, "train")[1]


@pytest.mark.parametrize("filename, image, found, expected", [
    ("a.jpg", "a.jpg", "a.jpg", []),
    ("a", "a.JPG", "a.JPG", []),
    ("", "a.Png", "a.Png", []),
    ("C:\\photos\\a.jpg", "a.jpg", "a.jpg", []),
    ("photo.bmp", "photo.bmp", "photo.bmp", []),
    ("photo", "photo.bmp", "photo.bmp", []),
    ("b.gif", "b.gif", "b.gif", []),
    ("b.jpg", "a.jpg", "a.jpg", ["image_name"]),
    ("a.png", "a.jpg", "a.jpg", ["image_name"]),
    ("A.jpg", "A.jpg", "A.jpg", []),
    ("gone.png", "other.jpg", "gone.png", ["missing_annotation"]),  # other.jpg; a decoder will miss gone.png
    ("", "other.jpg", "a.jpg", ["missing_annotation"]),
])
def test_how_images_are_found(tmp_path, filename, image, found, expected):
    write(tmp_path, "a", filename=filename)
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    draw(tmp_path / "JPEGImages" / image)
    (read_image,), problems = read(tmp_path)
    assert read_image.file_name == str(tmp_path / "JPEGImages" / found)
    assert kinds(problems) == expected


def test_the_image_named_like_the_annotation_is_taken(folder):
    """Not the one of its <filename>, which a tool may have left as it was."""
    write(folder, "a", filename="b.jpg")
    images, (problem,) = read(folder, "train")
    assert images[0].file_name == str(folder / "JPEGImages" / "a.jpg")
    assert (problem.kind, problem.image_id) == ("image_name", "a")
    assert problem.detail == "<filename> is 'b.jpg', the image 'a.jpg'"


def test_of_two_images_the_annotated_one_is_taken(tmp_path):
    write(tmp_path, "a", suffix=".png")
    draw(tmp_path / "JPEGImages" / "a.jpg")
    images, _ = read(tmp_path)
    assert images[0].file_name == str(tmp_path / "JPEGImages" / "a.png")


@pytest.mark.parametrize("size", [
    "",
    "<size/>",
    "<size><width>0</width><height>0</height></size>",
    "<size><width>x</width><height>3</height></size>",
])
def test_size_is_read_from_the_image_where_none_is_annotated(tmp_path, size):
    file = write(tmp_path, "a", size=size)
    (image,), (problem,) = read(tmp_path)
    assert (image.height, image.width) == (HEIGHT, WIDTH)
    assert (problem.kind, problem.file) == ("no_size", str(file))
    assert not KINDS["no_size"].is_error


def test_size_is_that_of_the_turned_photo(tmp_path):
    write(tmp_path, "a", size="")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "JPEGImages" / "a.jpg", exif=exif)
    (image,), _ = read(tmp_path)
    assert (image.height, image.width) == (WIDTH, HEIGHT)
    assert cv2.imread(image.file_name).shape[:2] == (WIDTH, HEIGHT)


@pytest.mark.parametrize("content, kind", [
    (None, "missing_image"), (b"", "empty_image"), (b"an image", "unreadable_image")])
def test_no_size_anywhere(tmp_path, content, kind):
    write(tmp_path, "a", size="")
    photo = tmp_path / "JPEGImages" / "a.jpg"
    photo.unlink() if content is None else photo.write_bytes(content)
    images, (problem,) = read(tmp_path)
    assert not images
    assert (problem.kind, problem.file, problem.image_id) == (kind, str(photo), "a")


# ---------------------------------------------------------------- masks


def object_numbers():
    numbers = np.zeros((HEIGHT, WIDTH), np.uint8)
    numbers[4:20, 2:12] = 1
    numbers[10:25, 20:38] = 2
    numbers[3, 2:12] = 255
    return numbers


def save_palette(file, numbers, bits=8):
    file.parent.mkdir(exist_ok=True)
    picture = Image.fromarray(numbers).convert("P")
    picture.putpalette([value for n in range(256) for value in (128 * (n & 1), 64 * (n & 2), 255 - n)])
    picture.putdata(numbers.ravel().tolist())
    picture.save(file, bits=bits)


@pytest.mark.parametrize("form", ["palette", "palette of 2 bits", "grey", "grey of 16 bits"])
def test_masks_are_the_pixels_of_an_objects_number(tmp_path, form):
    write(tmp_path, "a", object_xml(), object_xml(box=(21, 11, 38, 25)), object_xml(box=(1, 1, 3, 3)))
    write(tmp_path, "b")
    numbers, file = object_numbers(), tmp_path / "SegmentationObject" / "a.png"
    file.parent.mkdir()
    if form.startswith("grey"):
        cv2.imwrite(str(file), numbers.astype(np.uint16 if "16" in form else np.uint8))
    else:
        numbers[numbers == 255] *= "2" not in form
        save_palette(file, numbers, bits=2 if "2" in form else 8)
    (image, unmasked), problems = read(tmp_path)
    for number, entry in enumerate(image.objects[:2], start=1):
        np.testing.assert_array_equal(mask_utils.decode(entry.segmentation), numbers == number)
        assert mask_utils.toBbox(entry.segmentation).tolist() == entry.bbox
    assert [entry.segmentation for entry in (*image.objects[2:], *unmasked.objects)] == [None, None]
    assert not problems


def test_masks_reach_the_records(tmp_path):
    write(tmp_path, "a", object_xml(), object_xml(box=(21, 11, 38, 25)))
    save_palette(tmp_path / "SegmentationObject" / "a.png", object_numbers())
    annotations = read_voc(tmp_path)
    record = to_dataset(annotations, annotations.categories, Problems(""), masks_required=True).records[0]
    assert (mask_utils.decode(record.segmentations) == (object_numbers()[..., None] == (1, 2))).all()
    (image,) = read_voc(tmp_path, with_masks=False).read_images(Problems(""))
    assert [entry.segmentation for entry in image.objects] == [None, None]


def test_mask_of_an_object_that_is_not_annotated(tmp_path):
    file = write(tmp_path, "a")
    save_palette(tmp_path / "SegmentationObject" / "a.png", object_numbers())
    _, (problem,) = read(tmp_path)
    assert (problem.kind, problem.file, problem.annotation_id) == ("mask_object", str(file), 2)
    assert "a.png" in problem.detail


def test_mask_of_another_size(tmp_path):
    write(tmp_path, "a")
    save_palette(tmp_path / "SegmentationObject" / "a.png", np.ones((HEIGHT, WIDTH + 1), np.uint8))
    _, (problem,) = read(tmp_path)
    assert problem.kind == "mask_file" and f"it is {WIDTH + 1} x {HEIGHT}" in problem.detail


@pytest.mark.parametrize("content, detail", [("colours", "RGB colours, not object numbers"), ("cut", ""), ("none", "")])
def test_unreadable_masks(tmp_path, content, detail):
    write(tmp_path, "a")
    file = tmp_path / "SegmentationObject" / "a.png"
    draw(file)
    if content != "colours":
        save_palette(file, np.random.default_rng(0).integers(0, 2, (HEIGHT, WIDTH)).astype(np.uint8))
        file.write_bytes(file.read_bytes()[:-40] if content == "cut" else b"")
    (image,), (problem,) = read(tmp_path)
    assert (problem.kind, problem.file) == ("mask_file", str(file))
    assert detail in problem.detail
    assert image.objects[0].segmentation is None


def test_what_is_left_out_is_counted(tmp_path, caplog):
    write(tmp_path, "a", object_xml(), object_xml(box=(5, 5, 5, 9)))
    annotations = read_voc(tmp_path)
    problems = Problems(annotations.source)
    dataset = to_dataset(annotations, annotations.categories, problems)
    with caplog.at_level(logging.WARNING):
        problems.settle()
    assert len(dataset.records[0]) == 1
    assert "1 x box without area" in caplog.text
