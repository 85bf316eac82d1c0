#!/usr/bin/env python3
"""Annotated images -> training batches; as a command, draws a data set, shows the network's input, counts classes.

B images of a step, H×W pixels, G ground-truth slots of an image, K classes.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from config import Config, add_config_arguments, default_config, finalize_configs, run_command

import cv2
import numpy as np
from tabulate import tabulate

from FasterRCNN.datasets.catalog import load_dataset, load_datasets
from FasterRCNN.engine.prefetch import DataError, StepsInOrder
from FasterRCNN.imaging.augment import crop_masks, flip_boxes, flip_masks, pack_mask, unpack_mask
from FasterRCNN.imaging.read import read_record_image
from FasterRCNN.imaging.resize import resize_image
from FasterRCNN.structures import Dataset, ImageRecord

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


def load_training_set(cfg: Config) -> Dataset:
    """DATA.TRAIN, joined."""
    return load_datasets(
        cfg.DATA.TRAIN,
        basedir=cfg.DATA.BASEDIR,
        absolute_coord=cfg.DATA.ABSOLUTE_COORD,
        with_masks=cfg.MODE_MASK,
    )


def make_train_batches(
    cfg: Config, dataset: Dataset, *, ims_per_gpu: int, seed: int, num_devices: int = 1
) -> TrainBatches:
    """The training batches of `dataset` as `cfg` wants them; see TrainBatches."""
    indices, is_portrait = _select_images(dataset, keep_empty=not cfg.DATA.FILTER_EMPTY_ANNOTATIONS)
    # Alone in its step an image fits any shape; together, orientations apart save padding.
    global_batch = ims_per_gpu * num_devices
    groups = [indices] if global_batch == 1 else [indices[is_portrait], indices[~is_portrait]]
    return TrainBatches(
        dataset=dataset,
        order=BatchOrder([group for group in groups if len(group)], batch_size=global_batch, seed=seed),
        num_devices=num_devices,
        short_edge_range=tuple(cfg.PREPROC.TRAIN_SHORT_EDGE_SIZE),
        max_size=cfg.PREPROC.MAX_SIZE,
        pad_multiple=FPN_PAD_MULTIPLE if cfg.MODE_FPN else 1,
        with_masks=cfg.MODE_MASK,
        seed=seed,
    )


def make_train_dataflow(
    cfg: Config, dataset: Dataset, *, ims_per_gpu: int, seed: int, num_devices: int = 1, first: int = 0, every: int = 1
) -> DataFlow:
    """The endless data flow of training: the device-steps first, first + every, …; `num_devices` of them make a step.

    Each datapoint is the list that TrainBatches makes of a device-step. Loader processes (DATA.NUM_WORKERS) start in
    `reset_state`. While iterated, raises DataError, naming image id and file, for an image that cannot be used.
    """
    from tensorpack.dataflow import DataFlow  # imports TensorFlow

    batches = make_train_batches(cfg, dataset, ims_per_gpu=ims_per_gpu, seed=seed, num_devices=num_devices)
    steps = StepsInOrder(lambda number: batches(first + number * every), num_workers=cfg.DATA.NUM_WORKERS)

    class TrainDataFlow(DataFlow):
        def reset_state(self) -> None:
            steps.start()

        def __iter__(self) -> StepsInOrder:
            return steps

    return TrainDataFlow()


def _select_images(dataset: Dataset, *, keep_empty: bool) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images to train on, and which of them are higher than wide."""
    records = dataset.records
    shapes = [(record.height > record.width, bool((~record.is_crowd).any())) for record in records]
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
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None


@dataclass(frozen=True)
class TrainBatches:
    """Makes the datapoint of any device-step, the list in the order of `train_inputs(with_masks)`.

    Device-step d is share d % num_devices of the batch of step d // num_devices: so images of a step are of like shape
    on all devices, and N devices with b images, or one that adds up N batches of b, train on what one with N·b does.

    image uint8 B×H×W×3 (BGR), padded with zeros to the largest of the step and a multiple of `pad_multiple`; image_size
    int32 B×2 (h, w before padding); gt_boxes float32 B×G×4; gt_labels int32 B×G (1..K, 0 an empty slot, -1 a crowd);
    gt_masks uint8 B×G×112×14, packed mask crops (FasterRCNN/imaging/augment.py), zeros for crowds; image_index int32 B,
    into dataset.records; seed int32, for random choices in the graph. G is a multiple of 8, at least 8.

    The short edge of a step's images is drawn from `short_edge_range` (both ends included), their longer side is at
    most `max_size`; each is mirrored half the time. All of it follows from (seed, step).
    """

    dataset: Dataset
    order: BatchOrder
    short_edge_range: tuple[int, int]
    max_size: int
    pad_multiple: int
    with_masks: bool
    seed: int
    num_devices: int = 1

    def __call__(self, device_step: int) -> list[np.ndarray]:
        """The datapoint of a device-step; raises DataError naming an image id and file that cannot be used."""
        step, device = divmod(device_step, self.num_devices)
        rng = np.random.default_rng([self.seed, 1, step])
        short_edge = int(rng.integers(*self.short_edge_range, endpoint=True))
        of_all = self.order[step]
        indices, mirrored = (values.reshape(self.num_devices, -1)[device]
                             for values in (of_all, rng.random(len(of_all)) < 0.5))
        examples = [
            self._example(self.dataset.records[index], short_edge, mirror)
            for index, mirror in zip(indices, mirrored, strict=True)
        ]
        masks = [_stack_slots([example.masks for example in examples])] if self.with_masks else []
        return [
            _pad_images([example.image for example in examples], self.pad_multiple),
            np.array([example.image.shape[:2] for example in examples], np.int32),
            _stack_slots([example.boxes for example in examples]),
            _stack_slots([example.labels for example in examples]),
            *masks,
            indices.astype(np.int32),
            np.int32(rng.integers(np.iinfo(np.int32).max)),
        ]

    def _example(self, record: ImageRecord, short_edge: int, mirror: bool) -> _Example:
        try:
            image = read_record_image(record)
            masks = self._masks(record) if self.with_masks else None
        except (OSError, ValueError) as error:
            raise DataError(f"{self.dataset.name}, image id {record.image_id!r}: {error}") from error
        boxes = record.boxes
        if mirror:
            image, boxes = cv2.flip(image, 1), flip_boxes(boxes, record.width)
            masks = None if masks is None else flip_masks(masks)
        image = resize_image(image, short_edge, self.max_size)
        height, width = image.shape[:2]
        factors = np.divide([width, height, width, height], [record.width, record.height] * 2)
        return _Example(
            image=image,
            boxes=(boxes * factors).astype(np.float32),
            labels=np.where(record.is_crowd, CROWD_LABEL, record.labels).astype(np.int32),
            masks=None if masks is None else pack_mask(masks),
        )

    @staticmethod
    def _masks(record: ImageRecord) -> np.ndarray:
        pairs = zip(record.segmentations, record.is_crowd, strict=True)
        return crop_masks([None if is_crowd else segmentation for segmentation, is_crowd in pairs], record.boxes)


def _pad_images(images: Sequence[np.ndarray], multiple: int) -> np.ndarray:
    height, width = (_round_up(max(image.shape[axis] for image in images), multiple) for axis in (0, 1))
    batch = np.zeros((len(images), height, width, 3), np.uint8)
    for padded, image in zip(batch, images, strict=True):
        padded[: image.shape[0], : image.shape[1]] = image
    return batch


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


def draw(args: argparse.Namespace) -> None:
    """data.py draw: writes a small COCO-format set of coloured shapes."""
    from FasterRCNN.datasets.shapes import draw_shapes_dataset

    folder = draw_shapes_dataset(
        args.output_dir, num_train=args.num_train, num_val=args.num_val, size=args.size, seed=args.seed
    )
    print(f"drew {args.num_train} training and {args.num_val} validation images under {folder}")


def show(args: argparse.Namespace) -> None:
    """data.py show: pictures of training batches, boxes and masks as they are fed to the network, padding in black."""
    cfg = _read_config(args)
    dataset = load_training_set(cfg)
    batches = make_train_batches(cfg, dataset, ims_per_gpu=cfg.TRAIN.IMS_PER_GPU, seed=cfg.TRAIN.SEED)
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    names = train_inputs(cfg.MODE_MASK)
    for step in range(args.num):
        batch = dict(zip(names, batches(step), strict=True))
        for slot, picture in enumerate(_draw_batch(batch, dataset)):
            path = folder / f"step{step}_{slot}.png"
            if not cv2.imwrite(str(path), picture):
                raise OSError(f"{path}: cannot be written")
            print(path)


def _draw_batch(batch: dict[str, np.ndarray], dataset: Dataset) -> Iterator[np.ndarray]:
    from FasterRCNN.imaging.postprocess import paste_masks_to_rle
    from FasterRCNN.imaging.visualize import draw_truth

    for slot, image in enumerate(batch["image"]):
        record = dataset.records[batch["image_index"][slot]]
        used = batch["gt_labels"][slot] != EMPTY_LABEL
        boxes = batch["gt_boxes"][slot][used]
        segmentations: list = [None] * len(boxes)
        if "gt_masks" in batch:
            masks = unpack_mask(batch["gt_masks"][slot][used]).astype(np.float32)
            segmentations = paste_masks_to_rle(masks, boxes, *image.shape[:2])
        is_crowd = batch["gt_labels"][slot][used] == CROWD_LABEL
        shown = replace(
            record,
            height=image.shape[0],
            width=image.shape[1],
            boxes=boxes,
            is_crowd=is_crowd,
            segmentations=segmentations,
        )
        yield draw_truth(image, shown, dataset.categories)


def stats(args: argparse.Namespace) -> None:
    """data.py stats: objects, crowd regions and images of each class, as a table."""
    cfg = _read_config(args)
    dataset = load_dataset(
        args.dataset, basedir=cfg.DATA.BASEDIR, absolute_coord=cfg.DATA.ABSOLUTE_COORD, with_masks=False
    )
    num_classes = len(dataset.categories)
    objects, crowds, images = np.zeros((3, num_classes + 1), np.int64)
    num_empty = 0
    for record in dataset.records:
        objects += np.bincount(record.labels[~record.is_crowd], minlength=num_classes + 1)
        crowds += np.bincount(record.labels[record.is_crowd], minlength=num_classes + 1)
        images[np.unique(record.labels)] += 1
        num_empty += record.is_crowd.all()
    rows = [
        (category_id, name, objects[label], crowds[label], images[label])
        for label, (category_id, name) in enumerate(dataset.categories.by_id.items(), start=1)
    ]
    rows.append(("", "all", objects.sum(), crowds.sum(), len(dataset)))
    print(f"{dataset.name}: {len(dataset)} images, {num_empty} of them without objects")
    print(tabulate(rows, headers=["id", "class", "objects", "crowd regions", "images"]))


def _read_config(args: argparse.Namespace) -> Config:
    cfg = default_config()
    cfg.update_given(args.config_file, args.config)
    cfg.DATA.TRAIN = (args.dataset,)
    finalize_configs(cfg, is_training=False)  # the checks of training ask for weights
    return cfg


def _parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("draw", help="draw a small COCO-format set of coloured shapes")
    command.add_argument("--output-dir", required=True, metavar="DIR")
    command.add_argument("--num-train", type=int, default=400, metavar="N", help="training images (%(default)s)")
    command.add_argument("--num-val", type=int, default=60, metavar="N", help="validation images (%(default)s)")
    command.add_argument("--size", type=int, default=256, metavar="PIXELS", help="side of an image (%(default)s)")
    command.add_argument("--seed", type=int, default=0, metavar="S", help="another seed, other images (%(default)s)")
    command.set_defaults(run=draw)

    command = commands.add_parser("show", help="draw training images with boxes and masks as the network sees them")
    command.add_argument("--output-dir", required=True, metavar="DIR")
    command.add_argument("--num", type=int, default=8, metavar="N", help="training steps to draw (%(default)s)")
    command.set_defaults(run=show)
    _add_dataset(command)

    command = commands.add_parser("stats", help="count objects by class")
    command.set_defaults(run=stats)
    _add_dataset(command)
    return parser.parse_args(argv)


def _add_dataset(command: argparse.ArgumentParser) -> None:
    command.add_argument("dataset", metavar="DATASET", help="as in DATA.TRAIN: coco_train2017, or FILE.json:IMAGE_DIR")
    add_config_arguments(command)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = _parse_arguments(argv)
    args.run(args)


if __name__ == "__main__":
    sys.exit(run_command(main))
