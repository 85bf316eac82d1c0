"""Lists of boxes and of images: each operation against NumPy written out, its inverse, or the pixels of masks."""

import numpy as np
import pytest

from FasterRCNN.masks import Masks
from FasterRCNN.structures import FLIP_LEFT_RIGHT, FLIP_TOP_BOTTOM, BoxList, ImageList, to_image_list

SIZE = WIDTH, HEIGHT = 61, 40
SEEDS = pytest.mark.parametrize("seed", range(5))
MODES = pytest.mark.parametrize("mode", ["xyxy", "xywh"])


def draw_corners(rng, count, size=SIZE):
    """float32 N×4 (x1, y1, x2, y2) with area, inside the image."""
    low, high = np.sort(rng.uniform(0, 1, (2, count, 2)) * size, axis=0)
    return np.concatenate([low, high + 1e-3], axis=1).clip(0, [*size, *size]).astype(np.float32)


def bitmaps_of(corners, size=SIZE):
    """A bitmap for each box: the pixels whose centre lies in it."""
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    x1, y1, x2, y2 = np.asarray(corners)[:, :, None].transpose(1, 0, 2)
    columns, rows = (x1 <= x) & (x < x2), (y1 <= y) & (y < y2)
    return (rows[:, :, None] & columns[:, None, :]).astype(np.uint8)


def box_list(corners, mode="xyxy", size=SIZE):
    """Boxes with a field of each kind."""
    corners = np.asarray(corners, np.float32).reshape(-1, 4)
    boxes = BoxList(corners, size).convert(mode)
    boxes.add_field("labels", np.arange(1, len(corners) + 1, dtype=np.int32))
    boxes.add_field("embeddings", np.arange(6.0 * len(corners)).reshape(-1, 3, 2))
    boxes.add_field("names", [f"object {i}" for i in range(len(corners))])
    boxes.add_field("masks", bitmaps_of(corners, size))
    return boxes


def check_rest(result, source, rows=None, size=None, mode=None):
    """What an operation leaves as it is, but for the masks: fields in step with `rows`, image size, mode, types."""
    rows = np.arange(len(source)) if rows is None else np.asarray(rows, int)
    assert result.boxes.dtype == np.float32 and result.boxes.shape == (len(rows), 4) and len(result) == len(rows)
    assert result.image_size == (size or source.image_size) and result.mode == (mode or source.mode)
    assert result.fields() == source.fields()
    for name in ("labels", "embeddings"):
        np.testing.assert_array_equal(result.get_field(name), source.get_field(name)[rows])
        assert result.get_field(name).dtype == source.get_field(name).dtype
    assert result.get_field("names") == [source.get_field("names")[row] for row in rows]
    assert len(result.get_field("masks")) == len(rows) and result.get_field("masks").image_size == result.image_size


def corners_of(boxes):
    return boxes.convert("xyxy").boxes


# ---------------------------------------------------------------- construction and fields


def test_boxes_keep_what_they_are_given():
    boxes = BoxList([[1, 2, 3.5, 8]], image_size=(10, 20), mode="xywh")
    assert boxes.boxes.dtype == np.float32 and boxes.boxes.tolist() == [[1, 2, 3.5, 8]]
    assert boxes.image_size == (10, 20) and boxes.mode == "xywh" and len(boxes) == 1 and boxes.fields() == []
    assert BoxList([], np.array([7, 5], np.int32)).boxes.shape == (0, 4)
    assert BoxList(np.zeros((0, 4)), (7.0, 5.0)).image_size == (7, 5)
    assert repr(boxes) == "BoxList(1 boxes, image_size=(10, 20), mode='xywh', fields=[])"


@pytest.mark.parametrize("boxes", [[1, 2, 3, 4], [[1, 2, 3]], np.zeros((0, 5)), np.zeros((1, 2, 4)), 3])
def test_boxes_of_another_shape_are_refused(boxes):
    with pytest.raises(ValueError, match=r"boxes have the shape \(.*\): N x 4 is wanted"):
        BoxList(boxes, SIZE)


@pytest.mark.parametrize("size", [(10,), (10, 20, 3), (0, 5), (5, -1), (5.5, 4), (np.nan, 4), "ab", None, 7, [[1, 2]]])
def test_sizes_that_are_not_two_numbers_of_pixels_are_refused(size):
    with pytest.raises(ValueError, match=r"image size .*: \(width, height\) in whole pixels is wanted"):
        BoxList([], size)
    with pytest.raises(ValueError, match=r"image size .*: \(width, height\) in whole pixels is wanted"):
        BoxList([], SIZE).resize(size)


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="mode 'cxcywh' is unknown: \"xyxy\" or \"xywh\" is wanted"):
        BoxList([], SIZE, mode="cxcywh")
    with pytest.raises(ValueError, match="mode 'yx' is unknown"):
        BoxList([], SIZE).convert("yx")


def test_fields_are_added_and_read():
    boxes = BoxList(np.zeros((2, 4)), SIZE)
    scores = np.float32([0.5, 0.25])
    boxes.add_field("scores", scores)
    boxes.add_field("names", ("a", "b"))
    boxes.add_field("ids", range(2))
    assert boxes.has_field("scores") and not boxes.has_field("masks")
    assert boxes.get_field("scores") is scores and boxes.get_field("names") == ["a", "b"]
    assert boxes.fields() == ["scores", "names", "ids"]
    boxes.add_field("scores", np.zeros(2))
    assert boxes.get_field("scores").tolist() == [0, 0]


@pytest.mark.parametrize("value", [np.zeros(3), [1], [], np.zeros((1, 2)), Masks([None], SIZE)])
def test_fields_of_another_length_are_refused(value):
    boxes = BoxList(np.zeros((2, 4)), SIZE)
    with pytest.raises(ValueError, match=rf"field 'x' has {len(value)} entries for 2 boxes"):
        boxes.add_field("x", value)
    assert boxes.fields() == []


@pytest.mark.parametrize("value", [1.5, None, "ab", np.float32(3)])
def test_fields_without_entries_are_refused(value):
    with pytest.raises(ValueError, match=r"field 'x' is .*: an array or a list with an entry for each box is wanted"):
        BoxList(np.zeros((2, 4)), SIZE).add_field("x", value)


def test_an_unknown_field_is_named_with_the_known_ones():
    boxes = BoxList([], SIZE)
    boxes.add_field("labels", [])
    for ask in (lambda: boxes.get_field("scores"), lambda: boxes.copy_with_fields(["labels", "scores"])):
        with pytest.raises(ValueError, match=r"no field 'scores': there are \['labels'\]"):
            ask()


def test_copies_with_some_of_the_fields():
    boxes = box_list(draw_corners(np.random.default_rng(0), 3))
    some = boxes.copy_with_fields(["names", "labels"])
    assert some.fields() == ["names", "labels"] and some.get_field("labels") is boxes.get_field("labels")
    assert boxes.copy_with_fields("labels").fields() == ["labels"]
    assert boxes.copy_with_fields(["scores", "labels"], skip_missing=True).fields() == ["labels"]
    some.add_field("more", [1, 2, 3])
    assert not boxes.has_field("more")


def test_masks_are_taken_in_each_form():
    bitmaps = bitmaps_of([[3, 4, 20, 30], [0, 0, 61, 40]])
    boxes = BoxList(np.zeros((2, 4)), SIZE)
    polygon = np.float32([[3, 4], [20, 4], [20, 30], [3, 30]])
    for given in (bitmaps, bitmaps.astype(bool), list(bitmaps), Masks.from_bitmaps(bitmaps),
                  Masks.from_bitmaps(bitmaps).segmentations,
                  [[polygon], Masks.from_bitmaps(bitmaps).segmentations[1]]):
        boxes.add_field("masks", given)
        np.testing.assert_array_equal(boxes.get_field("masks").bitmaps(), bitmaps)
    boxes.add_field("masks", [None, [polygon]])
    assert boxes.get_field("masks").segmentations[0] is None


def test_masks_of_another_size_are_refused():
    boxes = BoxList(np.zeros((2, 4)), SIZE)
    for shape in ((2, WIDTH, HEIGHT), (2, 28, 28), (2, 1, HEIGHT, WIDTH), (2,)):
        with pytest.raises(ValueError, match=r"masks have the shape \(2,.*\): bitmaps N x h x w of \(61, 40\)"):
            boxes.add_field("masks", np.zeros(shape))
    with pytest.raises(ValueError, match=r"the masks are of an image of \(40, 61\), the boxes of \(61, 40\) \(w, h\)"):
        boxes.add_field("masks", Masks([None, None], (HEIGHT, WIDTH)))
    with pytest.raises(ValueError, match="field 'masks' has 3 entries for 2 boxes"):
        boxes.add_field("masks", np.zeros((3, HEIGHT, WIDTH)))


# ---------------------------------------------------------------- entries


@MODES
@pytest.mark.parametrize(
    "index, rows",
    [
        (2, [2]),
        (-1, [4]),
        (np.int64(0), [0]),
        ([3, 0, 3], [3, 0, 3]),
        (np.array([-1, 1]), [4, 1]),
        ([], []),
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -2), [4, 2, 0]),
        (slice(9, None), []),
        ([True, False, False, True, False], [0, 3]),
        (np.array([False] * 5), []),
    ],
)
def test_indexing_picks_entries_of_all_fields(index, rows, mode):
    boxes = box_list(draw_corners(np.random.default_rng(1), 5), mode)
    picked = boxes[index]
    np.testing.assert_array_equal(picked.boxes, boxes.boxes[rows])
    check_rest(picked, boxes, rows)
    np.testing.assert_array_equal(picked.get_field("masks").bitmaps(), boxes.get_field("masks").bitmaps()[rows])


@pytest.mark.parametrize("index", [5, -6, [0, 5], [True, False], 1.0, "labels"])
def test_indices_beyond_the_boxes_are_refused(index):
    with pytest.raises(IndexError):
        box_list(draw_corners(np.random.default_rng(1), 5))[index]


@SEEDS
@MODES
def test_concatenation_puts_together_what_indexing_took_apart(seed, mode):
    rng = np.random.default_rng(seed)
    boxes = box_list(draw_corners(rng, 7), mode)
    first, second = np.sort(rng.integers(0, 8, 2))
    joined = BoxList.concatenate([boxes[:first], boxes[first:second], boxes[second:]])
    np.testing.assert_array_equal(joined.boxes, boxes.boxes)
    check_rest(joined, boxes)
    np.testing.assert_array_equal(joined.get_field("masks").bitmaps(), boxes.get_field("masks").bitmaps())


def test_concatenation_takes_the_firsts_mode():
    boxes = box_list(draw_corners(np.random.default_rng(0), 2))
    joined = BoxList.concatenate([boxes, boxes.convert("xywh")])
    assert joined.mode == "xyxy"
    np.testing.assert_allclose(joined.boxes[2:], boxes.boxes, atol=1e-5)


def test_concatenation_of_unlike_lists_is_refused():
    boxes, other, unlike = BoxList([], SIZE), BoxList([], (9, 9)), BoxList([], SIZE)
    with pytest.raises(ValueError, match="there is no BoxList to concatenate"):
        BoxList.concatenate([])
    with pytest.raises(ValueError, match=r"image sizes \(61, 40\) and \(9, 9\) \(w, h\)"):
        BoxList.concatenate([boxes, boxes, other])
    boxes.add_field("labels", [])
    with pytest.raises(ValueError, match=r"fields \['labels'\] and \[\]"):
        BoxList.concatenate([boxes, unlike])
    unlike.add_field("labels", np.zeros(0))
    with pytest.raises(ValueError, match="field 'labels' is of several kinds, list, ndarray"):
        BoxList.concatenate([boxes, unlike])


# ---------------------------------------------------------------- geometry


@SEEDS
def test_conversion_and_area(seed):
    corners = draw_corners(np.random.default_rng(seed), 6)
    x1, y1, x2, y2 = corners.astype(float).T
    boxes = box_list(corners)
    xywh = boxes.convert("xywh")
    np.testing.assert_allclose(xywh.boxes, np.stack([x1, y1, x2 - x1, y2 - y1], axis=1), rtol=1e-6)
    np.testing.assert_allclose(xywh.convert("xyxy").boxes, corners, atol=1e-5)
    np.testing.assert_array_equal(boxes.convert("xyxy").boxes, corners)
    for one in (boxes, xywh):
        np.testing.assert_allclose(one.area(), (x2 - x1) * (y2 - y1), rtol=1e-4)
        assert one.area().dtype == np.float32 and one.area().shape == (6,)
    check_rest(xywh, boxes, mode="xywh")


def test_a_pixel_has_the_width_of_one():
    """Continuous coordinates: nothing is added to x2 - x1."""
    pixel = BoxList([[2, 3, 3, 4]], SIZE)
    assert pixel.convert("xywh").boxes.tolist() == [[2, 3, 1, 1]] and pixel.area().tolist() == [1]
    assert BoxList([[2, 3, 1, 1]], SIZE, mode="xywh").convert("xyxy").boxes.tolist() == [[2, 3, 3, 4]]
    assert pixel.transpose(FLIP_LEFT_RIGHT).boxes.tolist() == [[WIDTH - 3, 3, WIDTH - 2, 4]]


@SEEDS
@MODES
def test_resizing_has_a_factor_for_each_axis_and_an_inverse(seed, mode):
    rng = np.random.default_rng(seed)
    corners, size = draw_corners(rng, 6), tuple(rng.integers(1, 200, 2))
    boxes = box_list(corners, mode)
    resized = boxes.resize(size)
    factors = np.divide([*size, *size], [WIDTH, HEIGHT, WIDTH, HEIGHT])
    np.testing.assert_allclose(corners_of(resized), corners * factors, atol=1e-4)
    check_rest(resized, boxes, size=size)
    np.testing.assert_allclose(resized.resize(SIZE).boxes, boxes.boxes, atol=1e-4)
    whole = BoxList([[0, 0, WIDTH, HEIGHT]], SIZE).resize(size)
    assert whole.boxes.tolist() == [[0, 0, *size]]


@MODES
def test_masks_are_resized_along(mode):
    corners = np.round(draw_corners(np.random.default_rng(3), 6))
    resized = box_list(corners, mode).resize((2 * WIDTH, 3 * HEIGHT))
    masks = resized.get_field("masks")
    np.testing.assert_allclose(masks.boxes(), corners_of(resized), atol=1e-4)
    wanted = bitmaps_of(corners).repeat(3, axis=1).repeat(2, axis=2)
    # Interpolation may take a pixel off each of a rectangle's corners.
    assert (masks.bitmaps() != wanted).sum(axis=(1, 2)).max() <= 4


@SEEDS
@MODES
@pytest.mark.parametrize("method, axis", [(FLIP_LEFT_RIGHT, 2), (FLIP_TOP_BOTTOM, 1), (0, 2), (1, 1)])
def test_mirroring_twice_changes_nothing(method, axis, mode, seed):
    corners = draw_corners(np.random.default_rng(seed), 6)
    boxes = box_list(corners, mode)
    mirrored = boxes.transpose(method)
    x1, y1, x2, y2 = corners.T
    wanted = [WIDTH - x2, y1, WIDTH - x1, y2] if axis == 2 else [x1, HEIGHT - y2, x2, HEIGHT - y1]
    np.testing.assert_allclose(corners_of(mirrored), np.stack(wanted, axis=1), atol=1e-5)
    check_rest(mirrored, boxes)
    np.testing.assert_array_equal(mirrored.get_field("masks").bitmaps(), np.flip(bitmaps_of(corners), axis))
    again = mirrored.transpose(method)
    np.testing.assert_allclose(again.boxes, boxes.boxes, atol=1e-5)
    np.testing.assert_array_equal(again.get_field("masks").bitmaps(), bitmaps_of(corners))


def test_another_transposition_is_refused():
    with pytest.raises(ValueError, match=r"cannot transpose by 2: FLIP_LEFT_RIGHT \(0\) or FLIP_TOP_BOTTOM \(1\)"):
        BoxList([], SIZE).transpose(2)


@SEEDS
@MODES
def test_crops_of_boxes_and_of_pixels_agree(seed, mode):
    """The last of the boxes lies beyond the part; none is removed."""
    rng = np.random.default_rng(seed)
    x1, y1 = rng.integers(1, 20, 2)
    x2, y2 = rng.integers(22, SIZE)
    corners = np.concatenate([np.round(draw_corners(rng, 6)), [[0, 0, 1, 1]]])
    boxes = box_list(corners, mode)
    cropped = boxes.crop((x1, y1, x2, y2))
    wanted = np.clip(corners, [x1, y1, x1, y1], [x2, y2, x2, y2]) - [x1, y1, x1, y1]
    np.testing.assert_allclose(corners_of(cropped), wanted, atol=1e-5)
    check_rest(cropped, boxes, size=(x2 - x1, y2 - y1))
    bitmaps = bitmaps_of(corners)[:, y1:y2, x1:x2]
    np.testing.assert_array_equal(cropped.get_field("masks").bitmaps(), bitmaps)
    np.testing.assert_allclose(cropped.area(), bitmaps.sum(axis=(1, 2)), atol=1e-3)
    assert cropped.area()[-1] == 0 and len(cropped.clip_to_image()) == np.count_nonzero(bitmaps.any(axis=(1, 2)))


def test_a_crop_may_reach_beyond_the_image():
    cropped = box_list([[0, 0, 10, 10]]).crop((-5, -3, WIDTH, HEIGHT))
    assert cropped.boxes.tolist() == [[5, 3, 15, 13]] and cropped.image_size == (WIDTH + 5, HEIGHT + 3)


@pytest.mark.parametrize("box", [(3, 3, 3, 9), (9, 3, 3, 9), (0.5, 0, 9, 9), (0, 0, 9), [[0, 0, 9, 9]], None])
def test_crops_without_area_or_of_parts_of_pixels_are_refused(box):
    with pytest.raises(ValueError, match=r"cannot crop to .*: \(x1, y1, x2, y2\) of an area in whole pixels is wanted"):
        BoxList([], SIZE).crop(box)


@SEEDS
@MODES
def test_clipping_cuts_and_removes(seed, mode):
    rng = np.random.default_rng(seed)
    corners = draw_corners(rng, 20, (2 * WIDTH, 2 * HEIGHT)) - np.float32([WIDTH, HEIGHT, WIDTH, HEIGHT]) / 2
    boxes = box_list(corners, mode)
    x1, y1, x2, y2 = corners_of(boxes).T
    wanted = np.stack([x1.clip(0, WIDTH), y1.clip(0, HEIGHT), x2.clip(0, WIDTH), y2.clip(0, HEIGHT)], axis=1)
    kept = boxes.clip_to_image(remove_empty=False)
    np.testing.assert_allclose(corners_of(kept), wanted, atol=1e-5)
    check_rest(kept, boxes)
    rows = np.flatnonzero((wanted[:, 0] < wanted[:, 2]) & (wanted[:, 1] < wanted[:, 3]))
    clipped = boxes.clip_to_image()
    assert 0 < len(rows) < 20
    np.testing.assert_allclose(corners_of(clipped), wanted[rows], atol=1e-5)
    check_rest(clipped, boxes, rows)
    np.testing.assert_array_equal(clipped.get_field("labels"), rows + 1)


def test_clipping_removes_lines_and_points_and_boxes_inside_out():
    boxes = BoxList([[5, 5, 5, 9], [5, 5, 9, 5], [5, 5, 5, 5], [9, 9, 5, 5], [5, 5, 9, 9], [-9, -9, 0, 0]], SIZE)
    assert boxes.clip_to_image().boxes.tolist() == [[5, 5, 9, 9]]


@SEEDS
@MODES
def test_quarter_turns_are_exact_and_four_of_them_nothing(seed, mode):
    """Clockwise: x' = height - y, y' = x."""
    corners = draw_corners(np.random.default_rng(seed), 5)
    boxes = turned = box_list(corners, mode)
    for quarter in range(1, 5):
        width, height = turned.image_size
        turned = turned.affine([[0, -1, height], [1, 0, 0]], (height, width))
        wanted = np.rot90(bitmaps_of(corners), -quarter, axes=(1, 2))
        np.testing.assert_array_equal(turned.get_field("masks").bitmaps(), wanted)
        if quarter == 1:
            x1, y1, x2, y2 = corners.T
            np.testing.assert_allclose(corners_of(turned), np.stack([height - y2, x1, height - y1, x2], 1), atol=1e-5)
            check_rest(turned, boxes, size=(HEIGHT, WIDTH))
    np.testing.assert_allclose(turned.boxes, boxes.boxes, atol=1e-5)


def test_a_turned_box_is_the_one_around_its_corners():
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 7], [np.sin(0.3), np.cos(0.3), 2]])
    corners = draw_corners(np.random.default_rng(0), 5)
    turned = BoxList(corners, SIZE).affine(turn, (90, 80))
    for (x1, y1, x2, y2), box in zip(corners.astype(float), turned.boxes):
        points = turn @ np.array([[x1, y1, 1], [x2, y1, 1], [x2, y2, 1], [x1, y2, 1]]).T
        np.testing.assert_allclose(box, [*points.min(axis=1), *points.max(axis=1)], atol=1e-4)


class Keypoints:
    """A field of its own kind: a point of each object."""

    def __init__(self, points):
        self.points = np.reshape(points, (-1, 2))

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return Keypoints(self.points[index])

    def affine(self, matrix, size):
        matrix = np.asarray(matrix)
        return Keypoints(self.points @ matrix[:, :2].T + matrix[:, 2])

    @classmethod
    def concatenate(cls, parts):
        return cls(np.concatenate([part.points for part in parts]))


def test_a_field_of_another_kind_follows_by_its_affine():
    boxes = BoxList([[0, 0, 10, 10], [20, 10, 40, 30]], SIZE)
    boxes.add_field("keypoints", Keypoints([[5, 5], [30, 20]]))
    moved = BoxList.concatenate([boxes, boxes]).transpose(FLIP_TOP_BOTTOM).crop((10, 0, 50, 40)).resize((80, 40))[1:3]
    assert moved.get_field("keypoints").points.tolist() == [[40, 20], [-10, 35]]
    centres = moved.boxes.reshape(-1, 2, 2).mean(axis=1)
    assert centres[0].tolist() == [40, 20]


@MODES
def test_no_boxes_go_through_everything(mode):
    none = box_list(np.zeros((0, 4)), mode)
    check_rest(none.resize((7, 9)), none, size=(7, 9))
    check_rest(none.transpose(FLIP_LEFT_RIGHT), none)
    check_rest(none.crop((1, 2, 5, 9)), none, size=(4, 7))
    check_rest(none.clip_to_image(), none)
    check_rest(none.convert("xywh"), none, mode="xywh")
    check_rest(none.affine([[0, -1, HEIGHT], [1, 0, 0]], (HEIGHT, WIDTH)), none, size=(HEIGHT, WIDTH))
    check_rest(BoxList.concatenate([none, none]), none)
    for index in ([], slice(None), np.zeros(0, bool)):
        check_rest(none[index], none)
    assert none.area().shape == (0,) and none.get_field("masks").bitmaps().shape == (0, HEIGHT, WIDTH)


@MODES
def test_operations_leave_the_boxes_they_are_called_on_alone(mode):
    boxes = box_list(draw_corners(np.random.default_rng(0), 4), mode)
    before, fields = boxes.boxes.copy(), {name: boxes.get_field(name) for name in boxes.fields()}
    for result in (boxes.convert("xyxy"), boxes.convert("xywh"), boxes.resize((9, 9)), boxes.transpose(0),
                   boxes.crop((5, 5, 20, 20)), boxes.clip_to_image(), boxes[::-1], BoxList.concatenate([boxes])):
        result.add_field("new", np.zeros(len(result)))
    np.testing.assert_array_equal(boxes.boxes, before)
    assert all(boxes.get_field(name) is value for name, value in fields.items()) and boxes.fields() == list(fields)
    assert boxes.mode == mode and boxes.image_size == SIZE


# ---------------------------------------------------------------- images


def draw_images(rng, count, dtype):
    return [rng.uniform(1, 255, (*rng.integers(1, 70, 2), 3)).astype(dtype) for _ in range(count)]


@SEEDS
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("divisor, min_side", [(0, 1), (1, 1), (32, 1), (32, 32), (1, 32), (24, 32)])
def test_images_are_padded_with_zeros_below_and_right(seed, dtype, divisor, min_side):
    rng = np.random.default_rng(seed)
    images = draw_images(rng, 3, dtype)
    padded = to_image_list(images, divisor, min_side=min_side)
    assert isinstance(padded, ImageList) and len(padded) == 3
    assert padded.tensors.dtype == dtype and padded.image_sizes.dtype == np.int32
    assert padded.image_sizes.tolist() == [list(image.shape[:2]) for image in images]
    for axis, side in enumerate(padded.tensors.shape[1:3]):
        wanted = max(min_side, *(image.shape[axis] for image in images))
        assert side % max(1, divisor) == 0 and wanted <= side < wanted + max(1, divisor)
    for i, image in enumerate(images):
        np.testing.assert_array_equal(padded[i], image)
        height, width = image.shape[:2]
        assert not padded.tensors[i, height:].any() and not padded.tensors[i, :, width:].any()


def test_one_array_of_images_is_left_as_it_is():
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 64, 3), np.uint8)
    padded = to_image_list(images, size_divisible=32)
    np.testing.assert_array_equal(padded.tensors, images)
    assert padded.image_sizes.tolist() == [[32, 64]] * 2


@pytest.mark.parametrize(
    "images, message",
    [
        ([], "there is no image to pad"),
        ([np.zeros((5, 5, 3)), np.zeros((5, 5))], r"image number 1 is float64 \(5, 5\): h x w x 3 is wanted"),
        ([np.zeros((5, 5, 4))], r"image number 0 is float64 \(5, 5, 4\)"),
        (np.zeros((5, 5, 3)), r"image number 0 is float64 \(5, 3\)"),
        ([np.zeros((5, 5, 3), np.uint8), np.zeros((5, 5, 3))], "image number 1 is float64 .*of the type of the others"),
    ],
)
def test_images_that_do_not_fit_together_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        to_image_list(images)
