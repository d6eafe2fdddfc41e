"""OpenVINO IR, for Intel CPUs, GPUs and NPUs and for ARM CPUs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partialmethod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from pydantic import Field, ValidationInfo, field_validator

from edgedistill_export import targets
from edgedistill_export.memory import reading_frugally
from edgedistill_export.onnx_build import build_onnx
from edgedistill_export.quantize.pieces import calibrated_in_pieces
from edgedistill_export.quiet import quiet
from edgedistill_export.targets import Built, Job
from edgedistill_export.trace import layer_of
from edgedistill_runtime.backends.openvino import load_openvino, without_telemetry

with without_telemetry():
    import nncf
    from nncf.common.logging.track_progress import track
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

ov = load_openvino()

__all__ = ["PRECISIONS", "OpenVINOPrecision", "Options", "build"]

Model: TypeAlias = Any
"""Type of openvino.Model, which is untyped."""

CONVOLUTIONS = {"Convolution", "GroupConvolution", "ConvolutionBackpropData"}
LAYERS = {"MatMul", *CONVOLUTIONS}
"""Operators that a Linear or Conv2d becomes."""

LEAST_GROUP = 16


class Options(targets.Options):
    """Options of the target openvino.

    Attributes:
        static: Whether to fix the batch in the file, which NPUs need. The runtime compiles a free
            batch for one picture, and for the first other number of pictures, too.
        batch: Size of a fixed batch; larger calls are run in pieces.
        smooth_quant: For int8, share of the linear layers' activation range that moves to their
            weights (SmoothQuant's alpha, 0 to 1); by default none, which is closer to the student
            unless there are outlier channels.
        group_size: For int4-weights, number of inputs of a linear layer that share a scale, a
            power of two. Layers that it does not divide take the largest power of two from 16 that
            does, or else stay at 8 bits.
        ratio: For int4-weights, share of the linear layers' weights in 4 bits; the most sensitive
            ones stay at 8 bits.
    """

    static: bool = False
    batch: int = Field(1, ge=1)
    smooth_quant: float | None = Field(None, ge=0, le=1)
    group_size: int = Field(64, ge=LEAST_GROUP)
    ratio: float = Field(1.0, gt=0, le=1)

    @field_validator("batch")
    @classmethod
    def _fixed(cls, batch: int, info: ValidationInfo) -> int:
        if batch != 1 and not info.data.get("static"):
            raise ValueError("only where static=true fixes the batch")
        return batch

    @field_validator("group_size")
    @classmethod
    def _power_of_two(cls, size: int) -> int:
        if size & (size - 1):
            raise ValueError("not a power of two")
        return size


def build(job: Job) -> Built:
    """Trace one network, convert it and quantize it (see `targets.Builder`).

    Raises:
        ValueError: If calibration is needed and there are no calls.
    """
    options = job.options
    assert isinstance(options, Options)
    path = job.folder / f"{job.name}.xml"
    with TemporaryDirectory(dir=job.folder) as scratch:
        source = Path(scratch) / f"{job.name}.onnx"
        build_onnx(job.graph, source)
        job.traced()
        # A separate function releases the mapped file before the folder is removed.
        _convert(source, path, job, options)
    return Built(
        files=[path, path.with_suffix(".bin")],
        batch=options.batch if options.static else None,
        notes=PRECISIONS[job.precision].notes,
    )


def _convert(source: Path, path: Path, job: Job, options: Options) -> None:
    """Convert an ONNX file to IR."""
    precision = PRECISIONS[job.precision]
    with _silent():
        # The model's weights are mapped from this file.
        converted = precision.read(source)
        with reading_frugally(source.parent):
            model = precision.change(converted, job, options)
            if options.static:
                shapes = {port.any_name: port.partial_shape for port in model.inputs}
                model.reshape({name: [options.batch, *list(s)[1:]] for name, s in shapes.items()})
            ov.save_model(model, path, compress_to_fp16=precision.half)


@contextmanager
def _silent() -> Iterator[None]:
    """Silence NNCF's log and its progress bars, which would break into our own."""
    shown = track.__init__
    track.__init__ = partialmethod(shown, disable=True)
    try:
        with quiet():
            yield
    finally:
        track.__init__ = shown


def _nodes_of(model: Model, layers: Iterable[str]) -> list[str]:
    """Return names of the operators that hold these layers' weights, as far as there are any.

    A layer may be missing, since one with a constant result is folded away.
    """
    kept = set(layers)
    names = [op.get_friendly_name() for op in model.get_ops() if op.get_type_name() in LAYERS]
    # A layer with a bias becomes two operators, NAME/WithoutBiases and the addition.
    return [n for n in names if layer_of(n.removesuffix("/WithoutBiases")) in kept]


def _unchanged(model: Model, job: Job, options: Options) -> Model:
    return model


def _int8(model: Model, job: Job, options: Options) -> Model:
    """Quantize linear layers, convolutions and attention to int8."""
    return _quantize(model, job, options, ignored=())


def _int8_hybrid(model: Model, job: Job, options: Options) -> Model:
    """Quantize convolutions to int8, and only the weights of linear layers."""
    model = _compress(model, job, ignored=CONVOLUTIONS, mode=nncf.CompressWeightsMode.INT8_SYM)
    kinds = {op.get_type_name() for op in model.get_ops()}
    if not kinds & CONVOLUTIONS:
        return model
    rest = kinds - CONVOLUTIONS - {"Constant", "Parameter", "Result"}
    return _quantize(model, job, options, ignored=rest)


def _int8_weights(model: Model, job: Job, options: Options) -> Model:
    return _compress(model, job, mode=nncf.CompressWeightsMode.INT8_SYM)


def _int4_weights(model: Model, job: Job, options: Options) -> Model:
    """Store linear layers' weights in 4 bits; embeddings, convolutions and the last layer in 8."""
    return _compress(
        model,
        job,
        mode=nncf.CompressWeightsMode.INT4_SYM,
        group_size=options.group_size,
        ratio=options.ratio,
        backup_mode=nncf.BackupMode.INT8_SYM,
        advanced_parameters=nncf.AdvancedCompressionParameters(
            group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST,
            min_adjusted_group_size=LEAST_GROUP,
        ),
    )


def _compress(model: Model, job: Job, ignored: Iterable[str] = (), **choices: Any) -> Model:
    """Compress weights by NNCF, except in operators of the `ignored` kinds and `job.keep`."""
    return nncf.compress_weights(model, ignored_scope=_scope(model, job, ignored), **choices)


def _quantize(model: Model, job: Job, options: Options, ignored: Iterable[str]) -> Model:
    """Quantize weights and activations by NNCF, with the exceptions of `_compress`.

    NNCF's preset for transformers keeps additions and norms in float: in a U-Net, int8 in the sums
    of its residual branches costs 13 dB. Its bias correction takes half the time of the whole and
    moves the pictures by less than 0.2 dB. By default it would clip activations to the mean of the
    calls' extremes, which gives 27 dB for a small DiT where the extremes themselves give 43 dB.
    """
    calls = job.calls()
    if not calls:
        raise ValueError("calibration needs at least one call of the network")
    alpha = -1.0 if options.smooth_quant is None else options.smooth_quant
    with calibrated_in_pieces(calls):
        return nncf.quantize(
            model,
            nncf.Dataset(calls),
            subset_size=len(calls),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=_scope(model, job, ignored),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                disable_bias_correction=True,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=alpha),
            ),
        )


def _scope(model: Model, job: Job, ignored: Iterable[str]) -> Any:
    names = _nodes_of(model, job.keep)
    return nncf.IgnoredScope(names=names, types=sorted(ignored), validate=False)


def _mapped(source: Path) -> Model:
    """Read an ONNX file's graph unchanged, with weights mapped from the file."""
    return ov.Core().read_model(source)


def _transposed(source: Path) -> Model:
    """Read an ONNX file's graph; linear weights are copied, inputs last, as kernels need them."""
    return ov.convert_model(source)


def _compute(**devices: str) -> dict[str, str]:
    """Return notes that fix the precision in which devices compute."""
    return {f"{name}.INFERENCE_PRECISION_HINT": value for name, value in devices.items()}


@dataclass(frozen=True, kw_only=True)
class OpenVINOPrecision:
    """One of the target's precisions.

    Attributes:
        read: Function from an ONNX file to a model.
        change: Function that compresses the model.
        half: Whether weights are stored as float16. OpenVINO does not do that together with int8
            ones.
        notes: Properties of devices, for the runtime's backend.
    """

    read: Callable[[Path], Model] = _mapped
    change: Callable[[Model, Job, Options], Model] = _unchanged
    half: bool = False
    # By default, a CPU with bfloat16 uses it: 48 dB where float32 is at 70. That is far above what
    # activations in int8 leave, so that those bundles do so too; a CPU without it takes float32.
    # Float16 is no faster than float32, and with int8 around it some graphs do not compile. GPUs
    # and NPUs compute in float16 by default.
    notes: Mapping[str, str] = field(default_factory=lambda: _compute(CPU="f32"))


PRECISIONS = {
    "fp32": OpenVINOPrecision(notes=_compute(CPU="f32", GPU="f32")),
    "fp16": OpenVINOPrecision(half=True),
    "bf16": OpenVINOPrecision(half=True, notes=_compute(CPU="bf16")),
    "int8": OpenVINOPrecision(change=_int8, notes=_compute(CPU="bf16")),
    "int8-hybrid": OpenVINOPrecision(
        read=_transposed, change=_int8_hybrid, notes=_compute(CPU="bf16")
    ),
    "int8-weights": OpenVINOPrecision(read=_transposed, change=_int8_weights),
    "int4-weights": OpenVINOPrecision(read=_transposed, change=_int4_weights),
}
