"""Training: a detector, a data flow and a schedule in; checkpoints, curves and evaluations in a run folder out."""

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from FasterRCNN.engine import compat  # isort: skip  (before TensorFlow)

import numpy as np
import tensorflow.compat.v1 as tf
from tensorpack.callbacks import Callback, TFEventWriter
from tensorpack.dataflow import DataFlow, DataFlowTerminated, ProxyDataFlow
from tensorpack.input_source import QueueInput
from tensorpack.tfutils.common import get_global_step_var
from tensorpack.tfutils.sesscreate import NewSessionCreator, ReuseSessionCreator
from tensorpack.tfutils.sessinit import SessionInit
from tensorpack.tfutils.tower import get_current_tower_context
from tensorpack.train import HorovodTrainer, ModelDesc, SimpleTrainer, SyncMultiGPUTrainerReplicated

from FasterRCNN.engine.callbacks import (
    CHECKPOINT_NAME,
    Best,
    Checkpoints,
    Evaluate,
    Evaluation,
    FeedLearningRate,
    MetricsFile,
    NonFiniteLoss,
    Progress,
    SameWeights,
    StopOnSignal,
    TowerTensors,
    WatchLosses,
)
from FasterRCNN.engine.curves import METRICS_FILE
from FasterRCNN.engine.npz import CONFIG_NAME
from FasterRCNN.engine.optim import GuardedOptimizer, LossScale, LrSchedule, weight_decay_loss
from FasterRCNN.engine.processes import Processes
from FasterRCNN.engine.stall import Heart
from FasterRCNN.engine.weights import restore
from FasterRCNN.imaging.mask_crops import MASK_CELLS
from FasterRCNN.ops.layers import MOVING_AVERAGES

logger = logging.getLogger(__name__)

StartWeights = Callable[[dict[str, tuple[int, ...]]], dict[str, np.ndarray]]  # shapes -> values, by variable name
EvaluateWeights = Callable[[dict[str, np.ndarray], int], Evaluation]  # weights by name, step
QUEUE_STEPS = 8  # device-steps held ready; more would hold hundreds of megabytes of images


class Interrupted(Exception):
    """The run was ended by a signal, after it was saved."""

    def __init__(self, signum: int, step: int, checkpoint: str):
        super().__init__(f"{signal.Signals(signum).name} at step {step}: saved {checkpoint}; go on with --resume")
        self.signum = signum


@dataclass(frozen=True)
class TrainResult:
    """Where a finished run has left its weights; `best` is None without evaluations."""

    step: int
    last_checkpoint: str
    best: Best | None


class DetectorModel(ModelDesc):
    """A detector as tensorpack trains it: its losses, weight decay, and SGD with momentum.

    `towers` lists what each device computes, `variables` the detector's own variables by name; both are filled when the
    graph is built. What is drawn at random for an image follows from its index and the seed of the step. scales_loss:
    for gradients in float16. passes: batches a step. sum_over_processes, average_gradients: see engine/collectives.py.
    """

    def __init__(
        self,
        detector,
        *,
        ims_per_gpu: int,
        with_masks: bool,
        image_dtype: type[np.generic] = np.uint8,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        clip_norm: float = 0.0,
        scales_loss: bool = False,
        passes: int = 1,
        sum_over_processes: Callable[[tf.Tensor, str], tf.Tensor] = lambda x, name: x,
        average_gradients: Callable[[list[tf.Tensor]], list[tf.Tensor]] = list,
    ):
        self._detector = detector
        self._ims_per_gpu = ims_per_gpu
        self._with_masks = with_masks
        self._image_dtype = image_dtype
        self._weight_decay = weight_decay
        self._momentum = momentum
        self._clip_norm = clip_norm
        self._scales_loss = scales_loss
        self.passes = passes
        self.sum_over_processes = sum_over_processes
        self._average_gradients = average_gradients
        self.towers: list[TowerTensors] = []
        self.variables: dict[str, tf.Variable] = {}
        self._moving_averages: list[tuple[tf.Variable, tf.Tensor]] = []

    def inputs(self):
        """The training inputs in the data flow's order (shapes in DESIGN's letters: B images, G ground-truth slots)."""
        batch = self._ims_per_gpu
        specs = {
            "image": ([batch, None, None, 3], self._image_dtype),
            "image_size": ([batch, 2], tf.int32),
            "gt_boxes": ([batch, None, 4], tf.float32),
            "gt_labels": ([batch, None], tf.int32),
            "gt_masks": ([batch, None, MASK_CELLS, MASK_CELLS // 8], tf.uint8),
            "image_index": ([batch], tf.int32),
            "seed": ([], tf.int32),
        }
        if not self._with_masks:
            del specs["gt_masks"]
        return [tf.TensorSpec(shape, dtype, name) for name, (shape, dtype) in specs.items()]

    def build_graph(self, *tensors):
        inputs = dict(zip(self.input_names, tensors))
        image_index = inputs.pop("image_index")
        image_seeds = tf.stack([image_index, tf.fill([self._ims_per_gpu], inputs.pop("seed"))], axis=1)
        losses, metrics = self._detector.losses(**inputs, image_seeds=image_seeds)
        context = get_current_tower_context()
        if context.is_main_training_tower:
            self.variables = {v.op.name: v for v in tf.global_variables() if v is not get_global_step_var()}
            self._moving_averages = tf.get_collection(MOVING_AVERAGES)
        key = tf.GraphKeys.TRAINABLE_VARIABLES
        trainable = context.get_collection_in_tower(key) if context.has_own_variables else tf.get_collection(key)
        losses = {**losses, "wd": weight_decay_loss(trainable, self._weight_decay)}
        self.towers.append(TowerTensors(losses, metrics, image_index))
        return tf.add_n(list(losses.values()), name="total_loss")

    def variable_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the detector's variables by name."""
        return {name: tuple(variable.shape.as_list()) for name, variable in self.variables.items()}

    def optimizer(self):
        with tf.name_scope(None):
            self.learning_rate = tf.placeholder(tf.float32, [], name="learning_rate")
        sgd = tf.train.MomentumOptimizer(self.learning_rate, self._momentum)
        return GuardedOptimizer(
            sgd,
            losses_finite=self._losses_finite,
            moving_averages=lambda: self._moving_averages,
            average_gradients=self._average_gradients,
            loss_scale=LossScale() if self._scales_loss else None,
            passes=self.passes,
            clip_norm=self._clip_norm,
        )

    def _losses_finite(self) -> tf.Tensor:
        is_finite = tf.is_finite([loss for tower in self.towers for loss in tower.losses.values()])
        bad = tf.reduce_sum(tf.cast(~is_finite, tf.float32))
        return tf.equal(self.sum_over_processes(bad, "losses_not_finite"), 0)


class WatchedData(ProxyDataFlow):
    """Keeps the error that ended the data flow, for the main thread to raise: tensorpack's thread only logs it."""

    def __init__(self, flow: DataFlow, heart: Heart):
        super().__init__(flow)
        self._heart = heart
        self.error: Exception | None = None

    def __iter__(self):
        try:
            yield from self._heart.loading(self.ds)
        except Exception as error:
            self.error = error
            raise DataFlowTerminated from error


class PrefetchQueue(QueueInput):
    """tensorpack's input queue, but short, and without a moving average; `waits`: seconds a step waited, per device."""

    def _setup(self, inputs):
        self.queue = tf.FIFOQueue(QUEUE_STEPS, [spec.dtype for spec in inputs], name="input_queue")
        self.waits: list[tf.Tensor] = []
        super()._setup(inputs)

    def _create_ema_callback(self):
        return Callback()  # tensorpack's would keep a moving average of the queue's size, in variables

    def _get_input_tensors(self):
        with tf.device("/cpu:0"):
            start = tf.timestamp()
            with tf.control_dependencies([start]):
                tensors = super()._get_input_tensors()
            with tf.control_dependencies(tensors):
                self.waits.append(tf.timestamp() - start)
        return tensors


class InputClosed(RuntimeError):
    """The input queue gave out before the end of training."""


class OpenErrors:
    """For tensorpack's trainers: every error ends the run and is raised.

    tensorpack takes an input queue that gave out for the end of training, and its session starts over, for ever, after
    an operation that was aborted.
    """

    add_up_batches: Callable[[], None] = staticmethod(lambda: None)  # all batches of a step but the last
    heart = Heart()

    def run_step(self):
        self.heart.note_step(self.global_step + 1)
        try:
            self.add_up_batches()
            super().run_step()
        except tf.errors.OutOfRangeError as error:
            raise InputClosed(f"the input queue was closed before step {self.global_step + 1}") from error

    def initialize_hooks(self):
        self.hooked_sess = UnrecoveredSession(ReuseSessionCreator(self.sess), self._callbacks.get_hooks())


class UnrecoveredSession(tf.train.MonitoredSession):
    """A monitored session that raises what `MonitoredSession` would take for a lost server and try again."""

    def __init__(self, session_creator, hooks):
        super(tf.train.MonitoredSession, self).__init__(session_creator, hooks, should_recover=False)


class CpuTrainer(OpenErrors, SimpleTrainer):
    """One tower on the CPU."""


class GpuTrainer(OpenErrors, SyncMultiGPUTrainerReplicated):
    """A tower with its own variables on each GPU; gradients are averaged."""


class ProcessTrainer(OpenErrors, HorovodTrainer):
    """A tower in each process of a Horovod job."""

    def __init__(self):
        super().__init__()
        self.BROADCAST_EVERY_EPOCH = False  # variables stay equal, which every checkpoint checks

    def allreduce(self, grads):
        return grads  # the optimizer averages them, once for all batches of a step


class StartValues(SessionInit):
    """Sets the variables of a new session: all but the config from a checkpoint, or some by name."""

    def __init__(self, *, checkpoint: str | None = None, values: Mapping[str, np.ndarray] | None = None):
        self._checkpoint = checkpoint
        self._values = values or {}

    def _setup_graph(self):
        if self._checkpoint:
            self._saver = tf.train.Saver(tf.global_variables())

    def _run_init(self, sess):
        restore(sess, self._values)
        if self._checkpoint:
            self._saver.restore(sess, self._checkpoint)


def check_checkpoint(checkpoints: Sequence[str]) -> None:
    """Raises ValueError unless the last of the checkpoints, oldest first, can be read and fits the default graph.

    It is read as a whole, so that nothing is written for a run that cannot go on.
    """
    *before, checkpoint = checkpoints
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        shapes = {name: tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
        for name in shapes:
            reader.get_tensor(name)
    except (tf.errors.OpError, IndexError) as error:  # an IndexError is TensorFlow's word for a truncated file
        way_on = "there is none before it, so start anew with --overwrite"
        if before:
            way_on = f"delete {checkpoint}.* to --resume from the one before, {before[-1]}"
        raise ValueError(f"checkpoint {checkpoint} is damaged ({str(error).splitlines()[0]}): {way_on}") from None
    wanted = {v.op.name: tuple(v.shape.as_list()) for v in tf.global_variables()} | {CONFIG_NAME: ()}
    wrong = sorted(name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name))
    if wrong:
        there, here = (found.get(wrong[0], "missing") for found in (shapes, wanted))
        raise ValueError(
            f"checkpoint {checkpoint} is not one of this model ({len(wrong)} variables differ, the first {wrong[0]}: "
            f"{there} there, {here} here): resume with the configuration of the run, or start a "
            "new run from its weights with --load"
        )


@dataclass(frozen=True)
class Periods:
    """Steps between two evaluations, checkpoints, and points of the written curves; the last step has all three."""

    evaluation: int
    checkpoint: int
    summary: int


def train_detector(
    model: DetectorModel,
    *,
    make_dataflow: Callable[[int, int], DataFlow],
    describe_images: Callable[[Sequence[int]], str],
    schedule: LrSchedule,
    logdir: Path,
    open_logdir: Callable[[], None] = lambda: None,
    config_json: str,
    periods: Periods,
    gpus: Sequence[int] = (),
    processes: Processes | None = None,
    seed: int = 0,
    first_step: int = 0,
    resume: bool = False,
    start_weights: StartWeights | None = None,
    evaluate: EvaluateWeights | None = None,
    best_metrics: Sequence[str] = (),
    heart: Heart | None = None,
) -> TrainResult:
    """Trains `model` to the end of the schedule, on the CPU when there are no `gpus`.

    make_dataflow(first, every) gives the training data of the device-steps first, first + every, …; describe_images
    names images from their indices. open_logdir is called when nothing is known to stand in the way any more, before
    anything is written or, of an earlier run, lost. seed decides the variables' start values, start_weights gives some
    of them. evaluate is called every so often and at the end; the first of best_metrics that it gives decides which
    checkpoint is the best.
    With `resume`, weights, momentum and step come from the newest checkpoint in `logdir`; first_step and start_weights
    are not used. `processes` are those of a Horovod job, all of which call this alike; the chief alone reads and writes
    `logdir`, and its variables are where all start. heart: is told how far this process is.
    Raises NonFiniteLoss, Interrupted (after a signal, saved), FileNotFoundError (nothing to resume) and what the data
    raises.
    """
    compat.apply()
    job, heart = processes or Processes(), heart or Heart()
    heart.note("building the model")
    earlier = find_checkpoints(logdir) if resume and job.is_chief else []
    if resume and job.is_chief and not earlier:
        raise FileNotFoundError(f"no checkpoint to resume in {logdir}: start anew with --overwrite")
    step = int(job.broadcast(str(checkpoint_step(earlier[-1]) if earlier else first_step).encode()))
    devices = max(len(gpus), 1)
    with tf.Graph().as_default():
        tf.set_random_seed(seed)
        first = step * model.passes * devices * job.size
        data = WatchedData(make_dataflow(first + job.rank, job.size), heart)
        queue = PrefetchQueue(data)
        trainer = ProcessTrainer() if processes else GpuTrainer(list(gpus)) if gpus else CpuTrainer()
        trainer.heart = heart
        trainer.setup_graph(model.get_input_signature(), queue, model.build_graph, model.get_optimizer)
        with tf.device("/cpu:0"):
            # A local variable is not broadcast to other processes, which Horovod cannot do with text.
            tf.get_variable(CONFIG_NAME, initializer=tf.constant(config_json), trainable=False,
                            collections=[tf.GraphKeys.LOCAL_VARIABLES])

        total, optimizer = schedule.total_steps, model.get_optimizer()
        checkpoints = Checkpoints(
            logdir, period=periods.checkpoint, total_steps=total, earlier=earlier, note=heart.note
        )
        watch = WatchLosses(
            model.towers,
            grad_norms=optimizer.grad_norms,
            loss_scale=optimizer.loss_scale_used,
            data_waits=queue.waits,
            passes=model.passes,
            schedule=schedule,
            describe_images=describe_images,
            before_stopping=checkpoints.save_first if job.is_chief else lambda: None,
            period=periods.summary,
        )
        if model.passes > 1:
            add_up = tf.group(*optimizer.accumulate_ops)
            trainer.add_up_batches = lambda: watch.add_up(trainer.sess, add_up, times=model.passes - 1)
        evaluation = Evaluate(
            evaluate,
            variables=model.variables,
            checkpoints=checkpoints,
            period=periods.evaluation,
            total_steps=total,
            best_metrics=best_metrics,
        )
        stop = StopOnSignal(checkpoints, sum_over_processes=model.sum_over_processes)
        same = SameWeights(job, model.variables, period=periods.checkpoint, total_steps=total, note=heart.note)
        feed = FeedLearningRate(model.learning_rate, schedule)
        values = {}
        heart.note("starting to train")
        if job.is_chief:
            if resume:
                check_checkpoint(earlier)
            values = start_weights(model.variable_shapes()) if start_weights and not resume else {}
            open_logdir()
        try:
            trainer.train(
                [feed, watch, Progress(watch, schedule), same, checkpoints, evaluation, stop],
                [TFEventWriter(str(logdir)), MetricsFile(logdir / METRICS_FILE)] if job.is_chief else [],
                _session_creator(with_gpus=bool(gpus)),
                StartValues(checkpoint=earlier[-1]) if earlier else StartValues(values={**values, "global_step": step}),
                steps_per_epoch=max(total - step, 0),
                max_epoch=1,
            )
        except NonFiniteLoss as error:
            raise NonFiniteLoss(f"{error}\n  {_way_on(checkpoints.last)}") from None
        except InputClosed:
            if data.error is None:
                raise
            raise data.error from None
        if stop.signum is not None:
            raise Interrupted(stop.signum, trainer.global_step, checkpoints.last)
        if trainer.global_step < total:
            raise RuntimeError(f"training ended at step {trainer.global_step} of {total} for no reason known here")
        return TrainResult(step=trainer.global_step, last_checkpoint=checkpoints.last, best=evaluation.best)


def find_checkpoints(logdir: Path) -> list[str]:
    """The checkpoints of a run folder, by step, oldest first."""
    names = [str(path.with_suffix("")) for path in Path(logdir).glob(f"{CHECKPOINT_NAME}-*.index")]
    return sorted(names, key=checkpoint_step)


def checkpoint_step(path: str) -> int:
    """The step of a checkpoint `model-STEP`."""
    return int(path.rpartition("-")[2])


def _session_creator(*, with_gpus: bool) -> NewSessionCreator:
    creator = NewSessionCreator()
    if not with_gpus:
        creator.config.device_count["GPU"] = 0
    creator.config.intra_op_parallelism_threads = 0  # all cores; tensorpack's one is for hosts that only feed GPUs
    return creator


def _way_on(last_checkpoint: str) -> str:
    return (
        f"The step was not made, and the last checkpoint is {last_checkpoint}: check these images' annotations, or "
        "lower TRAIN.BASE_LR, raise TRAIN.WARMUP or set TRAIN.GRADIENT_CLIP, and go on with --resume"
    )
