"""OpenVINO: Intel CPUs, GPUs and NPUs, and ARM CPUs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill_runtime.manifest import Graph

__all__ = ["OpenVINOSession", "load_openvino", "without_telemetry"]

_AUTO = "AUTO"


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Hide openvino_telemetry from imports in this block.

    OpenVINO's packages report their import and use over the network, by a module that is optional.
    """
    name, modules = "openvino_telemetry", vars(sys)["modules"]
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
        core = load_openvino().Core()
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
        device = wanted[0] if len(wanted) == 1 else f"{_AUTO}:{named}"
        compiled = core.compile_model(str(path), device, {"PERFORMANCE_HINT": "LATENCY"})
        self._request = compiled.create_infer_request()
        self._lock = threading.Lock()
        self._outputs = [port.name for port in graph.outputs]

    @staticmethod
    def reads(path: Path) -> set[str]:
        """Return the file beside an .xml file that holds its weights."""
        weights = path.with_suffix(".bin")
        return {weights.name} if weights.exists() else set()

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run on named inputs into named outputs; calls from several threads take turns."""
        with self._lock:
            # Copy in and out, since OpenVINO writes into inputs that it shares with the caller.
            results = self._request.infer(inputs, share_inputs=False, share_outputs=False)
        return {name: results[name] for name in self._outputs}
