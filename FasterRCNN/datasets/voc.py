"""Reads Pascal VOC's format: an XML file an image, masks as PNG files of object numbers.

VOC's coordinates are whole pixels counted from 1, both ends inside: xmin..xmax covers xmin - 1 to xmax in continuous
coordinates. An object's annotation id is its number in its image, from 1, which is also its value in the mask file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from FasterRCNN.datasets.annotations import Annotations, RawImage, RawObject
from FasterRCNN.datasets.image_size import measured_size
from FasterRCNN.datasets.problems import Problems
from FasterRCNN.imaging.header import PILLOW_ERRORS
from FasterRCNN.imaging.read import IMAGE_SUFFIXES
from FasterRCNN.structures import Categories

__all__ = ["read_voc"]

BORDER = 255  # in mask files: between objects, or not to be counted

_ANNOTATION_FOLDERS = ("annotations",)
_IMAGE_FOLDERS = ("jpegimages", "images")
_MASK_MODES = ("1", "L", "P", "I", "I;16")


def read_voc(folder: str | Path, split: str = "", *, with_masks: bool = True) -> Annotations:
    """The set `split` of a VOC folder, see `_locate` for the layouts; masks are read where there are files of them.

    Classes are sorted by name and have the ids 1..K; they are those of all the folder's XML files, so that the splits
    agree. Raises FileNotFoundError or ValueError, saying what is there, for a folder or split that is not.
    """
    layout = _locate(Path(folder).expanduser(), split)
    names = _class_names(layout.all_annotations)
    return Annotations(
        name=layout.name,
        source=str(layout.annotation_folder),
        categories=Categories(names=names, ids=range(1, len(names) + 1)),
        read_images=lambda problems: _read_images(layout, names, problems, with_masks=with_masks),
        metric="voc",
    )


# ---------------------------------------------------------------- where things are


@dataclass(frozen=True)
class _Layout:
    """Where a set's files are. split_file: its list of images; None for all images of the folders."""

    name: str
    annotation_folder: Path
    image_folder: Path
    mask_folder: Path
    split_file: Path | None
    all_annotations: list[Path]


def _locate(folder: Path, split: str) -> _Layout:
    """The layout of `folder`, one of

    - Annotations, JPEGImages (or images) and ImageSets/Main/SPLIT.txt, or ImageSets/SPLIT.txt (Segmentation/train);
    - the same, or without ImageSets, for all images: the split "all" or "";
    - VOCdevkit, or its parent: folders of the first kind (VOC2007), SPLIT or, where there are several, YEAR_SPLIT;
    - XML files beside the images, or in the folder DIR/SPLIT.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; a VOC set is named voc:DIR:SPLIT. {_inside(folder.parent)}")
    if _annotation_folder(folder):
        return _annotated_folder(folder, folder, split)
    if split and _annotation_folder(folder / split):
        return _annotated_folder(folder / split, folder, "")
    if (folder / "VOCdevkit").is_dir():
        folder = folder / "VOCdevkit"
    parts = {part.name: part for part in _folders(folder) if _annotation_folder(part)}
    years = {name: part for name, part in parts.items() if _annotation_folder(part) != part}
    year, _, rest = split.partition("_")
    if f"VOC{year}" in years:
        return _annotated_folder(years[f"VOC{year}"], years[f"VOC{year}"], rest)
    if len(years) == 1:
        (only,) = years.values()
        return _annotated_folder(only, only, split)
    if years:
        choices = ", ".join(f"voc:{part}:{_splits(part)[0]}" for part in years.values())
        raise ValueError(f"{folder}: it holds several sets: name one of them, as {choices}")
    if parts:
        choices = ", ".join(f"voc:{folder}:{name}" for name in parts)
        raise FileNotFoundError(f"{folder}: no XML files in a folder {split!r} of it; there are {choices}")
    raise FileNotFoundError(
        f"{folder}: not a VOC folder: there are no XML files in it nor in a folder Annotations. {_inside(folder)}"
    )


def _annotated_folder(folder: Path, family: Path, split: str) -> _Layout:
    """family: the folder of which all XML files have a say in the classes."""
    annotations = _annotation_folder(folder)
    split_file = _split_file(folder, split)
    if split_file is None and split not in ("", "all"):
        raise FileNotFoundError(
            f"{folder}: no split {split!r}, for which ImageSets/Main/{split}.txt would list the images. "
            f"There are {', '.join(f'voc:{folder}:{name}' for name in _splits(folder))}"
        )
    folders = [annotations] if folder == family else [_annotation_folder(part) for part in _folders(family)]
    all_annotations = sorted(file for part in folders if part for file in part.rglob("*.xml"))
    base = folder.absolute().name if folder == family else f"{family.absolute().name}_{folder.name}"
    return _Layout(
        name=f"{base}_{split}" if split else base,
        annotation_folder=annotations,
        image_folder=_folder(folder, _IMAGE_FOLDERS) or annotations,
        mask_folder=folder / "SegmentationObject",
        split_file=split_file,
        all_annotations=all_annotations,
    )


def _annotation_folder(folder: Path) -> Path | None:
    """Where a folder's XML files are: in its Annotations or in itself."""
    annotations = _folder(folder, _ANNOTATION_FOLDERS)
    if annotations and any(annotations.rglob("*.xml")):
        return annotations
    return folder if any(folder.glob("*.xml")) else None


def _folder(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The folder inside that has one of these names, in any case of letters."""
    return next((part for name in names for part in _folders(folder) if part.name.lower() == name), None)


def _folders(folder: Path) -> list[Path]:
    return sorted(part for part in folder.iterdir() if part.is_dir()) if folder.is_dir() else []


def _split_file(folder: Path, split: str) -> Path | None:
    files = [folder / "ImageSets" / part / f"{split}.txt" for part in ("Main", "")]
    return next((file for file in files if split and file.is_file()), None)


def _splits(folder: Path) -> list[str]:
    """What can be named as a folder's split; the files of one class (cat_train beside train) are not told."""
    files = sorted((folder / "ImageSets").rglob("*.txt"))
    names = [file.relative_to(folder / "ImageSets").with_suffix("").as_posix().removeprefix("Main/") for file in files]
    return [name for name in names if name.rpartition("_")[2] not in names or "_" not in name] or ["all"]


def _inside(folder: Path) -> str:
    names = [f"{part.name}/" if part.is_dir() else part.name for part in sorted(folder.iterdir())[:20]] if (
        folder.is_dir()) else []
    return f"{folder} holds {', '.join(names)}" if names else f"{folder} is empty or not there"


# ---------------------------------------------------------------- images


def _read_images(
    layout: _Layout, names: tuple[str, ...], problems: Problems, *, with_masks: bool
) -> Iterator[RawImage]:
    category_ids = {name: category_id for category_id, name in enumerate(names, start=1)}
    photos = _Photos(layout.image_folder)
    for image_id in _image_ids(layout, problems):
        file = layout.annotation_folder / f"{image_id}.xml"
        note = partial(problems.add, file=str(file), image_id=image_id)
        try:
            root = _parse(file)
        except FileNotFoundError:
            note("missing_annotation")
            continue
        except ValueError as error:
            note("unreadable_annotation", detail=str(error))
            photos.find(image_id, "", note)  # it has its annotation file
            continue
        photo = photos.find(image_id, _text(root, "filename"), note)
        size = _annotated_size(root.find("size")) or measured_size(photo, note)
        if size is None:
            continue
        objects = [_object(entry, number, category_ids) for number, entry in enumerate(root.iterfind("object"), 1)]
        width, height = size
        if with_masks:
            _add_masks(objects, layout.mask_folder / f"{image_id}.png", (height, width), note)
        yield RawImage(image_id, str(photo), height, width, objects, annotation_file=str(file))
    if layout.split_file is None:
        for photo in photos.unused():
            problems.add("missing_annotation", file=str(photo), detail="no XML file is of this image")


def _image_ids(layout: _Layout, problems: Problems) -> Iterator[str]:
    """The images of the set: paths inside the folders, without suffix."""
    folder = layout.annotation_folder
    if layout.split_file is None:
        yield from (file.relative_to(folder).with_suffix("").as_posix() for file in sorted(folder.rglob("*.xml")))
        return
    found = set()
    for line in layout.split_file.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        image_id = _image_id(line, folder)
        if image_id in found:
            problems.add("image_id", file=str(layout.split_file), image_id=image_id)
        elif image_id:
            found.add(image_id)
            yield image_id


def _image_id(line: str, annotation_folder: Path) -> str:
    """The image that a line of a split's file names.

    The files of one class (cat_train.txt) list all images of the split, and say in a second column whether the class is
    in them (1), is not (-1) or only as difficult ones (0). That column is passed over: the set is the whole split.
    """
    name, *column = line.strip().rsplit(maxsplit=1) or [""]
    is_flagged = column and column[0] in ("1", "-1", "0") and not (annotation_folder / f"{line.strip()}.xml").is_file()
    return _without_suffix(name if is_flagged else line.strip(), (*IMAGE_SUFFIXES, ".xml"))


class _Photos:
    """Finds the images of annotation files; each folder is listed once."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._listed: dict[Path, dict[str, list[str]]] = {}
        self._used: set[Path] = set()

    def find(self, image_id: str, annotated: str, note: Callable) -> Path:
        """The image named like the annotation file, else the one that the file names, else where it should be.

        annotated: the file's <filename>; some tools write a path there, or leave the suffix out.
        """
        folder, stem = (self._folder / image_id).parent, Path(image_id).name
        annotated = annotated.replace("\\", "/").rpartition("/")[2]
        for wanted in (stem, _without_suffix(annotated, IMAGE_SUFFIXES)):
            candidates = self._names(folder).get(wanted.lower())
            if candidates:
                name = min(candidates, key=lambda name: (name != annotated, not name.startswith(wanted), name))
                if annotated not in ("", name, _without_suffix(name, IMAGE_SUFFIXES)):
                    note("image_name", detail=f"<filename> is {annotated!r}, the image {name!r}")
                self._used.add(folder / name)
                return folder / name
        return folder / (annotated if annotated.lower().endswith(IMAGE_SUFFIXES) else f"{stem}.jpg")

    def unused(self) -> list[Path]:
        """The images, in the folders where some were found, that none of the annotation files is of."""
        images = {folder / name for folder in self._listed for names in self._names(folder).values() for name in names}
        return sorted(images - self._used)

    def _names(self, folder: Path) -> dict[str, list[str]]:
        """The names of a folder's images by what comes before the suffix, in small letters."""
        if folder not in self._listed:
            by_stem = self._listed[folder] = {}
            for file in folder.iterdir() if folder.is_dir() else ():
                if file.name.lower().endswith(IMAGE_SUFFIXES):
                    by_stem.setdefault(_without_suffix(file.name, IMAGE_SUFFIXES).lower(), []).append(file.name)
        return self._listed[folder]


def _without_suffix(name: str, suffixes: tuple[str, ...]) -> str:
    suffix = next((suffix for suffix in suffixes if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def _annotated_size(entry: Element | None) -> tuple[int, int] | None:
    """(width, height); None where there is none."""
    try:
        width, height = (int(float(_text(entry, key))) for key in ("width", "height"))
    except (ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None


# ---------------------------------------------------------------- XML


def _class_names(files: list[Path]) -> tuple[str, ...]:
    names = set()
    for file in files:
        try:
            names |= {_text(entry, "name") for entry in _parse(file).iterfind("object")}
        except ValueError:  # told by _read_images when the file is of the split
            continue
    names.discard("")
    return tuple(sorted(names))


def _parse(file: Path) -> Element:
    """The root of an annotation file; FileNotFoundError, or ValueError for one that is broken or declares entities.

    Entities that are made of entities can fill the memory, and no labelling tool writes any.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = _refuse_entity
    try:
        data = file.read_bytes()
        parser.Parse(data, True)
        root = builder.close()
    except FileNotFoundError:
        raise
    except expat.ExpatError as error:
        raise ValueError(_with_advice(f"line {error.lineno}: {expat.ErrorString(error.code)}", data)) from None
    except (LookupError, ValueError) as error:  # of encodings that Python does not know, or expat cannot read
        raise ValueError(_with_advice(str(error), data)) from None
    except OSError as error:
        raise ValueError(str(error)) from None
    if root.tag != "annotation":
        raise ValueError(f"line 1: the root element is <{root.tag}>, not <annotation>")
    return root


def _with_advice(message: str, data: bytes) -> str:
    """The parser's message, with the way out where the encoding is what is wrong."""
    if "invalid token" in message:
        try:
            data.decode()
        except UnicodeDecodeError:
            return f"{message}: it is not UTF-8; save it as UTF-8"
    return f"{message}; save it as UTF-8" if "encoding" in message else message


def _refuse_entity(name: str, *_: object) -> None:
    raise ValueError(f"it declares the entity {name!r}, which is refused")


def _text(entry: Element | None, key: str) -> str:
    """The text of an element inside; "" where there is none."""
    return ("" if entry is None else entry.findtext(key, "")).strip()


# ---------------------------------------------------------------- objects


def _object(entry: Element, number: int, category_ids: dict[str, int]) -> RawObject:
    return RawObject(
        annotation_id=number,
        category_id=category_ids.get(_text(entry, "name")),
        bbox=_bbox(entry.find("bndbox")),
        is_difficult=_text(entry, "difficult") == "1",
    )


def _bbox(entry: Element | None) -> object:
    """x, y, width, height in continuous coordinates; the texts where they are no numbers.

    Both ends are inside, so that xmin = xmax could be a box of one pixel. It is a slip of the mouse instead: a box
    without area, as one whose ends are exchanged is a negative one.
    """
    texts = {key: _text(entry, key) for key in ("xmin", "ymin", "xmax", "ymax")}
    try:
        xmin, ymin, xmax, ymax = (float(text) for text in texts.values())
    except ValueError:
        return texts
    return [xmin - 1, ymin - 1, xmax - xmin + (xmax > xmin), ymax - ymin + (ymax > ymin)]


def _add_masks(objects: list[RawObject], file: Path, shape: tuple[int, int], note: Callable) -> None:
    """Gives each object the pixels that hold its number in the mask file; none of them, none to it."""
    if not file.is_file():
        return
    try:
        with Image.open(file) as image:
            if image.mode not in _MASK_MODES:
                raise ValueError(f"its pixels are {image.mode} colours, not object numbers")
            numbers = np.asarray(image)
            if numbers.shape != shape:
                raise ValueError(f"it is {image.width} x {image.height}, its image {shape[1]} x {shape[0]}")
    except PILLOW_ERRORS as error:
        return note("mask_file", file=str(file), detail=str(error))
    present = set(np.unique(numbers).tolist()) - {0, BORDER}
    for number in sorted(present):
        if number <= len(objects):
            objects[number - 1].segmentation = mask_utils.encode(np.asfortranarray(numbers == number, np.uint8))
        else:
            note("mask_object", annotation_id=number, detail=f"{file.name} numbers it, among {len(objects)} annotated")
