"""Draws a small data set of coloured shapes in COCO's layout: something real to train on where there is no data yet.

Classes differ by silhouette alone: every shape comes in any colour that stands out from its background. A scene is
built on an index canvas, SUPERSAMPLE times finer than the photo, in which each cell holds the number of the object seen
there (0: none). Picture and annotation are both read off this canvas, so that they agree to a fraction of a pixel,
overlaps included.
"""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

__all__ = ["draw_shapes_dataset"]

SUPERSAMPLE = 4
MAX_OBJECTS = 6
DIAMETER_RANGE = (0.10, 0.43)  # of the image's side
MAX_ROTATION = np.deg2rad(15)  # a class stays what it is: no square becomes a diamond, no cross an X
MIN_VISIBLE = 0.65  # of an object's area; a placement that leaves less of any object is tried elsewhere
PLACEMENT_TRIALS = 20
MIN_COLOUR_DISTANCE = 120.0  # Euclidean, in BGR
JPEG_QUALITY = 92


def _regular_polygon(corners: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """Corners × 2 points around the origin, the first at the top, at the distances `radii` in turn."""
    angles = 2 * np.pi * np.arange(corners) / corners - np.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.resize(radii, corners)[:, None]


# Outlines within the unit circle, y downwards. Scaled so that all cover areas of like order at the same diameter.
_OUTLINES = {
    "circle": _regular_polygon(64, (0.9,)),
    "triangle": _regular_polygon(3, (1.1,)) + (0, 0.2),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.78,
    "star": _regular_polygon(10, (1.1, 0.45)),
    "cross": np.array(
        [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1), (1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]
    )
    * 0.32,
    "arrow": np.array([(-1, -0.3), (0.05, -0.3), (0.05, -0.85), (1, 0), (0.05, 0.85), (0.05, 0.3), (-1, 0.3)]),
}
# Ids with gaps, like COCO's: code that takes an id for a label shows at once.
_CATEGORY_IDS = dict(zip(_OUTLINES, (3, 7, 12, 18, 25, 31), strict=True))


def draw_shapes_dataset(
    output_dir: str | Path, *, num_train: int = 400, num_val: int = 60, size: int = 256, seed: int = 0
) -> Path:
    """Writes annotations/instances_{train,val}2017.json and {train,val}2017/*.jpg under `output_dir`, and returns it.

    Pictures are size × size pixels with 1 to 6 objects. Each follows from (seed, split, index) alone, so that a larger
    set begins with the smaller one's pictures. Raises ValueError for a size below 64 or fewer than 1 picture.
    """
    if size < 64:
        raise ValueError(f"size={size}: shapes are drawn in pictures of at least 64 pixels a side")
    output_dir = Path(output_dir)
    for split, (name, count) in enumerate([("train2017", num_train), ("val2017", num_val)]):
        if count < 1:
            raise ValueError(f"{count} pictures wanted for {name}: a split needs at least 1")
        _write_split(output_dir, name, [seed, split], first_image_id=1 + split * 1_000_000, count=count, size=size)
    return output_dir


def _write_split(root: Path, name: str, seed: list[int], *, first_image_id: int, count: int, size: int) -> None:
    image_dir, annotation_dir = root / name, root / "annotations"
    image_dir.mkdir(parents=True, exist_ok=True)
    annotation_dir.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        image, objects = _draw_scene(np.random.default_rng([*seed, index]), size)
        image_id = first_image_id + index
        file_name = f"{image_id:012d}.jpg"
        if not cv2.imwrite(str(image_dir / file_name), image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
            raise OSError(f"cannot write {image_dir / file_name}")
        images.append({"id": image_id, "file_name": file_name, "width": size, "height": size, "license": 1})
        for category_id, polygons in objects:
            annotation_id = first_image_id + len(annotations)
            annotations.append(_annotation(annotation_id, image_id, category_id, polygons))
    content = {
        "info": {"description": f"Drawn shapes, {name}", "version": "1.0"},
        "licenses": [{"id": 1, "name": "CC0 1.0", "url": "https://creativecommons.org/publicdomain/zero/1.0/"}],
        "categories": [{"id": i, "name": shape, "supercategory": "shape"} for shape, i in _CATEGORY_IDS.items()],
        "images": images,
        "annotations": annotations,
    }
    (annotation_dir / f"instances_{name}.json").write_text(json.dumps(content))


def _annotation(annotation_id: int, image_id: int, category_id: int, polygons: list[np.ndarray]) -> dict:
    points = np.concatenate(polygons)
    (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "area": sum(float(cv2.contourArea(p.astype(np.float32))) for p in polygons),
        "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
        "segmentation": [p.ravel().tolist() for p in polygons],
    }


def _draw_scene(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, list[np.ndarray]]]]:
    """One picture, BGR uint8, and its objects: (category id, polygons of the visible part, each N × 2 pixels)."""
    canvas, shapes = _place_objects(rng, size)
    background = rng.uniform(20, 235, 3)
    image = _textured(rng, (size, size), background, spread=25)
    colours, objects = [background], []
    for number, shape in enumerate(shapes, start=1):
        visible, left, top = _crop(canvas == number)
        colours.append(_contrasting_colour(rng, colours))
        _paint(rng, image[top:, left:], visible, colours[-1])
        objects.append((_CATEGORY_IDS[shape], [points + (left, top) for points in _polygons(visible)]))
    return _photograph(rng, image), objects


def _place_objects(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[str]]:
    """The index canvas, uint8 of SUPERSAMPLE·size a side, and the shape names of its objects 1, 2, …"""
    canvas = np.zeros((size * SUPERSAMPLE, size * SUPERSAMPLE), np.uint8)
    shapes: list[str] = []
    full_areas, seen_areas = np.zeros(0), np.zeros(0)
    for _ in range(rng.integers(1, MAX_OBJECTS + 1)):
        shape = str(rng.choice(list(_OUTLINES)))
        for _ in range(PLACEMENT_TRIALS):
            outline = _place_outline(rng, _OUTLINES[shape]) * canvas.shape[0]
            with_it = cv2.fillPoly(canvas.copy(), [np.round(outline - 0.5).astype(np.int32)], len(shapes) + 1)
            beneath = canvas[with_it == len(shapes) + 1]
            full = np.append(full_areas, cv2.contourArea(outline.astype(np.float32)))
            seen = np.append(seen_areas - np.bincount(beneath, minlength=len(shapes) + 1)[1:], beneath.size)
            # An object wholly inside another would leave a hole, which COCO's polygons cannot say.
            is_inside = beneath.min() == beneath.max() != 0
            if not is_inside and np.all(seen >= MIN_VISIBLE * full):
                canvas, full_areas, seen_areas = with_it, full, seen
                shapes.append(shape)
                break
    return canvas, shapes


def _place_outline(rng: np.random.Generator, outline: np.ndarray) -> np.ndarray:
    """The outline, N × 2, stretched, turned, scaled and moved into the unit square, or a little beyond its edge."""
    angle, stretch = rng.uniform(-MAX_ROTATION, MAX_ROTATION), np.exp(rng.uniform(-0.12, 0.12))
    radius = 0.5 * np.exp(rng.uniform(*np.log(DIAMETER_RANGE)))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return outline * (radius * stretch, radius / stretch) @ turn + rng.uniform(0.85 * radius, 1 - 0.85 * radius, 2)


def _crop(visible: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The part of a canvas bitmap around its set cells, uint8, cut at whole pixels; and its left and top in pixels."""
    x, y, width, height = cv2.boundingRect(visible.astype(np.uint8))
    left, top = x // SUPERSAMPLE, y // SUPERSAMPLE
    right, bottom = -(-(x + width) // SUPERSAMPLE), -(-(y + height) // SUPERSAMPLE)
    rows, columns = slice(top * SUPERSAMPLE, bottom * SUPERSAMPLE), slice(left * SUPERSAMPLE, right * SUPERSAMPLE)
    return visible[rows, columns].astype(np.uint8), left, top


def _polygons(visible: np.ndarray) -> list[np.ndarray]:
    """The outlines of a cropped canvas bitmap in the crop's continuous pixels, each float64 N × 2."""
    # A cell spans [x, x+1], but findContours calls both its sides x: grown by one cell right and down, the two agree.
    grown = cv2.dilate(np.pad(visible, (0, 1)), np.ones((2, 2), np.uint8), anchor=(1, 1))
    contours, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    simplified = [cv2.approxPolyDP(contour, 1.0, closed=True)[:, 0] for contour in contours]
    return [points / SUPERSAMPLE for points in simplified if cv2.contourArea(points) >= SUPERSAMPLE**2]


def _contrasting_colour(rng: np.random.Generator, others: list[np.ndarray]) -> np.ndarray:
    """A BGR colour far from the background's, others[0], and as far from the other objects' as a few draws allow."""
    candidates = rng.uniform(0, 255, (32, 3))
    distances = np.linalg.norm(candidates[:, None] - np.array(others), axis=2)
    distant = distances[:, 0] >= MIN_COLOUR_DISTANCE
    if not distant.any():
        return candidates[distances[:, 0].argmax()]
    # The best of the first few only, so that colours stay varied.
    few = np.flatnonzero(distant)[:4]
    return candidates[few[distances[few].min(axis=1).argmax()]]


def _paint(rng: np.random.Generator, image: np.ndarray, visible: np.ndarray, colour: np.ndarray) -> None:
    """Lays a textured colour over the top left of `image` (float32, in place) where `visible` is set, edges smooth."""
    height, width = (side // SUPERSAMPLE for side in visible.shape)
    alpha = cv2.resize(visible.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)[:, :, None]
    under = image[:height, :width]
    under += alpha * (_textured(rng, (height, width), colour, spread=20) - under)


def _textured(rng: np.random.Generator, shape: tuple[int, int], colour: np.ndarray, spread: float) -> np.ndarray:
    """A float32 BGR area that runs between two colours near the given one, at most `spread` from it in each channel."""
    field = _TEXTURES[rng.integers(len(_TEXTURES))](rng, *shape)
    difference = rng.uniform(-spread, spread, 3).astype(np.float32)
    return colour.astype(np.float32) + (2 * field[:, :, None] - 1) * difference


def _gradient(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return cv2.resize(rng.random((2, 2), np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def _blotches(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    cells = int(rng.integers(4, 12))
    return cv2.resize(rng.random((cells, cells), np.float32), (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _stripes(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(8, 32), rng.uniform(0, 2 * np.pi)
    y, x = np.ogrid[:height, :width]
    wave = np.sin(2 * np.pi / period * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    return (0.5 + 0.5 * np.clip(3 * wave, -1, 1)).astype(np.float32)


_TEXTURES: tuple[Callable[[np.random.Generator, int, int], np.ndarray], ...] = (_gradient, _blotches, _stripes)


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """What a camera makes of the scene: uneven exposure, at times a little blur, and noise. Float32 in, uint8 out."""
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 1.0))
    light = rng.uniform(0.8, 1.2) + 0.2 * (_gradient(rng, *image.shape[:2])[:, :, None] - 0.5)
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(2, 9)
    return np.clip(image * light + noise + rng.uniform(-12, 12), 0, 255).astype(np.uint8)
