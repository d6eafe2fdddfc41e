"""Backend of ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill_runtime.backends.onnx_data import external_files
from edgedistill_runtime.machine import cores
from edgedistill_runtime.manifest import BundleError, Graph, Port

__all__ = ["MIN_COVERAGE", "OrtSession", "check_coverage", "check_provider", "load_onnxruntime"]

log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"

MIN_COVERAGE = 0.75
"""Smallest share of a graph's nodes that the requested provider must take. Below, the graph is
split between two devices and is slower, with more memory, than on the CPU alone."""

EXTRAS = "pip install 'edgedistill-runtime[cpu]', or [gpu], [directml] or [qnn] in its place"


def load_onnxruntime() -> Any:
    """Import the module `onnxruntime`.

    Raises:
        ValueError: If it is not installed, does not load, or has lost files to another of its
            distributions.
    """
    try:
        module = import_module("onnxruntime")
    except ModuleNotFoundError:
        raise ValueError(f"this bundle needs onnxruntime: {EXTRAS}") from None
    except ImportError as error:
        line = next(iter(str(error).splitlines()), "")
        raise ValueError(f"onnxruntime is installed but does not load here: {line}") from None
    if not hasattr(module, "InferenceSession"):
        raise ValueError(
            "onnxruntime has lost files, as it does when two of onnxruntime, onnxruntime-gpu, "
            f"-directml and -qnn were installed: uninstall all of them, then {EXTRAS}"
        )
    return module


class OrtSession:
    """A session of one ONNX graph.

    Args:
        path: The .onnx file.
        graph: Entry of the graph in the manifest.
        threads: Threads inside an operator; by default the cores this process may use.
        providers: Execution providers by preference; by default the CPU.

    Raises:
        ValueError: If onnxruntime is missing, this installation lacks or cannot start a provider,
            or it leaves too many nodes to the CPU.
    """

    def __init__(
        self,
        path: Path,
        graph: Graph,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        ort = load_onnxruntime()
        wanted = list(providers or [CPU])
        if missing := [name for name in wanted if name not in ort.get_available_providers()]:
            have = ", ".join(ort.get_available_providers())
            raise ValueError(f"unknown provider {missing[0]!r}; choose from {have}")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or cores()
        # A spinning worker loses more to any other busy process (3x measured on two cores with one
        # busy) than it gains on an idle machine, and it drains a battery.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        # Optimise fully here, not in the file: the blocked convolution layout that it picks fits
        # one kind of CPU, saves a quarter of the time, and takes 0.1 s.
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self._session = ort.InferenceSession(str(path), options, providers=wanted)
        if wanted[0] not in self._session.get_providers():
            raise ValueError(f"provider {wanted[0]!r} is installed but does not start here")
        if wanted[0] != CPU:
            check_provider(path.name, wanted[0], self._session)
        self._outputs = [port.name for port in graph.outputs]
        for side in ("inputs", "outputs"):
            if problem := _difference(
                getattr(self._session, f"get_{side}")(), getattr(graph, side)
            ):
                raise BundleError(f"{path}: {side}: {problem}")

    @staticmethod
    def reads(path: Path) -> set[str]:
        """Return the files beside an .onnx file that hold its weights."""
        return external_files(path)

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run on named inputs into named outputs."""
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))


_TYPES = {"float32": "tensor(float)", "bool": "tensor(bool)"}


def _difference(found: Sequence[Any], ports: Sequence[Port]) -> str | None:
    """Return the first difference of a graph's inputs or outputs from the manifest; or None."""
    named = {port.name: port for port in ports}
    if sorted(named) != sorted(value.name for value in found):
        names = ", ".join(value.name for value in found)
        return f"{names}; the manifest says {', '.join(named)}"
    for value in found:
        port = named[value.name]
        shape = [*port.shape]
        fits = len(shape) == len(value.shape) and all(
            a == b or not (isinstance(a, int) and isinstance(b, int))
            for a, b in zip(shape, value.shape, strict=True)
        )
        if not fits or value.type != _TYPES.get(port.dtype, f"tensor({port.dtype})"):
            said = f"{port.dtype} {shape}"
            return f"{port.name} is {value.type} {value.shape}; the manifest says {said}"
    return None


def check_provider(name: str, provider: str, session: Any) -> None:
    """Refuse a session whose provider took too few of the graph's nodes.

    An onnxruntime before 1.24 does not tell which nodes a provider takes; a line says so.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):
        log.info(f"{name}: this onnxruntime does not tell which nodes {provider} takes: unchecked")
        return
    taken: dict[str, int] = {}
    for piece in session.get_provider_graph_assignment_info():
        taken[piece.ep_name] = taken.get(piece.ep_name, 0) + len(piece.get_nodes())
    check_coverage(name, provider, taken)


def check_coverage(name: str, provider: str, taken: Mapping[str, int]) -> None:
    """Refuse a provider that took too few of a graph's nodes.

    Args:
        name: The graph, for the message.
        provider: The requested provider.
        taken: Number of nodes by provider.

    Raises:
        ValueError: If the share is below `MIN_COVERAGE`; contains the numbers.
    """
    total, mine = sum(taken.values()), taken.get(provider, 0)
    if mine < MIN_COVERAGE * total:
        raise ValueError(
            f"{name}: {provider} takes {mine} of {total} nodes, under {MIN_COVERAGE:.0%}; "
            "leave the provider out or export for another target"
        )
