"""Weights alone in 8 or 4 bits, in ONNX files; activations stay float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

from edgedistill_export import onnx_files
from edgedistill_export.quantize.qdq import layer_nodes, quiet

__all__ = ["quantize_weights"]

BLOCK = 32
"""Inputs that share a scale in MatMulNBits."""


def quantize_weights(path: Path, bits: int, keep: frozenset[str]) -> None:
    """Rewrite an ONNX file with its layers' weights in low precision.

    Linear layers become ONNX Runtime's MatMulNBits, blocks of 32 inputs to a scale, computed on
    the packed weights. Convolutions, for which there is no such kernel, keep int8 weights with a
    scale a channel, dequantized as they run.

    Args:
        path: The file, float32.
        bits: 4 or 8, of the linear layers.
        keep: Layers that stay in floating point.
    """
    model = onnx_files.read(path)
    nodes = {n for layer, names in layer_nodes(model).items() if layer not in keep for n in names}
    linear = [n.name for n in model.graph.node if n.name in nodes and n.op_type == "MatMul"]
    if linear:
        config = DefaultWeightOnlyQuantConfig(BLOCK, is_symmetric=True, bits=bits)
        quantizer = MatMulNBitsQuantizer(model, algo_config=config, nodes_to_include=linear)
        with quiet():
            quantizer.process()
        model = quantizer.model.model
    dequantized(model, nodes)
    onnx_files.write(model, path)


def dequantized(model: onnx.ModelProto, nodes: set[str]) -> None:
    """Put the weights of Conv and Gemm nodes into int8 with a DequantizeLinear, in place."""
    graph = model.graph
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.name in nodes and node.op_type in AXES:
            users.setdefault(node.input[1], []).append(node)
    weights = {weight.name: weight for weight in graph.initializer}
    fronts = []
    for name, consumers in users.items():
        axis = AXES[consumers[0].op_type](consumers[0])
        whole, scale = _rounded(numpy_helper.to_array(weights[name]), axis)
        weights[name].CopyFrom(numpy_helper.from_array(whole, name))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        fronts.append(
            helper.make_node(
                "DequantizeLinear",
                [name, f"{name}_scale"],
                [f"{name}_float"],
                f"{name}_dequantize",
                axis=axis,
            )
        )
        for node in consumers:
            node.input[1] = f"{name}_float"
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*fronts, *kept])


def _gemm_axis(node: onnx.NodeProto) -> int:
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else 1


AXES = {"Conv": lambda node: 0, "Gemm": _gemm_axis}
"""Operator -> axis of its weight's output channels."""


def _rounded(
    weight: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """(int8, scales): symmetric, the largest of each channel at 127."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(others, keepdims=True) / 127, 1e-12).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale.reshape(-1)
