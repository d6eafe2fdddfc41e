"""Core ML: the framework itself on a Mac, `edgedistill_export.mil` elsewhere."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from edgedistill_export.mil import Interpreter, read_package
from edgedistill_export.mil.sdk import coremltools, quiet
from edgedistill_runtime.manifest import BundleError, Graph

__all__ = ["PACKAGE", "UNITS", "CoreMLSession"]

PACKAGE = ".mlpackage"

UNITS = ("all", "cpu_and_ne", "cpu_and_gpu", "cpu_only")
"""Compute units that a Mac may use."""


class CoreMLSession:
    """A session of one graph: a package, or a folder of packages that run one after the other.

    Args:
        path: The package or the folder.
        graph: Entry of the graph in the manifest, whose notes name the compute units.
        threads: Threads of the interpreter, which are torch's, for the whole process. Core ML
            chooses its own.
        providers: The compute units to use instead, one of `UNITS`; only on a Mac.

    Raises:
        ValueError: If compute units are unknown, or any are given without Core ML.
        BundleError: If there is no package.
    """

    def __init__(
        self,
        path: Path,
        graph: Graph,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        packages = [path] if path.suffix == PACKAGE else sorted(path.glob(f"*{PACKAGE}"))
        if not packages:
            raise BundleError(f"{path}: no {PACKAGE} in it")
        units = graph.notes.get("compute_units", UNITS[0])
        if providers:
            units = _chosen(providers)
        if threads:
            torch.set_num_threads(threads)
        native = platform.system() == "Darwin"
        self._programs: list[_Program] = [
            _Native(package, units) if native else Interpreter(read_package(package))
            for package in packages
        ]
        self._outputs = [port.name for port in graph.outputs]

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run on named inputs into named outputs, a batch of one."""
        values: dict[str, NDArray[Any]] = dict(inputs)
        for program in self._programs:
            values.update(program(**values))
        return {name: values[name] for name in self._outputs}


class _Program(Protocol):
    def __call__(self, **inputs: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """Run on named inputs, which may include unused ones, into named outputs."""


class _Native:
    """A program that Core ML itself runs."""

    def __init__(self, package: Path, units: str) -> None:
        with quiet():
            self._model = coremltools.models.MLModel(
                str(package), compute_units=coremltools.ComputeUnit[units.upper()]
            )
        integer = coremltools.proto.FeatureTypes_pb2.ArrayFeatureType.INT32
        self._types = {
            entry.name: np.int32 if entry.type.multiArrayType.dataType == integer else np.float32
            for entry in self._model.get_spec().description.input
        }

    def __call__(self, **inputs: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        taken = {name: inputs[name].astype(kind) for name, kind in self._types.items()}
        result: Mapping[str, NDArray[Any]] = self._model.predict(taken)
        return result


def _chosen(providers: Sequence[str]) -> str:
    wanted = providers[0]
    if wanted not in UNITS:
        raise ValueError(f"unknown compute units {wanted!r}; choose from {', '.join(UNITS)}")
    if platform.system() != "Darwin":
        raise ValueError(f"compute units {wanted!r} are a Mac's; elsewhere Core ML is interpreted")
    return wanted
