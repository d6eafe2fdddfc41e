"""One network -> one ONNX file of standard operators, where ONNX-reading targets start."""

from __future__ import annotations

from pathlib import Path

from edgedistill.teachers.base import ExportGraph
from edgedistill_export import onnx_files
from edgedistill_export.passes.fp16 import fp16
from edgedistill_export.passes.static_reshapes import static_reshapes
from edgedistill_export.trace import trace

__all__ = ["build_onnx"]


def build_onnx(graph: ExportGraph, path: Path, *, half: bool = False) -> None:
    """Trace a network and simplify it.

    Args:
        graph: The network.
        path: The .onnx file; large weights go beside it (`onnx_files.files_of`).
        half: Convert to float16 inside; inputs and outputs stay float32.
    """
    trace(graph, path)
    onnx_files.edit(path, static_reshapes)
    if half:
        onnx_files.write(fp16(onnx_files.read(path)), path)
