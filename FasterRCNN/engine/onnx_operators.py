"""Operators of TensorFlow as operators of ONNX, where tf2onnx 1.17 has none or a wrong one.

Each function replaces a node of tf2onnx's graph `ctx`.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def crop_by_roi_align(ctx: Any, node: Any, name: str, _: list) -> None:
    """CropAndResize, as `crop_bilinear` uses it, to RoiAlign with one sample a bin: tf2onnx's loop samples elsewhere.

    The map comes with its edge repeated. RoiAlign repeats it by itself, and gives zeros beyond: so it takes the map
    without, and the same samples follow.
    """
    from tf2onnx.graph_builder import GraphBuilder
    from tf2onnx.utils import make_name

    maps, boxes, image_index, _ = node.input
    side = int(node.inputs[3].get_tensor_value()[0])
    kept = _taken_out(ctx, node)

    def make(operator: str, inputs: list, **attributes: Any) -> str:
        return ctx.make_node(operator, inputs, attr=attributes, name=make_name(operator)).output[0]

    def constant(value: Any, dtype: type) -> str:
        return ctx.make_const(make_name("constant"), np.array(value, dtype)).output[0]

    # y1, x1, y2, x2 are the first and last sample as parts of the map's last cell; a bin reaches half a bin beyond.
    cells = make("Cast", [make("Gather", [make("Shape", [maps]), constant([1, 2, 1, 2], np.int64)])], to=1)
    samples = make("Mul", [boxes, make("Sub", [cells, constant(1, np.float32)])])
    half = 0.5 / (side - 1)
    near, far = 1 + half, -half
    corners = [[0, near, 0, far], [near, 0, far, 0], [0, far, 0, near], [far, 0, near, 0]]
    # Half a cell to the corner of the first, less the repeated cell.
    rois = make("Add", [make("MatMul", [samples, constant(corners, np.float32)]), constant(-0.5, np.float32)])
    inner = GraphBuilder(ctx).make_slice({"data": maps, "starts": [1, 1], "ends": [-1, -1], "axes": [1, 2]})
    pooled = make(
        "RoiAlign",
        [make("Transpose", [inner], perm=[0, 3, 1, 2]), rois, make("Cast", [image_index], to=7)],
        coordinate_transformation_mode="half_pixel",
        mode="avg",
        output_height=side,
        output_width=side,
        sampling_ratio=1,
        spatial_scale=1.0,
    )
    ctx.make_node("Transpose", [pooled], attr={"perm": [0, 2, 3, 1]}, **kept)


def select_by_where(ctx: Any, node: Any, name: str, _: list) -> None:
    """Select to Where: tf2onnx multiplies by 0 and 1, and −∞ · 0 is no number."""
    inputs = list(node.input)
    ctx.make_node("Where", inputs, **_taken_out(ctx, node))


def floor_div(ctx: Any, node: Any, name: str, _: list) -> None:
    """FloorDiv of whole numbers to (a − a mod b) / b: ONNX's Div cuts off towards zero, so that −(−a // b) is wrong."""
    a, b = node.input
    kept = _taken_out(ctx, node)
    rest = ctx.make_node("Mod", [a, b]).output[0]
    ctx.make_node("Div", [ctx.make_node("Sub", [a, rest]).output[0], b], **kept)


def _taken_out(ctx: Any, node: Any) -> dict[str, Any]:
    """Removes a node; what `make_node` wants for the one that takes its place."""
    (result,) = node.output
    shape, dtype = ctx.get_shape(result), ctx.get_dtype(result)
    ctx.remove_node(node.name)
    return {"name": node.name, "outputs": [result], "shapes": [shape], "dtypes": [dtype]}


HANDLERS = {
    "CropAndResize": (crop_by_roi_align, []),
    "FloorDiv": (floor_div, []),
    "Select": (select_by_where, []),
}
