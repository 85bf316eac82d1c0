#!/usr/bin/env python3
"""Data sets as the config names them, and their batches; as a command, checks, shows, counts and draws data sets."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config, add_config_arguments, default_config, finalize_configs, run_command

import cv2
import numpy as np

from FasterRCNN.datasets.annotations import Annotations
from FasterRCNN.datasets.catalog import join_datasets, load_dataset, read_annotations
from FasterRCNN.imaging.mask_crops import unpack_mask
from FasterRCNN.imaging.transforms import parse_augmentations
from FasterRCNN.loading.bad_images import BadImages
from FasterRCNN.loading.batches import CROWD_LABEL, EMPTY_LABEL, BatchOrder, TrainBatches, train_inputs
from FasterRCNN.loading.prefetch import StepsInOrder
from FasterRCNN.structures import Categories, Dataset, ImageRecord

if TYPE_CHECKING:
    from tensorpack.dataflow import DataFlow

__all__ = ["annotations_of", "load_set", "load_training_set", "make_train_batches", "make_train_dataflow"]

logger = logging.getLogger(__name__)

FPN_PAD_MULTIPLE = 32


# ---------------------------------------------------------------- from the config


def annotations_of(cfg: Config, spec: str) -> Annotations:
    """The annotations of the set that `spec` names, unchecked, where `cfg` says they lie."""
    return read_annotations(
        spec, basedir=cfg.DATA.BASEDIR, absolute_coord=cfg.DATA.ABSOLUTE_COORD, catalog=cfg.DATA.CATALOG
    )


def load_set(cfg: Config, spec: str, **options: Any) -> Dataset:
    """The data set that `spec` names, where `cfg` says it lies; options: load_dataset's."""
    return load_dataset(
        spec,
        basedir=cfg.DATA.BASEDIR,
        absolute_coord=cfg.DATA.ABSOLUTE_COORD,
        catalog=cfg.DATA.CATALOG,
        stop_on_error=cfg.DATA.ON_ERROR == "stop",
        cache=cfg.DATA.CACHE,
        **options,
    )


def load_training_set(cfg: Config) -> Dataset:
    """The sets of DATA.TRAIN, joined, labelled as the first; ValueError when their classes differ."""
    datasets: list[Dataset] = []
    for spec in cfg.DATA.TRAIN:
        first = datasets[0].categories if datasets else None
        datasets.append(
            load_set(cfg, spec, with_masks=cfg.MODE_MASK, masks_required=cfg.MODE_MASK, categories=first)
        )
    return join_datasets(datasets)


def make_train_batches(
    cfg: Config,
    dataset: Dataset,
    *,
    ims_per_gpu: int,
    seed: int,
    num_devices: int = 1,
    max_bad: float | None = None,
) -> TrainBatches:
    """The training batches of `dataset` as `cfg` wants them; see TrainBatches.

    max_bad: the share of images that may turn out unusable, by default what DATA.MAX_BAD and DATA.ON_ERROR say.
    """
    if max_bad is None:
        max_bad = 0.0 if cfg.DATA.ON_ERROR == "stop" else cfg.DATA.MAX_BAD
    indices, is_portrait = _select_images(dataset, keep_empty=not cfg.DATA.FILTER_EMPTY_ANNOTATIONS)
    # Alone in its step an image fits any shape; together, orientations apart save padding.
    global_batch = ims_per_gpu * num_devices
    groups = [indices] if global_batch == 1 else [indices[is_portrait], indices[~is_portrait]]
    return TrainBatches(
        dataset=dataset,
        order=BatchOrder([group for group in groups if len(group)], batch_size=global_batch, seed=seed),
        num_devices=num_devices,
        augmentations=parse_augmentations(cfg.PREPROC.AUGMENT),
        short_edge_range=tuple(cfg.PREPROC.TRAIN_SHORT_EDGE_SIZE),
        max_size=cfg.PREPROC.MAX_SIZE,
        resize_method=cfg.PREPROC.RESIZE,
        size_rounding=cfg.PREPROC.SIZE_ROUNDING,
        pad_multiple=FPN_PAD_MULTIPLE if cfg.MODE_FPN else 1,
        canvas_step=canvas_step(cfg.PREPROC.MAX_SIZE) if cfg.TRAIN.XLA else 0,
        with_masks=cfg.MODE_MASK,
        seed=seed,
        bad_images=BadImages(
            len(dataset),
            num_used=len(indices),
            max_share=max_bad,
        ),
    )


def canvas_step(max_size: int) -> int:
    """What sides are padded to multiples of for XLA, so that each has at most nine values, pixels."""
    return max(1, max_size // 8 // FPN_PAD_MULTIPLE) * FPN_PAD_MULTIPLE


def make_train_dataflow(
    cfg: Config, dataset: Dataset, *, first: int = 0, every: int = 1, **options: Any
) -> DataFlow:
    """The endless data flow of training: the device-steps first, first + every, …; `num_devices` of them make a step.

    Each datapoint is the list that TrainBatches makes of a device-step; options: make_train_batches'. Loader processes
    (DATA.NUM_WORKERS) start in `reset_state`. While iterated, raises DataError, naming the last image id and file, when
    more images cannot be used than DATA.MAX_BAD allows.
    """
    from tensorpack.dataflow import DataFlow  # imports TensorFlow

    batches = make_train_batches(cfg, dataset, **options)
    steps = StepsInOrder(lambda number: batches(first + number * every), num_workers=cfg.DATA.NUM_WORKERS)

    class TrainDataFlow(DataFlow):
        bad_images = batches.bad_images

        def reset_state(self) -> None:
            steps.start()

        def __iter__(self) -> StepsInOrder:
            return steps

    return TrainDataFlow()


def _select_images(dataset: Dataset, *, keep_empty: bool) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to train on, and which of them are higher than wide."""
    records = dataset.records
    shapes = [
        (record.height > record.width, bool((~record.is_crowd & ~record.is_difficult).any())) for record in records
    ]
    is_portrait, has_objects = np.array(shapes, bool).reshape(-1, 2).T
    indices = np.arange(len(records)) if keep_empty else np.flatnonzero(has_objects)
    if len(indices) < len(records):
        logger.info("%s: left out %d images without objects", dataset.name, len(records) - len(indices))
    if len(indices) == 0:
        raise ValueError(f"{dataset.name}: none of its {len(records)} images has an object to train on")
    return indices, is_portrait[indices]


# ---------------------------------------------------------------- commands


def draw(args: argparse.Namespace) -> int:
    """data.py --draw: writes a small COCO-format set of coloured shapes."""
    from FasterRCNN.datasets.shapes import draw_shapes_dataset

    folder = draw_shapes_dataset(
        args.draw, num_train=args.num_train, num_val=args.num_val, size=args.size, seed=args.seed
    )
    print(f"drew {args.num_train} training and {args.num_val} validation images under {folder}")
    return 0


def check(args: argparse.Namespace) -> int:
    """data.py --check: what is wrong with data sets, as tables and as JSON; 1 where training would leave some out."""
    from eval import score_truth, write_json
    from FasterRCNN.datasets.check import SetToCheck, check_sets
    from FasterRCNN.datasets.check_report import format_report, report_to_json

    cfg = _read_config(args, args.check)
    named = [("", args.check)] if args.check else [("training", cfg.DATA.TRAIN), ("validation", cfg.DATA.VAL)]
    report = check_sets(
        [SetToCheck(spec, partial(annotations_of, cfg, spec), role) for role, specs in named for spec in specs],
        with_masks=cfg.MODE_MASK,
        num_workers=cfg.DATA.NUM_WORKERS,
        steps_in_order=StepsInOrder,
        score_truth=partial(score_truth, with_masks=cfg.MODE_MASK),
    )
    print(format_report(report, details_file=args.output), flush=True)  # first: the file may not be writable
    write_json(report_to_json(report), args.output)
    return report.exit_code


def show(args: argparse.Namespace) -> int:
    """data.py --show: pictures of training batches, boxes and masks as the network gets them, padding in black."""
    cfg = _read_config(args, [args.show])
    dataset = load_training_set(cfg)
    # Images that cannot be read are named; the others are still to be seen.
    batches = make_train_batches(
        cfg, dataset, ims_per_gpu=cfg.TRAIN.IMS_PER_GPU, seed=cfg.TRAIN.SEED, max_bad=1.0
    )
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    names = train_inputs(cfg.MODE_MASK)
    for step in range(args.num):
        batch = dict(zip(names, batches(step), strict=True))
        for slot, picture in enumerate(_draw_batch(batch, dataset.categories)):
            path = folder / f"step{step}_{slot}.png"
            if not cv2.imwrite(str(path), picture):
                raise OSError(f"{path}: cannot be written")
            print(path)
    return 0


def _draw_batch(batch: dict[str, np.ndarray], categories: Categories) -> Iterator[np.ndarray]:
    from FasterRCNN.imaging.postprocess import paste_masks_to_rle
    from FasterRCNN.imaging.visualize import draw_truth

    with_region = Categories((*categories.names, "region"), (*categories.ids, max(categories.ids, default=0) + 1))
    for slot, image in enumerate(batch["image"]):
        labels = batch["gt_labels"][slot]
        used = labels != EMPTY_LABEL
        boxes, labels = batch["gt_boxes"][slot][used], labels[used]
        segmentations: list = [None] * len(boxes)
        if "gt_masks" in batch:
            masks = unpack_mask(batch["gt_masks"][slot][used]).astype(np.float32)
            segmentations = paste_masks_to_rle(masks, boxes, *image.shape[:2])
        shown = ImageRecord(
            image_id=slot,
            file_name="",
            height=image.shape[0],
            width=image.shape[1],
            boxes=boxes,
            labels=np.where(labels == CROWD_LABEL, len(with_region), labels),
            is_crowd=np.zeros(len(boxes), bool),
            segmentations=segmentations,
        )
        yield draw_truth(np.rint(image).astype(np.uint8), shown, with_region)


def stats(args: argparse.Namespace) -> int:
    """data.py --stats: tables of classes, boxes and images, anchors that would fit, and with --output-dir a plot."""
    from FasterRCNN.datasets.anchor_fit import fit_of_anchors, format_anchor_fits, suggest_anchors
    from FasterRCNN.datasets.statistics import dataset_statistics, format_statistics, plot_statistics

    cfg = _read_config(args, [args.stats])
    dataset = load_set(cfg, args.stats, with_masks=False)
    found = dataset_statistics(
        dataset, short_edge=cfg.PREPROC.TEST_SHORT_EDGE_SIZE, max_size=cfg.PREPROC.MAX_SIZE
    )
    print(format_statistics(found))
    current, suggested = None, ()
    if len(found.boxes):
        sizes, ratios = cfg.RPN.ANCHOR_SIZES, cfg.RPN.ANCHOR_RATIOS
        strides = cfg.FPN.ANCHOR_STRIDES if cfg.MODE_FPN else [cfg.RPN.ANCHOR_STRIDE] * len(sizes)
        current = fit_of_anchors(found, sizes=sizes, ratios=ratios, strides=strides)
        suggested = suggest_anchors(found, ratios=ratios, strides=strides)
        print("\n" + format_anchor_fits(current, suggested))
    if args.output_dir:
        path = Path(args.output_dir) / f"{dataset.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        plot_statistics(found, path, current=current, suggested=suggested[0] if suggested else None)
        print(f"\nplots: {path}")
    return 0


def _read_config(args: argparse.Namespace, specs: Sequence[str]) -> Config:
    cfg = default_config()
    cfg.update_given(args.config_file, args.config)
    cfg.DATA.TRAIN = tuple(specs) or cfg.DATA.TRAIN
    finalize_configs(cfg, is_training=False)  # the checks of training ask for weights
    return cfg


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Look at data before training on them. SET is what DATA.TRAIN takes: coco_train2017, "
        "instances.json:IMAGE_DIR, voc:DIR:SPLIT, or a name in DATA.CATALOG.",
    )
    commands = parser.add_mutually_exclusive_group(required=True)
    commands.add_argument(
        "--check", nargs="*", metavar="SET",
        help="list what is wrong with data sets, by default the config's; the exit status is 1 on errors",
    )
    commands.add_argument("--show", metavar="SET", help="draw training images as the network sees them, augmented")
    commands.add_argument("--stats", metavar="SET", help="count and plot classes and box sizes, and suggest anchors")
    commands.add_argument("--draw", metavar="DIR", help="draw a small COCO-format set of coloured shapes")
    parser.add_argument("--output-dir", metavar="DIR", help="--show, --stats: where pictures are written")
    parser.add_argument(
        "--output", metavar="FILE.json", default="check.json", help="--check: all that was found (%(default)s)"
    )
    parser.add_argument("--num", type=int, default=8, metavar="N", help="--show: training steps to draw (%(default)s)")
    parser.add_argument("--num-train", type=int, default=400, metavar="N", help="--draw: training images (%(default)s)")
    parser.add_argument("--num-val", type=int, default=60, metavar="N", help="--draw: validation images (%(default)s)")
    parser.add_argument("--size", type=int, default=256, metavar="PIXELS", help="--draw: an image's side (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="--draw: of the random choices (%(default)s)")
    add_config_arguments(parser)
    args = parser.parse_args(argv)
    if args.show and not args.output_dir:
        parser.error("--show needs --output-dir DIR")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = _parse_arguments(argv)
    run = draw if args.draw else show if args.show else stats if args.stats else check
    return run(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
