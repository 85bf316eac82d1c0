"""What a detector costs: its parameters, and the arithmetic of one image, both read from shapes. Nothing is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow.compat.v1 as tf

IMAGE_SIZE = (800, 1333)
NUM_PROPOSALS = 1000
NUM_DETECTIONS = 100

# Operation -> the tensor whose cells each meet the whole kernel once.
_CELLS: dict[str, Callable[[tf.Operation], tf.Tensor]] = {
    "Conv2D": lambda op: op.outputs[0],
    "MatMul": lambda op: op.outputs[0],
    "BatchMatMulV2": lambda op: op.outputs[0],  # conv1x1_own_class
    "Conv2DBackpropInput": lambda op: op.inputs[2],  # a transposed convolution's own input
}


@dataclass(frozen=True)
class Cost:
    """parameters: numbers that a model learns, without statistics; flops: of one image, a multiply-add being two."""

    parameters: int
    flops: int


@dataclass(frozen=True)
class _Layer:
    """One use of a layer: its name, and what stands for its kernel in the graph."""

    name: str
    kernel: tf.Tensor


def measure_cost(
    detector: Any,
    *,
    image_size: tuple[int, int] = IMAGE_SIZE,
    num_proposals: int = NUM_PROPOSALS,
    num_detections: int = NUM_DETECTIONS,
) -> Cost:
    """The cost of predicting one image of `image_size` (h, w pixels; padded as the detector wants) with a Detector.

    Counts the multiply-adds of convolutions and matrix products: cells × elements of the kernel variable. So a grouped
    convolution counts as its arithmetic, in whatever form it is computed, and masks as if every class's were computed,
    as in the papers. Raises ValueError for a layer whose operations or shapes are not found.
    """
    shapes: dict[str, tf.TensorShape] = {}
    layers: list[_Layer] = []

    def record(getter: Callable, name: str, *args: Any, **kwargs: Any) -> tf.Tensor:
        shapes[name] = tf.TensorShape(kwargs["shape"])
        # In a variable's place: its start value would make most of the graph.
        value = tf.placeholder(tf.float32, shapes[name])
        if name.endswith("/W"):
            layers.append(_Layer(name.removesuffix("/W"), value))
        return value

    with tf.Graph().as_default(), tf.variable_scope(tf.get_variable_scope(), custom_getter=record):
        _build(detector, image_size, num_proposals, num_detections)
    parameters = sum(shape.num_elements() for name, shape in shapes.items() if not name.endswith("/EMA"))
    return Cost(parameters, 2 * sum(_cells(layer) * layer.kernel.shape.num_elements() for layer in layers))


def _build(detector: Any, image_size: tuple[int, int], num_proposals: int, num_detections: int) -> None:
    """What `Detector.detect` computes, with all shapes known: as many proposals and detections as are given."""
    height, width = (-(-side // detector.pad_multiple) * detector.pad_multiple for side in image_size)
    _, levels, extent = detector.features(tf.zeros([1, height, width, 3], tf.uint8), tf.constant([image_size]))
    detector.rpn_head(levels, extent)

    def pool(features: Callable, count: int) -> tf.Tensor:
        return features(levels, tf.zeros([count, 4]), tf.zeros([count], tf.int32), extent)

    for stage in detector.box_stages:
        stage.head(pool(detector.box_features, num_proposals))
    if detector.mask_head:
        features = pool(detector.mask_features or detector.box_features, num_detections)
        detector.mask_head(features, tf.ones([num_detections], tf.int64))


def _cells(layer: _Layer) -> int:
    """The cells that meet the layer's kernel: images or RoIs × rows × columns."""
    # Of a convolution that is split into several, each covers all cells.
    own = [_CELLS[op.type](op).shape[:-1].num_elements() for op in _products(layer.kernel)]
    if not own or None in own:
        reason = "of unknown shape" if own else "found"
        raise ValueError(f"layer {layer.name}: no convolution or matrix product {reason}; its cost is unknown")
    return max(own)


def _products(kernel: tf.Tensor) -> list[tf.Operation]:
    """The convolutions and matrix products that take the kernel, or what is made of it."""
    found, tensors = [], [kernel]
    while tensors:
        for op in tensors.pop().consumers():
            if op.type in _CELLS:
                found.append(op)
            else:
                tensors.extend(op.outputs)
    return found
