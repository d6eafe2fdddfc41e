"""ONNX Runtime, on CPUs and CUDA: ONNX files of standard operators."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from edgedistill.teachers.base import Graph
from edgedistill_export import onnx_files
from edgedistill_export.passes.fp16 import fp16
from edgedistill_export.passes.optimise import optimise
from edgedistill_export.trace import trace

__all__ = ["build"]


def build(graph: Graph, name: str, precision: str, folder: Path) -> list[Path]:
    """Trace, optimise and, if asked, convert one network (see `targets.Builder`)."""
    path = folder / f"{name}.onnx"
    with TemporaryDirectory(dir=folder) as scratch:
        traced = Path(scratch) / path.name
        trace(graph, traced)
        # Before fp16: on a CPU, ONNX Runtime's optimiser would store float16 turned back.
        model = optimise(traced)
    onnx_files.write(fp16(model) if precision == "fp16" else model, path)
    return [file for file in (path, onnx_files.data_file(path)) if file.exists()]
