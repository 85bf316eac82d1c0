"""Augmentation of training images: what PREPROC.AUGMENT lists, each keeping boxes and masks in step with the image.

Every augmentation is called with (image uint8 H×W×3 BGR, target, rng) and gives (image, target); target is a BoxList
whose fields follow, Masks among them. A geometric one is a 2×3 matrix for continuous pixel coordinates and a new
canvas. Boxes: where the axes stay and the box is not cut, the box moves exactly; otherwise it becomes the tight box of
the visible mask or, without a mask, that of the box's four moved corners. Objects without visible area are dropped.

Flips, turns by 90°, crops and scale jitter move whole pixels and do not resample: the resizing to the network's size
that follows does it once. Where a canvas is larger than its image it is filled with ImageNet's mean colour, which is
about zero after normalisation, as the padding of a batch.

Written here rather than taken from albumentations 2.0.8, which was tried beside it. That moves masks as bitmaps of the
whole image: with the network's resizing an image with seven took 4 to 12 ms, where this takes 2 to 7. After a rotation
or a zoom its boxes were up to 28 and 35 pixels off their masks. It has had no upkeep since June 2025; its successor's
licence is the AGPL.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

import cv2
import numpy as np

from FasterRCNN.structures import BoxList

__all__ = ["AUGMENTATIONS", "Augmentation", "augment", "move_target", "parse_augmentations"]

FILL = (104, 116, 124)  # BGR
CROP_DRAWS = 20
LARGEST_PADDED_SIDE = 2048  # of a canvas around a zoomed-out photo; above it the photo is shrunk instead

_LUMA = np.array([0.114, 0.587, 0.299])  # of BGR, ITU-R BT.601


def augment(
    image: np.ndarray, target: BoxList, augmentations: Iterable[Augmentation], rng: np.random.Generator
) -> tuple[np.ndarray, BoxList]:
    """The image, uint8 H×W×3 BGR, and its objects after all augmentations, in order."""
    for augmentation in augmentations:
        image, target = augmentation(image, target, rng)
    return image, target


def move_target(target: BoxList, matrix: np.ndarray, size: tuple[int, int], min_visible: float = 0.0) -> BoxList:
    """The objects on a canvas of `size` (width, height), to which `matrix`, 2×3, maps continuous pixel coordinates.

    Objects of whose box less than the share `min_visible`, or nothing, is on the canvas are left out.
    """
    moved = target.convert("xyxy").affine(matrix, size)
    whole = moved.boxes
    boxes = np.clip(whole, 0, [*size, *size], dtype=np.float32)
    if moved.has_field("masks"):
        masks = moved.get_field("masks")
        keeps_axes = np.count_nonzero(np.asarray(matrix)[:, :2]) == 2
        from_mask = masks.exist() & ((boxes != whole).any(axis=1) | (not keeps_axes))
        boxes[from_mask] = masks[from_mask].boxes()
    visible = BoxList(boxes, image_size=size)
    share = visible.area() / np.maximum(moved.area(), np.finfo(np.float32).tiny)
    for name in moved.fields():
        visible.add_field(name, moved.get_field(name))
    has_area = (boxes[:, :2] < boxes[:, 2:]).all(axis=1)
    return visible[has_area & (share >= min_visible)]


# ---------------------------------------------------------------- augmentations


def _number(default: float, low: float, high: float) -> float:
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """An augmentation that is applied with probability p; ValueError for an argument out of its range."""

    p: float = _number(1.0, 0, 1)

    def __post_init__(self) -> None:
        for argument in fields(self):
            value, (low, high) = vars(self)[argument.name], argument.metadata["range"]
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"{argument.name} = {value!r} is not a number from {low} to {high}")

    def __call__(
        self, image: np.ndarray, target: BoxList, rng: np.random.Generator
    ) -> tuple[np.ndarray, BoxList]:
        """The image and its objects, changed or, with probability 1 - p, as they are."""
        return self._apply(image, target, rng) if rng.random() < self.p else (image, target)

    def _apply(self, image: np.ndarray, target: BoxList, rng: np.random.Generator) -> tuple[np.ndarray, BoxList]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class FlipHorizontal(Augmentation):
    """Left becomes right."""

    p: float = _number(0.5, 0, 1)

    def _apply(self, image: np.ndarray, target: BoxList, rng: np.random.Generator) -> tuple[np.ndarray, BoxList]:
        height, width = image.shape[:2]
        return cv2.flip(image, 1), move_target(target, [[-1, 0, width], [0, 1, 0]], (width, height))


@dataclass(frozen=True, kw_only=True)
class FlipVertical(Augmentation):
    """Top becomes bottom."""

    p: float = _number(0.5, 0, 1)

    def _apply(self, image: np.ndarray, target: BoxList, rng: np.random.Generator) -> tuple[np.ndarray, BoxList]:
        height, width = image.shape[:2]
        return cv2.flip(image, 0), move_target(target, [[1, 0, 0], [0, -1, height]], (width, height))


@dataclass(frozen=True, kw_only=True)
class Rotate90(Augmentation):
    """Turned by 0°, 90°, 180° or 270°, each as likely."""

    def _apply(self, image: np.ndarray, target: BoxList, rng: np.random.Generator) -> tuple[np.ndarray, BoxList]:
        height, width = image.shape[:2]
        turns = [
            None,
            (cv2.ROTATE_90_CLOCKWISE, [[0, -1, height], [1, 0, 0]], (height, width)),
            (cv2.ROTATE_180, [[-1, 0, width], [0, -1, height]], (width, height)),
            (cv2.ROTATE_90_COUNTERCLOCKWISE, [[0, 1, 0], [-1, 0, width]], (height, width)),
        ]
        if (turn := turns[rng.integers(4)]) is None:
            return image, target
        code, matrix, size = turn
        return cv2.rotate(image, code), move_target(target, matrix, size)


@dataclass(frozen=True, kw_only=True)
class Rotate(Augmentation):
    """Turned about its centre by an angle from -degrees to degrees, on a canvas that grows so that nothing is cut."""

    degrees: float = _number(15.0, 0, 180)

    def _apply(self, image: np.ndarray, target: BoxList, rng: np.random.Generator) -> tuple[np.ndarray, BoxList]:
        height, width = image.shape[:2]
        angle = math.radians(rng.uniform(-self.degrees, self.degrees))
        linear = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        # Less a thousandth: a turn by 0° or 90° must not gain a pixel by rounding.
        size = np.ceil(np.abs(linear) @ (width, height) - 1e-3).astype(int)
        matrix = np.column_stack([linear, size / 2 - linear @ (width / 2, height / 2)])
        # OpenCV counts pixels from their centres.
        centred = np.column_stack([linear, matrix[:, 2] + linear @ (0.5, 0.5) - 0.5])
        size = int(size[0]), int(size[1])
        turned = cv2.warpAffine(image, centred, size, flags=cv2.INTER_LINEAR, borderValue=FILL)
        return turned, move_target(target, matrix, size)


@dataclass(frozen=True, kw_only=True)
class RandomCrop(Augmentation):
    """A window whose sides are shares from min_scale to 1 of the image's, at a random place.

    Objects of which less than the share min_visible remains are left out. The window holds at least one object that is
    no crowd; when 20 draws find none such the image stays as it is.
    """

    min_scale: float = _number(0.3, 0.01, 1)
    min_visible: float = _number(0.2, 0, 1)

    def _apply(self, image: np.ndarray, target: BoxList, rng: np.random.Generator) -> tuple[np.ndarray, BoxList]:
        height, width = image.shape[:2]
        is_needed = _has_objects(target)
        for _ in range(CROP_DRAWS):
            share = rng.uniform(self.min_scale, 1, 2)
            window = _draw_window((width, height), share, rng)
            cropped, left = _crop(image, target, window, self.min_visible)
            if _has_objects(left) or not is_needed:
                return cropped, left
        return image, target


@dataclass(frozen=True, kw_only=True)
class ScaleJitter(Augmentation):
    """The photo zoomed by a factor from low to high, halving as likely as doubling, on a canvas of its own shape.

    Above 1 it is the part of the photo that would fill the canvas, below 1 the photo at a random place of a larger
    canvas. The canvas is not brought back to the photo's size: the network's resizing does so, which shows objects
    larger or smaller by the factor. Objects of which less than the share min_visible remains are left out.
    """

    low: float = _number(0.5, 0.05, 20)
    high: float = _number(2.0, 0.05, 20)
    min_visible: float = _number(0.2, 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}")

    def _apply(self, image: np.ndarray, target: BoxList, rng: np.random.Generator) -> tuple[np.ndarray, BoxList]:
        height, width = image.shape[:2]
        factor = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        if factor < 1:
            return _zoom_out(image, target, factor, rng)
        return _crop(image, target, _draw_window((width, height), (1 / factor, 1 / factor), rng), self.min_visible)


@dataclass(frozen=True, kw_only=True)
class Colour(Augmentation):
    """Brightness, contrast and saturation times factors from 1 - x to 1 + x, hue moved by up to ± hue of the circle.

    Contrast is that around the image's mean brightness; hue turns colours about the axis of greys.
    """

    brightness: float = _number(0.2, 0, 1)
    contrast: float = _number(0.2, 0, 1)
    saturation: float = _number(0.2, 0, 1)
    hue: float = _number(0.02, 0, 0.5)

    def _apply(self, image: np.ndarray, target: BoxList, rng: np.random.Generator) -> tuple[np.ndarray, BoxList]:
        reach = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        brightness, contrast, saturation, hue = rng.uniform([1, 1, 1, 0] - reach, [1, 1, 1, 0] + reach)
        # All four are linear, so that one pass over the image does, without rounding between them.
        greys = np.tile(_LUMA, (3, 1))
        saturate = saturation * np.eye(3) + (1 - saturation) * greys
        linear = brightness * contrast * saturate @ _hue_rotation(2 * math.pi * hue)
        mean = brightness * (_LUMA @ cv2.mean(image)[:3])
        offset = np.full(3, (1 - contrast) * mean)
        return cv2.transform(image, np.column_stack([linear, offset])), target


@dataclass(frozen=True, kw_only=True)
class Greyscale(Augmentation):
    """Without colours, still of three channels."""

    p: float = _number(0.1, 0, 1)

    def _apply(self, image: np.ndarray, target: BoxList, rng: np.random.Generator) -> tuple[np.ndarray, BoxList]:
        return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR), target


AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "flip_horizontal": FlipHorizontal,
    "flip_vertical": FlipVertical,
    "scale_jitter": ScaleJitter,
    "random_crop": RandomCrop,
    "rotate90": Rotate90,
    "rotate": Rotate,
    "colour": Colour,
    "greyscale": Greyscale,
}
_OTHER_SPELLINGS = {"color": "colour", "grayscale": "greyscale"}


def _has_objects(target: BoxList) -> bool:
    return len(target) > 0 and not (target.has_field("is_crowd") and np.all(target.get_field("is_crowd")))


def _draw_window(
    size: tuple[int, int], share: Sequence[float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A window (x1, y1, x2, y2) of whole pixels, its sides the given shares of the size, at a random place."""
    width, height = (max(1, round(side * part)) for side, part in zip(size, share, strict=True))
    x, y = int(rng.integers(size[0] - width, endpoint=True)), int(rng.integers(size[1] - height, endpoint=True))
    return x, y, x + width, y + height


def _crop(
    image: np.ndarray, target: BoxList, window: tuple[int, int, int, int], min_visible: float
) -> tuple[np.ndarray, BoxList]:
    x1, y1, x2, y2 = window
    return image[y1:y2, x1:x2], move_target(target, [[1, 0, -x1], [0, 1, -y1]], (x2 - x1, y2 - y1), min_visible)


def _zoom_out(
    image: np.ndarray, target: BoxList, factor: float, rng: np.random.Generator
) -> tuple[np.ndarray, BoxList]:
    """The image at a random place of a canvas of which it covers `factor` in width and height."""
    height, width = image.shape[:2]
    shrinking = min(1.0, max(factor, LARGEST_PADDED_SIDE * factor / max(width, height)))
    shown = image
    if shrinking < 1:
        size = max(1, round(width * shrinking)), max(1, round(height * shrinking))
        shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    canvas_size = max(1, round(width * shrinking / factor)), max(1, round(height * shrinking / factor))
    share = np.divide(shown.shape[1::-1], canvas_size)
    x1, y1, x2, y2 = _draw_window(canvas_size, share, rng)
    margins = y1, canvas_size[1] - y2, x1, canvas_size[0] - x2
    canvas = cv2.copyMakeBorder(shown, *margins, cv2.BORDER_CONSTANT, value=FILL)
    matrix = [[(x2 - x1) / width, 0, x1], [0, (y2 - y1) / height, y1]]
    return canvas, move_target(target, matrix, canvas_size)


def _hue_rotation(angle: float) -> np.ndarray:
    """A 3×3 matrix for BGR that turns colours about the axis of greys and keeps the luma."""
    # Chroma as two of the colours' differences from luma, in a plane where equal angles are about equal hues (YIQ).
    to_yiq = np.array([_LUMA, [-0.322, -0.274, 0.596], [0.312, -0.523, 0.211]])
    turn = np.array([
        [1, 0, 0],
        [0, math.cos(angle), -math.sin(angle)],
        [0, math.sin(angle), math.cos(angle)],
    ])
    return np.linalg.inv(to_yiq) @ turn @ to_yiq


# ---------------------------------------------------------------- from text


def parse_augmentations(texts: Sequence[str]) -> list[Augmentation]:
    """Augmentations from texts like "flip_horizontal" or "rotate(degrees=30, p=0.5)".

    Raises ValueError, naming the text and the choices, for anything else.
    """
    return [_parse(text) for text in texts]


def _parse(text: str) -> Augmentation:
    name, arguments = _name_and_arguments(text)
    name = _OTHER_SPELLINGS.get(name, name)
    if name not in AUGMENTATIONS:
        raise ValueError(f"augmentation {text!r}: there is no {name!r}.{_nearest(name, AUGMENTATIONS)} {_choices()}")
    known = [argument.name for argument in fields(AUGMENTATIONS[name])]
    for argument in arguments:
        if argument not in known:
            raise ValueError(
                f"augmentation {text!r}: {name} has no argument {argument!r}.{_nearest(argument, known)} "
                f"It is {_signature(name)}"
            )
    try:
        return AUGMENTATIONS[name](**arguments)
    except ValueError as error:
        raise ValueError(f"augmentation {text!r}: {error}. It is {_signature(name)}") from None


def _name_and_arguments(text: str) -> tuple[str, dict[str, object]]:
    """The name and keyword arguments that a text spells; nothing in it is evaluated but literals."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in tree.keywords}
            if None not in arguments and len(arguments) == len(tree.keywords):  # no **mapping, none given twice
                return tree.func.id, arguments
    except (AttributeError, SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        pass
    raise ValueError(
        f"augmentation {text!r} is not written as a name or as name(argument=number, ...). {_choices()}"
    )


def _nearest(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _choices() -> str:
    return "Choices, with their defaults: " + ", ".join(_signature(name) for name in AUGMENTATIONS)


def _signature(name: str) -> str:
    arguments = sorted(fields(AUGMENTATIONS[name]), key=lambda argument: argument.name == "p")
    return f"{name}({', '.join(f'{argument.name}={argument.default:g}' for argument in arguments)})"
