"""Photos to detections: the one way from an image file's pixels to boxes and masks in that photo's own pixels.

Evaluation, the callback in training and the commands all predict through this class, so that a score is what users get.
B images of a batch, H×W its padded size, D detections, M mask side.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import tensorflow.compat.v1 as tf
from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

from FasterRCNN.engine.weights import select_for_prediction
from FasterRCNN.imaging.postprocess import paste_masks_to_rle
from FasterRCNN.imaging.resize import image_dtype, resize_image
from FasterRCNN.masks import Masks
from FasterRCNN.ops.amx import amx_layers
from FasterRCNN.ops.machine import has_gpu
from FasterRCNN.structures import BoxList, Categories, ImageList, to_image_list

POSTPROCESS_THREADS = 4
# Images of like shape are sought among so many batches, or fewer when they hold more pixels than this.
GROUPING_WINDOW, WINDOW_PIXELS = 8, 200_000_000
# A stride of 16 and the pooling behind it leave nothing of a narrower strip (a panorama, resized).
MIN_SIDE = 32

T, R = TypeVar("T"), TypeVar("R")


class Network:
    """A detector with its weights as constants, in a graph and session of its own.

    run(image, image_size) -> the detector's `outputs`, names, as a list.
    """

    def __init__(
        self,
        detector: Any,
        weights: Mapping[str, np.ndarray],
        *,
        outputs: Sequence[str],
        visible_gpus: str = "",
        **options: Any,
    ):
        """visible_gpus: as session_config's; options: as build_constant_graph's."""
        graph, inputs, found = build_constant_graph(detector, weights, for_this_machine=True, **options)
        self.session = tf.Session(graph=graph, config=session_config(visible_gpus))
        self.run = self.session.make_callable([found[name] for name in outputs], feed_list=inputs)


class Predictor:
    """A detector at work, on one device or on several at once, each of which has a Network of its own.

    A stream keeps each GPU busy with a batch, and processors with several.

    Attributes: categories, ims_per_batch, with_masks. Free it with `close` or as a context manager.
    """

    def __init__(
        self,
        detector: Any,
        weights: Mapping[str, np.ndarray],
        *,
        categories: Categories,
        short_edge: int,
        max_size: int,
        pad_multiple: int,
        ims_per_batch: int,
        batches_at_once: int = 2,
        with_masks: bool,
        mask_threshold: float = 0.5,
        paste: str = "exact",
        inclusive_boxes: bool = False,
        resize_method: str = "opencv",
        size_rounding: str = "nearest",
        config: Mapping | None = None,
        source: str = "the weights",
        devices: Sequence[str | None] = (None,),
        visible_gpus: str = "",
    ):
        """detector: has detect(image, image_size) -> dict of tensors. weights: variable name to array.

        short_edge, max_size, pad_multiple: pixels. batches_at_once: on processors, where convolutions of one batch go
        on while suppression and pooling of another leave cores idle. paste: masks into the boxes as they are ("exact"),
        into boxes of whole pixels ("rounded"), or "padded" as imaging/postprocess.py says. inclusive_boxes: boxes scale
        between photo and network by their last pixel rather than by its end. resize_method, size_rounding: see
        `resize_image`. config, source: the model's config and the name of the weights' file, for messages only.
        devices: "/gpu:0", … that share the batches; None is TensorFlow's choice. visible_gpus: as session_config's.
        Raises ValueError listing the variables that the weights lack or have in another shape.
        """
        self.categories = categories
        self.ims_per_batch = ims_per_batch
        self.with_masks = with_masks
        self._short_edge, self._max_size, self._pad_multiple = short_edge, max_size, pad_multiple
        self._mask_threshold, self._paste, self._inclusive_boxes = mask_threshold, paste, inclusive_boxes
        self._resize = partial(resize_image, method=resize_method, rounding=size_rounding)

        self._outputs = ("boxes", "scores", "labels", "num_detections") + ("masks",) * with_masks
        self._networks = [
            self._make_network(
                detector,
                weights,
                outputs=self._outputs,
                batch_size=1 if ims_per_batch == 1 else None,
                image_dtype=image_dtype(resize_method),
                config=config,
                source=source,
                device=device,
                visible_gpus=visible_gpus,
            )
            for device in devices
        ]
        self._free: SimpleQueue[Network] = SimpleQueue()
        self._at_once = 1 if has_gpu() else batches_at_once
        for network in self._networks * self._at_once:
            self._free.put(network)

    def _make_network(self, detector: Any, weights: Mapping[str, np.ndarray], **options: Any) -> Network:
        return Network(detector, weights, **options)

    @contextmanager
    def _free_network(self) -> Iterator[Network]:
        """A network that no more threads use within than are to do at once."""
        network = self._free.get()
        try:
            yield network
        finally:
            self._free.put(network)

    def predict(self, images: Iterable[np.ndarray]) -> list[BoxList]:
        """The detections of each image, uint8 H×W×3 BGR of any size, in its own pixels.

        Boxes float32 D×4 with the fields "scores" float32 D, "labels" int32 D (1..K) and, of a model with masks,
        "masks": Masks of RLEs of the image's full size.
        """
        return list(self.predict_stream(images))

    def predict_stream(self, images: Iterable[np.ndarray]) -> Iterator[BoxList]:
        """As `predict`, one by one in the order of `images`, which are taken a few batches ahead.

        Resizing and the pasting of masks go on in threads while the networks run.
        """
        count = len(self._networks) * self._at_once
        batches = map_ahead(self.prepare, self.batches(images), threads=count, ahead=count)
        ran = map_ahead(self.run_batch, batches, threads=count, ahead=count)
        results = map_ahead(self.finish, ran, threads=POSTPROCESS_THREADS)
        return _in_order(pair for finished in results for pair in finished)

    def network_only(self, image: np.ndarray, image_size: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the graph alone: B×H×W×3 as `prepare` gives, int32 B×2 (h, w before padding) -> the detector's outputs.

        boxes B×D×4 (pixels of the given image), scores, labels B×D, num_detections B, masks B×D×M×M.
        """
        with self._free_network() as network:
            return dict(zip(self._outputs, network.run(image, image_size)))

    def close(self) -> None:
        """Frees the sessions; the predictor cannot be used any more."""
        for network in self._networks:
            network.session.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def batches(self, images: Iterable[np.ndarray]) -> Iterator[list[tuple[int, np.ndarray]]]:
        """Batches of (number, image), of like shape where a window of some batches has such."""
        most = 1 if self.ims_per_batch == 1 else GROUPING_WINDOW * self.ims_per_batch
        window, pixels = [], 0
        for number, image in enumerate(images):
            _check_image(number, image)
            window.append((number, image))
            pixels += image.shape[0] * image.shape[1]
            whole_batches = len(window) % self.ims_per_batch == 0
            if whole_batches and (len(window) == most or pixels >= WINDOW_PIXELS):
                yield from self._of_like_shape(window)
                window, pixels = [], 0
        yield from self._of_like_shape(window)

    def _of_like_shape(self, window: list[tuple[int, np.ndarray]]) -> Iterator[list[tuple[int, np.ndarray]]]:
        # All have about the same shorter side after resizing: the aspect ratio is the shape.
        window.sort(key=lambda pair: pair[1].shape[1] / pair[1].shape[0])
        for start in range(0, len(window), self.ims_per_batch):
            yield window[start : start + self.ims_per_batch]

    def prepare(self, numbered: list[tuple[int, np.ndarray]]) -> Batch:
        """A batch of numbered images, resized and padded."""
        resized = [self._resize(image, self._short_edge, self._max_size) for _, image in numbered]
        padded = to_image_list(resized, self._pad_multiple, min_side=MIN_SIDE)
        numbers, photos = zip(*numbered)
        return Batch(numbers, [photo.shape[1::-1] for photo in photos], padded)

    def run_batch(self, batch: Batch) -> tuple[Batch, dict[str, np.ndarray]]:
        """A batch, and what `network_only` gives of it."""
        return batch, self.network_only(batch.images.tensors, batch.images.image_sizes)

    def finish(self, ran: tuple[Batch, dict[str, np.ndarray]]) -> list[tuple[int, BoxList]]:
        """The detections of a batch that was run, by their images' numbers."""
        batch, outputs = ran
        finished = []
        for i, number in enumerate(batch.numbers):
            of_image = {name: output[i] for name, output in outputs.items()}
            resized = batch.images.image_sizes[i, ::-1]
            finished.append((number, self._to_photo(of_image, resized, batch.photo_sizes[i])))
        return finished

    def _to_photo(self, outputs: dict[str, np.ndarray], resized: Sequence[int], photo: Sequence[int]) -> BoxList:
        """The detections of an image of size `resized`, taken to its photo's pixels; both sizes (w, h)."""
        count = outputs["num_detections"]
        last_pixel = np.array([0, 0, 1, 1], np.float32) * self._inclusive_boxes
        scaled = BoxList(outputs["boxes"][:count] - last_pixel, resized).resize(photo).boxes
        # None is removed: the other outputs are in step with the boxes.
        detections = BoxList(scaled + last_pixel, photo).clip_to_image(remove_empty=False)
        detections.add_field("scores", outputs["scores"][:count])
        detections.add_field("labels", outputs["labels"][:count])
        if self.with_masks:
            padded = self._paste == "padded"
            frames = scaled if padded else np.rint(detections.boxes) if self._paste == "rounded" else detections.boxes
            rles = paste_masks_to_rle(
                outputs["masks"][:count], frames, *photo[::-1], threshold=self._mask_threshold, padded=padded)
            detections.add_field("masks", Masks(rles, photo))
        return detections


@dataclass
class Batch:
    """numbers: the images' places in the stream; photo_sizes: (w, h) of each; images: as the graph takes them."""

    numbers: Sequence[int]
    photo_sizes: list[tuple[int, int]]
    images: ImageList


def build_constant_graph(
    detector: Any,
    weights: Mapping[str, np.ndarray],
    *,
    batch_size: int | None,
    image_dtype: type[np.generic] = np.uint8,
    config: Mapping | None = None,
    source: str = "the weights",
    device: str | None = None,
    for_this_machine: bool = False,
) -> tuple[tf.Graph, list[tf.Tensor], dict[str, tf.Tensor]]:
    """The detector's inference graph without variables: (graph, [image, image_size], outputs by name).

    Each variable becomes a constant as it is made, so that TensorFlow computes once whatever follows from weights
    alone (normalisation folded into kernels) and keeps kernels in the layout its convolutions want. device: where it
    runs, "/gpu:1"; None is TensorFlow's choice. for_this_machine: what is fast here alone may be used (`amx_layers`);
    not for export.
    Raises ValueError when weights and variables do not fit.
    """
    constants: dict[str, tf.Tensor] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def constant_for_variable(getter: Callable, name: str, *args: Any, **kwargs: Any) -> Any:
        if name in constants:
            return constants[name]
        if name not in shapes:
            shapes[name] = tuple(tf.TensorShape(kwargs["shape"]).as_list())
        if name not in weights or weights[name].shape != shapes[name]:
            # Go on with a variable, so that select_for_prediction can name all that do not fit.
            return getter(name, *args, **kwargs)
        # Outside any branch of a tf.cond, for the next layer that shares the variable.
        with tf.init_scope():
            constants[name] = tf.constant(weights[name], kwargs.get("dtype", tf.float32), name=name)
        return constants[name]

    graph = tf.Graph()
    with graph.as_default(), tf.device(device):
        image = tf.placeholder(image_dtype, [batch_size, None, None, 3], "image")
        image_size = tf.placeholder(tf.int32, [batch_size, 2], "image_size")
        scope = tf.variable_scope(tf.get_variable_scope(), custom_getter=constant_for_variable)
        with scope, amx_layers(for_this_machine):
            outputs = detector.detect(image, image_size)
        outputs = {name: tf.identity(output, f"outputs/{name}") for name, output in outputs.items()}
    select_for_prediction(weights, shapes, config=config, source=source)
    return graph, [image, image_size], outputs


def session_config(visible_gpus: str = "") -> tf.ConfigProto:
    """How an inference graph is run: memory of a GPU is taken as needed, beside a training's own.

    visible_gpus: their numbers, "2,3"; "": all. TensorFlow allows one choice for all sessions of a process.
    """
    config = tf.ConfigProto(allow_soft_placement=True)
    config.gpu_options.visible_device_list = visible_gpus
    config.gpu_options.allow_growth = True
    # It looks for tensors to recompute or swap, which inference has not, and complains about costs it cannot estimate.
    config.graph_options.rewrite_options.memory_optimization = RewriterConfig.NO_MEM_OPT
    return config


def map_ahead(function: Callable[[T], R], items: Iterable[T], *, threads: int, ahead: int | None = None) -> Iterator[R]:
    """function(item) for each item, in order, computed in threads while the consumer works on earlier ones.

    At most `ahead` (by default twice `threads`) results wait. Items are taken in the consumer's thread.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > (ahead or 2 * threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _in_order(numbered: Iterable[tuple[int, T]]) -> Iterator[T]:
    """The items by their numbers 0, 1, 2, ..., each as soon as its turn comes."""
    early: dict[int, T] = {}
    turn = 0
    for number, item in numbered:
        early[number] = item
        while turn in early:
            yield early.pop(turn)
            turn += 1


def _check_image(number: int, image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        given = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image number {number} is {given}: uint8 H×W×3 (BGR, as cv2.imread gives it) is wanted")
    if 0 in image.shape:
        raise ValueError(f"image number {number} is empty: its shape is {image.shape}")
