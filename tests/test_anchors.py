"""Anchors against numbers written out from their definition: w = s/√r, h = r·w, centred at (column, row)·stride."""

import numpy as np
import pytest
from tiny import evaluate

from FasterRCNN.ops.anchors import cell_anchors, grid_anchors

SQUARE_ROOT_2 = 2**0.5


def test_cell_anchors_written_out():
    long, short = 16 * SQUARE_ROOT_2, 8 * SQUARE_ROOT_2
    expected = [[-long, -short, long, short], [-16, -16, 16, 16], [-short, -long, short, long]]
    anchors = cell_anchors([32], [0.5, 1.0, 2.0])
    assert anchors.dtype == np.float32
    assert anchors == pytest.approx(np.array(expected), rel=1e-6)


def test_sizes_are_the_outer_loop():
    anchors = cell_anchors([32, 64], [0.5, 1.0, 2.0])
    assert anchors.shape == (6, 4)
    assert anchors[3:] == pytest.approx(2 * anchors[:3])


def test_area_and_ratio_of_every_anchor():
    sizes, ratios = [10, 30], [0.3, 1.0, 4.0]
    width, height = (cell_anchors(sizes, ratios) @ np.array([[-1, 0, 1, 0], [0, -1, 0, 1]]).T).T
    assert np.sqrt(width * height) == pytest.approx(np.repeat(sizes, 3), rel=1e-5)
    assert height / width == pytest.approx(np.tile(ratios, 2), rel=1e-5)


def test_grid_order_is_row_column_anchor():
    anchors = evaluate(lambda: grid_anchors(2, 3, 16, [32], [0.5, 1.0]))
    assert anchors.shape == (2 * 3 * 2, 4)
    index = 0
    for row in range(2):
        for column in range(3):
            for cell in cell_anchors([32], [0.5, 1.0]):
                centre = [16 * column, 16 * row]
                assert anchors[index] == pytest.approx(cell + [*centre, *centre], abs=1e-4)
                index += 1


def test_grid_of_a_map_without_cells():
    assert evaluate(lambda: grid_anchors(0, 5, 8, [16], [1.0])).shape == (0, 4)


def test_steps_other_than_the_stride():
    anchors = evaluate(lambda: grid_anchors(2, 3, 64, [32], [1.0], steps=(61, 60)))
    assert ((anchors[:, :2] + anchors[:, 2:]) / 2).tolist() == [[x, y] for y in (0, 61) for x in (0, 60, 120)]


def test_corners_rounded_as_torchvision_does():
    """torchvision's generate_anchors for sizes 32 and ratios 0.5, 1, 2: halves round to even."""
    expected = [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    assert cell_anchors([32], [0.5, 1.0, 2.0], rounding="corners").tolist() == expected


def test_sides_rounded_as_detectron_does():
    """Detectron's generate_anchors(stride=16, sizes=(32,)), its corners being pixels: x2 + 1 is ours, 8 the middle."""
    expected = np.array([[-15, -4, 30, 19], [-8, -8, 23, 23], [-3, -14, 18, 29]]) + [0, 0, 1, 1]
    (anchors,) = evaluate(lambda: grid_anchors(1, 1, 16, [32], [0.5, 1.0, 2.0], offset=0.5, rounding="sides"))[None]
    assert anchors.tolist() == expected.tolist()
