"""TensorRT: engines for NVIDIA GPUs, built without one by TensorRT for RTX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import onnx
from pydantic import BeforeValidator, Field, PositiveInt, ValidationInfo, field_validator

from edgedistill.common.plugins import unknown
from edgedistill_export import onnx_files, targets
from edgedistill_export.onnx_build import build_onnx
from edgedistill_export.passes.emulate import emulate
from edgedistill_export.passes.fp8 import fp8
from edgedistill_export.passes.fp16 import bf16, fp16
from edgedistill_export.passes.weight_only import weight_only
from edgedistill_export.quantize.qdq import layer_nodes, quantize_static
from edgedistill_export.targets import Built, Job
from edgedistill_runtime.backends.trt import (
    MODEL,
    engine_file,
    error_log,
    gpu_capability,
    load_cuda,
    load_library,
)

__all__ = [
    "CAPABILITIES",
    "DEFAULT",
    "PRECISIONS",
    "Options",
    "TensorRTPrecision",
    "build",
    "compile_engine",
]

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities that TensorRT for RTX compiles for: Turing, Ampere, Ada, Blackwell."""

TURING = "7.5"
"""An engine that serves it too is slower on the others, so it gets one of its own."""

DEFAULT = ("8.6", "8.9", "12.0")
"""The GPUs of the RTX 30, 40 and 50 series."""


def _words(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


class Options(targets.Options):
    """Options of target trt.

    Attributes:
        library: rtx, TensorRT for RTX, which builds for any capability on any machine; or trt,
            TensorRT (not part of the extra), which builds on the GPU at hand and for it alone,
            also those of data centres. Both run the same code; the tests cover rtx.
        capabilities: Compute capabilities, with commas between; by default `DEFAULT` as far as
            they have the precision.
        min_batch: Least batch the engine runs; fewer rows are filled up.
        opt_batch: Batch it is tuned for.
        max_batch: Largest batch; more rows run in pieces.
    """

    library: Literal["rtx", "trt"] = "rtx"
    capabilities: Annotated[tuple[str, ...] | None, BeforeValidator(_words)] = None
    min_batch: PositiveInt = 1
    opt_batch: PositiveInt = Field(1, validate_default=True)
    max_batch: PositiveInt = Field(8, validate_default=True)

    @field_validator("capabilities")
    @classmethod
    def _known(cls, value: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        if value and info.data.get("library") == "trt":
            raise ValueError("library=trt builds for the GPU at hand alone")
        for capability in value or ():
            if capability not in CAPABILITIES:
                raise unknown("compute capability", capability, CAPABILITIES)
        return value and tuple(sorted(set(value), key=float))

    @field_validator("opt_batch")
    @classmethod
    def _not_under_min(cls, value: int, info: ValidationInfo) -> int:
        return _at_least("min_batch", value, info)

    @field_validator("max_batch")
    @classmethod
    def _not_under_opt(cls, value: int, info: ValidationInfo) -> int:
        return _at_least("opt_batch", value, info)

    @property
    def profile(self) -> tuple[int, int, int]:
        """(least, tuned for, largest) batch."""
        return self.min_batch, self.opt_batch, self.max_batch


def _at_least(lower: str, value: int, info: ValidationInfo) -> int:
    if value < info.data.get(lower, value):
        raise ValueError(f"must not be under {lower}={info.data[lower]}")
    return value


@dataclass(frozen=True, kw_only=True)
class TensorRTPrecision:
    """How a precision is made.

    Attributes:
        convert: float32 file -> the model to compile; it may rewrite the file.
        least: Least compute capability.
    """

    convert: Callable[[Job, Path], onnx.ModelProto]
    least: str = "7.5"


def _int8(job: Job, path: Path) -> onnx.ModelProto:
    quantize_static(path, job.calls(), job.keep, symmetric=True)
    return fp16(onnx_files.read(path))


def _fp8(job: Job, path: Path) -> onnx.ModelProto:
    weights = {weight.name: weight for weight in onnx_files.read(path).graph.initializer}
    quantize_static(path, job.calls(), job.keep, symmetric=True)
    return fp16(fp8(onnx_files.read(path), weights))


def _weights(job: Job, path: Path, bits: int) -> onnx.ModelProto:
    model = fp16(onnx_files.read(path))
    layers = layer_nodes(model).items()
    nodes = {node for layer, names in layers if layer not in job.keep for node in names}
    return weight_only(model, bits, nodes)


PRECISIONS = {
    "fp16": TensorRTPrecision(convert=lambda job, path: fp16(onnx_files.read(path))),
    "fp32": TensorRTPrecision(convert=lambda job, path: onnx_files.read(path)),
    "bf16": TensorRTPrecision(convert=lambda job, path: bf16(onnx_files.read(path)), least="8.0"),
    "int8": TensorRTPrecision(convert=_int8, least="8.0"),
    "int8-weights": TensorRTPrecision(
        convert=lambda job, path: _weights(job, path, 8), least="8.0"
    ),
    "int4-weights": TensorRTPrecision(
        convert=lambda job, path: _weights(job, path, 4), least="8.0"
    ),
    "fp8": TensorRTPrecision(convert=_fp8, least="8.9"),
}
"""What the types of the model decide: TensorRT computes in the type a tensor has. Where not all is
float32, it is float16 (or bfloat16) between the quantized layers."""


def build(job: Job) -> Built:
    """Make a folder of a model and its engines (see `targets.Builder`).

    The folder holds the exact model that the engines are built from and, but in fp32, what proves
    it on a CPU: the same graph with each rounding to float16, bfloat16 or float8 written out. One
    engine serves several capabilities and is as large as an engine for one.

    Raises:
        ValueError: For a capability that lacks the precision; with library trt, without a GPU.
        RuntimeError: If TensorRT cannot compile the network.
    """
    options = job.options
    assert isinstance(options, Options)
    groups = _groups(options, job.precision)
    folder = job.folder / job.name
    folder.mkdir()
    with TemporaryDirectory(dir=job.folder) as scratch:
        path = Path(scratch) / f"{job.name}.onnx"
        build_onnx(job.graph, path)
        model = PRECISIONS[job.precision].convert(job, path)
    onnx_files.write(model, folder / MODEL)
    proof = folder / MODEL
    if job.precision != "fp32":
        proof = job.proof_file()
        onnx_files.write(emulate(model), proof)
    sizes = []
    for group in groups:
        file = folder / engine_file(group)
        compile_engine(folder / MODEL, file, group, options)
        sizes.append(f"{file.name} {file.stat().st_size / 1e6:.1f} MB")
    least, tuned, most = options.profile
    return Built(
        files=[folder],
        batch=most if least == most else None,
        proof=proof,
        notes={
            "library": options.library,
            "capabilities": ",".join(c for group in groups for c in group),
            "engines": ", ".join(sizes),
            "batch": f"{least} to {most}, tuned for {tuned}",
        },
    )


def _groups(options: Options, precision: str) -> list[tuple[str, ...]]:
    """Capabilities, those that share an engine together."""
    if options.library == "trt":
        load_library("trt")
        return [(gpu_capability(load_cuda()),)]
    least = PRECISIONS[precision].least
    wanted = options.capabilities
    if wanted is None:
        wanted = tuple(c for c in DEFAULT if float(c) >= float(least))
    for capability in wanted:
        if float(capability) < float(least):
            raise ValueError(
                f"precision {precision!r} needs compute capability {least} or later, "
                f"not {capability}"
            )
    parts = [[c for c in wanted if c == TURING], [c for c in wanted if c != TURING]]
    return [tuple(part) for part in parts if part]


def compile_engine(model: Path, file: Path, capabilities: Sequence[str], options: Options) -> None:
    """Compile an ONNX file into an engine.

    Args:
        model: The ONNX file; every input's first axis is the batch.
        file: Where the engine goes.
        capabilities: GPUs it is for; library trt compiles for the one at hand.
        options: Library and batches.

    Raises:
        RuntimeError: One line with what the parser or the compiler says.
    """
    trt = load_library(options.library)
    log = error_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(model)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise _refused(model, [f"{e.node_operator()} {e.node_name()}: {e.desc()}" for e in errors])
    config = _config(trt, builder, network, options)
    if options.library == "rtx":
        config.num_compute_capabilities = len(capabilities)
        for i, capability in enumerate(capabilities):
            kind = getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}")
            config.set_compute_capability(kind, i)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _refused(model, log.errors)
    file.write_bytes(engine)


def _config(trt: Any, builder: Any, network: Any, options: Options) -> Any:
    """What is asked of the compiler for any GPU."""
    config = builder.create_builder_config()
    # Else float32 convolutions and products keep ten bits of their factors.
    config.clear_flag(trt.BuilderFlag.TF32)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        port = network.get_input(i)
        profile.set_shape(port.name, *((batch, *port.shape[1:]) for batch in options.profile))
    config.add_optimization_profile(profile)
    return config


def _refused(model: Path, errors: Sequence[str]) -> RuntimeError:
    reasons = " ".join("; ".join(errors).split())
    return RuntimeError(f"{model.parent.name}: TensorRT cannot compile {model.name}: {reasons}")
