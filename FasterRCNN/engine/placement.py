"""Where the operations of a graph would run on a machine with a GPU, told without one.

TensorFlow places an operation on a GPU if it has a kernel there for the operation's types, and if that holds for all
that must stand on the same device (variables with what reads and writes them; gradients with what they are of). A
kernel on a GPU may still take or leave some arguments in the host's memory: sizes and shapes, and int32 in general. A
tensor that is made in the GPU's memory and wanted in the host's is copied, and the host waits for the GPU until it has
come.

`tools/gpu_kernels.py` writes the table of kernels.
"""
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorflow.compat.v1 as tf
from tensorflow.python.grappler import tf_optimizer

Kernel = tuple[dict[str, list[str]], list[str]]  # types by attribute, arguments in the host's memory
KernelTable = dict[str, list[Kernel]]


@dataclass(frozen=True)
class Placement:
    """host_ops: the operations that would run on the host, and why; copies: the tensors it would wait for."""

    host_ops: dict[tf.Operation, str]
    copies: dict[tf.Tensor, list[tf.Operation]]


def read_kernels(path: Path) -> KernelTable:
    """The table that tools/gpu_kernels.py has written."""
    return json.loads(Path(path).read_text(encoding="utf-8"))["kernels"]


def runtime_graph(graph: tf.Graph, fetches: Sequence[tf.Operation]) -> tf.Graph:
    """What a session runs of `graph` to make `fetches`: no functions any more (branches, loops), constants computed.

    What depends on the device is not done: layouts of maps, fused operations.
    """
    with graph.as_default():
        meta_graph = tf.train.export_meta_graph(graph=graph)
    names = [fetch.name for fetch in fetches]
    meta_graph.collection_def.clear()
    meta_graph.collection_def["train_op"].node_list.value.extend(names)
    options = tf.ConfigProto()
    rewriter = options.graph_options.rewrite_options
    rewriter.min_graph_nodes = -1  # also of a small graph
    rewriter.meta_optimizer_iterations = 1
    rewriter.optimizers.extend(["function", "constfold", "arithmetic", "dependency"])
    definition = tf.graph_util.extract_sub_graph(tf_optimizer.OptimizeGraph(options, meta_graph), names)
    with tf.Graph().as_default() as flat:
        tf.import_graph_def(definition, name="")
    return flat


def place(graph: tf.Graph, kernels: KernelTable) -> Placement:
    """Where the operations of a graph without functions (`runtime_graph`) would run on a machine with a GPU.

    Operations that are on no device by name are taken to be wanted on the GPU.
    """
    matches = {op: _gpu_kernel(op, kernels) for op in graph.get_operations()}
    host_ops = {}
    for group in _colocated(graph):
        reasons = [reason for op in group if (reason := _why_not(op, matches[op]))]
        # What only waits, and makes nothing, is nobody's business.
        host_ops.update({op: _why_not(op, matches[op]) or f"stands with one that is on the host: {reasons[0]}"
                         for op in group if reasons and op.type != "NoOp"})
    copies: dict[tf.Tensor, list[tf.Operation]] = {}
    for op in graph.get_operations():
        for tensor, wanted_on_host in zip(op.inputs, _on_host(op, "input_arg", matches, host_ops)):
            if wanted_on_host and tensor.op.type != "Const":  # a constant is made where it is wanted
                made_on_host = _on_host(tensor.op, "output_arg", matches, host_ops)[tensor.value_index]
                if not made_on_host:
                    copies.setdefault(tensor, []).append(op)
    return Placement(host_ops, copies)


def _gpu_kernel(op: tf.Operation, kernels: KernelTable) -> Kernel | None:
    """The kernel that TensorFlow would take for the operation on a GPU."""
    return next((kernel for kernel in kernels.get(op.type, ()) if _is_for(kernel, op)), None)


def _is_for(kernel: Kernel, op: tf.Operation) -> bool:
    for name, allowed in kernel[0].items():
        value = op.get_attr(name)
        if not all(item.name in allowed for item in (value if isinstance(value, list) else [value])):
            return False
    return True


def _why_not(op: tf.Operation, kernel: Kernel | None) -> str:
    """Why the operation, for itself, cannot be on the GPU; "" if it can."""
    if "CPU" in op.device:
        return f"told to be on {op.device}"
    if kernel is None:
        types = {tensor.dtype.name for tensor in (*op.inputs, *op.outputs)}
        return f"no kernel of {op.type} for {', '.join(sorted(types)) or 'it'}"
    return ""


def _colocated(graph: tf.Graph) -> Iterable[list[tf.Operation]]:
    """The operations of a graph in groups that must stand on one device."""
    group_of = {op: op for op in graph.get_operations()}

    def head(op):
        while group_of[op] is not op:
            group_of[op] = op = group_of[group_of[op]]
        return op

    for op in graph.get_operations():
        together = [graph.get_operation_by_name(name.decode().removeprefix("loc:@")) for name in op.colocation_groups()]
        together += [tensor.op for tensor in op.inputs if tensor.dtype == tf.resource]
        for other in together:
            group_of[head(op)] = head(other)
    groups: dict[tf.Operation, list[tf.Operation]] = {}
    for op in graph.get_operations():
        groups.setdefault(head(op), []).append(op)
    return groups.values()


def _on_host(op: tf.Operation, side: str, matches: dict, host_ops: dict) -> list[bool]:
    """Whether each input (side: input_arg) or output (output_arg) of an operation is in the host's memory."""
    values = op.inputs if side == "input_arg" else op.outputs
    if op in host_ops or op.type == "Placeholder":  # what is fed comes from the host
        return [True] * len(values)
    on_host = []
    for argument in getattr(op.op_def, side):
        if argument.type_list_attr:
            count = len(op.get_attr(argument.type_list_attr))
        else:
            count = op.get_attr(argument.number_attr) if argument.number_attr else 1
        on_host += [argument.name in matches[op][1]] * count
    return on_host
