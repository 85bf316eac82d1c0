"""tensorpack callbacks of a training run: learning rate, losses, progress, checkpoints, evaluation, signals, curves.

A run is one tensorpack epoch of exactly the steps that remain, and every period counts the global step: so a run stops
at the step that the schedule names, and a resumed one does at a step what it would have done without the break.
"""

import hashlib
import json
import logging
import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow.compat.v1 as tf
import tqdm
from tensorpack.callbacks import Callback, MonitorBase
from tensorpack.train import StopTraining

from FasterRCNN.engine.npz import CONFIG_NAME
from FasterRCNN.engine.optim import LrSchedule
from FasterRCNN.engine.processes import Processes
from FasterRCNN.engine.run_folder import write_atomically
from FasterRCNN.engine.stall import WAITING

logger = logging.getLogger(__name__)

BEST_NAME = "best"
CHECKPOINT_NAME = "model"


class NonFiniteLoss(ValueError):
    """A loss or gradient that is NaN or infinite; the message names the term, the images, the rate and the step."""


class TowerTensors(NamedTuple):
    """What one device computes in a step: scalars by name, and int32 B indices of its images."""

    losses: dict[str, tf.Tensor]
    metrics: dict[str, tf.Tensor]
    image_index: tf.Tensor


@dataclass
class Evaluation:
    """What an evaluation gives: numbers by name ("segm/AP"), and RGB uint8 H×W×3 pictures by name."""

    metrics: dict[str, float]
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


def is_due(step: int, period: int, total_steps: int) -> bool:
    """Whether something is done after a step: every `period` steps, and after the last."""
    return step % period == 0 or step == total_steps


class FeedLearningRate(Callback):
    """Feeds the schedule's rate into each step."""

    _chief_only = False

    def __init__(self, learning_rate: tf.Tensor, schedule: LrSchedule):
        self._learning_rate = learning_rate
        self._schedule = schedule

    def _before_run(self, _):
        return tf.train.SessionRunArgs([], {self._learning_rate: self._schedule.lr_at(self.global_step)})


class WatchLosses(Callback):
    """Fetches each step's losses, writes their means every `period` steps, and stops the run at one that is not finite.

    describe_images: names images (id and file) from their indices in the training set. before_stopping is called
    before the run is stopped; the step with the bad loss has left the weights as they were. Gradients that overflow
    under a `loss_scale` above 1 are no mistake: the step was not made, and the next has half the scale. Speed is that
    of the steps alone: evaluations and checkpoints, which lie between them, do not count.
    """

    _chief_only = False

    def __init__(
        self,
        towers: Sequence[TowerTensors],
        *,
        grad_norms: Sequence[tf.Tensor],
        loss_scale: tf.Tensor | None = None,
        data_waits: Sequence[tf.Tensor],
        passes: int = 1,
        schedule: LrSchedule,
        describe_images: Callable[[Sequence[int]], str],
        before_stopping: Callable[[], object],
        period: int,
    ):
        self._before_stopping = before_stopping
        self._passes = passes
        self._fetches = {"towers": list(towers), "grad_norms": list(grad_norms), "data_waits": list(data_waits)}
        if loss_scale is not None:
            self._fetches["loss_scale"] = loss_scale
        self._schedule = schedule
        self._describe_images = describe_images
        self._period = period
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0
        self._seconds = 0.0
        self.total_loss = math.nan
        self.wait_share = 0.0

    def _before_run(self, _):
        self._run_start = time.perf_counter()
        return tf.train.SessionRunArgs(self._fetches)

    def _after_run(self, _, run_values):
        self._seconds += time.perf_counter() - self._run_start
        results = run_values.results
        norms, scale = results["grad_norms"], results.get("loss_scale", 1.0)
        overflows = scale > 1 and not np.all(np.isfinite(norms))
        self._note_batch(results["towers"], [0.0] if overflows else norms, self.global_step)
        step_means = {"gradient_norm": 0.0 if overflows else float(np.mean(norms))}
        if "loss_scale" in results:
            step_means.update(loss_scale=float(scale), steps_not_made=float(overflows))
        step_means["data_wait_seconds"] = float(np.max(results["data_waits"], initial=0.0))
        for name, value in step_means.items():
            self._sums[name] += value
        self._count += 1

    def add_up(self, session: tf.Session, accumulate: tf.Operation, *, times: int) -> None:
        """Runs the batches of a step before its last, watched alike."""
        fetches = {name: self._fetches[name] for name in ("towers", "data_waits")}
        start = time.perf_counter()
        for _ in range(times):
            _, results = session.run([accumulate, fetches])
            self._note_batch(results["towers"], [0.0], self.global_step + 1)
            self._sums["data_wait_seconds"] += float(np.max(results["data_waits"], initial=0.0))
        self._seconds += time.perf_counter() - start

    def _note_batch(self, towers: Sequence[TowerTensors], grad_norms: Sequence[float], step: int):
        self._check_finite(towers, grad_norms, step)
        batch_means = defaultdict(float)
        for tower in towers:
            for name, value in {**tower.losses, **tower.metrics}.items():
                batch_means[name] += float(value) / len(towers)
        self.total_loss = batch_means["total_loss"] = sum(batch_means[name] for name in towers[0].losses)
        for name, value in batch_means.items():
            self._sums[name] += value / self._passes

    def _check_finite(self, towers: Sequence[TowerTensors], grad_norms: Sequence[float], step: int):
        bad = [tower for tower in towers if not np.all(np.isfinite(list(tower.losses.values())))]
        if not bad and np.all(np.isfinite(grad_norms)):
            return
        to_blame = bad or towers  # of a gradient alone it cannot be told whose it is
        terms = [(name, value) for tower in to_blame for name, value in tower.losses.items()]
        wrong = ", ".join(f"{name} = {value:g}" for name, value in terms if not np.isfinite(value))
        right = ", ".join(f"{name} = {value:.4g}" for name, value in terms if np.isfinite(value))
        images = self._describe_images([int(index) for tower in to_blame for index in tower.image_index])
        self._before_stopping()
        raise NonFiniteLoss(
            f"not finite at step {step}: {wrong or 'the gradient'} (finite: {right or 'no term'})\n"
            f"  images of that step: {images}\n"
            f"  learning rate {self._schedule.lr_at(step - 1):g}, "
            f"global batch {self._schedule.global_batch}, gradient norm {float(np.max(grad_norms)):g}"
        )

    def _trigger_step(self):
        if not is_due(self.global_step, self._period, self._schedule.total_steps):
            return
        for name, total in self._sums.items():
            self.trainer.monitors.put_scalar(name, total / self._count)
        self.trainer.monitors.put_scalar("learning_rate", self._schedule.lr_at(self.global_step - 1))
        images = self._count * self._schedule.global_batch
        self.trainer.monitors.put_scalar("images_per_second", images / self._seconds)
        self.wait_share = self._sums["data_wait_seconds"] / self._seconds
        self._sums.clear()
        self._count, self._seconds = 0, 0.0


class Progress(Callback):
    """A bar over the images of the whole run: images/s, time left, loss, and the share of time waited for data."""

    def __init__(self, watch: WatchLosses, schedule: LrSchedule):
        self._watch = watch
        self._schedule = schedule
        self._bar = None

    def _before_train(self):
        batch = self._schedule.global_batch
        self._bar = tqdm.tqdm(
            total=self._schedule.total_steps * batch,
            initial=self.global_step * batch,
            unit="img",
            unit_scale=True,
            smoothing=0.05,
            dynamic_ncols=True,
            mininterval=0.5 if os.isatty(2) else 30,
        )

    def _trigger_step(self):
        self._bar.set_postfix(
            step=self.global_step,
            loss=f"{self._watch.total_loss:.3f}",
            lr=f"{self._schedule.lr_at(self.global_step - 1):.2g}",
            data_wait=f"{self._watch.wait_share:.0%}",
            refresh=False,
        )
        self._bar.update(self._schedule.global_batch)

    def _after_train(self):
        if self._bar is not None:
            self._bar.close()


class Checkpoints(Callback):
    """Saves every variable (weights, momentum, step, and the config) as `model-STEP`, and keeps the last few.

    `earlier` are the checkpoints of the run before it was resumed, oldest first. No later callback may make variables.
    note: is told that one is being saved.
    """

    def __init__(
        self,
        logdir: Path,
        *,
        period: int,
        total_steps: int,
        earlier: Sequence[str] = (),
        keep: int = 5,
        note: Callable[[str], object] = lambda doing: None,
    ):
        self.logdir = logdir
        self._note = note
        self._period = period
        self._total_steps = total_steps
        self._earlier = list(earlier)
        self._keep = keep
        self.last: str | None = self._earlier[-1] if self._earlier else None
        self._last_step = -1

    def _setup_graph(self):
        variables = tf.global_variables() + [v for v in tf.local_variables() if v.op.name == CONFIG_NAME]
        self._saver = tf.train.Saver(variables, max_to_keep=self._keep, save_relative_paths=True)
        self._saver.recover_last_checkpoints(self._earlier)
        self._best_saver = tf.train.Saver(variables, max_to_keep=0)

    def _before_train(self):
        if self._earlier:
            self._last_step = self.global_step

    def _trigger_step(self):
        if is_due(self.global_step, self._period, self._total_steps):
            self.save()

    def save(self) -> str:
        """Saves the state after the last finished step, once; returns the checkpoint's path."""
        if self._last_step != self.global_step:
            self._note("saving a checkpoint")
            path = self.logdir / CHECKPOINT_NAME
            self.last = self._saver.save(self.trainer.sess, str(path), self.global_step, write_meta_graph=False)
            self._last_step = self.global_step
            logger.info("checkpoint %s", self.last)
        return self.last

    def save_first(self) -> None:
        """Saves if nothing has been saved in this run or those before it."""
        if self.last is None:
            self.save()

    def save_best(self) -> str:
        """Saves the same under the name `best`, over the best one before."""
        self._note("saving the best checkpoint")
        path = str(self.logdir / BEST_NAME)
        return self._best_saver.save(self.trainer.sess, path, write_meta_graph=False, write_state=False)


@dataclass(frozen=True)
class Best:
    """The best evaluation so far, kept beside the checkpoint `best`."""

    step: int
    metric: str
    value: float

    @classmethod
    def read(cls, logdir: Path) -> "Best | None":
        path = logdir / f"{BEST_NAME}.json"
        return cls(**json.loads(path.read_text())) if path.is_file() else None

    def write(self, logdir: Path):
        write_atomically(logdir / f"{BEST_NAME}.json", json.dumps(asdict(self)))


class SameWeights(Callback):
    """Raises RuntimeError, before a checkpoint is saved, when the processes of a job do not hold the same variables.

    note: is told that this process waits for the others.
    """

    _chief_only = False

    def __init__(
        self,
        processes: Processes,
        variables: Mapping[str, tf.Variable],
        *,
        period: int,
        total_steps: int,
        note: Callable[[str], object] = lambda doing: None,
    ):
        self._note = note
        self._processes = processes
        self._variables = dict(variables)
        self._period = period
        self._total_steps = total_steps

    def _trigger_step(self):
        if self._processes.size == 1 or not is_due(self.global_step, self._period, self._total_steps):
            return
        digest = hashlib.sha256()
        for _, value in sorted(self.trainer.sess.run(self._variables).items()):
            digest.update(np.ascontiguousarray(value))
        self._note(WAITING)
        digests = self._processes.gather(digest.hexdigest().encode())
        other = [rank for rank, found in enumerate(digests) if found != digests[0]]
        if other:
            raise RuntimeError(f"at step {self.global_step} the weights of ranks {other} are not those of rank 0: "
                               "nothing was saved; go on from the last checkpoint with --resume")


class Evaluate(Callback):
    """Hands the weights of the session to `evaluate` every `period` steps and at the end; keeps the best checkpoint.

    evaluate(weights, step) -> Evaluation; every process of a job calls it, the chief keeps what it gives. The first of
    `best_metrics` that an evaluation has decides which is best.
    """

    _chief_only = False

    def __init__(
        self,
        evaluate: Callable[[dict[str, np.ndarray], int], Evaluation] | None,
        *,
        variables: Mapping[str, tf.Variable],
        checkpoints: Checkpoints,
        period: int,
        total_steps: int,
        best_metrics: Sequence[str],
    ):
        self._evaluate = evaluate
        self._variables = dict(variables)
        self._checkpoints = checkpoints
        self._period = period
        self._total_steps = total_steps
        self._best_metrics = best_metrics
        self.best = Best.read(checkpoints.logdir) if checkpoints.last else None

    def _trigger_step(self):
        if self._evaluate is None or not is_due(self.global_step, self._period, self._total_steps):
            return
        if self.trainer.is_chief:
            self._checkpoints.save()  # an evaluation is long, and may be cut short
        evaluation = self._evaluate(self.trainer.sess.run(self._variables), self.global_step)
        if not self.trainer.is_chief:
            return
        for name, value in evaluation.metrics.items():
            self.trainer.monitors.put_scalar(name, value)
        for name, picture in evaluation.pictures.items():
            self.trainer.monitors.put_image(name, picture)
        self._keep_best(evaluation.metrics)

    def _keep_best(self, metrics: Mapping[str, float]):
        name = next((name for name in self._best_metrics if name in metrics), None)
        if name is None:
            return
        if self.best is None or self.best.metric != name or metrics[name] >= self.best.value:
            self.best = Best(step=self.global_step, metric=name, value=float(metrics[name]))
            self._checkpoints.save_best()
            self.best.write(self._checkpoints.logdir)
            logger.info("best checkpoint so far: step %d, %s %.4f", *asdict(self.best).values())


class StopOnSignal(Callback):
    """On Ctrl-C or SIGTERM ends the run after the step in progress, with a checkpoint; a second signal ends it at once.

    All processes of a job end with the same step, whichever got the signal. `signum` is the signal that came, or None.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    _chief_only = False

    def __init__(self, checkpoints: Checkpoints, sum_over_processes: Callable[[tf.Tensor, str], tf.Tensor]):
        self._checkpoints = checkpoints
        self._sum_over_processes = sum_over_processes
        self._pid = os.getpid()
        self._former_handlers = {}
        self._is_agreed = False
        self._noted: int | None = None
        self.signum: int | None = None

    def _setup_graph(self):
        with tf.device("/cpu:0"):
            self._is_asked = tf.placeholder(tf.float32, [], name="stop_is_asked")
            self._number_asked = self._sum_over_processes(self._is_asked, "stops_asked")

    def _before_train(self):
        for signum in self.SIGNALS:
            self._former_handlers[signum] = signal.signal(signum, self._note)

    def _note(self, signum, _):
        if os.getpid() != self._pid:  # a forked worker inherits this handler, and must still be ended by the signal
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        elif self._noted is None:
            self._noted = signum
            logger.warning("%s: stopping after this step (once more: at once)", signal.Signals(signum).name)
        else:
            raise KeyboardInterrupt

    def _before_run(self, _):
        return tf.train.SessionRunArgs(self._number_asked, {self._is_asked: float(self._noted is not None)})

    def _after_run(self, _, run_values):
        self._is_agreed = run_values.results > 0

    def _trigger_step(self):
        if self._is_agreed:
            self.signum = self._noted or signal.SIGTERM
            if self.trainer.is_chief:
                self._checkpoints.save()
            raise StopTraining(signal.Signals(self.signum).name)

    def _after_train(self):
        for signum, handler in self._former_handlers.items():
            signal.signal(signum, handler)


class MetricsFile(MonitorBase):
    """Appends a JSON line per step that has numbers: {"step": 20, "time": ..., "total_loss": ...}.

    After a resume the steps since the checkpoint are written again: the later line of a step is the one that counts.
    """

    def __init__(self, path: Path):
        self._path = path
        self._values: dict[str, float] = {}

    def process_scalar(self, name, val):
        self._values[name] = val

    def _trigger_step(self):
        if self._values:
            line = {"step": self.global_step, "time": round(time.time(), 3), **self._values}
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._values = {}

    def _trigger(self):
        """Nothing is left at the end: the last step has been written."""
