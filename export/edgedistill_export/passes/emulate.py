"""bfloat16 and float8 by operators that every CPU has, to the same roundings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgedistill_export import onnx_files

__all__ = ["emulate"]

FLOAT, BF16, E4M3 = TensorProto.FLOAT, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN


def emulate(model: ModelProto) -> ModelProto:
    """Rewrite, in place, what ONNX Runtime's CPU kernels do not take.

    A bfloat16 tensor becomes a float32 one that two casts round. A QuantizeLinear to float8
    (E4M3) becomes a division and a cast, a DequantizeLinear a cast and a multiplication. Stored
    weights keep their types. What is left out is only how an accelerator sums inside an operator.
    """
    _Emulator(model).run()
    return model


class _Emulator:
    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.kinds = {
            value.name: value.type.tensor_type.elem_type
            for value in onnx_files.infer_values(model)
        }
        self.weights = {weight.name: weight for weight in self.graph.initializer}

    def run(self) -> None:
        nodes = list(self._load_weights())
        for node in self.graph.node:
            quantizes = node.op_type in _QDQ and self._kind(node.input[2]) == E4M3
            nodes += _QDQ[node.op_type](self, node) if quantizes else self._round(node)
        del self.graph.node[:], self.graph.value_info[:]
        self.graph.node.extend(nodes)

    def _kind(self, name: str) -> int:
        weight = self.weights.get(name)
        return self.kinds.get(name, 0) if weight is None else weight.data_type

    def _load_weights(self) -> Iterator[NodeProto]:
        """Casts of the weights stored in bfloat16, which take over their names."""
        for name, weight in self.weights.items():
            if weight.data_type == BF16:
                weight.name = f"{name}_stored"
                yield _cast(weight.name, name, FLOAT)

    def _round(self, node: NodeProto) -> Iterator[NodeProto]:
        """A node on float32, and the casts that round its bfloat16 results."""
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == BF16:
                attribute.i = FLOAT
            if attribute.HasField("t") and attribute.t.data_type == BF16:
                array = numpy_helper.to_array(attribute.t).astype(np.float32)
                attribute.t.CopyFrom(numpy_helper.from_array(array))
        yield node
        for i, name in enumerate(node.output):
            if self.kinds.get(name) == BF16:
                node.output[i] = f"{name}_exact"
                yield _cast(f"{name}_exact", f"{name}_rounded", BF16)
                yield _cast(f"{name}_rounded", name, FLOAT)

    def _quantize(self, node: NodeProto) -> Iterator[NodeProto]:
        """In float32, as accelerators do: rounded to half a float in between, ties would move."""
        value, scale, _ = node.input
        result = node.output[0]
        exact, ratio = f"{result}_exact", f"{result}_ratio"
        yield _cast(value, exact, FLOAT)
        array = numpy_helper.to_array(self.weights[scale]).astype(np.float32)
        yield helper.make_node(
            "Div", [exact, self._store(array, f"{result}_scale")], [ratio], ratio
        )
        yield _cast(ratio, result, E4M3)

    def _dequantize(self, node: NodeProto) -> Iterator[NodeProto]:
        value, scale, _ = node.input
        ratio, result = f"{node.output[0]}_ratio", node.output[0]
        yield _cast(value, ratio, self.weights[scale].data_type)
        yield helper.make_node("Mul", [ratio, self._spread(node)], [result], result)

    def _spread(self, node: NodeProto) -> str:
        """A DequantizeLinear's scale, shaped so that it meets its axis."""
        scale = self.weights[node.input[1]]
        if not scale.dims:
            return str(scale.name)
        axis = next(a.i for a in node.attribute if a.name == "axis")
        others = [i for i in range(len(self.weights[node.input[0]].dims)) if i != axis]
        array = np.expand_dims(numpy_helper.to_array(scale), others)
        return self._store(array, f"{node.output[0]}_scale")

    def _store(self, array: NDArray[Any], name: str) -> str:
        self.graph.initializer.append(numpy_helper.from_array(array, name))
        return name


_QDQ = {"QuantizeLinear": _Emulator._quantize, "DequantizeLinear": _Emulator._dequantize}


def _cast(source: str, result: str, kind: int) -> NodeProto:
    return helper.make_node("Cast", [source], [result], f"{result}_emulated", to=kind)
