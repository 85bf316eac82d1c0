#!/usr/bin/env python3
"""Annotated images -> training batches; as a command, checks, shows, counts and draws data sets.

B images of a step, H×W pixels, G ground-truth slots of an image, K classes.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config, add_config_arguments, default_config, finalize_configs, run_command

import cv2
import numpy as np

from FasterRCNN.datasets.annotations import Annotations
from FasterRCNN.datasets.catalog import join_datasets, load_dataset, read_annotations
from FasterRCNN.datasets.photos import read_photo
from FasterRCNN.engine.bad_images import BadImages
from FasterRCNN.engine.prefetch import StepsInOrder
from FasterRCNN.imaging.mask_crops import crop_masks, pack_mask, unpack_mask
from FasterRCNN.imaging.resize import resize_image
from FasterRCNN.imaging.transforms import Augmentation, augment, parse_augmentations
from FasterRCNN.masks import Masks
from FasterRCNN.structures import BoxList, Categories, Dataset, ImageRecord, to_image_list

if TYPE_CHECKING:
    from tensorpack.dataflow import DataFlow

__all__ = [
    "TRAIN_INPUTS",
    "BatchOrder",
    "TrainBatches",
    "load_training_set",
    "make_train_batches",
    "make_train_dataflow",
    "train_inputs",
]

logger = logging.getLogger(__name__)

TRAIN_INPUTS = ("image", "image_size", "gt_boxes", "gt_labels", "gt_masks", "image_index", "seed")

FPN_PAD_MULTIPLE = 32
SLOT_MULTIPLE = 8  # few different shapes of ground truth, so that TensorFlow's allocator sees the same sizes again
EMPTY_LABEL, CROWD_LABEL = 0, -1


def train_inputs(with_masks: bool) -> tuple[str, ...]:
    """The names of a training datapoint's parts, in order; gt_masks only with masks."""
    return tuple(name for name in TRAIN_INPUTS if with_masks or name != "gt_masks")


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
        with_masks=cfg.MODE_MASK,
        seed=seed,
        bad_images=BadImages(
            len(dataset),
            num_used=len(indices),
            max_share=max_bad,
        ),
    )


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


# ---------------------------------------------------------------- order and batches


class BatchOrder:
    """Which images make up each step's batch, a function of (seed, step) alone.

    A pass over the data permutes each group, cuts it into batches, its last one filled up from the permutation's start,
    and shuffles the batches of all groups; the next pass is drawn anew.
    """

    def __init__(self, groups: Sequence[np.ndarray], *, batch_size: int, seed: int):
        """groups: arrays of image indices, none empty, that are not to be mixed in a batch."""
        self._groups = groups
        self._batch_size = batch_size
        self._seed = seed
        self._drawn_pass, self._batches = -1, np.zeros((0, batch_size), np.int64)
        self.batches_per_pass = sum(self._num_batches(group) for group in groups)

    def __getitem__(self, step: int) -> np.ndarray:
        """Image indices, int64 B."""
        number, position = divmod(step, self.batches_per_pass)
        if number != self._drawn_pass:
            self._drawn_pass, self._batches = number, self._draw_pass(number)
        return self._batches[position]

    def another(self, index: int, rng: np.random.Generator) -> int:
        """An image to take the place of one that cannot be read: mostly of the same group, which may be all bad."""
        own = next(group for group in self._groups if index in group)
        return int(rng.choice(own if rng.random() < 0.9 else np.concatenate(self._groups)))

    def _draw_pass(self, number: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, 0, number])
        batches = [
            np.resize(rng.permutation(group), (self._num_batches(group), self._batch_size)) for group in self._groups
        ]
        return rng.permutation(np.concatenate(batches))

    def _num_batches(self, group: np.ndarray) -> int:
        return -(-len(group) // self._batch_size)


@dataclass(frozen=True)
class _Example:
    index: int
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None


@dataclass(frozen=True)
class TrainBatches:
    """Makes the datapoint of any device-step, the list in the order of `train_inputs(with_masks)`.

    Device-step d is share d % num_devices of the batch of step d // num_devices: so images of a step are of like shape
    on all devices, and N devices with b images, or one that adds up N batches of b, train on what one with N·b does.

    image uint8 B×H×W×3 (BGR; float32 of `resize_method` "float"), padded with zeros to the largest of them and a
    multiple of `pad_multiple`; image_size int32 B×2 (h, w before padding); gt_boxes float32 B×G×4; gt_labels int32 B×G
    (1..K, 0 an empty slot, -1 a crowd or difficult); gt_masks uint8 B×G×112×14, packed mask crops
    (FasterRCNN/imaging/mask_crops.py), zeros for crowds; image_index int32 B, into dataset.records; seed int32, for
    random choices in the graph. G is a multiple of 8, at least 8.

    The short edge of a step's images is drawn from `short_edge_range` (both ends included), their longer side is at
    most `max_size`; each is augmented. All of it follows from (seed, step, place in the batch). An image that cannot be
    read is replaced by another that follows from the same.
    """

    dataset: Dataset
    order: BatchOrder
    augmentations: Sequence[Augmentation]
    short_edge_range: tuple[int, int]
    max_size: int
    resize_method: str
    size_rounding: str
    pad_multiple: int
    with_masks: bool
    seed: int
    bad_images: BadImages
    num_devices: int = 1

    def __call__(self, device_step: int) -> list[np.ndarray]:
        """The datapoint of a device-step; raises DataError when more images cannot be read than are allowed."""
        step, device = divmod(device_step, self.num_devices)
        rng = np.random.default_rng([self.seed, 1, step])
        short_edge = int(rng.integers(*self.short_edge_range, endpoint=True))
        of_all = self.order[step]
        places = np.arange(len(of_all)).reshape(self.num_devices, -1)[device]
        examples = [
            self._example(int(of_all[place]), short_edge, np.random.default_rng([self.seed, 2, step, place]))
            for place in places
        ]
        images = to_image_list([example.image for example in examples], self.pad_multiple)
        masks = [_stack_slots([example.masks for example in examples])] if self.with_masks else []
        return [
            images.tensors,
            images.image_sizes,
            _stack_slots([example.boxes for example in examples]),
            _stack_slots([example.labels for example in examples]),
            *masks,
            np.array([example.index for example in examples], np.int32),
            np.int32(rng.integers(np.iinfo(np.int32).max)),
        ]

    def _example(self, index: int, short_edge: int, rng: np.random.Generator) -> _Example:
        index, image, target = self._read(index, rng)
        image, target = augment(image, target, self.augmentations, rng)
        image = resize_image(
            image, short_edge, self.max_size, method=self.resize_method, rounding=self.size_rounding)
        target = target.resize(image.shape[1::-1])
        return _Example(
            index=index,
            image=image,
            boxes=target.boxes,
            labels=target.get_field("labels"),
            masks=pack_mask(crop_masks(target.get_field("masks"), target.boxes)) if self.with_masks else None,
        )

    def _read(self, index: int, rng: np.random.Generator) -> tuple[int, np.ndarray, BoxList]:
        """The image and truth of a record, or of another one where that cannot be read; and which it is."""
        while True:
            record = self.dataset.records[index]
            if index not in self.bad_images:
                try:
                    return index, read_photo(record, self.dataset), self._truth(record)
                except (OSError, ValueError) as error:
                    message = f"{self.dataset.name}, image id {record.image_id!r}: {error}"
                    self.bad_images.add(index, message)
            index = self.order.another(index, rng)

    def _truth(self, record: ImageRecord) -> BoxList:
        is_region = record.is_crowd | record.is_difficult
        size = record.width, record.height
        truth = BoxList(record.boxes, size)
        truth.add_field("labels", np.where(is_region, CROWD_LABEL, record.labels).astype(np.int32))
        truth.add_field("is_crowd", is_region)
        if self.with_masks:
            pairs = zip(record.segmentations, record.is_crowd, strict=True)
            truth.add_field("masks", Masks([None if is_crowd else mask for mask, is_crowd in pairs], size))
        return truth


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _stack_slots(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """B arrays of so many objects each as one, padded with zeros to a common number of slots."""
    slots = _round_up(max(1, *map(len, arrays)), SLOT_MULTIPLE)
    stacked = np.zeros((len(arrays), slots, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked


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
