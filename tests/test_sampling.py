"""Random choice: how many, of what, how evenly, and that it follows from an image's own seed alone."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tiny import evaluate, session

from FasterRCNN.ops.sampling import sample_foreground_background, uniform_grids, uniform_rows

SEEDS = np.array([[3, 0], [9, 4], [3, 1]], np.int32)


def sample(is_foreground, is_background, total, max_foreground, seeds=SEEDS):
    def build(foreground, background):
        keys = uniform_rows(tf.constant(seeds[: len(is_foreground)]), foreground.shape[1])
        return sample_foreground_background(foreground, background, total, max_foreground, keys)

    return evaluate(build, np.array(is_foreground, bool), np.array(is_background, bool))


def kinds(foreground, background, ignored):
    """A row of each: shuffled marks of foreground and background among ignored items."""
    marks = np.array([1] * foreground + [2] * background + [0] * ignored)
    np.random.default_rng(foreground).shuffle(marks)
    return marks == 1, marks == 2


@pytest.mark.parametrize(
    "foreground, background, wanted_foreground, wanted",
    [(20, 30, 8, 16), (3, 30, 3, 16), (20, 2, 8, 10), (0, 40, 0, 16), (5, 0, 5, 5), (0, 0, 0, 0), (8, 8, 8, 16)],
)
def test_counts_and_order(foreground, background, wanted_foreground, wanted):
    is_foreground, is_background = kinds(foreground, background, ignored=4)
    indices, chosen_foreground, chosen = (x[0] for x in sample([is_foreground], [is_background], 16, 8))
    assert chosen_foreground.tolist() == [True] * wanted_foreground + [False] * (16 - wanted_foreground)
    assert chosen.tolist() == [True] * wanted + [False] * (16 - wanted)
    assert is_foreground[indices[:wanted_foreground]].all()
    assert is_background[indices[wanted_foreground:wanted]].all()
    assert len(set(indices[:wanted])) == wanted
    assert not indices[wanted:].any()


def test_fewer_items_than_slots():
    indices, _, chosen = sample([[True, False, False]], [[False, False, True]], 8, 4)
    assert indices[0].tolist() == [0, 2, 0, 0, 0, 0, 0, 0]
    assert chosen[0].tolist() == [True] * 2 + [False] * 6


def test_no_item_and_no_foreground_wanted():
    indices, foreground, chosen = sample(np.zeros([2, 0]), np.zeros([2, 0]), 4, 2)
    assert indices.shape == (2, 4) and not foreground.any() and not chosen.any()
    _, foreground, chosen = sample([[True] * 4], [[False] * 4], 3, 0)
    assert not foreground.any() and not chosen.any()


def test_images_do_not_influence_each_other():
    rows = [kinds(20, 30, 4), kinds(2, 50, 2), kinds(0, 1, 53)]
    together = sample([row[0] for row in rows], [row[1] for row in rows], 16, 8)
    for i, (foreground, background) in enumerate(rows):
        alone = sample([foreground], [background], 16, 8, seeds=SEEDS[i : i + 1])
        for ours, expected in zip(alone, together):
            assert np.array_equal(ours[0], expected[i])


def test_the_seed_decides():
    foreground, background = kinds(40, 40, 0)
    first, again = (sample([foreground], [background], 16, 8)[0] for _ in range(2))
    other = sample([foreground], [background], 16, 8, seeds=SEEDS[1:])[0]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_item_is_equally_likely():
    items, wanted, batch, runs = 20, 5, 64, 30
    with tf.Graph().as_default(), session() as running:
        seeds = tf.placeholder(tf.int32, [batch, 2])
        everything = tf.ones([batch, items], tf.bool)
        as_foreground = sample_foreground_background(
            everything, ~everything, wanted, wanted, uniform_rows(seeds, items))[0]
        as_background = sample_foreground_background(
            ~everything, everything, wanted, wanted, uniform_rows(seeds, items))[0]
        drawn = [running.run((as_foreground, as_background), {seeds: [[run, i] for i in range(batch)]})
                 for run in range(runs)]
    draws, share = batch * runs, wanted / items
    for indices in zip(*drawn):
        counts = np.bincount(np.ravel(indices), minlength=items)
        # The variance of a count, drawing without replacement, makes this chi-square of items − 1 degrees.
        statistic = ((counts - draws * share) ** 2).sum() / (draws * share * (1 - share)) * (items - 1) / items
        assert statistic < 50.8  # exceeded by chance once in 10,000


def test_rows_grow_at_the_end_only():
    short, long = evaluate(lambda seeds: (uniform_rows(seeds, 50), uniform_rows(seeds, 333)), SEEDS)
    assert np.array_equal(short, long[:, :50])
    assert long.min() >= 0 and long.max() < 1
    assert len(np.unique(long)) > 0.99 * long.size  # no two rows alike


def test_grids_depend_on_row_and_column_only():
    sides, per_cell = [20, 10], 3

    def numbers(shapes):
        flat = evaluate(lambda seeds: uniform_grids(seeds, shapes, sides, per_cell), SEEDS[:1])[0]
        cut = shapes[0][0] * shapes[0][1] * per_cell
        return [part.reshape(*shape, per_cell) for part, shape in zip((flat[:cut], flat[cut:]), shapes)]

    small, large = numbers([(4, 7), (2, 3)]), numbers([(20, 13), (10, 6)])
    for ours, expected in zip(small, large):
        assert np.array_equal(ours, expected[: ours.shape[0], : ours.shape[1]])
    assert not np.array_equal(large[0][:10, :6], large[1])  # levels differ


def test_grids_of_maps_beyond_the_side_still_have_a_number_for_every_cell():
    numbers = evaluate(lambda seeds: uniform_grids(seeds, [(9, 30)], [8], 2), SEEDS)
    assert numbers.shape == (3, 9 * 30 * 2)
    assert len(np.unique(numbers[0])) > 0.99 * numbers[0].size
