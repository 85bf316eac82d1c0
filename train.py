#!/usr/bin/env python3
"""Trains a detector and draws the curves of runs (--plot); also predicts or evaluates. TensorFlow is imported late."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import (
    KEYS,
    Config,
    ConfigError,
    add_config_arguments,
    default_config,
    finalize_configs,
    format_value,
    run_command,
)

import numpy as np
from tabulate import tabulate
from tqdm.contrib.logging import logging_redirect_tqdm

from data import load_set, load_training_set, make_train_dataflow
from eval import format_metrics
from FasterRCNN.engine.curves import plot_runs
from FasterRCNN.engine.run_folder import CONFIG_FILE, check_run_folder, claim_run_folder, describe_run
from FasterRCNN.imaging.resize import image_dtype
from FasterRCNN.metrics import MAIN_NUMBER
from FasterRCNN.structures import Categories, Dataset
from inference import build_predictor, draw_comparisons, evaluate_model, unique_names
from model_table import format_table, read_headers
from predict import add_predict_arguments, picture_options, run_prediction
from start_weights import choose_start_weights, model_keys

if TYPE_CHECKING:
    from FasterRCNN.engine.callbacks import Evaluation
    from FasterRCNN.engine.optim import LrSchedule
    from FasterRCNN.engine.predictor import Predictor
    from FasterRCNN.engine.processes import Processes
    from FasterRCNN.engine.trainer import DetectorModel, TrainResult

logger = logging.getLogger(__name__)

DEFAULT_LOGDIR = "train_log/maskrcnn"
NUM_PICTURES = 4  # of each set and evaluation, for TensorBoard


def train(args: argparse.Namespace, argv: Sequence[str]) -> int:
    """Trains as the command line says; the exit status, not 0 when a signal ended the run."""
    logdir = Path(args.logdir)
    job = join_job_if_asked(args)
    is_chief = job is None or job.is_chief
    if is_chief:
        check_run_folder(logdir, resume=args.resume, overwrite=args.overwrite)
    cfg, dataset, val_sets = read_config_and_data(args, job)

    from FasterRCNN.engine import compat  # isort: skip  (before TensorFlow)
    from FasterRCNN.engine.processes import Processes, watch_for_stalls
    from FasterRCNN.engine.trainer import Interrupted, Periods, train_detector

    compat.apply()
    start_weights = None
    if is_chief and not args.resume:
        start_weights = choose_start_weights(cfg, args.load, keep_classes=args.keep_classes)
    gpus, devices = find_devices(cfg, job)
    num_devices = job.size if job else max(len(gpus), 1)
    schedule = make_schedule(cfg, num_devices=num_devices)
    model = make_model(cfg, num_gpus=len(gpus), job=job)

    def open_run_folder() -> None:
        claim_run_folder(logdir, resume=args.resume, overwrite=args.overwrite)
        describe_run(logdir, config_yaml=cfg.to_yaml(), argv=argv, seed=cfg.TRAIN.SEED, devices=devices)
        log_to_file(logdir / "log.txt")
        announce(cfg, logdir, devices, dataset, val_sets, schedule, job)

    epoch = cfg.TRAIN.STEPS_PER_EPOCH
    try:
        with (
            logging_redirect_tqdm(),
            watch_for_stalls(job or Processes(), timeout=cfg.TRAIN.STALL_TIMEOUT) as heart,
        ):
            result = train_detector(
                model,
                make_dataflow=lambda first, every: make_train_dataflow(
                    cfg,
                    dataset,
                    ims_per_gpu=cfg.TRAIN.IMS_PER_GPU,
                    seed=cfg.TRAIN.SEED,
                    num_devices=num_devices * cfg.TRAIN.ACCUM,
                    first=first,
                    every=every,
                ),
                describe_images=lambda indices: describe_images(dataset, indices),
                schedule=schedule,
                logdir=logdir,
                open_logdir=open_run_folder,
                config_json=json.dumps(cfg.to_dict()),
                periods=Periods(
                    evaluation=cfg.TRAIN.EVAL_PERIOD * epoch,
                    checkpoint=cfg.TRAIN.CHECKPOINT_PERIOD * epoch,
                    summary=cfg.TRAIN.SUMMARY_PERIOD,
                ),
                gpus=gpus,
                processes=job,
                seed=cfg.TRAIN.SEED,
                first_step=(cfg.TRAIN.STARTING_EPOCH - 1) * epoch,
                resume=args.resume,
                start_weights=start_weights,
                evaluate=make_evaluation(
                    cfg, val_sets, logdir / "eval", job=job, note=heart.note, **evaluation_devices(gpus, job)
                ) if val_sets else None,
                best_metrics=main_numbers(val_sets),
                heart=heart,
            )
    except Interrupted as stop:
        if is_chief:
            logger.warning("%s", stop)
        return 128 + stop.signum
    if is_chief:
        announce_end(logdir, result)
    return 0


# ---------------------------------------------------------------- what a run is made of


def join_job_if_asked(args: argparse.Namespace) -> Processes | None:
    """The processes of the Horovod job, when TRAINER=horovod or a launcher of Horovod's has started this one."""
    cfg = default_config()
    cfg.update_given(args.config_file, args.config)
    if cfg.TRAINER != "horovod" and "HOROVOD_RANK" not in os.environ:
        return None
    from FasterRCNN.engine import compat  # isort: skip  (before TensorFlow)
    from FasterRCNN.engine.processes import join_job

    compat.apply()
    job = join_job()
    if not job.is_chief:
        logging.getLogger().setLevel(logging.WARNING)
    return job


def read_config_and_data(args: argparse.Namespace, job: Processes | None) -> tuple[Config, Dataset, list[Dataset]]:
    """The final config, the training set and the sets to evaluate on; all processes of a job get the chief's config."""
    starts_from_weights = bool(args.load or args.resume)
    if job is None:
        cfg = read_config(args)
    else:
        text = job.broadcast(json.dumps(read_config(args).to_dict()).encode() if job.is_chief else b"")
        cfg = default_config()
        cfg.update_dict({**json.loads(text), "TRAINER": "horovod"})
        starts_from_weights = starts_from_weights or not job.is_chief  # the chief's variables are where all start
    finalize_configs(cfg.clone(), is_training=True, starts_from_weights=starts_from_weights)
    dataset = load_training_set(cfg)
    take_categories(cfg, dataset.categories)
    finalize_configs(cfg, is_training=True, starts_from_weights=starts_from_weights)
    return cfg, dataset, load_val_sets(cfg, dataset.categories)


def read_config(args: argparse.Namespace) -> Config:
    """The config of the run to resume, or what the start weights tell of their model; then what the command gives."""
    cfg, given = default_config(), default_config()
    given.update_given(args.config_file, args.config)
    if args.resume:
        cfg.update_file(Path(args.logdir) / CONFIG_FILE)
    else:
        cfg.update_dict(model_keys(args.load or given.BACKBONE.WEIGHTS, backbone_only=not args.load))
    cfg.update_given(args.config_file, args.config)
    return cfg


def take_categories(cfg: Config, categories: Categories) -> None:
    """Writes the training set's classes into the config; ConfigError when it names others."""
    names, ids = cfg.DATA.CLASS_NAMES, cfg.DATA.CATEGORY_IDS
    if names not in ((), categories.names) or ids not in ((), categories.ids):
        raise ConfigError(
            f"DATA.CLASS_NAMES={format_value(names)}, DATA.CATEGORY_IDS={format_value(ids)}: DATA.TRAIN has classes "
            f"{format_value(categories.names)} with ids {format_value(categories.ids)}; leave both keys out"
        )
    cfg.DATA.CLASS_NAMES, cfg.DATA.CATEGORY_IDS = categories.names, categories.ids


def load_val_sets(cfg: Config, categories: Categories) -> list[Dataset]:
    """The sets of DATA.VAL, labelled as the training set."""
    try:
        return [load_set(cfg, spec, with_masks=cfg.MODE_MASK, categories=categories) for spec in cfg.DATA.VAL]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} (to train without evaluation: DATA.VAL=[])") from None


def find_devices(cfg: Config, job: Processes | None) -> tuple[list[int], list[str]]:
    """(GPU numbers, the devices in words); no numbers mean the CPU. ConfigError when more are wanted than there are.

    Each process of a job has one GPU, that of its number among those of the machine.
    """
    import tensorflow as tf

    if cfg.TRAIN.NUM_GPUS == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # for the evaluations too
    found = tf.config.list_physical_devices("GPU")
    wanted = len(found) if cfg.TRAIN.NUM_GPUS is None else cfg.TRAIN.NUM_GPUS
    if wanted > len(found):
        raise ConfigError(
            f"TRAIN.NUM_GPUS={wanted}, but TensorFlow sees {len(found)} GPUs: leave it out to train on what there is"
        )
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in found[:wanted]]
    if job is not None and wanted:
        if job.local_rank >= wanted:
            raise ConfigError(
                f"rank {job.rank} is process {job.local_rank + 1} of its machine, which has {wanted} GPUs: start as "
                "many processes there (-H host:GPUS), or train on the CPUs with TRAIN.NUM_GPUS=0"
            )
        return [job.local_rank], names[job.local_rank : job.local_rank + 1]
    return list(range(wanted)), names or [f"CPU, {os.cpu_count()} cores"]


def make_schedule(cfg: Config, *, num_devices: int) -> LrSchedule:
    """The learning rate for the true global batch."""
    from FasterRCNN.engine.optim import lr_schedule

    return lr_schedule(
        cfg.TRAIN.LR_SCHEDULE,
        base_lr=cfg.TRAIN.BASE_LR,
        global_batch=cfg.TRAIN.IMS_PER_GPU * num_devices * cfg.TRAIN.ACCUM,
        warmup=cfg.TRAIN.WARMUP,
        warmup_init_lr=cfg.TRAIN.WARMUP_INIT_LR,
        decay=cfg.TRAIN.LR_DECAY,
    )


def make_model(cfg: Config, *, num_gpus: int, job: Processes | None) -> DetectorModel:
    """The detector with its losses and optimizer."""
    from FasterRCNN.engine.collectives import average_over_processes, sum_over_gpus, sum_over_processes
    from FasterRCNN.engine.trainer import DetectorModel
    from FasterRCNN.modeling.build import build_detector

    several = {"sum_over_devices": sum_over_gpus(num_gpus)} if num_gpus > 1 else {}
    together = {}
    if job is not None:
        several = {"sum_over_devices": sum_over_processes()}
        together = {
            "sum_over_processes": sum_over_processes(),
            "average_gradients": average_over_processes(half_on_wire=cfg.TRAIN.HALF_ON_WIRE),
        }
    return DetectorModel(
        build_detector(cfg, is_training=True, **several),
        ims_per_gpu=cfg.TRAIN.IMS_PER_GPU,
        with_masks=cfg.MODE_MASK,
        image_dtype=image_dtype(cfg.PREPROC.RESIZE),
        weight_decay=cfg.TRAIN.WEIGHT_DECAY,
        momentum=cfg.TRAIN.MOMENTUM,
        clip_norm=cfg.TRAIN.GRADIENT_CLIP,
        scales_loss=cfg.TRAIN.PRECISION == "fp16",
        passes=cfg.TRAIN.ACCUM,
        **together,
    )


def describe_images(dataset: Dataset, indices: Sequence[int]) -> str:
    """The ids and files of training images."""
    records = [dataset.records[index] for index in indices]
    return ", ".join(f"image id {record.image_id} ({record.file_name})" for record in records)


# ---------------------------------------------------------------- what is said


def announce(
    cfg: Config,
    logdir: Path,
    devices: Sequence[str],
    dataset: Dataset,
    val_sets: Sequence[Dataset],
    schedule: LrSchedule,
    job: Processes | None,
) -> None:
    """Says what is about to happen: folder, changed keys, device, data and schedule."""
    default = default_config()
    changed = "\n".join(f"  {key}={format_value(cfg[key])}" for key in KEYS if cfg[key] != default[key])
    logger.info("run folder: %s\nconfig, where it is not the default:\n%s", logdir, changed)
    if job is not None:
        logger.info("training in %d process(es) of a Horovod job; rank 0 is on the %s", job.size, devices[0])
    elif devices[0].startswith("CPU"):
        reason = "TRAIN.NUM_GPUS=0" if cfg.TRAIN.NUM_GPUS == 0 else "no GPU found"
        logger.info("%s: training on the %s, with the simple trainer", reason, devices[0])
    else:
        logger.info("training on %d GPU(s), with the replicated trainer: %s", len(devices), ", ".join(devices))
    logger.info("train: %s, %d images, %d classes", dataset.name, len(dataset.records), len(dataset.categories))
    for val_set in val_sets:
        logger.info("evaluate: %s, %d images", val_set.name, len(val_set.records))
    headers = ["from step", "to step", "images seen", "learning rate"]
    table = tabulate(schedule.table(), headers=headers, disable_numparse=True)
    logger.info("schedule for a global batch of %d:\n%s", schedule.global_batch, table)


def announce_end(logdir: Path, result: TrainResult) -> None:
    """Says where the weights are."""
    from FasterRCNN.engine.callbacks import BEST_NAME

    logger.info("finished at step %d\nlast checkpoint: %s", result.step, result.last_checkpoint)
    model = logdir
    if result.best:
        model, best = logdir / BEST_NAME, result.best
        logger.info("best checkpoint: %s (%s %.4f at step %d)", model, best.metric, best.value, best.step)
    logger.info("predict with: ./predict.py PHOTO --load %s", model)


def log_to_file(path: Path) -> None:
    """Adds what is logged to a file, with the time of each line."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)


# ---------------------------------------------------------------- evaluation during training


def make_evaluation(
    cfg: Config,
    val_sets: Sequence[Dataset],
    output_dir: Path,
    *,
    job: Processes | None,
    note: Callable[[str], object],
    **placement: Any,
) -> Callable[[dict[str, np.ndarray], int], Evaluation]:
    """What evaluates weights on every set with the predictor that users get; results are written to `output_dir`.

    Each process of a job predicts on its share of the images, the chief scores all. note: is told what goes on.
    placement: where the predictor runs.
    """
    from FasterRCNN.engine.callbacks import Evaluation

    def evaluate(weights: dict[str, np.ndarray], step: int) -> Evaluation:
        note("evaluating")
        evaluation = Evaluation(metrics={}, pictures={})
        with build_predictor(cfg, weights, **placement) as predictor:
            for prefix, dataset in zip(metric_prefixes(val_sets), val_sets):
                note("evaluating")
                metrics = evaluate_model(
                    predictor,
                    dataset,
                    output_dir / f"{prefix.replace('/', '.')}step-{step}.json",
                    metric=cfg.DATA.METRIC,
                    report_threshold=cfg.TEST.RESULT_SCORE_THRESH_VIS,
                    max_detections=cfg.TEST.RESULTS_PER_IM,
                    num_workers=cfg.DATA.NUM_WORKERS,
                    processes=job,
                    note=note,
                )
                if metrics is None:
                    continue
                note("drawing pictures of an evaluation")
                logger.info("%s at step %d\n%s", dataset.name, step, format_metrics(metrics))
                evaluation.metrics.update({prefix + name: value for name, value in metrics.scalars().items()})
                pictures = draw_pictures(predictor, dataset, cfg.TEST.RESULT_SCORE_THRESH_VIS)
                evaluation.pictures.update({f"{prefix}image/{name}": picture for name, picture in pictures.items()})
        return evaluation

    return evaluate


def evaluation_devices(gpus: Sequence[int], job: Processes | None) -> dict[str, Any]:
    """Where a predictor runs beside training: on all GPUs of the process, which in a job is one."""
    if job is not None and gpus:
        return {"visible_gpus": str(job.local_rank)}  # as HorovodTrainer's session
    return {"devices": [f"/gpu:{gpu}" for gpu in gpus]} if len(gpus) > 1 else {}


def metric_prefixes(val_sets: Sequence[Dataset]) -> list[str]:
    """What stands before the names of each set's numbers: nothing when there is one set."""
    names = unique_names([val_set.name for val_set in val_sets])
    return [""] * len(names) if len(names) <= 1 else [f"{name}/" for name in names]


def main_numbers(val_sets: Sequence[Dataset]) -> list[str]:
    """The numbers of the first set by which the best checkpoint is kept: the first of them that an evaluation gives."""
    return [
        f"{prefix}{kind}/{name}"
        for prefix in metric_prefixes(val_sets)[:1]
        for kind in ("segm", "bbox")
        for name in MAIN_NUMBER.values()
    ]


def draw_pictures(predictor: Predictor, dataset: Dataset, score_threshold: float) -> dict[str, np.ndarray]:
    """Truth beside prediction of the first few images, RGB, by image id."""
    pictures = draw_comparisons(predictor, dataset, NUM_PICTURES, score_threshold=score_threshold)
    return {str(image_id): picture[:, :, ::-1] for image_id, picture in pictures.items()}


# ---------------------------------------------------------------- the command


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, checked as far as it can be without files."""
    parser = argparse.ArgumentParser(
        description="Train a detector on COCO-format data; or predict with a trained one, or evaluate it.",
        epilog="./config.py lists the config keys. A run's folder holds its config, checkpoints and evaluations.",
    )
    parser.add_argument("--logdir", default=DEFAULT_LOGDIR, metavar="DIR", help="the run's folder (%(default)s)")
    parser.add_argument("--load", metavar="WEIGHTS", help="start from an .npz file, checkpoint or run folder")
    parser.add_argument("--keep-classes", action="store_true",
                        help="with --load: go on from what it knows of classes of the same name")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --logdir where it stopped")
    parser.add_argument("--overwrite", action="store_true", help="delete the run in --logdir first")
    parser.add_argument("--list-configs", action="store_true", help="do not train: print the models of configs/")
    parser.add_argument("--plot", nargs="+", metavar="RUN", help="do not train: draw the curves of run folders as PNG")
    parser.add_argument("--predict", nargs="+", metavar="PHOTO", help="do not train: predict on photos with --load")
    parser.add_argument("--evaluate", metavar="OUT.json", help="do not train: evaluate --load on DATA.VAL")
    add_predict_arguments(parser)
    parser.set_defaults(output_dir=None)  # --plot and --predict have each its own
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    if (args.predict or args.evaluate) and not args.load:
        parser.error("--predict and --evaluate need --load MODEL: a run folder, checkpoint or .npz file")
    if args.plot and (args.predict or args.evaluate or args.load or args.resume or args.overwrite):
        parser.error("--plot only draws: leave --predict, --evaluate, --load, --resume and --overwrite out")
    if (args.predict or args.evaluate) and (args.resume or args.overwrite):
        parser.error("--predict and --evaluate do not train: leave --resume and --overwrite out")
    if args.keep_classes and not args.load:
        parser.error("--keep-classes keeps classes of the model that --load names: give it")
    if args.resume and args.load:
        parser.error("--resume takes the weights of the run itself: leave --load out, or start a new run with it")
    return args


def main() -> int:
    """Trains, or predicts, or evaluates, or draws curves, or lists the models."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_arguments(sys.argv[1:])
    if args.list_configs:
        print(format_table(read_headers()))
        return 0
    if args.plot:
        print(*plot_runs(args.plot, args.output_dir), sep="\n")
        return 0
    if not args.predict and not args.evaluate:
        return train(args, sys.argv)
    return run_prediction(
        args.load,
        overrides=args.config,
        config_file=args.config_file,
        inputs=args.predict or (),
        evaluate=args.evaluate,
        options=picture_options(args),
        show=not args.no_show,
        **({"output_dir": args.output_dir} if args.output_dir else {}),
    )


if __name__ == "__main__":
    sys.exit(run_command(main))
