"""Pictures of ground truth and detections: translucent masks, boxes, and name tags that keep out of each other's way.

A class has the same colour in every picture. Small photos are enlarged first, so that the tags can be read; line width
and text follow the picture's size, and text shrinks where there is much of it. Photos are BGR uint8 H × W × 3 and stay
as they are: each function returns a new picture. OpenCV's own letters are those of Latin, Greek, Cyrillic, Hebrew,
Chinese, Japanese and Korean; others become question marks.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import pycocotools.mask as coco_mask

from FasterRCNN.structures import BoxList, Categories, ImageRecord

__all__ = ["class_colour", "draw_caption", "draw_comparison", "draw_detections", "draw_truth"]

MIN_SHORT_SIDE = 480  # of the picture; smaller photos are enlarged up to it
MAX_ENLARGED_SIDE = 1600  # so that a photo of a line's shape does not become huge
MASK_OPACITY = 0.4
FONT = cv2.FONT_HERSHEY_SIMPLEX
ELLIPSIS = "…"
SUBPIXEL_BITS = 4
PAPER, INK = (40, 40, 40), (240, 240, 240)  # of headings and captions, BGR
FONT_SCALE, LEAST_FONT_SCALE = 0.45, 0.36  # in a picture of MIN_SHORT_SIDE
TAGS_SHARE = 0.2  # of the picture that tags may cover before their text shrinks


@dataclass
class _Instance:
    """One object to draw: box and segmentation in the photo's pixels, colour (BGR), and what its tag says.

    note: behind the name, and kept where a long name is shortened.
    """

    box: np.ndarray
    segmentation: list[np.ndarray] | dict | None
    colour: tuple[int, int, int]
    name: str
    note: str = ""


@dataclass
class _Style:
    """Sizes in pixels of the picture, and the factor from the photo to the picture."""

    zoom: float
    line: int
    font_scale: float
    least_font_scale: float

    @classmethod
    def of(cls, height: int, width: int) -> "_Style":
        short, long = sorted((height, width))
        zoom = max(1.0, min(MIN_SHORT_SIDE / short, MAX_ENLARGED_SIDE / long))
        growth = max(zoom * short / MIN_SHORT_SIDE, 0.01) ** 0.7
        scales = (max(LEAST_FONT_SCALE, scale * growth) for scale in (FONT_SCALE, LEAST_FONT_SCALE))
        return cls(zoom, max(1, round(1.6 * growth)), *scales)


@dataclass(frozen=True)
class _Tag:
    """A line of text with a margin around it; sizes in pixels."""

    text: str
    font_scale: float

    @property
    def margin(self) -> int:
        return max(2, round(7 * self.font_scale))

    @property
    def size(self) -> np.ndarray:
        """(width, height); all of a font scale are equally high, whichever letters they have."""
        width = _text_width(self.text, self.font_scale)
        (_, above), below = cv2.getTextSize("g", FONT, self.font_scale, _weight(self.font_scale))
        return np.array([width + 2 * self.margin, above + below + self.margin])

    def draw(self, canvas: np.ndarray, corner: tuple[int, int], ground: tuple, ink: tuple) -> None:
        """Draws it with its upper left corner at (x, y)."""
        (x, y), (width, height) = corner, self.size
        below = cv2.getTextSize("g", FONT, self.font_scale, _weight(self.font_scale))[1]
        cv2.rectangle(canvas, (x, y), (x + int(width) - 1, y + int(height) - 1), ground, cv2.FILLED)
        origin = (x + self.margin, y + int(height) - self.margin // 2 - below)
        cv2.putText(canvas, self.text, origin, FONT, self.font_scale, ink, _weight(self.font_scale), cv2.LINE_AA)


def class_colour(label: int) -> tuple[int, int, int]:
    """The BGR colour of a label: neighbouring labels differ most, by the golden ratio of the colour circle."""
    hue = (0.02 + label * 0.618034) % 1.0
    saturation, value = [(0.85, 1.0), (0.65, 0.85), (1.0, 0.7)][label // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * blue), round(255 * green), round(255 * red)


def draw_truth(image: np.ndarray, record: ImageRecord, categories: Categories) -> np.ndarray:
    """The photo with its ground truth; crowd regions are marked as such."""
    instances = []
    for box, label, is_crowd, segmentation in zip(
        record.boxes, record.labels, record.is_crowd, record.segmentations, strict=True
    ):
        name, note = categories.name_of_label(label), " (crowd)" if is_crowd else ""
        instances.append(_Instance(box, segmentation, class_colour(int(label)), name, note))
    return _draw(image, instances)


def draw_detections(
    image: np.ndarray, detections: BoxList, categories: Categories, *, score_threshold: float = 0.5
) -> np.ndarray:
    """The photo with the detections of at least the given score, each tagged with its name and score.

    detections: in the photo's pixels, with the fields "scores", "labels" and, where there are any, "masks", as a
    predictor gives them.
    """
    boxes, scores, labels = detections.convert("xyxy").boxes, *map(detections.get_field, ("scores", "labels"))
    masks = detections.get_field("masks").segmentations if detections.has_field("masks") else [None] * len(boxes)
    instances = []
    for i in np.argsort(-scores, kind="stable"):
        if scores[i] >= score_threshold:
            name, note = categories.name_of_label(labels[i]), f" {scores[i]:.2f}"
            instances.append(_Instance(boxes[i], masks[i], class_colour(int(labels[i])), name, note))
    return _draw(image, instances)


def draw_comparison(
    image: np.ndarray,
    record: ImageRecord,
    detections: BoxList,
    categories: Categories,
    *,
    score_threshold: float = 0.5,
) -> np.ndarray:
    """Ground truth on the left, detections of at least the given score on the right, each under its heading."""
    found = int(np.count_nonzero(detections.get_field("scores") >= score_threshold))
    truth = draw_truth(image, record, categories)
    prediction = draw_detections(image, detections, categories, score_threshold=score_threshold)
    headings = f"Ground truth: {len(record.boxes)}", f"Prediction: {found} (score >= {score_threshold:g})"
    return _side_by_side(truth, prediction, headings)


def draw_caption(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture with a line of text on a dark ground in its upper left corner."""
    drawn = picture.copy()
    _Tag(text, _Style.of(*picture.shape[:2]).font_scale).draw(drawn, (0, 0), PAPER, INK)
    return drawn


def _draw(image: np.ndarray, instances: Sequence[_Instance]) -> np.ndarray:
    """Draws large objects first, so that small ones stay visible; tags last, placed in the order of the instances."""
    style = _Style.of(*image.shape[:2])
    canvas = cv2.resize(image, None, fx=style.zoom, fy=style.zoom, interpolation=cv2.INTER_CUBIC)
    boxes = [np.asarray(instance.box, float) * style.zoom for instance in instances]
    by_area = sorted(range(len(instances)), key=lambda i: -np.prod(boxes[i][2:] - boxes[i][:2]))
    for i in by_area:
        if instances[i].segmentation is not None:
            _draw_mask(canvas, instances[i], style)
    for i in by_area:
        _draw_box(canvas, boxes[i], instances[i].colour, style)
    _draw_tags(canvas, instances, boxes, style)
    return canvas


def _draw_mask(canvas: np.ndarray, instance: _Instance, style: _Style) -> None:
    bitmap = _bitmap(instance.segmentation, canvas.shape[:2], style.zoom)
    rows, columns = (np.flatnonzero(bitmap.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    # pycocotools' bitmaps lie column by column, which OpenCV takes long to turn: only what is needed of them.
    inside, region = np.ascontiguousarray(bitmap[window]), canvas[window]
    tinted = cv2.addWeighted(region, 1 - MASK_OPACITY, np.full_like(region, instance.colour), MASK_OPACITY, 0)
    cv2.copyTo(tinted, inside, region)
    corner = int(columns[0]), int(rows[0])
    contours, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=corner)
    cv2.drawContours(canvas, contours, -1, instance.colour, max(1, style.line - 1), cv2.LINE_AA)


def _bitmap(segmentation: list[np.ndarray] | dict, canvas_size: tuple[int, int], zoom: float) -> np.ndarray:
    """The segmentation of a photo as a uint8 bitmap (0 or not) of the enlarged picture."""
    if isinstance(segmentation, dict):
        mask = coco_mask.decode(segmentation)
        if zoom == 1:
            return mask
        enlarged = cv2.resize(mask * np.uint8(255), canvas_size[::-1], interpolation=cv2.INTER_LINEAR)
        return cv2.threshold(enlarged, 127, 255, cv2.THRESH_BINARY)[1]
    bitmap = np.zeros(canvas_size, np.uint8)
    for polygon in segmentation:
        cv2.fillPoly(bitmap, [_fixed_point(np.reshape(polygon, (-1, 2)) * zoom)], 255, shift=SUBPIXEL_BITS)
    return bitmap


def _fixed_point(points: np.ndarray) -> np.ndarray:
    """Continuous pixel coordinates as OpenCV's fixed-point ones, whose whole numbers are pixel centres."""
    return np.round((points - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32)


def _draw_box(canvas: np.ndarray, box: np.ndarray, colour: tuple[int, int, int], style: _Style) -> None:
    (x1, y1), (x2, y2) = _fixed_point(box.reshape(2, 2)).tolist()
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, style.line, cv2.LINE_AA, SUBPIXEL_BITS)


def _draw_tags(
    canvas: np.ndarray, instances: Sequence[_Instance], boxes: Sequence[np.ndarray], style: _Style
) -> None:
    taken = np.zeros((0, 4))
    for tag, box, instance in zip(_fit_tags(instances, canvas.shape[:2], style), boxes, instances, strict=True):
        place = _place_tag(box, tag.size, taken, canvas.shape[:2])
        taken = np.vstack([taken, place])
        tag.draw(canvas, tuple(place[:2].tolist()), instance.colour, _ink_on(instance.colour))


def _fit_tags(instances: Sequence[_Instance], canvas_size: tuple[int, int], style: _Style) -> list[_Tag]:
    """The tags, none wider than the picture, in the largest text that leaves enough of the picture to see."""
    height, width = canvas_size
    for font_scale in np.linspace(style.font_scale, style.least_font_scale, 4).tolist():
        room = width - _Tag("", font_scale).size[0]
        tags = [_Tag(_shorten(instance.name, instance.note, font_scale, room), font_scale) for instance in instances]
        if sum(np.prod(tag.size) for tag in tags) <= TAGS_SHARE * height * width:
            break
    return tags


def _shorten(name: str, note: str, font_scale: float, room: int) -> str:
    """name + note, the name cut as little as needed where together they are wider than `room` pixels."""
    if _text_width(name + note, font_scale) <= room:
        return name + note
    cuts = (name[:end].rstrip() + ELLIPSIS + note for end in range(len(name) - 1, 0, -1))
    return next((text for text in cuts if _text_width(text, font_scale) <= room), ELLIPSIS + note)


def _text_width(text: str, font_scale: float) -> int:
    return cv2.getTextSize(text, FONT, font_scale, _weight(font_scale))[0][0]


def _weight(font_scale: float) -> int:
    return max(1, round(1.2 * font_scale))


def _place_tag(box: np.ndarray, size: np.ndarray, taken: np.ndarray, canvas_size: tuple[int, int]) -> np.ndarray:
    """Where in the picture, as int (x1, y1, x2, y2), a tag of `size` (w, h) at `box` covers least of the `taken` ones.

    In order of liking: above the box, inside its top, below it, inside its bottom, each from left to right; beside it;
    anywhere inside it.
    """
    x1, y1, x2, y2 = np.round(box)
    width, height = size
    columns = np.linspace(x1, max(x1, x2 - width), 5)
    rows = [y1 - height, y1, y2, y2 - height]
    beside = [(x, y) for y in (*np.arange(y1, y2 - height, height)[:8], y2 - height) for x in (x2, x1 - width)]
    inside = [(x, y) for y in np.arange(y1 + height, y2 - height, height)[:20] for x in columns]
    corners = np.array([(x, y) for y in rows for x in columns] + beside + inside)
    corners = np.clip(corners, 0, np.maximum(0, np.array(canvas_size[::-1]) - size))
    places = np.hstack([corners, corners + size])
    shared = np.minimum(places[:, None, 2:], taken[:, 2:]) - np.maximum(places[:, None, :2], taken[:, :2])
    covered = np.prod(np.maximum(shared, 0), axis=2).sum(axis=1)
    return places[covered.argmin()].astype(int)


def _ink_on(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever reads better on the colour (ITU-R BT.601 luma)."""
    blue, green, red = colour
    return (0, 0, 0) if 0.114 * blue + 0.587 * green + 0.299 * red > 140 else (255, 255, 255)


def _side_by_side(left: np.ndarray, right: np.ndarray, headings: tuple[str, str]) -> np.ndarray:
    """Two pictures of one size under a dark band with their headings, which shrink where the pictures are narrow."""
    height, width = left.shape[:2]
    gap = max(4, width // 100)
    font_scale = 1.4 * _Style.of(height, width).font_scale
    font_scale *= min(1.0, *(0.95 * width / _Tag(heading, font_scale).size[0] for heading in headings))
    tags = [_Tag(heading, font_scale) for heading in headings]
    band = round(1.3 * tags[0].size[1])
    picture = np.full((band + height, 2 * width + gap, 3), PAPER, np.uint8)
    for image, tag, x in zip((left, right), tags, (0, width + gap), strict=True):
        picture[band:, x : x + width] = image
        tag.draw(picture, (x, (band - tag.size[1]) // 2), PAPER, INK)
    return picture
