"""ONNX Runtime, on CPUs and CUDA: ONNX files of standard operators."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from edgedistill.teachers.base import Graph
from edgedistill_export import onnx_files
from edgedistill_export.passes.fp16 import fp16
from edgedistill_export.passes.static_reshapes import static_reshapes
from edgedistill_export.trace import trace

__all__ = ["build"]


def build(graph: Graph, name: str, precision: str, folder: Path) -> list[Path]:
    """Trace one network, simplify it and, if asked, convert it (see `targets.Builder`).

    ONNX Runtime's own optimiser is left to the device, when the graph is loaded. Stored, its basic
    level removes nothing that the tracer has left, its extended level puts in operators that no
    other engine reads and is no faster on CPUs, and its full level, 25 to 35 % faster, fixes a
    convolution layout for one kind of CPU.
    """
    path = folder / f"{name}.onnx"
    with TemporaryDirectory(dir=folder) as scratch:
        trace(graph, Path(scratch) / path.name)
        model = static_reshapes(onnx_files.read(Path(scratch) / path.name))
    onnx_files.write(fp16(model) if precision == "fp16" else model, path)
    return [file for file in (path, onnx_files.data_file(path)) if file.exists()]
