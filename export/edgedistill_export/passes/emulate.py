"""Emulation of float16, bfloat16 and float8 in float32, with every rounding written out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgedistill_export import onnx_files

__all__ = ["emulate"]

FLOAT, E4M3 = TensorProto.FLOAT, TensorProto.FLOAT8E4M3FN

HALVES = {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def emulate(model: ModelProto) -> ModelProto:
    """Rewrite a graph, in place, so that a CPU computes what an accelerator does.

    ONNX Runtime's CPU kernels lack bfloat16, mistake float8 for int8, and keep float16 in float32
    between operators, so that nothing overflows. Here a 16-bit tensor becomes a float32 one that
    two casts round, a QuantizeLinear to float8 (E4M3) a division and a cast, a DequantizeLinear a
    cast and a multiplication. Stored weights keep their types. The order in which an accelerator
    sums inside an operator is not emulated.
    """
    _Emulator(model).run()
    return model


class _Emulator:
    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.weights = {weight.name: weight for weight in self.graph.initializer}
        self.kinds = {
            value.name: value.type.tensor_type.elem_type
            for value in onnx_files.infer_values(model)
        }
        self.kinds |= {name: weight.data_type for name, weight in self.weights.items()}

    def run(self) -> None:
        # Cast 16-bit weights first, so that readers of a weight's name get a float32.
        nodes = list(self._load_weights())
        for node in self.graph.node:
            for part in self._spelled(node):
                nodes.append(part)
                nodes += self._rounded(part)
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(nodes)

    def _load_weights(self) -> Iterator[NodeProto]:
        """Yield casts of the weights stored in 16 bits, which take over their names."""
        for name, weight in self.weights.items():
            if weight.data_type in HALVES:
                weight.name = f"{name}_stored"
                yield _cast(weight.name, name, FLOAT)

    def _spelled(self, node: NodeProto) -> Iterator[NodeProto]:
        """Yield the nodes that compute a node in float32."""
        ends = (*node.input[:1], *node.output[:1])
        if node.op_type in _QDQ and E4M3 in map(self.kinds.get, ends):
            yield from _QDQ[node.op_type](self, node)
            return
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in HALVES:
                attribute.i = FLOAT
            if attribute.HasField("t") and attribute.t.data_type in HALVES:
                array = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(array))
        yield node

    def _rounded(self, node: NodeProto) -> Iterator[NodeProto]:
        """Yield casts that round a node's results where they had 16 bits."""
        for i, name in enumerate(node.output):
            if (kind := self.kinds.get(name, FLOAT)) in HALVES:
                node.output[i] = f"{name}_exact"
                yield _cast(f"{name}_exact", f"{name}_rounded", kind)
                yield _cast(f"{name}_rounded", name, FLOAT)

    def _quantize(self, node: NodeProto) -> Iterator[NodeProto]:
        value, scale = node.input[:2]
        result = node.output[0]
        ratio = f"{result}_ratio"
        yield helper.make_node("Div", [value, scale], [ratio], ratio)
        yield _cast(ratio, result, E4M3)

    def _dequantize(self, node: NodeProto) -> Iterator[NodeProto]:
        value, scale = node.input[:2]
        result = node.output[0]
        ratio = f"{result}_ratio"
        yield _cast(value, ratio, FLOAT)
        axes = self._other_axes(node)
        if axes:
            spread, name = f"{result}_spread", f"{result}_axes"
            self.graph.initializer.append(numpy_helper.from_array(np.array(axes), name))
            yield helper.make_node("Unsqueeze", [scale, name], [spread], spread)
            scale = spread
        yield helper.make_node("Mul", [ratio, scale], [result], result)

    def _other_axes(self, node: NodeProto) -> list[int]:
        """Return axes with one scale of a DequantizeLinear that has several along another axis."""
        if not self.weights[node.input[1]].dims:
            return []
        axis = next(a.i for a in node.attribute if a.name == "axis")
        return [i for i in range(len(self.weights[node.input[0]].dims)) if i != axis]


_QDQ = {"QuantizeLinear": _Emulator._quantize, "DequantizeLinear": _Emulator._dequantize}


def _cast(source: str, result: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], f"{result}_emulated", to=kind)
