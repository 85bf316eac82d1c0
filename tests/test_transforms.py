"""Augmentations: what happens to boxes and masks, compared with what happens to pictures of them."""

import re

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from FasterRCNN.imaging.transforms import FILL, augment, move_target, parse_augmentations
from FasterRCNN.masks import Masks
from FasterRCNN.structures import BoxList

WIDTH, HEIGHT = 240, 180
SIZE = WIDTH, HEIGHT
GEOMETRIC = [
    "flip_horizontal(p=1)", "flip_vertical(p=1)", "scale_jitter(low=0.5, high=0.9)", "scale_jitter(low=1.1, high=2)",
    "random_crop(min_scale=0.4)", "rotate90", "rotate(degrees=30)", "rotate(degrees=180)",
]
PHOTOMETRIC = ["colour(brightness=0.5, contrast=0.5, saturation=1, hue=0.5)", "greyscale(p=1)"]
A_CHAIN = ["random_crop(min_scale=0.5)", "scale_jitter(low=0.6, high=0.9)", "rotate(degrees=40)", "flip_vertical(p=1)",
           "scale_jitter(low=1.1, high=1.4)", "rotate90"]


def make_polygons(rng, parts=1):
    polygons = []
    for _ in range(parts):
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        radii = rng.uniform(15, 40) * (1 + 0.2 * np.sin(rng.integers(2, 5) * angles + rng.uniform(0, 6)))
        around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
        polygons.append(np.clip(around + rng.uniform(0.15, 0.85, 2) * SIZE, 0, SIZE).astype(np.float32))
    return polygons


def make_target(form="polygons", number=6, seed=0, crowds=()):
    """Objects with "masks" of the form, none for "boxes"; the fields "labels", "is_crowd" and "ids"."""
    rng = np.random.default_rng(seed)
    objects = [make_polygons(rng, 1 + i % 2) for i in range(number)]
    masks = Masks(objects, SIZE)
    if form == "rle":
        masks = Masks.from_bitmaps(masks.bitmaps())
    target = BoxList(masks.boxes(), SIZE)
    target.add_field("labels", np.arange(number, dtype=np.int32) % 3 + 1)
    target.add_field("is_crowd", np.isin(np.arange(number), crowds))
    target.add_field("ids", [f"object {i}" for i in range(number)])
    if form != "boxes":
        target.add_field("masks", masks)
    return target


def make_image(seed=0, size=SIZE):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)


def run(text, image, target, seed=0):
    texts = [text] if isinstance(text, str) else text
    return augment(image, target, parse_augmentations(texts), np.random.default_rng(seed))


def number_of(name):
    return int(name.split()[1])


def pixel_box(bitmap):
    x, y, width, height = cv2.boundingRect(np.ascontiguousarray(bitmap, np.uint8))
    return np.array([x, y, x + width, y + height])


def iou(a, b):
    return np.logical_and(a, b).sum() / np.logical_or(a, b).sum()


def picture_of(segmentation):
    """A black picture with the object in white, drawn by pycocotools."""
    if isinstance(segmentation, list):
        flat = [polygon.ravel().tolist() for polygon in segmentation]
        segmentation = mask_utils.merge(mask_utils.frPyObjects(flat, HEIGHT, WIDTH))
    return np.repeat(mask_utils.decode(segmentation)[:, :, None] * np.uint8(255), 3, axis=2)


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize("texts", [[text] for text in GEOMETRIC] + [A_CHAIN], ids=" ".join)
@pytest.mark.parametrize("form", ["polygons", "rle"])
def test_boxes_and_masks_stay_in_step_with_the_image(form, texts):
    """A picture of each object goes through the same augmentation: what is white there is where its mask must be."""
    num_seen = 0
    for seed in range(5):
        target = make_target(form, seed=seed)
        pictures = [picture_of(segmentation) for segmentation in target.get_field("masks").segmentations]
        moved = [run(texts, picture, target, seed) for picture in pictures]
        black, result = run(texts, np.zeros_like(pictures[0]), target, seed)  # not black where a canvas was filled up
        bitmaps, boxes = result.get_field("masks").bitmaps(), result.get_field("masks").boxes()
        for row, name in enumerate(result.get_field("ids")):
            image = moved[number_of(name)][0]
            assert image.shape[1::-1] == result.image_size
            assert np.abs(boxes[row] - result.boxes[row]).max() <= 1
            white = cv2.subtract(image, black)[:, :, 0] > 127
            x1, y1, x2, y2 = pixel_box(white)
            if min(x2 - x1, y2 - y1) > 20:
                num_seen += 1
                assert iou(bitmaps[row], white) > 0.97
                assert np.abs(result.boxes[row] - pixel_box(bitmaps[row])).max() <= 1
                assert np.abs(result.boxes[row] - pixel_box(white)).max() <= 1.5
    assert num_seen > 12


@pytest.mark.parametrize("text", GEOMETRIC)
def test_all_fields_follow(text):
    target = make_target("polygons", number=8, crowds=(2, 5))
    _, result = run(text, make_image(), target, seed=3)
    assert result.fields() == target.fields()
    rows = [number_of(name) for name in result.get_field("ids")]
    assert rows == sorted(set(rows))
    np.testing.assert_array_equal(result.get_field("labels"), target.get_field("labels")[rows])
    np.testing.assert_array_equal(result.get_field("is_crowd"), np.isin(rows, (2, 5)))
    assert result.boxes.dtype == np.float32 and result.mode == "xyxy"


@pytest.mark.parametrize("text", GEOMETRIC)
def test_boxes_without_masks_hold_their_objects(text):
    for seed in range(5):
        _, of_masks = run(text, make_image(), make_target("polygons", seed=seed), seed)
        _, of_boxes = run(text, make_image(), make_target("boxes", seed=seed), seed)
        rows = [of_boxes.get_field("ids").index(name) for name in of_masks.get_field("ids")
                if name in of_boxes.get_field("ids")]
        own = np.isin(of_masks.get_field("ids"), of_boxes.get_field("ids"))
        inner, outer = of_masks.boxes[own], of_boxes.boxes[rows]
        assert len(inner) > 0
        assert (outer[:, :2] <= inner[:, :2] + 1e-3).all() and (outer[:, 2:] >= inner[:, 2:] - 1e-3).all()


@pytest.mark.parametrize(("text", "axis"), [("flip_horizontal(p=1)", 1), ("flip_vertical(p=1)", 0)])
def test_flips_are_exact_and_their_own_inverses(text, axis):
    image, target = make_image(), make_target("rle")
    flipped, result = run(text, image, target)
    np.testing.assert_array_equal(flipped, np.flip(image, axis))
    np.testing.assert_array_equal(result.get_field("masks").bitmaps(),
                                  np.flip(target.get_field("masks").bitmaps(), axis + 1))
    again, back = run(text, flipped, result)
    np.testing.assert_array_equal(again, image)
    np.testing.assert_array_equal(back.boxes, target.boxes)
    np.testing.assert_array_equal(back.get_field("masks").bitmaps(), target.get_field("masks").bitmaps())


def test_quarter_turns_are_exact_and_all_occur():
    image, target = make_image(), make_target("rle")
    bitmaps = target.get_field("masks").bitmaps()
    seen = set()
    for seed in range(16):
        turned, result = run("rotate90", image, target, seed)
        (turns,) = (k for k in range(4) if np.array_equal(turned, np.rot90(image, -k)))
        seen.add(turns)
        assert result.image_size == turned.shape[1::-1]
        expected = np.rot90(bitmaps, -turns, axes=(1, 2))
        np.testing.assert_array_equal(result.get_field("masks").bitmaps(), expected)
        np.testing.assert_array_equal(result.boxes, [pixel_box(bitmap) for bitmap in expected])
    assert seen == {0, 1, 2, 3}


def test_four_equal_quarter_turns_bring_everything_back():
    image, target = make_image(), make_target("polygons")
    seed = next(seed for seed in range(16) if run("rotate90", image, target, seed)[0].shape[:2] == SIZE)
    turned, result = image, target
    for _ in range(4):
        turned, result = run("rotate90", turned, result, seed)
    np.testing.assert_array_equal(turned, image)
    np.testing.assert_allclose(result.boxes, target.boxes, atol=1e-4)
    for before, after in zip(target.get_field("masks").segmentations, result.get_field("masks").segmentations):
        np.testing.assert_allclose(np.concatenate(after), np.concatenate(before), atol=1e-4)


def test_a_rotation_cuts_nothing_and_fills_the_corners():
    image = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    target = make_target("polygons")
    for seed in range(8):
        turned, result = run("rotate(degrees=180)", image, target, seed)
        assert len(result) == len(target)
        areas = [masks.bitmaps().sum(axis=(1, 2)) for masks in (result.get_field("masks"), target.get_field("masks"))]
        np.testing.assert_allclose(areas[0], areas[1], rtol=0.02)
        assert abs((turned[:, :, 0] > 180).sum() - WIDTH * HEIGHT) < 0.01 * WIDTH * HEIGHT
        assert (turned[0, 0] == FILL).all()
    same, result = run("rotate(degrees=0)", make_image(), target)
    np.testing.assert_array_equal(same, make_image())
    np.testing.assert_allclose(result.boxes, target.boxes, atol=1e-3)


def test_a_crop_keeps_an_object_and_drops_the_hardly_visible():
    rng = np.random.default_rng(0)
    for seed in range(40):
        target = make_target("boxes", number=3, seed=seed, crowds=(0,))
        image, result = run("random_crop(min_scale=0.1, min_visible=0.5)", make_image(), target, seed)
        assert image.shape[1::-1] == result.image_size
        assert not result.get_field("is_crowd").all()
        rows = [number_of(name) for name in result.get_field("ids")]
        assert (result.area() >= 0.499 * target.area()[rows]).all()
        assert (result.boxes >= 0).all() and (result.boxes[:, 2:] <= result.image_size).all()
    corner = BoxList([[0, 0, 1, 1]], SIZE)
    image = make_image()
    found = [augment(image, corner, parse_augmentations(["random_crop(min_scale=0.01)"]), rng) for _ in range(20)]
    assert all(len(result) == 1 for _, result in found)
    assert any(cropped is image for cropped, _ in found)


def test_a_crop_without_objects_is_still_a_crop():
    image, result = run("random_crop(min_scale=0.2)", make_image(), make_target(number=0))
    assert image.shape[0] < HEIGHT and len(result) == 0


@pytest.mark.parametrize(("text", "low", "high"), [
    ("scale_jitter(low=0.5, high=0.8)", 0.5, 0.8), ("scale_jitter(low=1.2, high=2)", 1.2, 2), ("scale_jitter", 0.5, 2)])
def test_scale_jitter_shows_objects_at_another_size_to_the_network(text, low, high):
    """After the network's resizing, which brings any canvas to one size."""
    factors = []
    for seed in range(20):
        target = BoxList([[110, 80, 130, 100]], SIZE)
        image, result = run(text, make_image(), target, seed)
        assert abs(image.shape[1] / image.shape[0] - WIDTH / HEIGHT) < 0.03
        if len(result) and result.boxes.min() > 0 and (result.boxes[0, 2:] < result.image_size).all():
            sides = result.resize(SIZE).boxes[0, 2:] - result.resize(SIZE).boxes[0, :2]
            factors += (sides / 20).tolist()
    assert len(factors) > 15
    assert low * 0.98 <= min(factors) and max(factors) <= high * 1.02 and max(factors) > 1.3 * min(factors)


def test_zooming_out_pads_around_every_pixel():
    image, target = make_image(), make_target("rle")
    zoomed, result = run("scale_jitter(low=0.5, high=0.5)", image, target)
    assert zoomed.shape == (2 * HEIGHT, 2 * WIDTH, 3)
    x, y = (result.boxes - target.boxes)[0, :2].astype(int)
    np.testing.assert_array_equal(zoomed[y:y + HEIGHT, x:x + WIDTH], image)
    outside = np.ones(zoomed.shape[:2], bool)
    outside[y:y + HEIGHT, x:x + WIDTH] = False
    assert (zoomed[outside] == FILL).all()
    np.testing.assert_array_equal(result.get_field("masks").bitmaps()[:, y:y + HEIGHT, x:x + WIDTH],
                                  target.get_field("masks").bitmaps())


def test_zooming_out_of_a_large_photo_keeps_to_a_bounded_canvas():
    image = np.zeros((300, 3000, 3), np.uint8)
    target = BoxList([[0, 0, 3000, 300]], (3000, 300))
    zoomed, result = run("scale_jitter(low=0.1, high=0.1)", image, target)
    assert zoomed.shape[:2] == (300, 3000) == result.image_size[::-1]
    np.testing.assert_allclose(result.boxes[0, 2:] - result.boxes[0, :2], [300, 30], atol=1)
    assert (zoomed.any(axis=2).sum() == 3000 * 300 - 300 * 30)


def test_what_left_the_image_is_dropped_with_its_fields():
    target = make_target("polygons")
    moved = move_target(target, [[1, 0, -1000], [0, 1, 0]], SIZE)
    assert len(moved) == 0 and moved.fields() == target.fields() and len(moved.get_field("masks")) == 0
    assert moved.get_field("labels").shape == (0,) and moved.get_field("ids") == []


def test_objects_without_a_mask_move_by_their_boxes():
    target = BoxList([[10, 10, 50, 30], [60, 60, 100, 90]], SIZE)
    target.add_field("masks", Masks([None, [np.float32([[70, 60], [90, 60], [100, 90], [60, 90]])]], SIZE))
    cut = move_target(target, [[1, 0, -20], [0, 1, -15]], (70, 60))
    np.testing.assert_array_equal(cut.boxes, [[0, 0, 30, 15], [45, 45, 70, 60]])


@pytest.mark.parametrize("text", GEOMETRIC + PHOTOMETRIC)
def test_images_without_objects(text):
    for form in ("polygons", "boxes"):
        image, result = run(text, make_image(), make_target(form, number=0))
        assert image.ndim == 3 and image.dtype == np.uint8 and len(result) == 0
        assert result.image_size == image.shape[1::-1]


@pytest.mark.parametrize("text", GEOMETRIC)
def test_images_of_a_single_pixel(text):
    image, result = run(text, make_image(size=(1, 1)), BoxList([[0, 0, 1, 1]], (1, 1)))
    assert image.size >= 3 and result.image_size == image.shape[1::-1]


# ---------------------------------------------------------------- randomness


@pytest.mark.parametrize("text", GEOMETRIC + PHOTOMETRIC)
def test_the_generator_decides(text):
    target = make_target("polygons")
    (image, result), (same, same_result) = (run(text, make_image(), target, seed=5) for _ in range(2))
    np.testing.assert_array_equal(image, same)
    np.testing.assert_array_equal(result.boxes, same_result.boxes)
    others = [run(text, make_image(), target, seed)[0] for seed in range(6)]
    is_random = "flip" not in text and "greyscale" not in text
    assert any(other.shape != image.shape or (other != image).any() for other in others) == is_random


@pytest.mark.parametrize("name", ["flip_horizontal", "flip_vertical", "scale_jitter", "random_crop", "rotate90",
                                  "rotate", "colour", "greyscale"])
def test_a_probability_of_zero_leaves_all_untouched(name):
    image, target = make_image(), make_target("rle")
    for seed in range(5):
        assert run(f"{name}(p=0)", image, target, seed) == (image, target)


def test_flips_come_half_the_time():
    image, target = make_image(), make_target("boxes", number=1)
    (flip,), rng = parse_augmentations(["flip_horizontal"]), np.random.default_rng(0)
    assert 420 < sum(flip(image, target, rng)[0] is not image for _ in range(1000)) < 580


# ---------------------------------------------------------------- colours


@pytest.mark.parametrize("text", PHOTOMETRIC)
def test_colours_leave_the_objects_alone(text):
    image, target = make_image(), make_target("rle")
    before = image.copy()
    changed, result = run(text, image, target)
    assert result is target and changed.shape == image.shape and changed.dtype == np.uint8
    np.testing.assert_array_equal(image, before)
    assert (changed != image).any()


def test_nothing_asked_of_colour_changes_nothing():
    image = make_image()
    same, _ = run("colour(brightness=0, contrast=0, saturation=0, hue=0)", image, make_target(number=0))
    assert np.abs(same.astype(int) - image).max() <= 1


def test_colour_varies_what_it_says():
    image, empty = make_image().clip(60, 190), BoxList([], SIZE)
    luma = np.array([0.114, 0.587, 0.299])
    none = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0)

    def varied(**only):
        text = ", ".join(f"{name}={value}" for name, value in (none | only).items())
        return [run(f"colour({text})", image, empty, seed)[0].astype(float) for seed in range(8)]

    def spread(values):
        return max(values) / min(values)

    assert spread([bright.mean() for bright in varied(brightness=0.2)]) > 1.1
    contrasts = varied(contrast=0.2)
    assert spread([(changed @ luma).std() for changed in contrasts]) > 1.1
    assert spread([(changed @ luma).mean() for changed in contrasts]) < 1.02
    for saturated in varied(saturation=0.5) + varied(hue=0.02):
        np.testing.assert_allclose((saturated @ luma).mean(), (image @ luma).mean(), rtol=0.02)
    chroma = [(changed - (changed @ luma)[..., None]).std() for changed in varied(saturation=0.5)]
    assert spread(chroma) > 1.3


def test_hue_turns_colours_as_the_colour_circle_does():
    image, empty = np.full((4, 4, 3), (80, 100, 160), np.uint8), BoxList([], (4, 4))
    hue_before = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)[0, 0, 0]
    moves = []
    for seed in range(30):
        text = "colour(brightness=0, contrast=0, saturation=0, hue=0.1)"
        hue = cv2.cvtColor(run(text, image, empty, seed)[0], cv2.COLOR_BGR2HSV)[0, 0, 0]
        moves.append((float(hue) - hue_before + 90) % 180 - 90)
    assert 8 < max(moves) < 30 and -30 < min(moves) < -8


def test_greyscale_has_equal_channels():
    grey, _ = run("greyscale(p=1)", make_image(), BoxList([], SIZE))
    assert (grey == grey[:, :, :1]).all()
    np.testing.assert_allclose(grey[:, :, 0], make_image() @ [0.114, 0.587, 0.299], atol=1)


# ---------------------------------------------------------------- the list in the config


def test_texts_become_augmentations():
    flip, jitter, crop, other = parse_augmentations(
        ["flip_horizontal", " scale_jitter(low=0.5, high=1) ", "random_crop()", "rotate(degrees=30, p=0.5)"])
    assert flip.p == 0.5 and (jitter.low, jitter.high, jitter.p) == (0.5, 1, 1)
    assert crop.min_scale == 0.3 and (other.degrees, other.p) == (30, 0.5)
    assert parse_augmentations(["color", "grayscale(p=1)"]) == parse_augmentations(["colour", "greyscale(p=1)"])
    assert parse_augmentations([]) == []


CHOICES = "Choices, with their defaults: flip_horizontal(p=0.5), "


@pytest.mark.parametrize(("text", "message"), [
    ("flip_horizontl", "augmentation 'flip_horizontl': there is no 'flip_horizontl'. Did you mean 'flip_horizontal'? "
                       + CHOICES),
    ("mosaic", "augmentation 'mosaic': there is no 'mosaic'. " + CHOICES),
    ("rotate(angle=3)", "rotate has no argument 'angle'. It is rotate(degrees=15, p=1)"),
    ("scale_jitter(hgh=3)", "no argument 'hgh'. Did you mean 'high'? It is scale_jitter(low=0.5, high=2, "),
    ("flip_vertical(p=2)", "augmentation 'flip_vertical(p=2)': p = 2 is not a number from 0 to 1. "
                           "It is flip_vertical(p=0.5)"),
    ("rotate(degrees='15')", "degrees = '15' is not a number from 0 to 180"),
    ("rotate(degrees=-1)", "degrees = -1 is not a number from 0 to 180"),
    ("rotate(p=True)", "p = True is not a number"),
    ("rotate(p=1e999)", "p = inf is not a number from 0 to 1"),
    ("scale_jitter(low=2, high=1)", "low = 2 is above high = 1"),
    ("rotate(15)", "augmentation 'rotate(15)' is not written as a name or as name(argument=number, ...). " + CHOICES),
    ("rotate(degrees=5+5)", "is not written as a name"),
    ("rotate(**{'p': 1})", "is not written as a name"),
    ("rotate(p=1, p=1)", "is not written as a name"),
    ("__import__('os').system('true')", "is not written as a name"),
    ("rotate(degrees=print('no'))", "is not written as a name"),
    ("rotate90; rotate", "is not written as a name"),
    ("", "augmentation '' is not written as a name"),
    ("(" * 500, "is not written as a name"),
    ("a\0", "is not written as a name"),
    (3, "augmentation 3 is not written as a name"),
])
def test_texts_that_say_nothing_usable(text, message, capsys):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_augmentations(["flip_vertical", text])
    assert capsys.readouterr().out == ""


def test_every_choice_can_be_written_as_it_is_offered():
    with pytest.raises(ValueError) as raised:
        parse_augmentations(["?"])
    offered = re.findall(r"\w+\([^)]*=[^)]*\)", str(raised.value).split("defaults: ")[1])
    names = [text.split("(")[0] for text in offered]
    assert names == ["flip_horizontal", "flip_vertical", "scale_jitter", "random_crop", "rotate90", "rotate", "colour",
                     "greyscale"]
    assert parse_augmentations(offered) == parse_augmentations(names)
