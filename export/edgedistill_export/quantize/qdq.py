"""int8 quantization of ONNX files by ONNX Runtime's quantizer: explicit Q/DQ, or dynamic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
)
from onnxruntime.quantization import quantize_dynamic as ort_quantize_dynamic
from onnxruntime.quantization import quantize_static as ort_quantize_static

from edgedistill_export import onnx_files
from edgedistill_export.quiet import quiet
from edgedistill_export.targets import Call
from edgedistill_export.trace import layer_of

__all__ = ["layer_nodes", "quantize_dynamic", "quantize_static"]

LAYERS = {"Conv", "Gemm", "MatMul"}
"""Operators that a Linear or Conv2d becomes."""


def layer_nodes(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Return names of the nodes that hold a layer's weight, by the layer's path in the module."""
    weights = {weight.name for weight in model.graph.initializer}
    found: dict[str, list[str]] = {}
    for node in model.graph.node:
        if node.op_type in LAYERS and node.input[1] in weights:
            found.setdefault(layer_of(node.name), []).append(node.name)
    return found


def quantize_static(
    path: Path, calls: Sequence[Call], keep: frozenset[str], *, symmetric: bool = False
) -> None:
    """Rewrite an ONNX file with its layers between QuantizeLinear and DequantizeLinear.

    Weights are int8, symmetric, with one scale for each channel; activations have one scale for
    each tensor, from their range in `calls`.

    Args:
        path: The file, float32.
        calls: Inputs of the network to calibrate on.
        keep: Layers that stay in floating point.
        symmetric: Whether activations are int8 with zero point 0, as TensorRT needs; otherwise
            they are uint8 with a zero point of their own.

    Raises:
        ValueError: If there are no calls.
    """
    if not calls:
        raise ValueError("calibration needs at least one call of the network")
    model = onnx_files.read(path)
    nodes = [n for layer, names in layer_nodes(model).items() if layer not in keep for n in names]
    if not nodes:
        return
    with TemporaryDirectory(dir=path.parent) as scratch, quiet():
        result = Path(scratch) / path.name
        ort_quantize_static(
            model,
            result,
            _Reader(calls),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": symmetric,
                "WeightSymmetric": True,
                "QuantizeBias": not symmetric,
            },
        )
        quantized = onnx_files.read(result)
    onnx_files.write(quantized, path)


def quantize_dynamic(path: Path, keep: frozenset[str]) -> None:
    """Rewrite an ONNX file with int8 layers whose activation ranges are found in each call.

    Args:
        path: The file, float32.
        keep: Layers that stay in floating point.
    """
    model = onnx_files.read(path)
    nodes = [n for layer, names in layer_nodes(model).items() if layer not in keep for n in names]
    if not nodes:
        return
    # The quantizer transposes weights, and fails on shapes that were noted for them before.
    del model.graph.value_info[:]
    with TemporaryDirectory(dir=path.parent) as scratch, quiet():
        result = Path(scratch) / path.name
        ort_quantize_dynamic(
            model,
            result,
            op_types_to_quantize=sorted(LAYERS),
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
        )
        quantized = onnx_files.read(result)
    onnx_files.write(quantized, path)


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls: Iterator[Call] = iter(calls)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._calls, None)
