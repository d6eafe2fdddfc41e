"""Files of ONNX models of any size, and the shapes of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx

__all__ = ["INLINE_LIMIT", "data_file", "edit", "files_of", "infer_values", "read", "write"]

INLINE_LIMIT = 2**28
"""Bytes of weights above which they go to a file beside the graph. A protobuf is limited to 2 GiB,
and is held in memory twice while it is written."""


def data_file(path: Path) -> Path:
    """Return the file of a model's weights, where they are not inside `path`."""
    return path.with_name(path.name + ".data")


def files_of(path: Path) -> list[Path]:
    """Return a model's files, the graph first."""
    return [file for file in (path, data_file(path)) if file.exists()]


def read(path: Path) -> onnx.ModelProto:
    """Load a model with its external weights."""
    return onnx.load(str(path))


def edit(path: Path, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    """Rewrite a graph without reading the weights beside it, which `change` must not touch."""
    onnx.save(change(onnx.load(str(path), load_external_data=False)), str(path))


def write(model: onnx.ModelProto, path: Path) -> None:
    """Save a model, its weights in `data_file(path)` when they do not fit inside."""
    data_file(path).unlink(missing_ok=True)
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    onnx.save(
        model,
        str(path),
        save_as_external_data=size > INLINE_LIMIT,
        location=data_file(path).name,
    )


_SMALL = 1024
"""Size in bytes above which a constant counts as large; shapes are smaller."""


def infer_values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Infer name, type and shape of every tensor except weights."""
    # Work on a copy without the large weights: the inference serialises, which is limited to 2
    # GiB.
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for weight in model.graph.initializer:
        small = weight.raw_data if len(weight.raw_data) <= _SMALL else b""
        light.graph.initializer.add(
            name=weight.name, dims=weight.dims, data_type=weight.data_type, raw_data=small
        )
    graph = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    return [*graph.input, *graph.value_info, *graph.output]
