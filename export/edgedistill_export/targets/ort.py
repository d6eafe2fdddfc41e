"""ONNX Runtime, on CPUs and CUDA: ONNX files of standard operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgedistill_export.onnx_build import build_onnx
from edgedistill_export.onnx_files import files_of
from edgedistill_export.quantize.qdq import quantize_dynamic, quantize_static
from edgedistill_export.quantize.weights import quantize_weights
from edgedistill_export.targets import Built, Job

__all__ = ["build"]


def build(job: Job) -> Built:
    """Trace one network, simplify it and convert it (see `targets.Builder`).

    ONNX Runtime's own optimiser runs on the device, when the graph is first loaded. In a bundle,
    its basic level would remove nothing after the tracer's own, its extended level would add
    operators that no other engine reads and is no faster on CPUs, and its full level, 25 to 35 %
    faster, would fix a convolution layout for one kind of CPU.
    """
    path = job.folder / f"{job.name}.onnx"
    build_onnx(job.graph, path, half=job.precision == "fp16")
    if job.precision in _QUANTIZE:
        _QUANTIZE[job.precision](path, job)
    return Built(files=files_of(path))


_QUANTIZE: dict[str, Callable[[Path, Job], None]] = {
    "int8": lambda path, job: quantize_static(path, job.calls(), job.keep),
    "int8-dynamic": lambda path, job: quantize_dynamic(path, job.keep),
    "int8-weights": lambda path, job: quantize_weights(path, 8, job.keep),
    "int4-weights": lambda path, job: quantize_weights(path, 4, job.keep),
}
