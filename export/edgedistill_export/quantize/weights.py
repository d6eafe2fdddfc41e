"""Store weights in 8 or 4 bits for ONNX Runtime; activations stay float32."""

from __future__ import annotations

from pathlib import Path

from edgedistill_export import onnx_files
from edgedistill_export.passes.weight_only import weight_only
from edgedistill_export.quantize.qdq import layer_nodes
from edgedistill_export.quiet import quiet

__all__ = ["quantize_weights"]

BLOCK = 32
"""Number of inputs that share a scale in MatMulNBits."""


def quantize_weights(path: Path, bits: int, keep: frozenset[str]) -> None:
    """Rewrite an ONNX file with its layers' weights in low precision.

    Linear layers become ONNX Runtime's MatMulNBits, with one scale for each block of 32 inputs,
    computed on the packed weights. Convolutions have no such kernel; they get int8 weights with
    one scale for each channel, dequantized as they run.

    Args:
        path: The file, float32.
        bits: Bits of the linear layers, 4 or 8.
        keep: Layers that stay in floating point.
    """
    with quiet():
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            MatMulNBitsQuantizer,
        )
    model = onnx_files.read(path)
    nodes = {n for layer, names in layer_nodes(model).items() if layer not in keep for n in names}
    linear = [n.name for n in model.graph.node if n.name in nodes and n.op_type == "MatMul"]
    if linear:
        config = DefaultWeightOnlyQuantConfig(BLOCK, is_symmetric=True, bits=bits)
        quantizer = MatMulNBitsQuantizer(model, algo_config=config, nodes_to_include=linear)
        with quiet():
            quantizer.process()
        model = quantizer.model.model
    onnx_files.write(weight_only(model, 8, nodes.difference(linear)), path)
