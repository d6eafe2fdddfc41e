"""Targets for bundles: one table; each target's SDK is imported only in its own module."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from edgedistill.common.plugins import unknown

if TYPE_CHECKING:  # importing it needs torch, and listing targets does not
    from edgedistill.teachers.base import ExportGraph

__all__ = [
    "ENTRY_POINTS",
    "PROOFS",
    "TARGETS",
    "Builder",
    "Built",
    "Call",
    "Job",
    "Options",
    "Target",
    "UnsupportedError",
    "find_target",
    "target_names",
]

ENTRY_POINTS = "edgedistill.targets"
"""Entry-point group whose objects are `Target`s of other distributions."""

PROOFS = ".proof"
"""Folder for proofs in a bundle that is being written."""

ENGINES = {"onnxruntime": "cpu"}
"""Extra of the edgedistill distribution by the module that several targets need."""

Call: TypeAlias = dict[str, NDArray[Any]]
"""Inputs by name of one call of a network, with a batch of one."""


class UnsupportedError(ValueError):
    """Raised for a student that a target's SDK does not support, before any work."""


class Options(BaseModel):
    """Options of a target (`export --option key=value`); this class is for targets without any."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One network to compile.

    Attributes:
        name: Name of the network, text_encoder, denoiser or decoder, and of its files.
        graph: The network with example inputs, a batch of two.
        precision: One of the target's precisions.
        folder: The bundle being written.
        options: The target's options.
        calls: Records the calls that the student itself makes of this network, on its own steps
            and the calibration prompts.
        keep: Paths inside `graph.module` of the layers (Linear, Conv2d) that quantization leaves
            in floating point.
        traced: Function to call when the module's weights are no longer needed; it frees memory.
    """

    name: str
    graph: ExportGraph
    precision: str
    folder: Path
    options: Options = field(default_factory=Options)
    calls: Callable[[], Sequence[Call]] = list
    keep: frozenset[str] = frozenset()
    traced: Callable[[], None] = lambda: None

    def proof_file(self) -> Path:
        """Return the path of a file that only the proof needs; it is removed after the proof."""
        file = self.folder / PROOFS / f"{self.name}.onnx"
        file.parent.mkdir(exist_ok=True)
        return file


@dataclass(frozen=True, kw_only=True)
class Built:
    """Result of a job.

    Attributes:
        files: Files or folders written, the one that the runtime's backend opens first.
        batch: The batch the result is fixed to; None if it takes any.
        proof: File that the target's `proof` backend opens in place of the first file.
        notes: Further notes for the device, for the manifest.
    """

    files: Sequence[Path]
    batch: int | None = None
    proof: Path | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


class Builder(Protocol):
    """Interface of a target's module, which may also have an `Options` class."""

    def build(self, job: Job) -> Built:
        """Compile one network into `job.folder`."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A target: a way to run a bundle.

    Attributes:
        name: Name on the command line.
        module: Module with the `Builder` functions, imported on use.
        backend: The runtime's backend that opens the graphs.
        precisions: Precisions that `build` accepts, the default first, each with its parity tier
            (`parity.TIERS`).
        proof: Backend that parity uses, where it is not the bundle's own.
        extra: Extra of the edgedistill distribution that brings the SDK, "" if none is needed.
        requires: Modules of the SDK.
        programs: Programs that it calls.
        ready: "module:function" that returns in one line what else is missing, or None.
        builds_on: Systems (`platform.system()`) on which it compiles.
        runs_on: Description of the devices that run the result.
        grows: Whether its graphs take x of several heights and widths, as multi-resolution
            students need.
    """

    name: str
    module: str
    backend: str
    precisions: Mapping[str, str]
    proof: str = ""
    extra: str = ""
    requires: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    ready: str = ""
    builds_on: tuple[str, ...] = ("Linux", "Darwin", "Windows")
    runs_on: tuple[str, ...] = ()
    grows: bool = False

    @property
    def file(self) -> str:
        """File name of the target's module, for people."""
        return f"{self.module.rpartition('.')[2]}.py"

    def problem(self) -> str | None:
        """Return in one line why the target cannot compile here; None if it can."""
        if platform.system() not in self.builds_on:
            return f"target {self.name!r} compiles on {', '.join(self.builds_on)} only"
        missing = [module for module in self.requires if find_spec(module) is None]
        if missing:
            extras = ",".join(dict.fromkeys(ENGINES.get(m, self.extra) for m in missing))
            return (
                f"target {self.name!r} needs {', '.join(missing)}: "
                f"pip install 'edgedistill[{extras}]'"
            )
        absent = [program for program in self.programs if shutil.which(program) is None]
        if absent:
            return f"target {self.name!r} needs the program {absent[0]!r}"
        if self.ready:
            module, _, function = self.ready.partition(":")
            return cast("str | None", getattr(import_module(module), function)())
        return None

    def check(self, precision: str) -> None:
        """Raise a ValueError, naming the choices, unless it can compile to `precision` here."""
        if precision not in self.precisions:
            raise unknown(f"precision for target {self.name!r}:", precision, self.precisions)
        if problem := self.problem():
            raise ValueError(problem)

    def builder(self) -> Builder:
        """Import the target's module."""
        return cast("Builder", import_module(self.module))

    def options(self, given: Mapping[str, str]) -> Options:
        """Read options; ValueError names the key or value and the choices."""
        kind: type[Options] = getattr(self.builder(), "Options", Options)
        try:
            return kind.model_validate(dict(given), strict=False)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            if not kind.model_fields:
                raise ValueError(f"target {self.name!r} takes no options, got {key!r}") from None
            if first["type"] == "extra_forbidden":
                raise unknown(f"option of target {self.name!r}", key, kind.model_fields) from None
            reason = str(first["msg"]).removeprefix("Value error, ")
            raise ValueError(f"option {key}={first['input']!r}: {reason}") from None


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="ort",
            module="edgedistill_export.targets.ort",
            backend="ort",
            precisions={
                "fp32": "fp32",
                "fp16": "fp16",
                "int8": "int8",
                "int8-dynamic": "int8",
                "int8-weights": "int8",
                "int4-weights": "int4",
            },
            extra="cpu",
            requires=("onnx", "onnxruntime"),
            runs_on=("any CPU", "CUDA with onnxruntime-gpu", "DirectML, CoreML by provider"),
            grows=True,
        ),
        Target(
            name="openvino",
            module="edgedistill_export.targets.openvino",
            backend="openvino",
            precisions={
                "fp32": "fp32",
                "fp16": "fp16",
                "bf16": "bf16",
                "int8": "int8",
                "int8-hybrid": "int8",
                "int8-weights": "int8",
                "int4-weights": "int4",
            },
            extra="openvino",
            requires=("onnx", "openvino", "nncf"),
            runs_on=("Intel and ARM CPUs", "Intel GPU and NPU"),
            grows=True,
        ),
        Target(
            name="trt",
            module="edgedistill_export.targets.trt",
            backend="trt",
            proof="ort",
            precisions={
                "fp16": "fp16",
                "fp32": "fp32",
                "bf16": "bf16",
                "int8": "int8",
                "int8-weights": "int8",
                "int4-weights": "int4",
                "fp8": "int8",
            },
            extra="trt",
            requires=("onnx", "onnxruntime", "tensorrt_rtx"),
            builds_on=("Linux", "Windows"),
            runs_on=("NVIDIA GPUs of the capabilities built for",),
        ),
        Target(
            name="coreml",
            module="edgedistill_export.targets.coreml",
            backend="coreml",
            precisions={
                "fp16": "fp16",
                "fp32": "fp32",
                "pal8": "int8",
                "pal6": "int8",
                "pal4": "int4",
                "pal3": "int4",
                "pal2": "int4",
                "pal1": "int4",
                "int8": "int8",
                "int4": "int4",
                "joint": "int4",
            },
            extra="coreml",
            requires=("coremltools",),
            builds_on=("Linux", "Darwin"),
            runs_on=("macOS 14, iOS 17 and later; interpreted elsewhere",),
        ),
        Target(
            name="executorch",
            module="edgedistill_export.targets.executorch",
            backend="executorch",
            precisions={"fp32": "fp32", "int8": "int8"},
            extra="executorch",
            requires=("executorch",),
            runs_on=("ARM and x86 CPUs by XNNPACK: Android, iOS, Linux",),
        ),
        Target(
            name="web",
            module="edgedistill_export.targets.web",
            backend="ort",
            proof="web",
            precisions={"fp32": "fp32", "fp16": "fp16", "int8": "int8"},
            extra="cpu",
            requires=("onnx", "onnxruntime"),
            programs=("node",),
            ready="edgedistill_export.backends.web_home:problem",
            runs_on=("browsers with WebAssembly", "node"),
            grows=True,
        ),
    )
}


def target_names() -> list[str]:
    """Return the names of all known targets, built in or installed."""
    return sorted({*TARGETS, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def find_target(name: str) -> Target:
    """Return a target by name; ValueError names the choices."""
    if name in TARGETS:
        return TARGETS[name]
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return cast("Target", point.load())
    raise unknown("target", name, target_names())
