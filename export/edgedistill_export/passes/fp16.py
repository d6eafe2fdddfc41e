"""Convert a graph from float32 to float16 or bfloat16; inputs and outputs stay float32."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgedistill_export import onnx_files
from edgedistill_export.passes.opset import raise_opset

__all__ = ["bf16", "fp16"]

FLOAT = TensorProto.FLOAT

NAMES = {FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}

LIMITS = {TensorProto.FLOAT16: 65504.0, TensorProto.BFLOAT16: 255 * 2.0**120}
"""Largest number of each type."""

BF16_OPSET = 22
"""First operator set whose convolutions take bfloat16."""

ANGLES = {"Sin", "Cos"}
"""Operators kept in float32 with all their ancestors: a float16 of 999 rad has steps of 0.5."""

SUMS = {"ReduceMean", "ReduceSum"}

ROOTS = {"Add", "Clip", "Max", "Pow", "Reciprocal", "Sqrt"}
"""Operators kept in float32 from a mean of squares to its root, as 256 squared overflows
float16."""

DENOMINATORS = {("Div", 1), ("Pow", 0), ("Reciprocal", 0), ("Sqrt", 0)}
"""Inputs (operator, index) that must not be 0, which an epsilon below 6e-8 becomes in float16."""

FLOAT_INPUTS = {("Resize", 1), ("Resize", 2)}
"""Inputs (operator, index) that the standard fixes to float32."""


def fp16(model: ModelProto) -> ModelProto:
    """Convert a float32 model to float16, in place.

    Weights beyond the range of float16 are clipped to it (attention masks of -3e38).

    Raises:
        ValueError: If a node holds a subgraph.
    """
    _Converter(model, TensorProto.FLOAT16).run()
    return model


def bf16(model: ModelProto) -> ModelProto:
    """Convert a float32 model to bfloat16, in place, in the same way as `fp16`."""
    _Converter(model, TensorProto.BFLOAT16).run()
    raise_opset(model, BF16_OPSET)
    return model


class _Converter:
    """Converter that keeps every float tensor in its producer's type and casts for consumers."""

    def __init__(self, model: ModelProto, half: int) -> None:
        graph = self.graph = model.graph
        self.half = half
        self.floats = _float_tensors(model)
        self.weights = {w.name: w for w in graph.initializer if w.data_type == FLOAT}
        self.home = dict.fromkeys((value.name for value in graph.input), FLOAT)
        self.views: dict[tuple[str, int], str] = {}
        self.nodes: list[NodeProto] = []
        self.initializers = [w for w in graph.initializer if w.data_type != FLOAT]

    def run(self) -> None:
        kept = _ancestors(self.graph, ANGLES)
        if self.half == TensorProto.FLOAT16:
            kept |= _rooted_squares(self.graph) | _epsilons(self.graph, self.weights)
        results = _rename_outputs(self.graph, self.floats)
        for index, node in enumerate(self.graph.node):
            self._convert(node, FLOAT if index in kept else self.half)
        for inner, outer in results.items():
            self.nodes.append(
                helper.make_node("Cast", [inner], [outer], f"{outer}_cast", to=FLOAT)
            )
        del self.graph.node[:], self.graph.initializer[:], self.graph.value_info[:]
        self.graph.node.extend(self.nodes)
        self.graph.initializer.extend(self.initializers)

    def _convert(self, node: NodeProto, kind: int) -> None:
        for i, name in enumerate(node.input):
            if name in self.floats:
                fixed = (node.op_type, i) in FLOAT_INPUTS
                node.input[i] = self._view(name, FLOAT if fixed else kind)
        if kind != FLOAT:
            _convert_attributes(node, kind)
        self.home.update(dict.fromkeys(node.output, kind))
        self.nodes.append(node)

    def _view(self, name: str, kind: int) -> str:
        """Return the name under which a float tensor is available in type `kind`."""
        if self.home.get(name) == kind:
            return name
        if (name, kind) not in self.views:
            self.views[name, kind] = self._make_view(name, kind)
        return self.views[name, kind]

    def _make_view(self, name: str, kind: int) -> str:
        if name in self.weights:
            weight = self.weights[name]
            if kind != FLOAT:
                weight = _rounded(weight, kind)
                weight.name = f"{name}_{NAMES[kind]}"
            self.initializers.append(weight)
            return str(weight.name)
        view = f"{name}_{NAMES[kind]}"
        self.nodes.append(helper.make_node("Cast", [name], [view], f"{view}_cast", to=kind))
        return view


def _float_tensors(model: ModelProto) -> set[str]:
    values = onnx_files.infer_values(model)
    names = {value.name for value in values if value.type.tensor_type.elem_type == FLOAT}
    return names | {w.name for w in model.graph.initializer if w.data_type == FLOAT}


def _ancestors(graph: GraphProto, operators: set[str]) -> set[int]:
    """Return indices of the nodes with these operators and of all their ancestors."""
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output}
    found: set[int] = set()
    todo = [i for i, node in enumerate(graph.node) if node.op_type in operators]
    while todo:
        index = todo.pop()
        if index not in found:
            found.add(index)
            todo += [producer[name] for name in graph.node[index].input if name in producer]
    return found


def _readers(graph: GraphProto) -> dict[str, list[tuple[int, int]]]:
    """Readers of each tensor: (index of the node, number of the input)."""
    found: dict[str, list[tuple[int, int]]] = {}
    for index, node in enumerate(graph.node):
        for place, name in enumerate(node.input):
            found.setdefault(name, []).append((index, place))
    return found


def _rooted_squares(graph: GraphProto) -> set[int]:
    """Return indices of the nodes from a square through its mean to the mean's root."""
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output}
    readers = _readers(graph)
    found: set[int] = set()
    for index, node in enumerate(graph.node):
        square = producer.get(node.input[0]) if node.op_type in SUMS else None
        if square is None or not _is_square(graph.node[square]):
            continue
        after, todo = {square, index}, [index]
        while todo:
            for reader, _ in readers.get(graph.node[todo.pop()].output[0], ()):
                if graph.node[reader].op_type in ROOTS and reader not in after:
                    after.add(reader)
                    todo.append(reader)
        found |= after
    return found


def _is_square(node: NodeProto) -> bool:
    return bool(node.op_type == "Pow" or (node.op_type == "Mul" and len({*node.input}) == 1))


def _epsilons(graph: GraphProto, weights: Mapping[str, TensorProto]) -> set[int]:
    """Return indices of nodes that add what float16 takes for 0, or divide by such a sum."""
    readers = _readers(graph)
    found: set[int] = set()
    for index, node in enumerate(graph.node):
        if node.op_type not in ("Add", "Max"):
            continue
        if not any(name in weights and _vanishes(weights[name]) for name in node.input):
            continue
        divided = {
            reader
            for reader, place in readers.get(node.output[0], ())
            if (graph.node[reader].op_type, place) in DENOMINATORS
        }
        found |= {index, *divided} if divided else set()
    return found


def _vanishes(weight: TensorProto) -> bool:
    values = np.abs(numpy_helper.to_array(weight))
    least = float(np.finfo(np.float16).smallest_subnormal)
    return values.size == 1 and 0 < float(values.item()) < least


def _rename_outputs(graph: GraphProto, floats: set[str]) -> dict[str, str]:
    """Rename float outputs to free their names for casts; return inner name -> outer name."""
    names = {value.name: f"{value.name}_inner" for value in graph.output if value.name in floats}
    for node in graph.node:
        for tensors in (node.input, node.output):
            for i, name in enumerate(tensors):
                tensors[i] = names.get(name, name)
    floats.update(names.values())
    return {inner: outer for outer, inner in names.items()}


def _convert_attributes(node: NodeProto, kind: int) -> None:
    for attribute in node.attribute:
        if attribute.HasField("g") or attribute.graphs:
            raise ValueError(f"{node.name}: subgraphs ({node.op_type}) are not converted")
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
            attribute.i = kind
        if attribute.HasField("t") and attribute.t.data_type == FLOAT:
            attribute.t.CopyFrom(_rounded(attribute.t, kind))


def _rounded(weight: TensorProto, kind: int) -> TensorProto:
    array = np.clip(numpy_helper.to_array(weight), -LIMITS[kind], LIMITS[kind])
    return numpy_helper.from_array(
        array.astype(helper.tensor_dtype_to_np_dtype(kind)), weight.name
    )
