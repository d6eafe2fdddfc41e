"""Where a bundle can run: one literal table, each target's SDK imported only in its own module."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

from edgedistill.plugins import unknown
from edgedistill.teachers.base import Graph

__all__ = ["ENTRY_POINTS", "TARGETS", "Builder", "Target", "find_target", "target_names"]

ENTRY_POINTS = "edgedistill.targets"
"""Entry-point group whose objects are `Target`s of other distributions."""


class Builder(Protocol):
    """What a target's module provides."""

    def build(self, graph: Graph, name: str, precision: str, folder: Path) -> list[Path]:
        """Compile one network into `folder`.

        Args:
            graph: The network with example inputs.
            name: text_encoder, denoiser or decoder; names the files.
            precision: One of the target's.
            folder: The bundle being written.

        Returns:
            The files written; the first is the one the runtime's backend opens.
        """


@dataclass(frozen=True, kw_only=True)
class Target:
    """A way to run a bundle.

    Attributes:
        name: As on the command line.
        module: Module with the `Builder` functions, imported on use.
        backend: The runtime's backend that opens the graphs.
        precisions: What `build` accepts, the default first.
        extra: Extra of the edgedistill distribution that brings the SDK, "" if none is needed.
        requires: Modules of the SDK.
        builds_on: Systems (`platform.system()`) on which it compiles.
        runs_on: Where the result runs, in words.
    """

    name: str
    module: str
    backend: str
    precisions: tuple[str, ...]
    extra: str = ""
    requires: tuple[str, ...] = ()
    builds_on: tuple[str, ...] = ("Linux", "Darwin", "Windows")
    runs_on: tuple[str, ...] = ()

    def problem(self) -> str | None:
        """Why it cannot compile here, in one line; None if it can."""
        if platform.system() not in self.builds_on:
            return f"target {self.name!r} compiles on {', '.join(self.builds_on)} only"
        missing = [module for module in self.requires if find_spec(module) is None]
        if missing:
            return (
                f"target {self.name!r} needs {', '.join(missing)}: "
                f"pip install 'edgedistill[{self.extra}]'"
            )
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


TARGETS = {
    "ort": Target(
        name="ort",
        module="edgedistill_export.targets.ort",
        backend="ort",
        precisions=("fp32", "fp16"),
        requires=("onnx", "onnxruntime"),
        runs_on=("any CPU", "CUDA with onnxruntime-gpu"),
    ),
}


def target_names() -> list[str]:
    """Every target known here, built in or installed."""
    return sorted({*TARGETS, *(point.name for point in entry_points(group=ENTRY_POINTS))})


def find_target(name: str) -> Target:
    """A target by name; ValueError names the choices."""
    if name in TARGETS:
        return TARGETS[name]
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == name:
            return cast("Target", point.load())
    raise unknown("target", name, target_names())
