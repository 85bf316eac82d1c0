"""Drawn pictures: what is tinted, outlined and written where; sizes, edge cases, and tags kept apart."""

import cv2
import numpy as np
import pycocotools.mask as coco_mask
import pytest

from FasterRCNN.imaging import visualize
from FasterRCNN.imaging.visualize import class_colour, draw_comparison, draw_detections, draw_truth
from FasterRCNN.structures import FLIP_LEFT_RIGHT, BoxList, Categories, ImageRecord

CATEGORIES = Categories(("cat", "naïve dog", "traffic light"), (3, 7, 9))


def rle_of(bitmap):
    return coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))


def detections(boxes, scores, labels, size=(500, 600), with_masks=False):
    found = BoxList(boxes, size[::-1])
    found.add_field("scores", np.float32(scores))
    found.add_field("labels", np.int32(labels))
    if with_masks:
        bitmaps = np.zeros((len(boxes), *size), np.uint8)
        for bitmap, (x1, y1, x2, y2) in zip(bitmaps, np.round(boxes).astype(int)):
            bitmap[max(y1, 0) : y2, max(x1, 0) : x2] = 1
        found.add_field("masks", bitmaps)
    return found


def record(height, width, **objects):
    return ImageRecord(image_id=1, file_name="x.jpg", height=height, width=width, **objects)


def truth_of_each_form(height, width):
    """A crowd as RLE, a polygon and a bare box, one below the other, in tenths of the picture."""
    boxes = np.float32([[1, 1, 8, 3], [1, 4, 8, 6], [1, 7, 8, 9]]) * np.float32([width, height, width, height]) / 10
    x1, y1, x2, y2 = np.round(boxes[0]).astype(int)
    bitmap = np.zeros((height, width))
    bitmap[y1:y2, x1:x2] = 1
    polygon = boxes[1][[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2)
    return record(
        height,
        width,
        boxes=boxes,
        labels=np.int32([1, 2, 3]),
        is_crowd=np.array([True, False, False]),
        segmentations=[rle_of(bitmap), [polygon], None],
    )


@pytest.mark.parametrize(
    "size, expected",
    [
        ((256, 256), (480, 480)),
        ((120, 240), (480, 960)),
        ((600, 500), (600, 500)),
        ((1200, 2000), (1200, 2000)),
        ((8, 1000), (13, 1600)),
        ((1, 1), (480, 480)),
    ],
)
def test_small_photos_are_enlarged_and_others_kept(size, expected):
    image = np.full((*size, 3), 90, np.uint8)
    found = detections([[0, 0, size[1], size[0]]], [0.9], [1], size, with_masks=True)
    drawn = draw_detections(image, found, CATEGORIES)
    assert drawn.shape == (*expected, 3) and drawn.dtype == np.uint8
    assert (image == 90).all()


def test_truth_draws_rle_polygon_and_bare_box():
    image = np.zeros((500, 500, 3), np.uint8)
    drawn = draw_truth(image, truth_of_each_form(500, 500), CATEGORIES)
    for y, label in ((100, 1), (250, 2)):
        expected = np.array(class_colour(label)) * visualize.MASK_OPACITY
        np.testing.assert_allclose(drawn[y, 300], expected, atol=1)
    assert not drawn[400, 300].any()
    for y, label in ((100, 1), (250, 2), (400, 3)):
        outline = drawn[y, 396:404].astype(int)
        assert (np.abs(outline - class_colour(label)).max(axis=1) < 30).any()
    assert not drawn[460:].any()


def test_masks_of_both_forms_land_on_the_same_pixels_when_enlarged():
    bitmap = np.zeros((100, 100))
    bitmap[20:60, 30:80] = 1
    polygon = np.float32([[30, 20], [80, 20], [80, 60], [30, 60]])
    drawn = []
    for segmentation in (rle_of(bitmap), [polygon]):
        one = visualize._bitmap(segmentation, (480, 480), 4.8)
        drawn.append(one)
        x, y, width, height = cv2.boundingRect(one)
        np.testing.assert_allclose([x, y, x + width, y + height], np.array([30, 20, 80, 60]) * 4.8, atol=1.5)
    assert (drawn[0] != drawn[1]).mean() < 0.005


def test_score_threshold_leaves_out_the_rest():
    image = np.zeros((500, 500, 3), np.uint8)
    found = detections([[10, 50, 100, 100], [200, 300, 400, 400]], [0.9, 0.3], [1, 2], (500, 500), with_masks=True)
    drawn = draw_detections(image, found, CATEGORIES, score_threshold=0.5)
    assert drawn[:250].any() and not drawn[250:].any()
    assert draw_detections(image, found, CATEGORIES, score_threshold=0.3)[250:].any()


def test_nothing_to_draw_leaves_the_photo_as_it_is():
    image = np.random.default_rng(0).integers(0, 255, (500, 600, 3), np.uint8)
    none = detections([], [], [])
    np.testing.assert_array_equal(draw_detections(image, none, CATEGORIES), image)
    np.testing.assert_array_equal(draw_truth(image, record(500, 600), CATEGORIES), image)
    assert draw_comparison(image, record(500, 600), none, CATEGORIES).shape[1] > 1200


def test_empty_masks_and_boxes_beyond_the_photo_are_drawn():
    found = detections([[-50, -50, 700, 700], [590, 490, 610, 510], [5, 5, 5, 5]], [0.9] * 3, [1, 2, 3])
    found.add_field("masks", np.zeros((3, 500, 600), np.uint8))
    draw_detections(np.zeros((500, 600, 3), np.uint8), found, CATEGORIES)


@pytest.mark.parametrize("size", [(256, 256), (500, 700), (40, 900), (900, 40)])
def test_comparison_sets_truth_left_and_prediction_right_under_headings(size):
    image = np.full((*size, 3), 128, np.uint8)
    found = detections([[5, 5, 30, 30]], [0.9], [2], size, with_masks=True)
    both = draw_comparison(image, truth_of_each_form(*size), found, CATEGORIES)
    truth = draw_truth(image, truth_of_each_form(*size), CATEGORIES)
    prediction = draw_detections(image, found, CATEGORIES)
    height, width = truth.shape[:2]
    np.testing.assert_array_equal(both[-height:, :width], truth)
    np.testing.assert_array_equal(both[-height:, -width:], prediction)
    heading = both[:-height]
    assert (heading[:, :width] > 150).any() and (heading[:, -width:] > 150).any()


def test_an_unknown_label_is_named():
    with pytest.raises(ValueError, match="label 4 is outside 1..3"):
        draw_detections(np.zeros((9, 9, 3), np.uint8), detections([[0, 0, 5, 5]], [0.9], [4], (9, 9)), CATEGORIES)


def test_detections_without_scores_are_refused():
    with pytest.raises(ValueError, match="no field 'scores'"):
        draw_detections(np.zeros((9, 9, 3), np.uint8), BoxList([[0, 0, 5, 5]], (9, 9)), CATEGORIES)


def test_boxes_of_either_mode_and_moved_masks_are_drawn_alike():
    """A mirrored picture of mirrored detections, tags apart, which are written from left to right."""
    image = np.zeros((500, 600, 3), np.uint8)
    found = detections([[100, 250, 300, 450]], [0.9], [1], with_masks=True)
    drawn = draw_detections(image, found, CATEGORIES)
    np.testing.assert_array_equal(draw_detections(image, found.convert("xywh"), CATEGORIES), drawn)
    mirrored = draw_detections(image, found.transpose(FLIP_LEFT_RIGHT), CATEGORIES)
    np.testing.assert_array_equal(mirrored[255:445, 305:495], drawn[255:445, 105:295][:, ::-1])
    assert (drawn[350, 200] != 0).any()


def test_tags_stay_in_the_picture_and_apart_where_there_is_room():
    size = np.array([80, 18])
    boxes = np.array([[0, 0, 90, 90], [0, 0, 95, 92], [420, 2, 500, 60], [418, 4, 499, 58], [300, 470, 480, 499]])
    taken = np.zeros((0, 4))
    for box in boxes:
        tag = visualize._place_tag(box, size, taken, (500, 500))
        assert (tag >= 0).all() and (tag <= 500).all()
        np.testing.assert_array_equal(tag[2:] - tag[:2], size)
        overlap = np.minimum(tag[2:], taken[:, 2:]) - np.maximum(tag[:2], taken[:, :2])
        assert not (overlap > 0).all(axis=1).any()
        taken = np.vstack([taken, tag])


def test_first_choice_is_just_above_the_box_at_its_left():
    tag = visualize._place_tag(np.array([100, 200, 300, 400]), np.array([60, 20]), np.zeros((0, 4)), (500, 500))
    assert tag.tolist() == [100, 180, 160, 200]


def test_colours_are_fixed_distinct_and_carry_readable_text():
    colours = np.array([class_colour(label) for label in range(1, 81)], float)
    assert len(np.unique(colours, axis=0)) == 80
    first = colours[:8]
    apart = np.linalg.norm(first[:, None] - first[None], axis=2)[~np.eye(8, dtype=bool)]
    assert apart.min() > 80
    for colour in colours:
        luma = colour @ [0.114, 0.587, 0.299]
        assert abs(luma - visualize._ink_on(tuple(colour))[0]) > 100


@pytest.mark.parametrize("name", ["traffic light", "собака", "交通信号灯", "naïve", "Ελλάδα"])
def test_names_in_many_scripts_are_written(name):
    """No letter becomes a question mark."""

    def drawn(text):
        canvas = np.zeros((40, 300, 3), np.uint8)
        visualize._Tag(text, 0.6).draw(canvas, (0, 0), (0, 0, 0), (255, 255, 255))
        return canvas

    assert drawn(name).any()
    assert all(not np.array_equal(drawn(letter), drawn("?")) for letter in name)


def test_a_long_name_at_the_border_is_shortened_and_keeps_its_score():
    names = Categories(("a very long name of a class " * 5, "cat"), (1, 2))
    found = detections([[550, 450, 599, 499]], [0.9], [1])
    instance = visualize._Instance(found.boxes[0], None, (9, 9, 9), names.names[0], " 0.90")
    (tag,) = visualize._fit_tags([instance], (500, 600), visualize._Style.of(500, 600))
    assert tag.text.startswith("a very long name") and tag.text.endswith("… 0.90") and 500 < tag.size[0] <= 600
    drawn = draw_detections(np.zeros((500, 600, 3), np.uint8), found, names)
    assert (drawn[:, :100] == class_colour(1)).all(axis=2).any()


def test_text_shrinks_where_there_is_much_of_it_but_stays_readable():
    style = visualize._Style.of(480, 640)
    one = visualize._Instance(np.zeros(4), None, (9, 9, 9), "traffic light", " 0.50")
    few, many = (visualize._fit_tags([one] * count, (480, 640), style)[0] for count in (3, 100))
    assert few.font_scale == style.font_scale > many.font_scale >= style.least_font_scale
    assert visualize._fit_tags([], (480, 640), style) == []


def test_a_hundred_tags_cover_little_of_each_other():
    random = np.random.default_rng(0)
    corners = random.uniform(0, 1, (100, 2)) * (560, 420)
    boxes = np.hstack([corners, np.minimum(corners + random.uniform(20, 150, (100, 2)), (640, 480))])
    instances = [visualize._Instance(box, None, (9, 9, 9), "bicycle", " 0.50") for box in boxes]
    taken = np.zeros((480, 640), int)
    places = np.zeros((0, 4))
    for tag, box in zip(visualize._fit_tags(instances, (480, 640), visualize._Style.of(480, 640)), boxes):
        places = np.vstack([places, visualize._place_tag(box, tag.size, places, (480, 640))])
        x1, y1, x2, y2 = places[-1].astype(int)
        taken[y1:y2, x1:x2] += 1
    covered = (taken > 1).sum() / (taken > 0).sum()
    assert covered < 0.06


def test_a_caption_leaves_the_rest_of_the_picture():
    picture = np.full((480, 640, 3), 128, np.uint8)
    captioned = visualize.draw_caption(picture, "12.3 frames/s")
    assert (picture == 128).all() and (captioned[40:] == 128).all() and (captioned[:, 200:] == 128).all()
    assert (captioned[:20, :60] > 200).any()
