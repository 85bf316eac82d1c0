"""The training loop with a tiny detector: exact resumption, bad steps, signals, checkpoints, several devices."""

import itertools
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from tensorpack.dataflow import DataFlow
from tensorpack.input_source.input_source import EnqueueThread
from tensorpack.train import StopTraining

from FasterRCNN.engine.callbacks import Best, Checkpoints, Evaluation, FeedLearningRate, NonFiniteLoss, WatchLosses
from FasterRCNN.engine.optim import lr_schedule
from FasterRCNN.engine.processes import Processes
from FasterRCNN.engine.trainer import (
    DetectorModel,
    InputClosed,
    Interrupted,
    Periods,
    checkpoint_step,
    find_checkpoints,
    train_detector,
)
from FasterRCNN.engine.weights import read_config, read_weights
from train import evaluation_devices

BATCH = 2
NUM_IMAGES = 10
DOCUMENTATION = Path(__file__).resolve().parent.parent / "docs" / "training.md"


class TinyDetector:
    """One convolution and a linear layer; it learns the first coordinate of the first box, with noise by the seeds."""

    def losses(self, *, image, image_size, gt_boxes, gt_labels, image_seeds):
        initializer = tf.random_normal_initializer(stddev=0.01)
        kernel = tf.get_variable("conv0/W", [3, 3, 3, 4], initializer=initializer)
        weights = tf.get_variable("fc/W", [4, 1], initializer=initializer)
        bias = tf.get_variable("fc/b", [1], initializer=tf.zeros_initializer())
        tf.get_variable("conv0/bn/mean/EMA", [4], initializer=tf.zeros_initializer(), trainable=False)
        maps = tf.nn.relu(tf.nn.conv2d(tf.cast(image, tf.float32) / 255, kernel, strides=1, padding="SAME"))
        output = tf.matmul(tf.reduce_mean(maps, axis=[1, 2]), weights) + bias
        noise = tf.stack([0.01 * tf.random.stateless_normal([], seed) for seed in tf.unstack(image_seeds)])
        loss = tf.reduce_mean(tf.square(output[:, 0] - gt_boxes[:, 0, 0] + noise))
        return {"box/loss_box": loss, "rpn/loss_cls": 0.1 * loss}, {"box/num_fg": tf.constant(3.0)}


class NanGradientDetector(TinyDetector):
    """Its losses are finite, its gradient is not."""

    def losses(self, **inputs):
        losses, metrics = super().losses(**inputs)
        poisoned = tf.custom_gradient(lambda x: (tf.identity(x), lambda upstream: upstream * np.nan))
        return {name: poisoned(loss) for name, loss in losses.items()}, metrics


class TinyData(DataFlow):
    """Steps drawn from their number alone; the steps in `bad` have a NaN box; before step k `before[k]()` is called."""

    def __init__(self, start=0, every=1, bad=(), before=None):
        self._start, self._every, self._bad, self._before = start, every, bad, before or {}

    def __iter__(self):
        step = self._start
        while True:
            self._before.get(step, lambda: None)()
            yield tiny_step(step, bad=step in self._bad)
            step += self._every


def tiny_step(step, bad=False):
    random = np.random.default_rng([5, step])
    boxes = random.uniform(0, 1, [BATCH, 8, 4]).astype(np.float32)
    boxes[:, 0, 0] = np.nan if bad else step
    index = np.arange(step * BATCH, step * BATCH + BATCH, dtype=np.int32) % NUM_IMAGES
    image = random.integers(0, 255, [BATCH, 16, 16, 3], dtype=np.uint8)
    size, labels = np.full([BATCH, 2], 16, np.int32), np.ones([BATCH, 8], np.int32)
    return [image, size, boxes, labels, index, np.int32(7)]


class JoinedData(DataFlow):
    """Two of `TinyData`'s steps in one."""

    def __init__(self, start=0, every=1):
        self._start = start

    def __iter__(self):
        step = 2 * self._start
        while True:
            pairs = zip(tiny_step(step), tiny_step(step + 1))
            yield [np.concatenate(pair) if pair[0].ndim else pair[0] for pair in pairs]
            step += 2


def train(
    logdir,
    steps,
    *,
    detector=None,
    make_dataflow=TinyData,
    batch=BATCH,
    checkpoint=1000,
    evaluation=1000,
    warmup=0,
    scales_loss=False,
    passes=1,
    **kwargs,
):
    logdir.mkdir(exist_ok=True)
    detector = detector or TinyDetector()
    return train_detector(
        DetectorModel(
            detector,
            ims_per_gpu=batch,
            with_masks=False,
            weight_decay=1e-3,
            scales_loss=scales_loss,
            passes=passes,
        ),
        seed=3,
        make_dataflow=make_dataflow,
        describe_images=lambda indices: ", ".join(f"image {100 + i} (train/{i}.jpg)" for i in indices),
        schedule=lr_schedule([steps], base_lr=0.004, global_batch=8, warmup=warmup, warmup_init_lr=0.001),
        logdir=logdir,
        config_json='{"MODE_MASK": false}',
        periods=Periods(evaluation=evaluation, checkpoint=checkpoint, summary=2),
        **kwargs,
    )


def variables_of(checkpoint):
    reader = tf.train.load_checkpoint(checkpoint)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def metrics_of(logdir):
    return [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]


def test_ten_steps_equal_five_and_five_more(tmp_path, monkeypatch):
    whole = train(tmp_path / "whole", 10, warmup=8)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_trigger_step", save_and_stop_at(5))
        with pytest.raises(RuntimeError, match="training ended at step 5 of 10"):
            train(tmp_path / "parts", 10, warmup=8)
    parts = train(tmp_path / "parts", 10, warmup=8, resume=True)
    assert whole.step == parts.step == 10
    expected, actual = variables_of(whole.last_checkpoint), variables_of(parts.last_checkpoint)
    assert expected.keys() == actual.keys()
    trained = ["conv0/W", "fc/W", "fc/b"]
    slots = [f"{name}/Momentum" for name in trained]
    assert expected.keys() == {*trained, *slots, "conv0/bn/mean/EMA", "global_step", "config_json"}
    for name, value in expected.items():
        np.testing.assert_array_equal(value, actual[name], err_msg=name)
    rates = {line["step"]: line["learning_rate"] for line in metrics_of(tmp_path / "parts")}
    assert rates[10] == pytest.approx(0.004) and rates[4] < rates[6] < 0.004


def save_and_stop_at(step):
    def trigger_step(self):
        if self.global_step == step:
            self.save()
            raise StopTraining

    return trigger_step


def test_run_folder_after_a_run(tmp_path):
    result = train(tmp_path, 20, checkpoint=3)
    assert result.last_checkpoint == str(tmp_path / "model-20") and result.best is None
    assert [checkpoint_step(path) for path in find_checkpoints(tmp_path)] == [9, 12, 15, 18, 20]
    assert read_config(tmp_path) == {"MODE_MASK": False}
    assert read_weights(tmp_path).keys() == {"conv0/W", "fc/W", "fc/b", "conv0/bn/mean/EMA"}
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(2, 21, 2))
    names = {"box/loss_box", "rpn/loss_cls", "wd", "total_loss", "box/num_fg", "gradient_norm", "learning_rate"}
    assert names < lines[0].keys()
    total = lines[0]["box/loss_box"] + lines[0]["rpn/loss_cls"] + lines[0]["wd"]
    assert lines[0]["total_loss"] == pytest.approx(total) and lines[0]["box/num_fg"] == 3


def test_old_checkpoints_go_after_a_resume_too(tmp_path):
    train(tmp_path, 10, checkpoint=2)
    train(tmp_path, 14, checkpoint=2, resume=True)
    assert [checkpoint_step(path) for path in find_checkpoints(tmp_path)] == [6, 8, 10, 12, 14]


def test_resuming_a_finished_run_trains_nothing(tmp_path):
    train(tmp_path, 4)
    assert train(tmp_path, 4, resume=True).step == 4
    assert len(metrics_of(tmp_path)) == 2


def test_resume_without_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no checkpoint to resume in {tmp_path}: start anew with --overwrite"):
        train(tmp_path, 4, resume=True)


def test_resume_with_another_model(tmp_path):
    class WiderDetector(TinyDetector):
        def losses(self, **inputs):
            tf.get_variable("mask/W", [3])
            return super().losses(**inputs)

    train(tmp_path, 2)
    with pytest.raises(ValueError, match=r"the first mask/W: missing there, \(3,\) here\): resume with the configura"):
        train(tmp_path, 4, resume=True, detector=WiderDetector())
    train(tmp_path / "wider", 2, detector=WiderDetector())
    with pytest.raises(ValueError, match=r"the first mask/W: \(3,\) there, missing here"):
        train(tmp_path / "wider", 4, resume=True)


@pytest.mark.parametrize("kind", ["index", "data-00000-of-00001"])
def test_resume_from_a_damaged_checkpoint(tmp_path, kind):
    train(tmp_path, 4, checkpoint=2)
    path = tmp_path / f"model-4.{kind}"
    path.write_bytes(path.read_bytes()[:-20])
    opened = []
    way_on = f"model-4 is damaged .*: delete .*model-4.* to --resume from the one before, {tmp_path}/model-2$"
    with pytest.raises(ValueError, match=way_on):
        train(tmp_path, 6, resume=True, open_logdir=lambda: opened.append(1))
    assert not opened
    for path in tmp_path.glob("model-4.*"):
        path.unlink()
    assert train(tmp_path, 6, resume=True).step == 6


def test_resume_from_the_only_checkpoint_when_damaged(tmp_path):
    (tmp_path / "model-3.index").touch()
    with pytest.raises(ValueError, match="model-3 is damaged .*: there is none before it, so start anew with --over"):
        train(tmp_path, 6, resume=True)


def test_nothing_is_opened_before_the_start_weights_are_chosen(tmp_path):
    def refuse(_):
        raise ValueError("they do not fit")

    with pytest.raises(ValueError, match="they do not fit"):
        train(tmp_path, 2, start_weights=refuse, open_logdir=lambda: pytest.fail("opened"))
    assert list(tmp_path.iterdir()) == []


def test_bad_loss_stops_the_run_and_names_its_images(tmp_path):
    with pytest.raises(NonFiniteLoss) as caught:
        train(tmp_path, 10, make_dataflow=lambda start, every: TinyData(start, bad=[6]), checkpoint=5)
    text = str(caught.value)
    assert text.startswith("not finite at step 7: box/loss_box = nan, rpn/loss_cls = nan (finite: wd = ")
    assert "images of that step: image 102 (train/2.jpg), image 103 (train/3.jpg)" in text
    assert "learning rate 0.004, global batch 8" in text
    assert f"the last checkpoint is {tmp_path / 'model-5'}" in text and "go on with --resume" in text
    assert [checkpoint_step(path) for path in find_checkpoints(tmp_path)] == [5]


def test_bad_gradient_stops_the_run(tmp_path):
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 1: the gradient \(finite: box/loss_box = ") as caught:
        train(tmp_path, 10, detector=NanGradientDetector())
    assert "the last checkpoint is" in str(caught.value)
    assert (tmp_path / "model-1.index").is_file()  # the weights before the bad step are not lost


def test_bad_step_leaves_weights_and_momentum_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(WatchLosses, "_check_finite", lambda *_: None)
    train(tmp_path, 4, make_dataflow=lambda start, every: TinyData(start, bad=[2]), checkpoint=1)
    before, after, later = (variables_of(str(tmp_path / f"model-{step}")) for step in (2, 3, 4))
    for name in before.keys() - {"global_step"}:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert not np.array_equal(after["fc/b"], later["fc/b"])


def test_error_in_the_data_is_raised(tmp_path):
    def fail():
        raise ValueError("train/5.jpg cannot be decoded")

    with pytest.raises(ValueError, match="train/5.jpg cannot be decoded"):
        train(tmp_path, 100, make_dataflow=lambda start, every: TinyData(start, before={5: fail}))


def test_input_that_ends_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(EnqueueThread, "run", lambda self: self._sess.run(self.close_op))
    with pytest.raises(InputClosed, match="the input queue was closed before step 1"):
        train(tmp_path, 10)


def test_operation_that_is_aborted_is_an_error(tmp_path, monkeypatch):
    """tensorpack's session would start over for ever."""

    def abort(*_):
        raise tf.errors.AbortedError(None, None, "could not create a primitive")

    monkeypatch.setattr(FeedLearningRate, "_before_run", abort)
    with pytest.raises(tf.errors.AbortedError, match="could not create a primitive"):
        train(tmp_path, 10)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_ends_the_run(tmp_path, signum):
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    data = TinyData(before={20: lambda: os.kill(os.getpid(), signum)})
    with pytest.raises(Interrupted, match=f"{signum.name} at step .*: saved .*/model-.*; go on with") as caught:
        train(tmp_path, 100_000, make_dataflow=lambda start, every: data)
    assert caught.value.signum == signum
    assert 10 < checkpoint_step(find_checkpoints(tmp_path)[-1]) < 1000
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_evaluation_keeps_the_best_checkpoint(tmp_path):
    scores, seen = {2: 0.2, 4: 0.7, 6: 0.5, 7: 0.6}, {}

    def evaluate(weights, step):
        seen[step] = weights
        return Evaluation({"bbox/AP": 0.1, "segm/AP": scores[step]}, {"val/1": np.zeros([4, 6, 3], np.uint8)})

    result = train(tmp_path, 7, evaluation=2, evaluate=evaluate, best_metrics=["segm/AP", "bbox/AP"])
    assert list(seen) == [2, 4, 6, 7]
    assert result.best == Best(step=4, metric="segm/AP", value=0.7) == Best.read(tmp_path)
    best = read_weights(tmp_path / "best")
    assert best.keys() == seen[4].keys()
    for name, value in best.items():
        np.testing.assert_array_equal(value, seen[4][name])
    assert variables_of(str(tmp_path / "best"))["global_step"] == 4
    assert [line["segm/AP"] for line in metrics_of(tmp_path) if "segm/AP" in line] == [0.2, 0.7, 0.5, 0.6]
    assert "val/1" in {value.tag for event in events_of(tmp_path) for value in event.summary.value}

    scores.update({8: 0.65, 9: 0.8})
    assert train(tmp_path, 8, evaluate=evaluate, best_metrics=["segm/AP"], resume=True).best.step == 4
    assert train(tmp_path, 9, evaluate=evaluate, best_metrics=["segm/AP"], resume=True).best.step == 9


def events_of(logdir):
    return [event for path in logdir.glob("events.*") for event in tf.train.summary_iterator(str(path))]


def start_from(value):
    return lambda shapes: {name: np.full(shape, value, np.float32) for name, shape in shapes.items()}


def test_start_values_and_first_step(tmp_path):
    train(tmp_path, 12, start_weights=start_from(0.5), first_step=10, checkpoint=1, warmup=100)
    assert [checkpoint_step(path) for path in find_checkpoints(tmp_path)] == [11, 12]
    np.testing.assert_allclose(read_weights(tmp_path)["conv0/W"], 0.5, atol=0.2)
    assert metrics_of(tmp_path)[0]["learning_rate"] == pytest.approx(0.001 + 0.003 * 11 / 100)


def test_two_devices_make_the_step_of_one_with_twice_the_images(tmp_path):
    """Both devices are the CPU here: TensorFlow places what asks for a GPU there when there is none."""
    single = train(tmp_path / "1", 5, batch=2 * BATCH, make_dataflow=JoinedData, start_weights=start_from(0.1))
    double = train(tmp_path / "2", 5, gpus=[0, 1], start_weights=start_from(0.1))
    expected, actual = variables_of(single.last_checkpoint), variables_of(double.last_checkpoint)
    assert expected.keys() == actual.keys()
    for name in expected.keys() - {"config_json"}:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    single, double = (metrics_of(tmp_path / name)[-1] for name in "12")
    assert double["total_loss"] == pytest.approx(single["total_loss"], rel=1e-4)
    assert double["gradient_norm"] == pytest.approx(single["gradient_norm"], rel=1e-4)


@pytest.mark.parametrize("gpus, job, placement", [
    ([], None, {}), ([0], None, {}), ([0, 1, 2], None, {"devices": ["/gpu:0", "/gpu:1", "/gpu:2"]}),
    ([], Processes(1, 2, 1), {}), ([3], Processes(7, 8, 3), {"visible_gpus": "3"}),
])
def test_every_gpu_evaluates(gpus, job, placement):
    assert evaluation_devices(gpus, job) == placement


@pytest.mark.parametrize("gpus", [[], [0, 1]])
def test_batches_added_up_make_the_step_of_one_batch(tmp_path, gpus):
    """Of one device, two batches a step; and of two devices (both the CPU here) one each for twice the batch."""
    options = {"make_dataflow": JoinedData, "batch": 2 * BATCH} if not gpus else {}
    single = train(tmp_path / "1", 5, start_weights=start_from(0.1), gpus=gpus, **options)
    added = train(tmp_path / "2", 5, passes=2, start_weights=start_from(0.1))
    expected, actual = variables_of(single.last_checkpoint), variables_of(added.last_checkpoint)
    sums = {name for name in actual if name.endswith("/AccumGrad")}
    assert sums == {f"{name}/AccumGrad" for name in ("conv0/W", "fc/W", "fc/b")}
    assert not any(actual[name].any() for name in sums)
    assert expected.keys() == actual.keys() - sums
    for name in expected.keys() - {"config_json"}:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    single, added = (metrics_of(tmp_path / name)[-1] for name in "12")
    assert added["total_loss"] == pytest.approx(single["total_loss"], rel=1e-4)
    assert added["gradient_norm"] == pytest.approx(single["gradient_norm"], rel=1e-4)
    assert read_weights(tmp_path / "2").keys() == {"conv0/W", "fc/W", "fc/b", "conv0/bn/mean/EMA"}


def test_a_bad_image_of_any_batch_is_named(tmp_path):
    with pytest.raises(NonFiniteLoss, match="not finite at step 4: .*= nan") as error:
        train(tmp_path, 10, passes=2, make_dataflow=lambda start, every: TinyData(start, bad=[6]))
    assert "image 102 (train/2.jpg), image 103 (train/3.jpg)" in str(error.value)


class OverflowingDetector(TinyDetector):
    """Its gradients overflow where the loss is multiplied by more than 2^13."""

    def losses(self, **inputs):
        losses, metrics = super().losses(**inputs)

        def backward(upstream):
            return tf.where(upstream > 2.0**13, np.inf * tf.ones_like(upstream), upstream)

        guarded = tf.custom_gradient(lambda x: (tf.identity(x), backward))
        return {name: guarded(loss) for name, loss in losses.items()}, metrics


def test_a_scaled_loss_trains_alike_after_the_steps_that_overflow(tmp_path):
    """2^15 and 2^14 overflow: two steps are not made; those after them are those of a run without scale."""
    start = start_from(0.1)
    scaled = train(tmp_path / "a", 7, detector=OverflowingDetector(), scales_loss=True, start_weights=start)
    plain = train(tmp_path / "b", 5, make_dataflow=lambda step, every: TinyData(step + 2), start_weights=start)
    expected, actual = variables_of(plain.last_checkpoint), variables_of(scaled.last_checkpoint)
    for name in ("conv0/W", "fc/W", "fc/b", "conv0/W/Momentum"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, err_msg=name)
    assert actual["loss_scale/value"] == 2**13
    assert read_weights(tmp_path / "a").keys() == read_weights(tmp_path / "b").keys()
    lines = metrics_of(tmp_path / "a")
    assert [line["steps_not_made"] for line in lines] == [1, 0, 0, 0]
    resumed = train(tmp_path / "a", 9, detector=OverflowingDetector(), scales_loss=True, resume=True)
    assert variables_of(resumed.last_checkpoint)["loss_scale/value"] == 2**13
    assert metrics_of(tmp_path / "a")[-1]["steps_not_made"] == 0


def test_a_scaled_loss_adds_two_documented_scalars(tmp_path):
    train(tmp_path / "a", 2, scales_loss=True)
    train(tmp_path / "b", 2)
    scaled, plain = (set(metrics_of(tmp_path / name)[0]) for name in "ab")
    assert plain <= scaled and scaled - plain == {"loss_scale", "steps_not_made"}
    rows = [line for line in DOCUMENTATION.read_text().splitlines() if "TRAIN.PRECISION=fp16" in line]
    assert [row.split("`")[1] for row in rows] == ["loss_scale", "steps_not_made"]


@pytest.mark.parametrize("passes", [1, 2])
def test_speed_is_that_of_the_steps_without_evaluations(tmp_path, monkeypatch, passes):
    """By a clock that goes on by a second whenever it is read, and by a thousand in an evaluation."""
    seconds = itertools.count()

    def evaluate(weights, step):
        for _ in range(1000):
            next(seconds)
        return Evaluation({"bbox/AP": 0.5})

    clock = SimpleNamespace(perf_counter=lambda: next(seconds), time=time.time)
    monkeypatch.setattr("FasterRCNN.engine.callbacks.time", clock)
    train(tmp_path, 6, evaluate=evaluate, evaluation=1, passes=passes)
    global_batch = 8
    assert [line["images_per_second"] for line in metrics_of(tmp_path) if "images_per_second" in line] == (
        [global_batch / passes] * 3)


def test_gradients_that_are_never_finite_stop_a_scaled_run(tmp_path):
    with pytest.raises(NonFiniteLoss, match="not finite at step 16: the gradient"):
        train(tmp_path, 30, detector=NanGradientDetector(), scales_loss=True)
