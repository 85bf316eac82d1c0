"""Records -> the training batches: which images make up a step, and what the graph is given of them.

B images of a step, H×W pixels, G ground-truth slots of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from FasterRCNN.datasets.photos import read_photo
from FasterRCNN.imaging.mask_crops import crop_masks, pack_mask
from FasterRCNN.imaging.resize import resize_image
from FasterRCNN.imaging.transforms import Augmentation, augment
from FasterRCNN.loading.bad_images import BadImages
from FasterRCNN.masks import Masks
from FasterRCNN.structures import BoxList, Dataset, ImageList, ImageRecord, to_image_list

__all__ = ["CROWD_LABEL", "EMPTY_LABEL", "TRAIN_INPUTS", "BatchOrder", "TrainBatches", "train_inputs"]

TRAIN_INPUTS = ("image", "image_size", "gt_boxes", "gt_labels", "gt_masks", "image_index", "seed")

SLOT_MULTIPLE = 8  # few different shapes of ground truth, so that TensorFlow's allocator sees the same sizes again
EMPTY_LABEL, CROWD_LABEL = 0, -1


def train_inputs(with_masks: bool) -> tuple[str, ...]:
    """The names of a training datapoint's parts, in order; gt_masks only with masks."""
    return tuple(name for name in TRAIN_INPUTS if with_masks or name != "gt_masks")


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
    random choices in the graph. G is a multiple of 8, at least 8. canvas_step above 0: sides below `max_size` are
    padded to multiples of that, so that few sizes occur.

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
    canvas_step: int
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
        images = self._on_one_canvas([example.image for example in examples])
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

    def _on_one_canvas(self, images: list[np.ndarray]) -> ImageList:
        least = 1
        if self.canvas_step:
            largest = np.max([image.shape[:2] for image in images], axis=0)
            least = np.minimum(-(-largest // self.canvas_step) * self.canvas_step, self.max_size)
        return to_image_list(images, self.pad_multiple, min_side=least)

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


def _stack_slots(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """B arrays of so many objects each as one, padded with zeros to a common number of slots."""
    slots = -(-max(1, *map(len, arrays)) // SLOT_MULTIPLE) * SLOT_MULTIPLE
    stacked = np.zeros((len(arrays), slots, *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return stacked
