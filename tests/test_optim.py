"""Schedules against the recipe's own numbers, and the guarded optimizer against momentum written out in NumPy."""

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from FasterRCNN.engine.optim import GuardedOptimizer, LossScale, lr_schedule, recipe_boundaries, weight_decay_loss

DEFAULTS = {"base_lr": 0.01, "warmup": 1000, "warmup_init_lr": 1e-5}


@pytest.mark.parametrize(
    ("name", "boundaries"),
    [
        ("1x", [120_000, 160_000, 180_000]),
        ("2x", [240_000, 320_000, 360_000]),
        ("3x", [420_000, 500_000, 540_000]),
        ("9x", [1_500_000, 1_580_000, 1_620_000]),
        ([150_000, 230_000, 280_000], [150_000, 230_000, 280_000]),
        ((7,), [7]),
    ],
)
def test_boundaries(name, boundaries):
    assert recipe_boundaries(name) == boundaries


@pytest.mark.parametrize("schedule", ["10x", "0x", "x", "", [], [5, 5], [10, 5], [0, 5]])
def test_schedule_of_another_form(schedule):
    with pytest.raises(ValueError, match=r"TRAIN.LR_SCHEDULE=.*: give '1x' … '9x', or a rising list of steps of 8"):
        recipe_boundaries(schedule)


def test_unknown_decay_and_empty_batch():
    with pytest.raises(ValueError, match="learning rate decay 'linear': choose one of step, cosine"):
        lr_schedule("1x", **DEFAULTS, global_batch=8, decay="linear")
    with pytest.raises(ValueError, match="global batch 0: at least one image a step"):
        lr_schedule("1x", **DEFAULTS, global_batch=0)


def test_step_decay_with_the_recipes_batch():
    schedule = lr_schedule("1x", **DEFAULTS, global_batch=8)
    assert schedule.total_steps == 180_000
    assert schedule.lr_at(0) == pytest.approx(1e-5)
    assert schedule.lr_at(500) == pytest.approx((0.01 + 1e-5) / 2)
    for steps, rate in [((1000, 119_999), 0.01), ((120_000, 159_999), 1e-3), ((160_000, 179_999), 1e-4)]:
        assert [schedule.lr_at(step) for step in steps] == pytest.approx([rate, rate])


@pytest.mark.parametrize("batch", [1, 2, 4, 16, 64])
def test_any_batch_sees_the_same_images_at_a_rate_in_proportion(batch):
    recipe, schedule = (lr_schedule("1x", **DEFAULTS, global_batch=b) for b in (8, batch))
    assert schedule.total_steps * batch == recipe.total_steps * 8
    for images in (0, 1600, 6400, 800_000, 1_000_000, 1_439_936):
        scaled = schedule.lr_at(images // batch) * 8 / batch
        assert scaled == pytest.approx(recipe.lr_at(images // 8), rel=1e-3)


def test_uneven_batch_never_sees_fewer_images():
    schedule = lr_schedule([100, 101], **DEFAULTS, global_batch=3)
    assert schedule.boundaries == (267, 270)


def test_cosine_decay():
    schedule = lr_schedule([800, 1000], base_lr=0.1, warmup=0, warmup_init_lr=0, global_batch=8, decay="cosine")
    rates = [schedule.lr_at(step) for step in (0, 250, 500, 1000)]
    np.testing.assert_allclose(rates, [0.1, 0.05 * (1 + np.cos(np.pi / 4)), 0.05, 0], atol=1e-12)


def test_table():
    schedule = lr_schedule("1x", **DEFAULTS, global_batch=16)
    assert schedule.table() == [
        (1, 500, 8_000, "2e-05 to 0.01996"),
        (501, 60_000, 960_000, "0.02"),
        (60_001, 80_000, 1_280_000, "0.002"),
        (80_001, 90_000, 1_440_000, "0.0002"),
    ]


def test_table_of_a_run_shorter_than_its_warmup():
    schedule = lr_schedule([10], **DEFAULTS, global_batch=8)
    assert [row[:3] for row in schedule.table()] == [(1, 10, 80)]


def run_steps(gradients, *, losses=None, clip_norm=0.0, rate=0.1):
    """Weights after each step of hand-made gradients, and the norms."""
    with tf.Graph().as_default(), tf.Session() as session:
        variable = tf.get_variable("w", initializer=tf.zeros([3]))
        gradient, loss = tf.placeholder(tf.float32, [3]), tf.placeholder(tf.float32, [])
        optimizer = GuardedOptimizer(
            tf.train.MomentumOptimizer(rate, 0.9), losses_finite=lambda: tf.is_finite(loss), clip_norm=clip_norm
        )
        train_op = optimizer.apply_gradients([(gradient, variable)])
        session.run(tf.global_variables_initializer())
        weights, norms = [], []
        for value, loss_value in zip(gradients, losses or [0.0] * len(gradients)):
            feeds = {gradient: value, loss: loss_value}
            norms.append(session.run([train_op, *optimizer.grad_norms], feeds)[1])
            weights.append(session.run(variable))
        return np.array(weights), norms


def momentum_sgd(gradients, rate=0.1):
    weights, velocity, path = np.zeros(3), np.zeros(3), []
    for gradient in gradients:
        velocity = 0.9 * velocity + gradient
        weights = weights - rate * velocity
        path.append(weights)
    return np.array(path)


GRADIENTS = np.array([[3.0, 4.0, 0.0], [0.1, -0.2, 0.2], [1.0, 1.0, 1.0]])


def test_momentum():
    weights, norms = run_steps(GRADIENTS)
    np.testing.assert_allclose(weights, momentum_sgd(GRADIENTS), rtol=1e-5)
    np.testing.assert_allclose(norms, np.linalg.norm(GRADIENTS, axis=1), rtol=1e-5)


def test_clipping_by_global_norm():
    norms = np.linalg.norm(GRADIENTS, axis=1, keepdims=True)
    weights, seen = run_steps(GRADIENTS, clip_norm=1.0)
    np.testing.assert_allclose(weights, momentum_sgd(GRADIENTS / np.maximum(norms, 1)), rtol=1e-5)
    np.testing.assert_allclose(seen, norms[:, 0], rtol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize(("bad_gradient", "bad_loss"), [(np.nan, 0.0), (np.inf, 0.0), (1.0, np.nan), (1.0, np.inf)])
def test_a_step_that_is_not_finite_is_not_made(bad_gradient, bad_loss, clip_norm):
    gradients = np.insert(GRADIENTS, 1, [bad_gradient, 0, 0], axis=0)
    weights, _ = run_steps(gradients, losses=[0, bad_loss, 0, 0], clip_norm=clip_norm)
    expected, _ = run_steps(GRADIENTS, clip_norm=clip_norm)
    np.testing.assert_array_equal(weights[1], weights[0])
    np.testing.assert_array_equal(weights[[0, 2, 3]], expected)


def test_weight_decay_takes_kernels_only():
    with tf.Graph().as_default(), tf.Session() as session:
        values = {"conv0/W": [3.0, 4.0], "conv0/b": [9.0], "bn/gamma": [9.0], "fc/W": [1.0], "RAW": [9.0]}
        variables = [tf.get_variable(name, initializer=tf.constant(value)) for name, value in values.items()]
        loss, nothing = weight_decay_loss(variables, 0.1), weight_decay_loss(variables[1:3], 0.1)
        session.run(tf.global_variables_initializer())
        assert session.run(loss) == pytest.approx(0.1 * 0.5 * (9 + 16 + 1))
        assert session.run(nothing) == 0


@pytest.mark.parametrize("loss, expected", [(1.0, 7.0), (np.nan, 3.0)])
def test_moving_averages_follow_a_step_that_is_made(loss, expected):
    """Of two devices' calls, the first sets them."""
    with tf.Graph().as_default():
        weights = [tf.get_variable(f"w{i}", initializer=1.0) for i in range(2)]
        average = tf.get_variable("average", initializer=3.0, trainable=False)
        other = tf.get_variable("other", initializer=0.0, trainable=False)
        averages = [[(average, average + 4.0)], [(other, other + 1.0)]]
        optimizer = GuardedOptimizer(
            tf.train.GradientDescentOptimizer(0.1),
            losses_finite=lambda: tf.is_finite(tf.constant(loss)),
            moving_averages=lambda: averages.pop(0),
        )
        steps = [optimizer.apply_gradients([(tf.constant(1.0), weight)]) for weight in weights]
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            session.run(steps)
            assert session.run([average, other]) == [expected, 0.0]


def test_the_loss_scale_halves_on_overflow_and_doubles_after_steady_steps(monkeypatch):
    """In float16 a gradient of 16 overflows at a scale of 2^12, which is found by halving 2^15."""
    monkeypatch.setattr(LossScale, "STEADY_STEPS", 3)
    with tf.Graph().as_default(), tf.Session() as session:
        weight = tf.get_variable("w", initializer=1.0)
        loss = tf.cast(tf.cast(weight, tf.float16) * 16.0, tf.float32)
        optimizer = GuardedOptimizer(
            tf.train.GradientDescentOptimizer(0.01),
            losses_finite=lambda: tf.is_finite(loss),
            loss_scale=LossScale(),
        )
        step = optimizer.apply_gradients(optimizer.compute_gradients(loss, [weight]))
        session.run(tf.global_variables_initializer())
        scales, weights, norms = [], [], []
        for _ in range(9):
            _, scale, norm = session.run([step, optimizer.loss_scale_used, optimizer.grad_norms[0]])
            scales.append(np.log2(scale))
            norms.append(norm)
            weights.append(session.run(weight))
    assert scales == [15, 14, 13, 12, 11, 11, 11, 12, 11]
    made = np.array([0, 0, 0, 0, 1, 1, 1, 0, 1])
    np.testing.assert_allclose(weights, 1 - 0.16 * np.cumsum(made), rtol=1e-5)
    assert np.array_equal(np.isfinite(norms), made == 1)
    assert np.array(norms)[made == 1] == pytest.approx(16)


def test_the_loss_scale_stays_at_1():
    with tf.Graph().as_default(), tf.Session() as session:
        scale, finite = LossScale(start=4.0), tf.placeholder(tf.bool, [])
        update = scale.update(finite)
        session.run(tf.global_variables_initializer())
        for _ in range(5):
            session.run(update, {finite: False})
        assert session.run(scale.value) == 1
