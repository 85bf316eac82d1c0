"""A detector as an ONNX file, for ONNX Runtime: the graph of one photo, converted by tf2onnx, over a batch of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from FasterRCNN.engine.export import describe_classes
from FasterRCNN.engine.onnx_operators import HANDLERS
from FasterRCNN.engine.serving_graph import ServingGraph
from FasterRCNN.structures import Categories

if TYPE_CHECKING:
    import onnx

OPSET = 18  # RoiAlign counts from the centres of pixels from 16 on
PACKAGES = ("onnx", "onnxruntime", "tf2onnx")


def check_packages() -> None:
    """ValueError, saying what to install, where a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"ONNX needs {', '.join(missing)}: {sys.executable} -m pip install --requirement requirements-export.txt"
        )


def write_onnx(plain: ServingGraph, file: str | Path, categories: Categories) -> None:
    """Writes the graph of `build_plain_graph`, of any batch size; its metadata tell the classes and the colours' order.

    Raises ValueError, saying what to install.
    """
    check_packages()
    import onnx
    import tf2onnx

    model, _ = tf2onnx.convert.from_graph_def(
        plain.graph.as_graph_def(),
        name="photo",
        input_names=[tensor.name for tensor in plain.inputs.values()],
        output_names=[tensor.name for tensor in plain.outputs.values()],
        opset=OPSET,
        custom_op_handlers=HANDLERS,
        tensors_to_rename={tensor.name: f"one/{name}" for name, tensor in (plain.inputs | plain.outputs).items()},
    )
    model = over_batch(model)
    classes = json.dumps(describe_classes(categories), ensure_ascii=False)
    onnx.helper.set_model_props(model, {"categories": classes, "colours": "RGB"})
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


def over_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model of B photos of one size, from that of one: "one/NAME" of 1×… becomes NAME of B×…

    Branches and loops over images, which batches have in TensorFlow, tf2onnx 1.17 converts to graphs with cycles.
    """
    from onnx import helper

    one = model.graph

    def described(value: onnx.ValueInfoProto, batch: list) -> onnx.ValueInfoProto:
        kind = value.type.tensor_type
        shape = [*batch, *(size.dim_value or None for size in kind.shape.dim[1:])]
        return helper.make_tensor_value_info(("" if batch else "photo/") + named(value), kind.elem_type, shape)

    def named(value: onnx.ValueInfoProto) -> str:
        return value.name.removeprefix("one/")

    first = helper.make_tensor("first_axis", 7, [1], [0])
    nodes = [
        *(helper.make_node("Unsqueeze", [f"photo/{named(x)}", "first_axis"], [x.name]) for x in one.input),
        *one.node,
        *(helper.make_node("Squeeze", [x.name, "first_axis"], [f"photo/{named(x)}"]) for x in one.output),
    ]
    body = helper.make_graph(
        nodes,
        "photo",
        [described(x, []) for x in one.input],
        [described(x, []) for x in one.output],
        [*one.initializer, first],
    )
    scan = helper.make_node(
        "Scan", list(map(named, one.input)), list(map(named, one.output)), body=body, num_scan_inputs=len(one.input)
    )
    inputs, outputs = ([described(x, ["B"]) for x in values] for values in (one.input, one.output))
    graph = helper.make_graph([scan], "detector", inputs, outputs)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


@contextmanager
def open_onnx(file: str | Path) -> Iterator[Callable[..., dict[str, np.ndarray]]]:
    """run(images=…) -> outputs by name, on the CPU by ONNX Runtime."""
    check_packages()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    yield lambda **inputs: dict(zip(names, session.run(names, inputs), strict=True))
