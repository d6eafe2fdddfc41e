"""Store weights in 8 or 4 bits by standard operators: a DequantizeLinear before each layer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgedistill_export.passes.opset import raise_opset

__all__ = ["weight_only"]

Array = NDArray[Any]

BLOCKS = (32, 16)
"""Numbers of inputs of a linear layer that share a 4-bit scale; the first that divides all inputs
is used."""

BLOCKED_OPSET = 21
"""First operator set with 4-bit types and one scale for each block."""


def weight_only(model: ModelProto, bits: int, nodes: Collection[str]) -> ModelProto:
    """Store layers' weights in few bits, in place; layers compute in their former type.

    With 8 bits, each output channel has a scale. 4 bits are for linear layers, with a scale for
    each block of inputs; convolutions, and linear layers that no block divides, get 8 bits.

    Args:
        model: A model in float32 or float16.
        bits: Number of bits, 8 or 4.
        nodes: Names of the Conv, Gemm and MatMul nodes whose weights are stored.
    """
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    users: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if node.name in nodes:
            users.setdefault(node.input[1], []).append(node)
    fronts = []
    for name, consumers in users.items():
        stored, scale, front = _quantized(weights[name], consumers[0], bits)
        graph.initializer.extend([stored, scale])
        fronts.append(front)
        for node in consumers:
            node.input[1] = front.output[0]
    rest = list(graph.node)
    used = {name for node in rest for name in node.input}
    kept = [w for w in graph.initializer if w.name not in users or w.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend([*fronts, *rest])
    graph.initializer.extend(kept)
    if bits == 4:
        raise_opset(model, BLOCKED_OPSET)
    return model


def _quantized(
    weight: TensorProto, node: NodeProto, bits: int
) -> tuple[TensorProto, TensorProto, NodeProto]:
    """Return the stored weight, its scale, and the node that restores the weight."""
    array, outputs = numpy_helper.to_array(weight), _output_axis(node)
    # The inputs of a matrix are on its other axis.
    size = array.shape[1 - outputs] if array.ndim == 2 else 0
    block = next((b for b in BLOCKS if bits == 4 and size and size % b == 0), 0)
    if block:
        whole, scale = _blocks(array, 1 - outputs, block)
        place = {"axis": 1 - outputs, "block_size": block}
        stored = _int4(whole, f"{weight.name}_int4")
    else:
        whole, scale = _channels(array, outputs)
        place = {"axis": outputs}
        stored = numpy_helper.from_array(whole, f"{weight.name}_int8")
    scales = numpy_helper.from_array(scale, f"{weight.name}_scale")
    names = [stored.name, scales.name]
    result = f"{weight.name}_dequantized"
    front = helper.make_node("DequantizeLinear", names, [result], result, **place)
    return stored, scales, front


def _output_axis(node: NodeProto) -> int:
    """Return the axis of a layer's weight that counts its outputs."""
    if node.op_type == "Conv":
        return 0
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else 1


def _channels(weight: Array, axis: int) -> tuple[Array, Array]:
    """Return (int8, scales of one axis), with the largest of each channel at 127."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    whole, scale = _rounded(weight, others, 127)
    return whole, scale.reshape(-1)


def _blocks(weight: Array, axis: int, block: int) -> tuple[Array, Array]:
    """Return (int8 between -7 and 7, scales), with each block's largest along an axis at 7."""
    shape = list(weight.shape)
    shape[axis : axis + 1] = [shape[axis] // block, block]
    whole, scale = _rounded(weight.reshape(shape), axis + 1, 7)
    return whole.reshape(weight.shape), scale.squeeze(axis + 1)


def _rounded(weight: Array, axes: int | tuple[int, ...], largest: int) -> tuple[Array, Array]:
    """Return (int8, scales), with scales in the weight's own type, and rounding by these."""
    scale = (np.abs(weight).max(axes, keepdims=True) / largest).astype(weight.dtype)
    scale = np.maximum(scale, np.finfo(weight.dtype).smallest_subnormal)
    whole = np.rint(weight.astype(np.float32) / scale.astype(np.float32))
    return whole.clip(-largest, largest).astype(np.int8), scale


def _int4(whole: Array, name: str) -> TensorProto:
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.INT4)
    return numpy_helper.from_array(whole.astype(kind), name)
