"""Learning rate schedules (plain Python) and the optimizer.

Words: the *global batch* is the number of images of one step, all devices together. Schedules are written in *8-image
steps*, the recipe's batch; a run with another global batch sees as many images, at a rate in proportion to its batch.
"""

import bisect
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tensorflow.compat.v1 as tf
from tensorpack.tfutils.optimizer import ProxyOptimizer

RECIPE_BATCH = 8
DECAYS = ("step", "cosine")


@dataclass(frozen=True)
class LrSchedule:
    """The learning rate as a function of the step alone, so that a resumed run needs no other state.

    `peak_lr` is reached after `warmup_steps` steps that rise linearly from `warmup_lr`. `boundaries` are steps; the
    last ends the run, each before it multiplies the rate by 0.1 when `decay` is "step"; "cosine" falls to 0 at its end.
    """

    peak_lr: float
    warmup_lr: float
    warmup_steps: int
    boundaries: tuple[int, ...]
    decay: str
    global_batch: int

    @property
    def total_steps(self) -> int:
        return self.boundaries[-1]

    def lr_at(self, step: int) -> float:
        """The rate of the step that follows `step` completed ones."""
        share = min(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return (self.warmup_lr + (self.peak_lr - self.warmup_lr) * share) * self._decay_factor(step)

    def _decay_factor(self, step: int) -> float:
        if self.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / self.total_steps))
        return 0.1 ** bisect.bisect_right(self.boundaries[:-1], step)

    def table(self) -> list[tuple[int, int, int, str]]:
        """Rows (first step, last step, images seen by its end, learning rate), counting steps from 1."""
        corners = sorted({0, min(self.warmup_steps, self.total_steps), *self.boundaries})
        rows = []
        for start, end in zip(corners, corners[1:]):
            first, last = f"{self.lr_at(start):.6g}", f"{self.lr_at(end - 1):.6g}"
            rows.append((start + 1, end, end * self.global_batch, first if first == last else f"{first} to {last}"))
        return rows


def lr_schedule(
    schedule: str | Sequence[int],
    *,
    base_lr: float,
    global_batch: int,
    warmup: int,
    warmup_init_lr: float,
    decay: str = "step",
) -> LrSchedule:
    """The schedule of a run of `global_batch` images a step.

    `schedule` is "1x" … "9x" or a rising list of 8-image steps, `warmup` is counted in 8-image steps, `base_lr` and
    `warmup_init_lr` are for a batch of 8. Raises ValueError for a schedule of another form.
    """
    if decay not in DECAYS:
        raise ValueError(f"learning rate decay {decay!r}: choose one of {', '.join(DECAYS)}")
    if global_batch < 1:
        raise ValueError(f"global batch {global_batch}: at least one image a step is needed")
    scale = global_batch / RECIPE_BATCH
    return LrSchedule(
        peak_lr=base_lr * scale,
        warmup_lr=warmup_init_lr * scale,
        warmup_steps=math.ceil(warmup / scale),
        boundaries=tuple(math.ceil(boundary / scale) for boundary in recipe_boundaries(schedule)),
        decay=decay,
        global_batch=global_batch,
    )


def recipe_boundaries(schedule: str | Sequence[int]) -> list[int]:
    """The boundaries of `schedule` in 8-image steps; detectron's lengths for "1x" … "9x"."""
    if isinstance(schedule, str) and re.fullmatch("[1-9]x", schedule):
        times = int(schedule[0])
        end = 180_000 * times
        return [120_000, 160_000, 180_000] if times == 1 else [end - 120_000, end - 40_000, end]
    steps = [] if isinstance(schedule, str) else list(schedule)
    if not steps or steps[0] < 1 or any(a >= b for a, b in zip(steps, steps[1:])):
        raise ValueError(
            f"TRAIN.LR_SCHEDULE={schedule!r}: give '1x' … '9x', or a rising list of steps of {RECIPE_BATCH} images "
            "of which the last ends the training, e.g. [120000,160000,180000]"
        )
    return steps


class LossScale:
    """A factor that keeps float16 gradients from vanishing (Micikevicius et al. 2018, section 3.2).

    It is halved when a gradient overflows, a step that is then not made, and doubled after STEADY_STEPS without. Both
    numbers are variables, so that a resumed run goes on with them.
    """

    STEADY_STEPS = 2000

    def __init__(self, start: float = 2.0**15):
        self.value = tf.get_variable("loss_scale/value", initializer=start, trainable=False)
        self._steady = tf.get_variable("loss_scale/steady_steps", initializer=0.0, trainable=False)

    def update(self, finite: tf.Tensor) -> tf.Operation:
        """Adapt to a step whose gradients were all finite, or not."""
        grows = tf.logical_and(finite, self._steady + 1 >= self.STEADY_STEPS)
        # All are read before any is written: assignments made below see what the tensors above them read.
        value = tf.where(finite, tf.where(grows, 2.0 * self.value, 1.0 * self.value), tf.maximum(self.value / 2, 1.0))
        steady = tf.where(tf.logical_and(finite, ~grows), self._steady + 1, 0.0)
        with tf.control_dependencies([value, steady]):
            return tf.group(tf.assign(self.value, value), tf.assign(self._steady, steady))


class GuardedOptimizer(ProxyOptimizer):
    """Clips gradients by their global norm, and makes a step only when its losses and gradients are finite.

    A step that is not finite leaves weights and momentum as they were, so that what stopped a run has not spoilt them.
    `losses_finite` gives a bool scalar; it is called when the gradients are applied, after all towers have been built.
    `moving_averages` gives the variables that are no weights with their values after the step, set by the first call.
    `loss_scale` multiplies the loss that is differentiated and divides the gradients; `loss_scale_used` is its value
    in the step.
    `passes`: gradients of that many batches make a step. All but the last are only added up, by `accumulate_ops`; the
    last, with the optimizer's own operation, takes their mean, of all processes by `average_gradients`.
    `grad_norms` collects the global norm, before clipping, of each call (one per device in replicated training).
    """

    def __init__(
        self,
        optimizer: tf.train.Optimizer,
        *,
        losses_finite: Callable[[], tf.Tensor],
        moving_averages: Callable[[], Sequence[tuple[tf.Variable, tf.Tensor]]] = tuple,
        average_gradients: Callable[[list[tf.Tensor]], list[tf.Tensor]] = list,
        loss_scale: LossScale | None = None,
        clip_norm: float = 0.0,
        passes: int = 1,
    ):
        super().__init__(optimizer, name="GuardedOptimizer")
        self._losses_finite = losses_finite
        self._moving_averages = moving_averages
        self._average_gradients = average_gradients
        self._passes = passes
        self._loss_scale = loss_scale
        self.loss_scale_used: tf.Tensor | None = None
        self._clip_norm = clip_norm
        self.grad_norms: list[tf.Tensor] = []
        self.accumulate_ops: list[tf.Operation] = []

    def compute_gradients(self, loss, *args, **kwargs):
        if not self._loss_scale:
            return self._opt.compute_gradients(loss, *args, **kwargs)
        scale = self.loss_scale_used = 1.0 * self._loss_scale.value  # a copy: the variable changes within the step
        scaled = self._opt.compute_gradients(loss * scale, *args, **kwargs)
        return [(None if grad is None else grad / scale, variable) for grad, variable in scaled]

    def apply_gradients(self, grads_and_vars, global_step=None, name=None):
        grads, variables = zip(*grads_and_vars)
        sums = self._accumulate(grads, variables) if self._passes > 1 else []
        if sums:
            grads = [(total + grad) / self._passes for total, grad in zip(sums, grads)]
        grads = self._average_gradients(list(grads))
        norm = tf.global_norm(grads)
        is_first = not self.grad_norms
        averages = self._moving_averages() if is_first else []
        self.grad_norms.append(norm)
        if self._clip_norm:
            grads, _ = tf.clip_by_global_norm(grads, self._clip_norm, use_norm=norm)
        finite = tf.logical_and(self._losses_finite(), tf.is_finite(norm))

        def step():
            updates = [tf.assign(variable, value) for variable, value in averages]
            return tf.group(self._opt.apply_gradients(list(zip(grads, variables)), global_step), *updates)

        made = [tf.cond(finite, step, tf.no_op)]
        if is_first and self._loss_scale:
            made.append(self._loss_scale.update(finite))
        with tf.control_dependencies([*made, *grads]):
            cleared = [tf.assign(total, tf.zeros_like(total)) for total in sums]
        return tf.group(*made, *cleared, name=name)

    def _accumulate(self, grads: Sequence[tf.Tensor], variables: Sequence[tf.Variable]) -> list[tf.Variable]:
        """The sums of the gradients of a step's batches before the last, all zero after it."""
        sums = [
            tf.get_variable(f"{variable.op.name}/AccumGrad", variable.shape, initializer=tf.zeros_initializer(),
                            trainable=False)
            for variable in variables
        ]
        self.accumulate_ops.append(tf.group(*(tf.assign_add(total, grad) for total, grad in zip(sums, grads))))
        return sums


def weight_decay_loss(variables: Sequence[tf.Variable], weight_decay: float) -> tf.Tensor:
    """`weight_decay` × ½Σ‖W‖² over the variables named `…/W` (no bias, no normalisation)."""
    kernels = [v for v in variables if v.op.name.endswith("/W")]
    return weight_decay * tf.add_n([tf.nn.l2_loss(v) for v in kernels]) if kernels else tf.constant(0.0)
