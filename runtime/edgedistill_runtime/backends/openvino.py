"""OpenVINO: Intel CPUs, GPUs and NPUs, and ARM CPUs."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill_runtime import compiled
from edgedistill_runtime.manifest import Graph, Port

__all__ = ["OpenVINOSession", "load_openvino", "without_telemetry"]

_AUTO = "AUTO"

_IMPORTS = threading.RLock()
"""Graphs are opened side by side."""


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Hide openvino_telemetry from imports in this block.

    OpenVINO's packages report their import and use over the network, by a module that is optional.
    """
    name, modules = "openvino_telemetry", vars(sys)["modules"]
    with _IMPORTS:
        before = {name: modules[name]} if name in modules else {}
        modules[name] = None
        try:
            yield
        finally:
            del modules[name]
            modules.update(before)


def load_openvino() -> Any:
    """Import the module `openvino`; ValueError if it is not installed."""
    with without_telemetry():
        try:
            return import_module("openvino")
        except ImportError:
            raise ValueError("this bundle needs openvino (pip install openvino)") from None


class OpenVINOSession:
    """A session of one graph in OpenVINO's format.

    A graph with a free batch is compiled for one row, and for the first other number of rows that
    it is called with: a CPU runs known shapes in two thirds of the time. All further numbers share
    one that takes any number, so that there are at most three. What was compiled is kept for the
    next process (see `compiled`).

    Args:
        path: The .xml file, its weights beside it in the .bin.
        graph: Entry of the graph in the manifest. Its notes are properties of devices: with
            "CPU.INFERENCE_PRECISION_HINT": "f32" a CPU computes in float32 instead of its fastest
            type.
        threads: Threads that a CPU may use; by default as many as it has cores.
        providers: Devices (CPU, GPU, NPU), the first that can run the graph is used; or AUTO,
            which leaves the choice to OpenVINO. By default the CPU.

    Raises:
        ValueError: If a device is not available, or OpenVINO is missing.
    """

    def __init__(
        self,
        path: Path,
        graph: Graph,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        self._openvino = load_openvino()
        self._core = core = self._openvino.Core()
        devices = core.available_devices
        wanted = list(providers or ["CPU"])
        # Several devices of a kind are GPU.0, GPU.1; GPU is the first of them.
        known = dict.fromkeys([*(d.partition(".")[0] for d in devices), *devices, _AUTO])
        if missing := [name for name in wanted if name not in known]:
            raise ValueError(f"unknown device {missing[0]!r}; choose from {', '.join(known)}")
        for note, value in graph.notes.items():
            device, _, key = note.partition(".")
            if device in known:
                core.set_property(device, {key: value})
        if threads and "CPU" in known:
            core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads})
        named = ",".join(name for name in wanted if name != _AUTO)
        self._device = wanted[0] if len(wanted) == 1 else f"{_AUTO}:{named}"
        self._path, self._graph, self._threads = path, graph, threads
        self._lock = threading.Lock()
        self._outputs = [port.name for port in graph.outputs]
        self._fixed = all(_free_batch_only(port) for port in graph.inputs)
        self._requests: dict[int | None, Any] = {}
        self._several: int | None = None
        self._request(1)

    @staticmethod
    def reads(path: Path) -> set[str]:
        """Return the file beside an .xml file that holds its weights."""
        weights = path.with_suffix(".bin")
        return {weights.name} if weights.exists() else set()

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run on named inputs into named outputs; calls from several threads take turns."""
        with self._lock:
            request = self._request(len(next(iter(inputs.values()))))
            # Copy in and out, since OpenVINO writes into inputs that it shares with the caller.
            results = request.infer(inputs, share_inputs=False, share_outputs=False)
        return {name: results[name] for name in self._outputs}

    def _request(self, count: int) -> Any:
        """Return the request for `count` rows, compiled at its first use."""
        if count > 1 and self._several is None:
            self._several = count
        rows = count if self._fixed and count in (1, self._several) else None
        if rows not in self._requests:
            self._requests[rows] = self._compile(rows).create_infer_request()
        return self._requests[rows]

    def _compile(self, rows: int | None) -> Any:
        """Compile the graph for a number of rows or for any, or take what was compiled before."""
        key = self._key(rows)
        kept = compiled.find(key) if key else None
        if kept is not None:
            try:
                return self._core.import_model(io.BytesIO(kept), self._device, _HINTS)
            except RuntimeError:
                pass  # of another build of the engine: compiled again
        if rows is None:
            made = self._core.compile_model(str(self._path), self._device, _HINTS)
        else:
            model = self._core.read_model(str(self._path))
            shapes = {port.name: [rows, *port.shape[1:]] for port in self._graph.inputs}
            model.reshape(shapes)
            made = self._core.compile_model(model, self._device, _HINTS)
        if key:
            compiled.keep(key, made.export_model().getvalue())
        return made

    def _key(self, rows: int | None) -> dict[str, str] | None:
        """Return all that a compiled graph depends on; None if it cannot be kept.

        A graph without hashes is not yet part of a bundle.
        """
        if not self._graph.sha256 or self._device.startswith(_AUTO):
            return None
        if "EXPORT_IMPORT" not in self._property("OPTIMIZATION_CAPABILITIES"):
            return None
        return {
            "engine": self._openvino.get_version(),
            "device": f"{self._device} {self._property('FULL_DEVICE_NAME')}",
            "graph": json.dumps(self._graph.sha256, sort_keys=True),
            "notes": json.dumps(dict(self._graph.notes), sort_keys=True),
            "rows": str(rows),
            "threads": str(self._threads),
        }

    def _property(self, name: str) -> Any:
        return self._core.get_property(self._device, name)


_HINTS = {"PERFORMANCE_HINT": "LATENCY"}


def _free_batch_only(port: Port) -> bool:
    """Whether the batch is the free axis of an input, and its only one."""
    batch, *rest = port.shape
    return isinstance(batch, str) and all(isinstance(size, int) for size in rest)
