"""Looks for everything that is wrong with data sets, before hours of training are spent on them.

Annotations are looked at as training reads them (`sound_objects`); every image is read and decoded as training does.
Nothing is changed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import msgpack
import numpy as np
from tqdm import tqdm

from FasterRCNN.datasets.annotations import Annotations, sound_objects
from FasterRCNN.datasets.check_objects import BoxHabits, check_objects
from FasterRCNN.datasets.check_report import CheckedSet, CheckReport
from FasterRCNN.datasets.custom import user_image
from FasterRCNN.datasets.problems import Problem, Problems
from FasterRCNN.imaging.header import UPRIGHT
from FasterRCNN.imaging.inspect import ImageFacts, facts_of_pixels, inspect_image, suffix_format
from FasterRCNN.structures import Categories

__all__ = ["SetToCheck", "check_sets"]

IMAGES_AT_ONCE = 16  # that a worker process reports on
PERFECT_SCORE = 1 - 1e-6
NAMES_SHOWN = 5


@dataclass(frozen=True)
class SetToCheck:
    """A data set to check.

    spec: as the user named it; read: gives its annotations, or raises OSError or ValueError for what cannot be read at
    all; role: "training", "validation", or "" where that is not known.
    """

    spec: str
    read: Callable[[], Annotations]
    role: str = ""


def check_sets(
    sets: Sequence[SetToCheck],
    *,
    with_masks: bool,
    num_workers: int = 0,
    steps_in_order: Callable[..., Any],
    score_truth: Callable[[Annotations], float | None] | None = None,
) -> CheckReport:
    """Everything that is wrong with the sets, which are compared with the first that can be read and with each other.

    Those of the role "training", or without roles the first, must be fit to train on. with_masks: every object must
    have one; masks that are there are looked at in any case, but what is wrong with them are warnings.
    steps_in_order: the loop over the images (FasterRCNN/loading/prefetch.py StepsInOrder), of `num_workers` processes.
    score_truth: the AP of a set's own objects as if they were detections, which must be 1; None where there is nothing
    to score.
    """
    examined = [
        _examine(to_check, to_check.role == "training" or not (number or to_check.role), with_masks, score_truth)
        for number, to_check in enumerate(sets)
    ]
    readable = [one for one in examined if one.categories is not None]
    for number, one in enumerate(readable):
        _look_for_similar_names(one)
        if number:
            _compare_classes(readable[0], one)
    folders, contents = _Folders(), _Contents()
    for one, photo, facts in _inspect_images(readable, num_workers, steps_in_order):
        _judge_image(one, photo, facts, folders)
        if not facts.problem:
            contents.add(one, photo, facts)
    return CheckReport([one.checked for one in examined], with_masks=with_masks)


class _Photo(NamedTuple):
    """An annotated image; height and width as annotated."""

    image_id: int | str
    file_name: str
    height: int
    width: int


@dataclass
class _Examined:
    """A set whose annotations were looked at: what is needed of them for the rest. categories: None if unreadable."""

    checked: CheckedSet
    categories: Categories | None = None
    photos: list[_Photo] = field(default_factory=list)
    user_dataset: Any = None

    def note(self, kind: str, detail: str = "", photo: _Photo | None = None) -> None:
        file, image_id = (self.checked.source, None) if photo is None else (photo.file_name, photo.image_id)
        self.checked.problems.append(Problem(kind, file, image_id, detail=detail))


# ---------------------------------------------------------------- annotations


def _examine(
    to_check: SetToCheck,
    is_trained_on: bool,
    with_masks: bool,
    score_truth: Callable[[Annotations], float | None] | None,
) -> _Examined:
    """Looks at a set's annotations, which are let go of at the end: of large sets they take gigabytes."""
    checked = CheckedSet(to_check.spec, to_check.spec, to_check.role)
    one = _Examined(checked)
    try:
        annotations = to_check.read()
        checked.name, checked.source = annotations.name, annotations.source
        checked.class_names = annotations.categories.names
        one.categories, one.user_dataset = annotations.categories, annotations.user_dataset
        _examine_entries(one, annotations, is_trained_on, with_masks)
        if score_truth is not None and annotations.has_truth:
            _check_score(one, annotations, score_truth)
    except (OSError, ValueError) as error:
        one.note("unreadable_set", str(error))
    return one


def _examine_entries(one: _Examined, annotations: Annotations, is_trained_on: bool, with_masks: bool) -> None:
    of_entries, of_objects = Problems(annotations.source), []
    habits, num_masks, used_ids = BoxHabits(), 0, set()
    images = annotations.read_images(of_entries)
    for image in tqdm(images, desc=f"annotations of {annotations.name}", unit=" images", delay=1, disable=None):
        one.photos.append(_Photo(image.image_id, image.file_name, image.height, image.width))
        habits.add(image)
        found = Problems(image.file_name)
        if annotations.has_truth and all(entry.is_crowd for entry in image.objects):
            found.add("no_objects", image_id=image.image_id, detail="crowd regions only" if image.objects else "")
        sound = sound_objects(image, annotations.categories, found, with_masks=True, masks_required=with_masks)
        check_objects(image, sound, found)
        num_masks += sum(entry.segmentation is not None for entry in sound)
        used_ids.update(entry.raw.category_id for entry in sound if not entry.raw.is_crowd)
        of_objects += found
        one.checked.num_images += 1
        one.checked.num_objects += len(image.objects)
    if not one.checked.num_images:
        one.note("no_images")
    if is_trained_on and not annotations.has_truth:
        one.note("no_annotations", "it has no list 'annotations'")
    unused = [name for category_id, name in annotations.categories.by_id.items() if category_id not in used_ids]
    if is_trained_on and unused and used_ids:
        one.note("unused_classes", f"{len(unused)} of {len(annotations.categories)}: {_some(map(repr, unused))}")
    maskless = sum(problem.kind == "no_mask" for problem in of_objects)
    if maskless and not num_masks:
        of_objects = [problem for problem in of_objects if problem.kind != "no_mask"]
        one.note("no_mask", f"none of the set's {maskless:,} objects has one")
    oddities = dict(habits.oddities())
    if "fraction_boxes" in oddities:
        of_objects = [problem for problem in of_objects if problem.kind != "tiny_box"]
    one.checked.problems += [*of_entries, *of_objects]
    for kind, detail in oddities.items():
        one.note(kind, detail)


def _check_score(one: _Examined, annotations: Annotations, score_truth: Callable[[Annotations], float | None]) -> None:
    try:
        score = score_truth(annotations)
    except ValueError as error:
        one.note("truth_score", f"it cannot be scored: {error}")
        return
    if score is not None and score < PERFECT_SCORE:
        one.note("truth_score", f"AP {score:.6f}")


# ---------------------------------------------------------------- classes


def _look_for_similar_names(one: _Examined) -> None:
    alike = defaultdict(list)
    for name in one.categories.names:
        alike[_bare(name)].append(name)
    for names in alike.values():
        if len(names) > 1:
            one.note("similar_classes", ", ".join(map(repr, names)))


def _bare(name: str) -> str:
    """A name without what people write differently."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _compare_classes(first: _Examined, other: _Examined) -> None:
    """Notes each class of `other` that `first` does not have, with the one that was probably meant, and the rest."""
    wanted, own, where = first.categories, other.categories, first.checked.name
    missing = [name for name in wanted.names if name not in own.names]
    for category_id, name in own.by_id.items():
        if name in wanted.names:
            continue
        same_id = wanted.by_id.get(category_id)
        meant = next((other_name for other_name in missing if _bare(other_name) == _bare(name)), None)
        detail = f"{name!r} (id {category_id}) is no class of {where}"
        if meant is not None:
            detail += f", which has {meant!r}: another spelling?"
        elif same_id in missing:
            meant = same_id
            detail += f", where the id {category_id} is {meant!r}"
        if meant is not None:
            missing.remove(meant)
        other.note("class_names", detail)
    if missing:
        other.note("missing_classes", f"{where} has {_some(map(repr, missing))}")
    ids = dict(zip(wanted.names, wanted.ids))
    moved = [f"{name!r} is {i} here and {ids[name]} there" for i, name in own.by_id.items() if ids.get(name, i) != i]
    if moved:
        other.note("class_ids", f"compared with {where}: {_some(moved)}")


def _some(words: Sequence[str] | Iterator[str]) -> str:
    words = list(words)
    more = [f"and {len(words) - NAMES_SHOWN} more"] if len(words) > NAMES_SHOWN else []
    return ", ".join(words[:NAMES_SHOWN] + more)


# ---------------------------------------------------------------- images


def _inspect_images(
    examined: Sequence[_Examined], num_workers: int, steps_in_order: Callable[..., Any]
) -> Iterator[tuple[_Examined, _Photo, ImageFacts]]:
    """What is found of each image of all the sets, in order."""
    places = [(one, photo) for one in examined for photo in one.photos]

    def inspect_chunk(number: int) -> list[np.ndarray]:
        chunk = places[number * IMAGES_AT_ONCE : (number + 1) * IMAGES_AT_ONCE]
        return [np.frombuffer(msgpack.packb([_facts(one, photo) for one, photo in chunk]), np.uint8)]

    chunks = steps_in_order(inspect_chunk, num_workers=num_workers)
    log_level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it names no file
    try:
        with tqdm(desc="reading images", total=len(places), unit=" images", disable=None) as bar:
            for start in range(0, len(places), IMAGES_AT_ONCE):
                (packed,) = next(chunks)
                rows = msgpack.unpackb(packed.tobytes(), use_list=False)
                for (one, photo), row in zip(places[start:], rows):
                    yield one, photo, ImageFacts(*row)
                bar.update(len(rows))
    finally:
        chunks.stop()
        cv2.utils.logging.setLogLevel(log_level)


def _facts(one: _Examined, photo: _Photo) -> ImageFacts:
    if one.user_dataset is None:
        return inspect_image(photo.file_name)
    try:
        return facts_of_pixels(user_image(one.user_dataset, photo.image_id))
    except ValueError as error:
        return ImageFacts("unreadable_image", str(error))


def _judge_image(one: _Examined, photo: _Photo, facts: ImageFacts, folders: _Folders) -> None:
    """Notes what is wrong with an image, and how it differs from what is annotated."""
    if facts.problem:
        is_missing = facts.problem == "missing_image"
        one.note(facts.problem, folders.hint(photo.file_name) if is_missing else facts.detail, photo)
        return
    if facts.damage:
        one.note("damaged_image", facts.damage, photo)
    annotated = photo.height, photo.width
    if annotated not in (facts.shown, facts.stored):
        one.note("image_size", f"is {_size(facts.shown)}, annotated as {_size(annotated)} (width x height)", photo)
    elif facts.orientation != UPRIGHT:
        if facts.shown == facts.stored:
            told = "its size does not tell whether it was annotated as it is shown, as it is read, or as it is stored"
        elif annotated == facts.shown:
            told = f"annotated as it is shown, {_size(annotated)}"
        else:
            told = f"annotated as it is stored, {_size(annotated)}, and read so"
        one.note("exif_rotation", f"EXIF orientation {facts.orientation}: {told}", photo)
    named = suffix_format(photo.file_name)
    if one.user_dataset is None and named and facts.format not in ("", named):
        one.note("image_suffix", f"named as {named}, holds {facts.format}", photo)


def _size(shape: tuple[int, int]) -> str:
    return f"{shape[1]} x {shape[0]}"


class _Folders:
    """Knows what is in the folders where an image is missing."""

    def __init__(self) -> None:
        self._names: dict[Path, dict[str, list[str]]] = {}

    def hint(self, file_name: str) -> str:
        """A file that may be meant by a missing one: its name differs in case or suffix, or it lies further up."""
        path = Path(file_name.replace("\\", "/"))  # as Windows writes it
        folder = next((folder for folder in path.parents if folder.is_dir()), Path())
        names = sorted(self._listing(folder).get(path.stem.casefold(), ()))
        names.sort(key=lambda name: name.casefold() != path.name.casefold())
        if names:
            return f"{names[0] if folder == path.parent else folder / names[0]} is there"
        return "" if folder == path.parent else f"there is no folder {path.parent}"

    def _listing(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._names:
            by_stem = self._names[folder] = defaultdict(list)
            for path in folder.iterdir():
                if suffix_format(path):
                    by_stem[path.stem.casefold()].append(path.name)
        return self._names[folder]


class _Contents:
    """Finds images that occur again, in a set or in another, by their pixels."""

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[_Examined, _Photo]] = {}

    def add(self, one: _Examined, photo: _Photo, facts: ImageFacts) -> None:
        first, twin = self._first.setdefault(facts.digest, (one, photo))
        if twin is photo:
            return
        is_apart = first is not one and not (first.checked.role and first.checked.role == one.checked.role)
        same = "the same file as" if twin.file_name == photo.file_name else f"the same picture as {twin.file_name},"
        whose = f" of {first.checked.name}" if first is not one else ""
        role = f" ({first.checked.role})" if is_apart and first.checked.role else ""
        detail = f"{same} image id {twin.image_id!r}{whose}{role}"
        one.note("shared_image" if is_apart else "repeated_image", detail, photo)
