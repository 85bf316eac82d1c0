"""Users' own data sets: Python classes in a module of theirs, in the form that maskrcnn-benchmark gave them.

A data set has `dataset[idx]` -> (image, BoxList, idx), `len(dataset)` and `get_img_info(idx)` -> {"height", "width"} in
pixels, perhaps with "file_name". The BoxList is in the image's pixels and has the field "labels" (1..K), perhaps also
"masks", "difficult" and "is_crowd". The data set may have `get_groundtruth(idx)` -> BoxList, so that no image is
decoded for its boxes, and the names of its classes as `classes`, `CLASSES` or `map_class_id_to_name`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from FasterRCNN.datasets.annotations import Annotations, RawImage, RawObject
from FasterRCNN.datasets.problems import Problems
from FasterRCNN.imaging.read import to_8_bits
from FasterRCNN.structures import BoxList, Categories

__all__ = ["UserDataset", "catalog_entry", "catalog_names", "read_custom", "user_image"]

BACKGROUND = "__background__"  # the first class name where labels are indices into the names


def read_custom(name: str, catalog_file: str | Path) -> Annotations:
    """The data set `name` of the user's module `catalog_file`, its classes with the ids 1..K of their labels.

    An image's id is its index, an object's id its number in the image, from 1. Raises FileNotFoundError for a missing
    module, ValueError for one that is not as it should be and, there and in reading the images, for every mistake of
    the user's code: with the module, the set, the index, what was got and what is wanted.
    """
    dataset = _user_dataset(name, str(catalog_file))
    names = dataset.class_names or _names_up_to(dataset)
    return Annotations(
        name=name,
        source=f"{catalog_file}: {name}",
        categories=Categories(names=names, ids=range(1, len(names) + 1)),
        read_images=dataset.images,
        user_dataset=dataset,
    )


def catalog_names(catalog_file: str | Path) -> list[str]:
    """The names of the data sets in the user's module; raises what `read_custom` does for the module."""
    return list(_entries(str(catalog_file)))


def catalog_entry(name: str, catalog_file: str | Path) -> tuple[Any, dict[str, Any]]:
    """(factory, arguments) of a data set in the user's module; a factory given by its name is the module's, if there.

    Raises what `read_custom` does for the module and the entry.
    """
    entries, place = _entries(str(catalog_file)), f"{catalog_file}: {name}"
    if name not in entries:
        raise ValueError(f"{catalog_file}: no data set {name!r}; there are {', '.join(entries) or 'none'}")
    entry, args = _guarded(place, "finding it", entries[name]), {}
    if isinstance(entry, Mapping):
        if "factory" not in entry or not isinstance(entry.get("args", {}), Mapping):
            raise ValueError(f'{place}: {dict(entry)!r} is not {{"factory": a class or its name, "args": {{...}}}}')
        entry, args = entry["factory"], entry.get("args", {})
    if isinstance(entry, str):
        entry = vars(_import(str(catalog_file))).get(entry, entry)
    return entry, dict(args)


# ---------------------------------------------------------------- the module


def _entries(catalog_file: str) -> dict[str, Callable[[], Any]]:
    """By name, what gives the entry of a data set: a class, a function, or a dict of "factory" and "args"."""
    module = _import(catalog_file)
    datasets, catalog = getattr(module, "DATASETS", None), getattr(module, "DatasetCatalog", None)
    if isinstance(datasets, Mapping):
        return {str(name): lambda entry=entry: entry for name, entry in datasets.items()}
    if hasattr(catalog, "get") and hasattr(catalog, "DATASETS"):
        return {str(name): lambda name=name: catalog.get(name) for name in catalog.DATASETS}
    raise ValueError(
        f'{catalog_file}: no data sets in it: DATASETS = {{"my_train": MyDataset, ...}} is wanted, or a class '
        "DatasetCatalog with DATASETS and get(name)"
    )


@cache
def _import(catalog_file: str) -> ModuleType:
    """The user's own code, which runs because DATA.CATALOG names it."""
    path = Path(catalog_file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{catalog_file}: no such file; DATA.CATALOG names a Python module with data sets")
    name = f"user_catalog_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise ValueError(f"{catalog_file}: not a Python module; DATA.CATALOG names one, my_datasets.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # data classes look their module up while they are made
    if str(path.parent.absolute()) not in sys.path:
        sys.path.append(str(path.parent.absolute()))  # last, so that modules beside it hide none of ours
    _guarded(catalog_file, "importing it", spec.loader.exec_module, module)
    return module


@cache
def _user_dataset(name: str, catalog_file: str) -> UserDataset:
    (factory, args), place = catalog_entry(name, catalog_file), f"{catalog_file}: {name}"
    if isinstance(factory, str):
        members = vars(_import(catalog_file))
        classes = ", ".join(key for key, member in members.items() if isinstance(member, type))
        raise ValueError(f"{place}: its factory {factory!r} is not in the module, whose classes are: {classes}")
    if not callable(factory):
        raise ValueError(
            f"{place}: {factory!r} is no class, no function without arguments, no dict of factory and args"
        )
    return UserDataset(name, catalog_file, _guarded(place, "making it", factory, **args))


def _guarded(place: str, what: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
    """What the user's function gives; ValueError with the place for whatever it raises."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise ValueError(f"{place}: {what} raised {type(error).__name__}: {error}") from error


# ---------------------------------------------------------------- the data set


class UserDataset:
    """A user's data set object, whose mistakes are told with their place; indexed as the object itself."""

    def __init__(self, name: str, catalog_file: str, dataset: Any):
        """Raises ValueError when a method is missing or the classes are not named as they should be."""
        self.name = name
        self._place, self._dataset = f"{catalog_file}: {name}", dataset
        missing = [method for method in ("__getitem__", "__len__", "get_img_info") if not hasattr(dataset, method)]
        if missing:
            raise ValueError(
                f"{self._place}: {type(dataset).__name__} has no {', '.join(missing)}; a data set has "
                "__getitem__(idx) -> (image, BoxList, idx), __len__() and get_img_info(idx)"
            )
        self.class_names = _class_names(dataset, self._place)
        self._images: list[RawImage | str] | None = None

    def place(self, idx: int) -> str:
        """Where an item is, for messages."""
        return f"{self._place}[{idx}]"

    def __len__(self) -> int:
        return _guarded(self._place, "__len__", len, self._dataset)

    def __getitem__(self, idx: int) -> tuple:
        item = _guarded(self.place(idx), "__getitem__", self._dataset.__getitem__, idx)
        if not isinstance(item, (tuple, list)) or len(item) < 2:
            got = f"{len(item)} values" if isinstance(item, (tuple, list)) else type(item).__name__
            raise ValueError(f"{self.place(idx)}: __getitem__ gave {got}: (image, BoxList, idx) is wanted")
        return tuple(item)

    def images(self, problems: Problems) -> Iterator[RawImage]:
        """The annotated images, but those whose files cannot be read; where it means decoding them, it is done once."""
        indices = range(len(self))
        if hasattr(self._dataset, "get_groundtruth"):
            images: Iterable[RawImage | str] = map(self._try_image, indices)
        else:
            if self._images is None:
                bar = tqdm(indices, unit="image", desc=f"reading {self.name}", disable=None)
                self._images = [self._try_image(idx) for idx in bar]
            images = self._images
        for idx, image in enumerate(images):
            if isinstance(image, str):
                problems.add("unreadable_image", image_id=idx, detail=image)
            else:
                yield image

    def _try_image(self, idx: int) -> RawImage | str:
        """An annotated image, or why its file cannot be read; mistakes of the user's code are raised."""
        try:
            return self._image(idx)
        except ValueError as error:
            if isinstance(error.__cause__, OSError):
                return str(error)
            raise

    def class_name(self, label: int) -> str:
        """The name of a label where `class_names` has none."""
        mapping = getattr(self._dataset, "map_class_id_to_name", None)
        return str(_guarded(self._place, f"map_class_id_to_name({label})", mapping, label)) if mapping else (
            f"class {label}")

    def _image(self, idx: int) -> RawImage:
        place = self.place(idx)
        width, height, file_name = self._info(idx)
        if hasattr(self._dataset, "get_groundtruth"):
            target = _guarded(place, "get_groundtruth", self._dataset.get_groundtruth, idx)
        else:
            target = self[idx][1]
        if not isinstance(target, BoxList):
            raise ValueError(
                f"{place}: its boxes are a {type(target).__name__}: a BoxList of FasterRCNN.structures is wanted"
            )
        if tuple(target.image_size) != (width, height):
            raise ValueError(
                f"{place}: its BoxList is of an image of {tuple(target.image_size)} (width, height), but get_img_info "
                f"says {(width, height)}"
            )
        objects = _objects(target, place, self.class_names)
        return RawImage(idx, file_name or f"{self.name}[{idx}]", height, width, objects)

    def _info(self, idx: int) -> tuple[int, int, str]:
        """Width, height and, where it has one, file name."""
        info = _guarded(self.place(idx), "get_img_info", self._dataset.get_img_info, idx)
        sides = [info.get(key) for key in ("width", "height")] if isinstance(info, Mapping) else []
        if not sides or not all(isinstance(side, (int, np.integer)) and side > 0 for side in sides):
            raise ValueError(
                f'{self.place(idx)}: get_img_info gave {str(info)[:100]}: {{"height": ..., "width": ...}} in whole '
                "pixels is wanted"
            )
        return int(sides[0]), int(sides[1]), str(info.get("file_name", ""))


def _class_names(dataset: Any, place: str) -> tuple[str, ...]:
    """Without the background; () where the data set has no list of them."""
    names = getattr(dataset, "classes", None)
    names = getattr(dataset, "CLASSES", None) if names is None else names
    if names is None:
        mapping = getattr(dataset, "map_class_id_to_name", None)
        if not isinstance(mapping, Mapping):
            return ()
        names = [mapping.get(label) for label in range(1, max(mapping, default=0) + 1)]
    if not isinstance(names, Sequence) or isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{place}: its classes are {str(names)[:100]}: a list of names is wanted, ["cat", "dog"]')
    return tuple(names[1:] if names and names[0] == BACKGROUND else names)


def _names_up_to(dataset: UserDataset) -> list[str]:
    """Names of the labels up to the largest that occurs."""
    labels = (entry.category_id for image in dataset.images(Problems(dataset.name)) for entry in image.objects)
    return [dataset.class_name(label) for label in range(1, max(labels, default=0) + 1)]


def _objects(target: BoxList, place: str, class_names: tuple[str, ...]) -> list[RawObject]:
    if not target.has_field("labels"):
        raise ValueError(f"{place}: its BoxList has no field 'labels': add_field(\"labels\", ...) with 1..K is wanted")
    labels = _field(target, "labels", place)
    highest = len(class_names) or np.inf
    wrong = [label for label in labels.tolist() if not 1 <= label <= highest or label % 1]
    if wrong:
        wanted = f"1..{highest} for {', '.join(class_names)}" if class_names else "whole numbers from 1"
        raise ValueError(f"{place}: it has the label {wrong[0]}: {wanted} are wanted, 0 is the background")
    difficult, crowd = (_field(target, name, place).astype(bool) for name in ("difficult", "is_crowd"))
    masks = target.get_field("masks").segmentations if target.has_field("masks") else [None] * len(target)
    rows = zip(labels.tolist(), target.convert("xywh").boxes.tolist(), masks, crowd.tolist(), difficult.tolist())
    return [
        RawObject(number, int(label), bbox, segmentation, is_crowd=is_crowd, is_difficult=is_difficult)
        for number, (label, bbox, segmentation, is_crowd, is_difficult) in enumerate(rows, start=1)
    ]


def _field(target: BoxList, name: str, place: str) -> np.ndarray:
    """One number for each box; zeros where the field is not there."""
    values = np.asarray(target.get_field(name)) if target.has_field(name) else np.zeros(len(target), int)
    if values.shape != (len(target),) or (values.dtype.kind not in "iufb" and len(target)):
        raise ValueError(
            f"{place}: its field {name!r} is {values.dtype} of shape {values.shape}: a number for each of "
            f"{len(target)} boxes is wanted"
        )
    return values


# ---------------------------------------------------------------- images


def user_image(dataset: Any, idx: int) -> np.ndarray:
    """The image of dataset[idx] as BGR uint8 H×W×3.

    A PIL image of any mode, or a NumPy array as cv2.imread gives it: H×W, or H×W×C with C of 1, 3 (BGR) or 4 (BGRA), of
    bools or whole numbers; more than 8 bits are scaled as those of a file. Raises ValueError, with index, for anything
    else and for whatever the data set raises.
    """
    if isinstance(dataset, UserDataset):
        image, place = dataset[idx][0], dataset.place(idx)
    else:
        place = f"{type(dataset).__name__}[{idx}]"
        image = _guarded(place, "__getitem__", dataset.__getitem__, idx)[0]
    if isinstance(image, Image.Image):
        image = _guarded(place, "loading its image", _pil_to_array, image)
    is_image = isinstance(image, np.ndarray) and image.dtype.kind in "uib" and image.size and (
        image.ndim == 2 or image.ndim == 3 and image.shape[2] in (1, 3, 4))
    if not is_image:
        shape, dtype = (getattr(image, key, None) for key in ("shape", "dtype"))
        got = type(image).__name__ + (f" of shape {tuple(shape)}, {dtype}" if shape is not None else "")
        raise ValueError(
            f"{place}: its image is a {got}: a PIL image or a uint8 array H×W×3 (BGR, as of cv2.imread) is wanted, "
            "neither scaled nor made a tensor"
        )
    if image.dtype != np.uint8:
        image = image.astype(np.uint8) * 255 if image.dtype == bool else to_8_bits(image)
    channels = 1 if image.ndim == 2 else image.shape[2]
    if channels != 3:
        image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR if channels == 1 else cv2.COLOR_BGRA2BGR)
    return np.ascontiguousarray(image)


def _pil_to_array(image: Image.Image) -> np.ndarray:
    """H×W for greys of more than 8 bits, else BGR."""
    if image.mode.startswith("I"):
        return np.asarray(image)
    return np.asarray(image.convert("RGB"))[:, :, ::-1]
