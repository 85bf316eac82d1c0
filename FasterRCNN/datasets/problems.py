"""What can be wrong with annotated images: one list of kinds, for loading, for evaluation and for `./data.py --check`.

An error is something that training cannot use: it is left out, or stops the run (DATA.ON_ERROR). A warning is something
that a person should look at.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["KINDS", "MASK_KINDS", "Kind", "Problem", "Problems"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """A kind of problem. title: "zero-area box"; advice: the way out, as a person would be told it."""

    title: str
    is_error: bool
    advice: str


def _error(title: str, advice: str) -> Kind:
    return Kind(title, True, advice)


def _warning(title: str, advice: str) -> Kind:
    return Kind(title, False, advice)


KINDS: dict[str, Kind] = {
    # ---- image files ----
    "missing_image": _error("missing image file", "put the file there, or correct its name in the annotations"),
    "empty_image": _error("image file of zero bytes", "fetch or write it again"),
    "truncated_image": _error("truncated image file", "fetch or write it again"),
    "unreadable_image": _error("unreadable image file", "convert it to JPEG or PNG"),
    "damaged_image": _warning("image file with a damaged part", "look at it, and fetch it again if a part is grey"),
    "image_size": _error("image of another size than annotated", "annotate the image as it is now"),
    "exif_rotation": _warning("image turned by its EXIF data", "check that it was annotated as it is shown"),
    "image_suffix": _warning("image file named as another format", "rename it to what it holds"),
    "image_name": _warning("file name differs from the annotated one", "rename the file, or correct the annotation"),
    "no_size": _warning("no image size annotated", "nothing needs doing: it is read from the image"),
    "repeated_image": _warning("image twice in a set, by content", "leave one of them out"),
    "shared_image": _warning("image in two sets, by content", "leave it out of one, or scores will flatter"),
    # ---- entries ----
    "missing_annotation": _error("image without annotation file", "annotate it, or take it out of the split"),
    "unreadable_annotation": _error("unreadable annotation file", "export it again"),
    "malformed_entry": _error("entry of an annotation file that is out of format", "export it again"),
    "image_id": _error("image id used twice", "give each image an id of its own"),
    "annotation_id": _warning("annotation id used twice", "number the annotations anew: other tools lose objects"),
    "unknown_image": _error("object of an image that is not listed", "list the image, or delete the object"),
    "unknown_category": _error("object of an unknown category", "add the category, or correct the object"),
    "no_objects": _warning("image without objects", "see DATA.FILTER_EMPTY_ANNOTATIONS"),
    # ---- boxes ----
    "malformed_box": _error("box that is not four finite numbers", "draw it again"),
    "negative_box": _error("box of negative width or height", "draw it again"),
    "zero_area_box": _error("box without area", "draw it again, or delete it"),
    "box_outside": _error("box wholly outside the image", "delete it, or correct the image's size"),
    "box_beyond": _warning("box partly outside the image", "nothing needs doing: it is cut at the edge"),
    "tiny_box": _warning("box under one pixel a side", "draw it again, or delete it"),
    "repeated_object": _warning("object annotated twice", "delete one of them"),
    "fraction_boxes": _warning("boxes that look like fractions of the image", "try DATA.ABSOLUTE_COORD=False"),
    "corner_boxes": _warning("boxes that look like corners (x1, y1, x2, y2)", "write them as x, y, width, height"),
    "odd_area": _warning("area that is no area", "export it again: scores use the area of the box instead"),
    # ---- masks ----
    "no_mask": _error("object without a mask", "draw its mask, or train boxes alone with MODE_MASK=False"),
    "malformed_mask": _error("mask that is neither polygons nor RLE", "export it again"),
    "short_polygon": _error("polygon of fewer than 3 points", "delete it"),
    "flat_polygon": _warning("polygon that is not in a list of polygons", "nothing needs doing: it is taken as one"),
    "rle_size": _error("RLE of another size than its image", "export it again"),
    "mask_beyond": _warning("mask that leaves its box", "check the box: the part outside is not trained"),
    "mask_outside": _error("mask wholly outside its box", "draw the box around the mask"),
    "empty_mask": _error("mask without area", "draw it again, or delete it"),
    "mask_file": _error("mask file that cannot be used", "write it as a PNG of object numbers, of the image's size"),
    "mask_object": _warning("mask of an object that is not annotated", "annotate the object, or clear its mask"),
    # ---- sets ----
    "unreadable_set": _error("data set that cannot be read", "mend it, or correct its name"),
    "no_images": _error("set without images", "list its images, or correct its name"),
    "no_annotations": _error("set without annotations", "export them too: there is nothing to train on"),
    "unused_classes": _warning("classes without any object", "annotate some, or leave the classes out"),
    "class_names": _error("class that another set does not have", "use the same names in all sets"),
    "missing_classes": _warning("classes that only another set has", "nothing needs doing if none are in these images"),
    "class_ids": _warning("classes with other ids in another set", "nothing needs doing: they are matched by name"),
    "similar_classes": _warning("class names that look alike", "make them one class if they mean the same"),
    "truth_score": _error("the truth does not score AP 1.0 against itself", "look at the other problems first"),
}


# What training of boxes alone (MODE_MASK=False) does not look at.
MASK_KINDS = frozenset({
    "no_mask", "malformed_mask", "short_polygon", "flat_polygon", "rle_size", "mask_beyond", "mask_outside",
    "empty_mask", "mask_file", "mask_object",
})


@dataclass(frozen=True)
class Problem:
    """One problem and its place. kind: a key of KINDS; file: the file it is in; detail: what was found, in words."""

    kind: str
    file: str
    image_id: int | str | None = None
    annotation_id: int | str | None = None
    detail: str = ""

    @property
    def place(self) -> str:
        """The ids in words."""
        ids = [("image id", self.image_id), ("annotation id", self.annotation_id)]
        return ", ".join(f"{name} {value!r}" for name, value in ids if value is not None)


class Problems:
    """Collects problems, in the order they are found."""

    def __init__(self, source: str):
        """source: the annotation file or folder, which problems lie in that name no other."""
        self.source = str(source)
        self._found: list[Problem] = []

    def add(
        self,
        kind: str,
        *,
        file: str | None = None,
        image_id: int | str | None = None,
        annotation_id: int | str | None = None,
        detail: str = "",
    ) -> None:
        """Notes a problem; see Problem."""
        if kind not in KINDS:
            raise KeyError(kind)
        self._found.append(Problem(kind, self.source if file is None else file, image_id, annotation_id, detail))

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def by_kind(self) -> dict[str, list[Problem]]:
        """The problems of each kind that was found, in the order of KINDS."""
        groups: dict[str, list[Problem]] = {kind: [] for kind in KINDS}
        for problem in self._found:
            groups[problem.kind].append(problem)
        return {kind: problems for kind, problems in groups.items() if problems}

    def settle(self, *, stop: bool = False) -> None:
        """After loading, where what is an error was left out: says how much, once for each kind.

        stop: raises ValueError instead when there is any error (DATA.ON_ERROR=stop).
        """
        errors = {kind: found for kind, found in self.by_kind().items() if KINDS[kind].is_error}
        lines = [
            f"{len(found)} x {KINDS[kind].title}, the first: {_describe(found[0])}" for kind, found in errors.items()
        ]
        if lines and stop:
            raise ValueError(
                f"{self.source}: {'; '.join(lines)}. See them all with ./data.py --check; mend them, or leave them out "
                "with DATA.ON_ERROR=skip"
            )
        for line in lines:
            logger.warning("%s: left out %s", self.source, line)


def _describe(problem: Problem) -> str:
    return ", ".join(part for part in (problem.place, problem.detail) if part)
