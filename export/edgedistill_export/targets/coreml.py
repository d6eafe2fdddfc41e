"""Core ML: ML programs for the CPU, GPU and Neural Engine of Macs, iPhones and iPads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from edgedistill.plugins import unknown
from edgedistill_export import targets
from edgedistill_export.backends.coreml import PACKAGE
from edgedistill_export.mil.sdk import coremltools, quiet
from edgedistill_export.targets import Built, Job
from edgedistill_export.targets.coreml_weights import SCHEMES

__all__ = ["SYSTEMS", "Options", "build"]

SYSTEMS: Mapping[str, str] = {
    "iOS17": "iOS17",
    "iOS18": "iOS18",
    "iOS26": "iOS26",
    "macOS14": "iOS17",
    "macOS15": "iOS18",
    "macOS26": "iOS26",
}
"""Oldest system that a program runs on, and the operator set it is written in, oldest first."""

ANGLES = {"sin", "cos"}
"""Kept in float32 with all that leads to them: a float16 of 999 rad has steps of 0.5."""

HALF_SUFFIX = "_to_fp16"
"""What a weight's name ends in once it is float16."""


class Options(targets.Options):
    """Options of the target.

    Attributes:
        deployment_target: A key of `SYSTEMS`; by default iOS17, or iOS18 where the precision needs
            it.
        compute_units: What a Mac runs the programs on.
        chunk: Split the denoiser into two programs of half the weights each, for devices that
            cannot load it whole.
    """

    deployment_target: (
        Literal["iOS17", "iOS18", "iOS26", "macOS14", "macOS15", "macOS26"] | None
    ) = None
    compute_units: Literal["all", "cpu_and_ne", "cpu_and_gpu", "cpu_only"] = "all"
    chunk: bool = False


def build(job: Job) -> Built:
    """Convert one network into an .mlpackage of batch 1, or a folder of two (`Options.chunk`).

    Raises:
        ValueError: If the deployment target is too old for the precision, or `keep` names a layer
            that the program lacks.
    """
    options = job.options
    assert isinstance(options, Options)
    system = _system(job.precision, options.deployment_target)
    network = _Network(job)
    with quiet():
        model = network.convert(SYSTEMS[system])
        model = SCHEMES[job.precision].compress(model, network.kept)
        chunked = options.chunk and job.name == "denoiser"
        path = job.folder / (job.name if chunked else f"{job.name}{PACKAGE}")
        (_save_halves if chunked else _save)(model, path)
    notes = {"deployment_target": system, "compute_units": options.compute_units}
    return Built(files=[path], batch=1, notes=notes | ({"chunks": "2"} if chunked else {}))


def _system(precision: str, wanted: str | None) -> str:
    """The deployment target; a precision's first system is the oldest that can read it."""
    oldest = SCHEMES[precision].opset
    system = wanted or oldest
    order = list(dict.fromkeys(SYSTEMS.values()))
    if order.index(SYSTEMS[system]) < order.index(oldest):
        fit = [
            name for name, opset in SYSTEMS.items() if order.index(opset) >= order.index(oldest)
        ]
        raise ValueError(
            f"deployment_target={system} is too old for precision {precision!r}; "
            f"choose from {', '.join(fit)}"
        )
    return system


class _Network:
    """A job's network as torch exports it, a batch of one."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @cached_property
    def program(self) -> Any:
        graph = self.job.graph
        inputs = {name: tensor[:1].clone() for name, tensor in graph.inputs.items()}
        with torch.no_grad(), quiet():
            program = torch.export.export(graph.module.eval(), (), kwargs=inputs)
            # Core ML's operators match torch's whole ones (group norm, attention), so nothing is
            # decomposed but what its converter does not know.
            return program.run_decompositions({torch.ops.aten.alias.default: lambda x: x})

    def convert(self, opset: str) -> Any:
        """As an ML program, float16 inside unless the precision is fp32."""
        precision = coremltools.precision.FLOAT32
        if self.job.precision != "fp32":
            precision = coremltools.transform.FP16ComputePrecision(op_selector=_Selector())
        return coremltools.convert(
            self.program,
            convert_to="mlprogram",
            outputs=[coremltools.TensorType(name=name) for name in self.job.graph.outputs],
            minimum_deployment_target=coremltools.target[opset],
            compute_precision=precision,
            skip_model_load=True,
        )

    @property
    def kept(self) -> list[str]:
        """Names in the program of the weights that `keep` asks for."""
        signature = self.program.graph_signature.inputs_to_parameters
        names = {path: name for name, path in signature.items()}
        layers = [path.removesuffix(".weight") for path in names if path.endswith(".weight")]
        for path in self.job.keep:
            if path not in layers:
                raise unknown("layer to keep", path, layers)
        return [f"{names[f'{path}.weight']}{HALF_SUFFIX}" for path in sorted(self.job.keep)]


class _Selector:
    """Whether an operator becomes float16: all but angles and what leads to them."""

    def __init__(self) -> None:
        self.kept: set[str] | None = None

    def __call__(self, operation: Any) -> bool:
        if self.kept is None:
            self.kept = set(_ancestors(operation.enclosing_block.operations))
        return operation.name not in self.kept


def _ancestors(operations: Iterable[Any]) -> Iterable[str]:
    todo = [operation for operation in operations if operation.op_type in ANGLES]
    while todo:
        operation = todo.pop()
        yield operation.name
        for value in operation.inputs.values():
            values = value if isinstance(value, (list, tuple)) else [value]
            todo += [v.op for v in values if v.op is not None]


def _save(model: Any, path: Path) -> None:
    model.save(str(path))
    # A map of torch's nodes for another runtime's debugger, larger than the program.
    (path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)


def _save_halves(model: Any, folder: Path) -> None:
    with TemporaryDirectory(dir=folder.parent) as scratch:
        whole = Path(scratch) / f"{folder.name}{PACKAGE}"
        _save(model, whole)
        coremltools.models.utils.bisect_model(
            str(whole), str(folder), check_output_correctness=False
        )
