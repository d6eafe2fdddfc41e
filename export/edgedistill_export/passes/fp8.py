"""Convert symmetric int8 QuantizeLinear and DequantizeLinear to float8 (E4M3) of equal range."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["fp8"]

RATIO = np.float32(127 / 448)
"""The largest int8 over the largest E4M3, so that the ends of both ranges coincide."""

_QDQ = ("QuantizeLinear", "DequantizeLinear")
_E4M3 = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)


def fp8(model: ModelProto, weights: Mapping[str, TensorProto]) -> ModelProto:
    """Convert a quantized model, in place.

    Args:
        model: Symmetric result of `quantize.qdq.quantize_static`: float32 scales, zero points of
            0, weights stored as NAME_quantized.
        weights: The unquantized weights by name, which are rounded anew.
    """
    stored = {weight.name: weight for weight in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in _QDQ]
    for name in {node.input[1] for node in nodes}:
        scale = numpy_helper.to_array(stored[name]) * RATIO
        stored[name].CopyFrom(numpy_helper.from_array(scale, name))
    for name in {node.input[2] for node in nodes}:
        zero = np.zeros(tuple(stored[name].dims), _E4M3)
        stored[name].CopyFrom(numpy_helper.from_array(zero, name))
    for node in nodes:
        if node.input[0] in stored:
            _round_weight(node, stored, weights)
    return model


def _round_weight(
    node: NodeProto, stored: Mapping[str, TensorProto], weights: Mapping[str, TensorProto]
) -> None:
    """Store the weight of a DequantizeLinear in float8."""
    name = node.input[0]
    weight = numpy_helper.to_array(weights[name.removesuffix("_quantized")])
    scale = numpy_helper.to_array(stored[node.input[1]])
    if scale.ndim:
        axis = next(a.i for a in node.attribute if a.name == "axis")
        scale = np.expand_dims(scale, [i for i in range(weight.ndim) if i != axis])
    stored[name].CopyFrom(numpy_helper.from_array((weight / scale).astype(_E4M3), name))
