"""ONNX files of any size."""

from __future__ import annotations

from pathlib import Path

import onnx

__all__ = ["INLINE_LIMIT", "data_file", "read", "write"]

INLINE_LIMIT = 2**31 - 2**24
"""Bytes of weights above which they go to a file beside the graph: a protobuf ends at 2 GiB."""


def data_file(path: Path) -> Path:
    """Where the weights of `path` lie when they are not inside."""
    return path.with_name(path.name + ".data")


def read(path: Path) -> onnx.ModelProto:
    """Load a model with its external weights."""
    return onnx.load(str(path))


def write(model: onnx.ModelProto, path: Path) -> None:
    """Save a model, its weights in `data_file(path)` when they do not fit inside."""
    size = sum(len(weight.raw_data) for weight in model.graph.initializer)
    onnx.save(
        model,
        str(path),
        save_as_external_data=size > INLINE_LIMIT,
        location=data_file(path).name,
    )
