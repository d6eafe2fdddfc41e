"""onnxruntime-web, in pages and in node: ONNX files, proven on its WebAssembly engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgedistill_export import onnx_files
from edgedistill_export.backends.web_home import package_version
from edgedistill_export.onnx_build import build_onnx
from edgedistill_export.quantize.qdq import quantize_static
from edgedistill_export.targets import Built, Job

__all__ = ["build", "half_weights"]


def build(job: Job) -> Built:
    """Trace one network, simplify it and convert it (see `targets.Builder`).

    fp16 stores weights in float16 and computes in float32, as int8 does with layers in floating
    point. The engine has no float16 kernels on a CPU: it would put casts around every operator,
    which triples the loading time without any gain; and on a GPU float16 needs an adapter that
    supports it. Casts of weights alone are folded when the graph is loaded, so everywhere the only
    change is half the download. (Bundles of target ort compute in float16, and the same runtime
    opens them.)

    Raises:
        ValueError: If the npm package onnxruntime-web is missing.
    """
    # Check before the tracing, which takes minutes, instead of at the proof.
    proven_with = package_version()
    path = job.folder / f"{job.name}.onnx"
    build_onnx(job.graph, path)
    if job.precision in _CONVERT:
        _CONVERT[job.precision](path, job)
    return Built(files=onnx_files.files_of(path), notes={"onnxruntime-web": proven_with})


def _fp16(path: Path, job: Job) -> None:
    onnx_files.write(half_weights(onnx_files.read(path)), path)


def _int8(path: Path, job: Job) -> None:
    quantize_static(path, job.calls(), job.keep)
    _fp16(path, job)


_CONVERT: dict[str, Callable[[Path, Job], None]] = {"fp16": _fp16, "int8": _int8}

_WEIGHTED = {"Conv", "ConvTranspose", "Gather", "Gemm", "MatMul"}
"""Operators whose matrices, kernels and embeddings make up most of a file. Other stored values are
small, and rounding may harm them: the rates of a time embedding, scales of norms, masks."""

_HALF_MAX = float(np.finfo(np.float16).max)


def half_weights(model: ModelProto) -> ModelProto:
    """Store large float32 weights as float16 with a Cast behind each, in place.

    Weights beyond the range of float16 stay float32.
    """
    graph = model.graph
    used = {name for node in graph.node if node.op_type in _WEIGHTED for name in node.input}
    casts = []
    for weight in graph.initializer:
        if weight.name not in used or weight.data_type != TensorProto.FLOAT:
            continue
        array = numpy_helper.to_array(weight)
        if array.ndim < 2 or np.abs(array).max() > _HALF_MAX:
            continue
        stored = numpy_helper.from_array(array.astype(np.float16), f"{weight.name}_fp16")
        casts.append(
            helper.make_node(
                "Cast", [stored.name], [weight.name], f"{weight.name}_cast", to=TensorProto.FLOAT
            )
        )
        weight.CopyFrom(stored)
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*casts, *rest])
    return model
