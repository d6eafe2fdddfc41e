"""Core ML: ML programs for the CPU, GPU and Neural Engine of Macs, iPhones and iPads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from torch import nn

from edgedistill.common.plugins import unknown
from edgedistill_export import targets
from edgedistill_export.backends.coreml import PACKAGE
from edgedistill_export.mil.sdk import coremltools, quiet
from edgedistill_export.targets import Built, Job
from edgedistill_export.targets.coreml_lowering import lower
from edgedistill_export.targets.coreml_weights import LAYERS, SCHEMES

__all__ = ["SYSTEMS", "Options", "build"]

SYSTEMS: Mapping[str, str] = {
    "iOS17": "iOS17",
    "macOS14": "iOS17",
    "iOS18": "iOS18",
    "macOS15": "iOS18",
    "iOS26": "iOS26",
    "macOS26": "iOS26",
}
"""Deployment targets, oldest first, and the operator set of each."""

ANGLES = {"sin", "cos"}
"""Operators kept in float32 with all their ancestors: a float16 of 999 rad has steps of 0.5."""

MEANS, ROOTS = {"reduce_mean", "reduce_sum"}, {"pow", "rsqrt", "sqrt"}
"""Operators of means and roots; means of squares stay in float32 up to their root, as 256 squared
overflows float16."""

BETWEEN = {"add", "clip", "maximum", "mul", "real_div"}
"""Operators that may be between a mean of squares and its root."""


class Options(targets.Options):
    """Options of the target coreml.

    Attributes:
        deployment_target: A key of `SYSTEMS`; by default the oldest that the precision allows.
        compute_units: Compute units on which a Mac runs the programs.
        chunk: Split the denoiser into two programs with half the weights each, run one after the
            other, for devices that cannot load it whole.
    """

    deployment_target: (
        Literal["iOS17", "macOS14", "iOS18", "macOS15", "iOS26", "macOS26"] | None
    ) = None
    compute_units: Literal["all", "cpu_and_ne", "cpu_and_gpu", "cpu_only"] = "all"
    chunk: bool = False


def build(job: Job) -> Built:
    """Convert one network into an .mlpackage of batch 1, or a folder of two (`Options.chunk`).

    Raises:
        ValueError: If the deployment target is too old for the precision, or `keep` names a layer
            that the network lacks.
    """
    options = job.options
    assert isinstance(options, Options)
    scheme = SCHEMES[job.precision]
    system = _system(job.precision, scheme.opset, options.deployment_target)
    program = lower(job.graph, job.name)
    weights = _weights(program, job.graph.module, job.keep)
    chunked = options.chunk and job.name == "denoiser"
    path = job.folder / (job.name if chunked else f"{job.name}{PACKAGE}")
    precision = coremltools.precision.FLOAT32
    if scheme.half:
        precision = coremltools.transform.FP16ComputePrecision(op_selector=_Selector())
    with quiet():
        model = coremltools.convert(
            program,
            convert_to="mlprogram",
            outputs=[coremltools.TensorType(name=name) for name in job.graph.outputs],
            minimum_deployment_target=coremltools.target[SYSTEMS[system]],
            compute_precision=precision,
            pass_pipeline=scheme.pipeline(weights),
            skip_model_load=True,
        )
        (_save_halves if chunked else _save)(model, path)
    notes = {"deployment_target": system, "compute_units": options.compute_units}
    return Built(files=[path], batch=1, notes=notes | ({"chunks": "2"} if chunked else {}))


def _system(precision: str, oldest: str, wanted: str | None) -> str:
    system = wanted or oldest
    order = list(SYSTEMS.values())
    fit = [name for name, opset in SYSTEMS.items() if order.index(opset) >= order.index(oldest)]
    if system not in fit:
        raise ValueError(
            f"deployment_target={system} is too old for precision {precision!r}; "
            f"choose from {', '.join(fit)}"
        )
    return system


def _weights(program: Any, module: nn.Module, keep: frozenset[str]) -> dict[str, nn.Module]:
    """Return the layers to compress, by the name of their weight in the float16 program.

    Raises:
        ValueError: If `keep` names a layer that does not exist.
    """
    names = {path: name for name, path in program.graph_signature.inputs_to_parameters.items()}
    layers = {path: layer for path, layer in module.named_modules() if isinstance(layer, LAYERS)}
    for path in sorted(keep):
        if path not in layers:
            raise unknown("layer to keep", path, layers)
    return {
        f"{names[f'{path}.weight']}_to_fp16": layer
        for path, layer in layers.items()
        if path not in keep and f"{path}.weight" in names
    }


class _Selector:
    """Selects operators that become float16: all but ancestors of angles, and mean squares."""

    def __init__(self) -> None:
        self.kept: frozenset[str] | None = None

    def __call__(self, operation: Any) -> bool:
        if self.kept is None:
            operations = operation.enclosing_block.operations
            self.kept = frozenset((*_leading_to(ANGLES, operations), *_mean_squares(operations)))
        return operation.name not in self.kept


def _leading_to(kinds: set[str], operations: Iterable[Any]) -> Iterator[str]:
    """Yield names of the operators of these kinds and of all their ancestors."""
    todo = [operation for operation in operations if operation.op_type in kinds]
    while todo:
        operation = todo.pop()
        yield operation.name
        for value in operation.get_flattened_inputs():
            if value.op is not None:
                todo.append(value.op)


def _mean_squares(operations: Iterable[Any]) -> Iterator[str]:
    """Yield names of the operators from a square through its mean to the mean's root."""
    for operation in operations:
        square = operation.x.op if operation.op_type in MEANS else None
        if square is None or not _is_square(square):
            continue
        yield square.name
        todo = [operation]
        while todo:
            found = todo.pop()
            yield found.name
            if found.op_type in MEANS | BETWEEN:
                todo += [
                    each
                    for each in found.outputs[0].child_ops
                    if each.op_type in BETWEEN | ROOTS
                    and each.outputs[0].shape == operation.outputs[0].shape
                ]


def _is_square(operation: Any) -> bool:
    if operation.op_type == "mul":
        return operation.x is operation.y
    if operation.op_type == "pow":
        return operation.y.val is not None and bool((operation.y.val == 2).all())
    return bool(operation.op_type == "square")


def _save(model: Any, path: Path) -> None:
    model.save(str(path))
    # This file is for another runtime's debugger, and larger than the program itself.
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)


def _save_halves(model: Any, folder: Path) -> None:
    with TemporaryDirectory(dir=folder.parent) as scratch:
        whole = Path(scratch) / f"{folder.name}{PACKAGE}"
        _save(model, whole)
        coremltools.models.utils.bisect_model(
            str(whole), str(folder), check_output_correctness=False
        )
