"""ROIAlign on a ramp, where the answer is the position, against a plain NumPy version, and its gradient."""

import math

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import evaluate

from FasterRCNN.ops.extent import BatchExtent
from FasterRCNN.ops.roi_align import FORMS, crop_bilinear, fpn_level, multilevel_roi_align, repeat_edge, roi_align


def bilinear(plane, y, x):
    """The value at index coordinates (y, x) of a plane h×w…, 0 outside."""
    height, width = plane.shape[:2]
    if not (0 <= y <= height - 1 and 0 <= x <= width - 1):
        return np.zeros(plane.shape[2:])
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    dy, dx = y - top, x - left
    upper = plane[top, left] * (1 - dx) + plane[top, left + 1] * dx
    lower = plane[top + 1, left] * (1 - dx) + plane[top + 1, left + 1] * dx
    return upper * (1 - dy) + lower * dy


def numpy_roi_align(plane, box, size, stride):
    """One box (pixels) on one map h×w×C: 2×2 samples a bin, one repeated cell around the map, zero beyond."""
    extended = np.pad(plane.astype(np.float64), [[1, 1], [1, 1], [0, 0]], mode="edge")
    x1, y1, x2, y2 = np.asarray(box, np.float64) / stride
    result = np.zeros([size, size, plane.shape[2]])
    for row in range(size):
        for column in range(size):
            for quarter_y in (0.25, 0.75):
                for quarter_x in (0.25, 0.75):
                    y = y1 + (y2 - y1) * (row + quarter_y) / size
                    x = x1 + (x2 - x1) * (column + quarter_x) / size
                    result[row, column] += bilinear(extended, y - 0.5 + 1, x - 0.5 + 1) / 4
    return result


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture(params=["kernel", "matrix"])
def form_of_processors(request):
    return request.param


def pool(feature, boxes, image_index, size, stride, form):
    return evaluate(lambda f, b, i: roi_align(f, b, i, size, stride, form=form), feature,
                    np.asarray(boxes, np.float32), np.asarray(image_index, np.int32))


@pytest.mark.parametrize("stride, size", [(1, 7), (4, 7), (16, 14)])
def test_a_ramp_pools_to_the_bin_centres(stride, size, form):
    cells_y, cells_x = np.mgrid[:30, :40] + 0.5
    ramp = ((cells_x + 10 * cells_y) * stride).astype(np.float32)[None, ..., None]
    x1, y1, x2, y2 = box = np.array([3.3, 5.1, 33.9, 26.2]) * stride
    centres = (np.arange(size) + 0.5) / size
    expected = (x1 + (x2 - x1) * centres) + 10 * (y1 + (y2 - y1) * centres)[:, None]
    assert pool(ramp, [box], [0], size, stride, form)[0, :, :, 0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("box", [
    [3.2, 1.7, 27.5, 22.1],  # within
    [0, 0, 40, 32],  # all of it
    [-3, -2, 10, 9], [30, 20, 43, 35],  # over the corners
    [-60, -60, -20, -30],  # beyond
    [37.9, 31.9, 40, 32], [12, 12, 12, 12], [0, 31.5, 40, 32],  # slivers
])
def test_boxes_match_numpy_at_the_borders_too(box, form):
    feature = np.random.default_rng(0).normal(size=[1, 8, 10, 3]).astype(np.float32)
    expected = numpy_roi_align(feature[0], box, 5, 4)
    assert pool(feature, [box], [0], 5, 4, form)[0] == pytest.approx(expected, abs=1e-4)


def test_boxes_read_their_own_image(form):
    feature = np.random.default_rng(1).normal(size=[3, 6, 6, 2]).astype(np.float32)
    boxes = [[1, 1, 20, 20], [2, 3, 9, 11], [0, 0, 24, 24]]
    pooled = pool(feature, boxes, [2, 0, 2], 3, 4, form)
    for ours, box, image in zip(pooled, boxes, [2, 0, 2]):
        assert ours == pytest.approx(numpy_roi_align(feature[image], box, 3, 4), abs=1e-4)


def test_a_map_of_one_cell_is_that_cell(form):
    feature = np.full([1, 1, 1, 2], 5, np.float32)
    assert pool(feature, [[0, 0, 16, 16]], [0], 7, 16, form) == pytest.approx(5)


def test_cropping_samples_the_cell_centres_and_is_zero_outside():
    plane = np.random.default_rng(2).normal(size=[9, 11]).astype(np.float32)
    box = [-2.0, 1.5, 9.0, 10.5]
    cropped = evaluate(lambda m, b: crop_bilinear(m, b, tf.zeros([1], tf.int32), 6), plane[None, :, :, None],
                       np.array([box], np.float32))[0, :, :, 0]
    for row in range(6):
        for column in range(6):
            y, x = box[1] + 9 * (row + 0.5) / 6 - 0.5, box[0] + 11 * (column + 0.5) / 6 - 0.5
            assert cropped[row, column] == pytest.approx(bilinear(plane, y, x), abs=1e-4)


def test_the_gradient_is_the_adjoint(form):
    random = np.random.default_rng(3)
    features = [random.normal(size=[2, 8, 10, 3]).astype(np.float32) for _ in range(2)]
    boxes = np.array([[3, 2, 25, 30], [-4, -4, 8, 8], [30, 20, 44, 36], [0, 0, 40, 32]], np.float32)
    upstream = random.normal(size=[4, 7, 7, 3]).astype(np.float32)

    def build(feature, other):
        index = tf.constant([0, 1, 1, 0])
        pooled, of_other = (roi_align(x, boxes, index, 7, 4, form=form) for x in (feature, other))
        # Pooling is linear in the feature: <upstream, pool(other)> = <gradient of <upstream, pool(.)>, other>.
        gradient = tf.gradients(tf.reduce_sum(pooled * upstream), feature)[0]
        return tf.reduce_sum(upstream * of_other), tf.reduce_sum(gradient * other), gradient

    expected, ours, gradient = evaluate(build, *features)
    assert ours == pytest.approx(expected, rel=1e-3)
    step = np.zeros_like(features[0])
    step[1, 7, 9, 1] = 1  # the last cell, whose repetition counts too
    pooled = pool(step, boxes, [0, 1, 1, 0], 7, 4, form)
    change = (pooled * upstream).sum()
    assert gradient[1, 7, 9, 1] == pytest.approx(change, abs=1e-4)


def test_the_gradient_of_many_threads_loses_nothing(form_of_processors):
    """256 RoIs over the same cells: TensorFlow's gradient of crop_and_resize loses 2 % there, others each time."""
    random = np.random.default_rng(8)
    corner, sides = random.uniform(0, 8, [256, 2]), random.uniform(10, 24, [256, 2])
    boxes = np.concatenate([corner, corner + sides], axis=1).astype(np.float32)
    values = random.uniform(size=[1, 8, 8, 256]).astype(np.float32)
    weights = random.uniform(size=[256, 14, 14, 256]).astype(np.float32)
    with tf.Graph().as_default(), tf.Session() as running:
        feature, upstream = tf.placeholder(tf.float32, values.shape), tf.placeholder(tf.float32, weights.shape)
        pooled = roi_align(feature, boxes, tf.zeros([256], tf.int32), 14, 4, form=form_of_processors)
        fetches = [pooled, tf.gradients(pooled, feature, upstream)[0]]
        (pooled, gradient), (_, again) = (running.run(fetches, {feature: values, upstream: weights}) for _ in range(2))
    expected = (pooled * weights).sum(dtype=np.float64)
    assert (gradient * values).sum(dtype=np.float64) == pytest.approx(expected, rel=1e-5)
    assert np.array_equal(gradient, again)


def test_a_box_that_is_no_number_reads_nothing(form_of_processors):
    boxes = [[np.nan] * 4, [0, 0, np.inf, 8], [0, 0, 8, 8]]
    pooled = pool(np.ones([1, 8, 8, 2], np.float32), boxes, [0, 0, 0], 3, 4, form_of_processors)
    assert not pooled[:2].any() and pooled[2] == pytest.approx(1)


def level_of(box):
    area = max((box[2] - box[0]) * (box[3] - box[1]), 0)
    return min(max(math.floor(4 + math.log2(math.sqrt(area) / 224 + 1e-6)), 2), 5) - 2


def boxes_of_sides(sides):
    return np.array([[10, 20, 10 + side, 20 + side] for side in sides], np.float32)


def test_levels_follow_the_formula():
    boxes = boxes_of_sides([0, 1, 30, 111, 113, 220, 225, 300, 447, 449, 2000])
    boxes[2, 2] *= 4
    levels = evaluate(lambda b: fpn_level(b, 4), boxes)
    assert levels.tolist() == [level_of(box) for box in boxes]
    assert set(levels) == {0, 1, 2, 3}
    assert evaluate(lambda b: fpn_level(b, 2), boxes).max() == 1


@pytest.mark.parametrize("sides", [[20, 130, 240, 500, 60, 1, 250], [500, 460], [9]])
def test_each_box_is_pooled_from_its_level(sides, form):
    random, strides = np.random.default_rng(4), (4, 8, 16, 32)
    features = [random.normal(size=[2, 544 // s, 544 // s, 2]).astype(np.float32) for s in strides]
    boxes, images = boxes_of_sides(sides), np.arange(len(sides), dtype=np.int32) % 2
    pooled = evaluate(lambda *maps: multilevel_roi_align(maps, boxes, images, 3, strides, form=form),
                      *features)
    for ours, box, image in zip(pooled, boxes, images):
        level = level_of(box)
        expected = numpy_roi_align(features[level][image], box, 3, strides[level])
        assert ours == pytest.approx(expected, abs=1e-4)


def pytorch_roi_align(plane, box, size, stride, samples, *, aligned, inclusive):
    """One box on one map h×w×C as the C++ of Detectron and its successors reads, in coordinates of indices.

    Samples are clamped to the map, and zero more than a cell beyond it.
    """
    height, width, channels = plane.shape
    x1, y1, x2, y2 = np.asarray(box, np.float64) - [0, 0, inclusive, inclusive]
    starts, sides = [], []
    for low, high in ((y1, y2), (x1, x2)):
        starts.append(low / stride - (0.5 if aligned else 0))
        sides.append((high - low) / stride if aligned else max((high - low) / stride, 1))
    counts = [samples or max(math.ceil(side / size), 1) for side in sides]
    result = np.zeros([size, size, channels])
    for row, column, i, j in np.ndindex(size, size, *counts):
        y, x = (start + side / size * (bin_ + (part + 0.5) / count) for start, side, bin_, part, count in zip(
            starts, sides, (row, column), (i, j), counts))
        if -1 <= y <= height and -1 <= x <= width:
            inside = bilinear(plane, min(max(y, 0), height - 1), min(max(x, 0), width - 1))
            result[row, column] += inside / math.prod(counts)
    return result


VARIANTS = {
    "detectron2": {"samples": 0, "aligned": True, "inclusive": False},
    "torchvision": {"samples": 2, "aligned": False, "inclusive": False},
    "maskrcnn-benchmark": {"samples": 2, "aligned": False, "inclusive": True},
    "Detectron's C4": {"samples": 0, "aligned": False, "inclusive": True},
    "one sample": {"samples": 1, "aligned": True, "inclusive": False},
    "three samples": {"samples": 3, "aligned": True, "inclusive": True},
}
variants = pytest.mark.parametrize("sampling", VARIANTS.values(), ids=VARIANTS)


@variants
def test_other_samplings_match_the_programs_they_are_of(sampling, form):
    random = np.random.default_rng(5)
    feature = random.normal(size=[2, 12, 17, 3]).astype(np.float32)
    boxes = np.array([
        [3.2, 1.7, 27.5, 22.1], [0, 0, 68, 48], [-3, -2, 10, 9], [50, 20, 71, 50], [0, 31.5, 40, 32], [5, 6, 7, 8],
        [60, 40, 68, 48], [1, 1, 60, 20], [2, 3, 61, 22]], np.float32)
    images = np.array([0, 1, 1, 0, 1, 0, 1, 0, 1], np.int32)
    pooled = evaluate(lambda f, b, i: roi_align(f, b, i, 3, 4, form=form, **sampling), feature, boxes, images)
    for ours, box, image in zip(pooled, boxes, images):
        assert ours == pytest.approx(pytorch_roi_align(feature[image], box, 3, 4, **sampling), abs=1e-4)


@variants
def test_other_samplings_of_several_levels_and_their_gradients(sampling, form):
    random, strides = np.random.default_rng(6), (4, 8)
    features, others = ([random.normal(size=[2, 480 // s, 480 // s, 2]).astype(np.float32) for s in strides]
                        for _ in range(2))
    boxes, images = boxes_of_sides([20, 130, 240, 60, 1, 450]), np.array([0, 1, 0, 1, 0, 1], np.int32)
    upstream = random.normal(size=[6, 3, 3, 2]).astype(np.float32)

    def build(*maps):
        pooled, of_others = (multilevel_roi_align(levels, boxes, images, 3, strides, form=form, **sampling)
                             for levels in (maps[:2], maps[2:]))
        gradients = tf.gradients(tf.reduce_sum(pooled * upstream), maps[:2])
        ours = tf.add_n([tf.reduce_sum(g * other) for g, other in zip(gradients, maps[2:])])
        return pooled, tf.reduce_sum(upstream * of_others), ours

    pooled, expected, ours = evaluate(build, *features, *others)
    for found, box, image in zip(pooled, boxes, images):
        level = min(level_of(box), 1)
        assert found == pytest.approx(
            pytorch_roi_align(features[level][image], box, 3, strides[level], **sampling), abs=1e-4)
    assert ours == pytest.approx(expected, rel=1e-3)


@variants
def test_an_image_pools_the_same_beside_a_larger_one(sampling, form):
    """A map of 4×5 cells in a batch whose other image has 8×8."""
    random = np.random.default_rng(7)
    alone, beside = random.normal(size=[1, 4, 5, 2]), random.normal(size=[2, 8, 8, 2])
    beside[0] = np.pad(alone[0], [[0, 4], [0, 3], [0, 0]], mode="edge")
    boxes = np.array([[30, 20, 40, 32], [39.5, 31.5, 40, 32], [0, 0, 40, 32]], np.float32)
    images = np.zeros(3, np.int32)

    def build(alone, beside):
        extent = BatchExtent(tf.constant([[32, 40], [64, 64]]), 8, tf.constant([64, 64]))
        return (multilevel_roi_align([alone], boxes, images, 3, [8], form=form, **sampling),
                multilevel_roi_align([beside], boxes, images, 3, [8], extent=extent, form=form, **sampling))

    expected, ours = evaluate(build, alone.astype(np.float32), beside.astype(np.float32))
    assert ours == pytest.approx(expected, abs=1e-5)


@variants
def test_other_samplings_of_no_boxes(sampling, form):
    none, index = np.zeros([0, 4], np.float32), np.zeros([0], np.int32)

    def build(feature):
        pooled = roi_align(feature, tf.constant(none), tf.constant(index), 7, 4, form=form, **sampling)
        return pooled, tf.gradients(tf.reduce_sum(pooled), feature)[0]

    pooled, gradient = evaluate(build, np.ones([2, 8, 8, 3], np.float32))
    assert pooled.shape == (0, 7, 7, 3) and not gradient.any()


def test_no_boxes(form):
    feature, none, index = np.ones([2, 8, 8, 3], np.float32), np.zeros([0, 4], np.float32), np.zeros([0], np.int32)
    assert pool(feature, none, index, 7, 4, form).shape == (0, 7, 7, 3)

    def build(feature):
        maps = [feature, feature[:, ::2, ::2]]
        pooled = multilevel_roi_align(maps, tf.constant(none), tf.constant(index), 7, (4, 8), form=form)
        return pooled, tf.gradients(tf.reduce_sum(pooled), feature)[0]

    pooled, gradient = evaluate(build, feature)
    assert pooled.shape == (0, 7, 7, 3) and not gradient.any()


def test_a_repeated_edge_and_its_gradient_are_those_of_a_symmetric_pad():
    random = np.random.default_rng(0)
    x, weights = random.normal(size=(2, 3, 4, 5)), random.normal(size=(2, 5, 6, 5))

    def build(x, weights):
        padded = [repeat_edge(x), tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="SYMMETRIC")]
        return [(y, tf.gradients(tf.reduce_sum(y * weights), x)[0]) for y in padded]

    (y, gradient), (expected, expected_gradient) = evaluate(build, x, weights)
    assert np.array_equal(y, expected)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-6)
