"""Backend of ONNX Runtime."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgedistill_runtime import compiled, machine
from edgedistill_runtime.backends.onnx_data import external_files
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

    On a CPU, the engine's own optimiser takes a quarter to two thirds of the time of opening a
    graph, so its result is kept for the next process (see `compiled`).

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
        options.intra_op_num_threads = threads or machine.cores()
        # A spinning worker loses more to any other busy process (3x measured on two cores with one
        # busy) than it gains on an idle machine, and it drains a battery.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        self._session = _open(ort, path, graph, options, wanted)
        if wanted[0] not in self._session.get_providers():
            raise ValueError(f"provider {wanted[0]!r} is installed but does not start here")
        if wanted[0] != CPU:
            check_provider(path.name, wanted[0], self._session)
        self._outputs = [port.name for port in graph.outputs]
        _check_ports(path, graph, self._session)

    @staticmethod
    def reads(path: Path) -> set[str]:
        """Return the files beside an .onnx file that hold its weights."""
        return external_files(path)

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run on named inputs into named outputs."""
        return dict(zip(self._outputs, self._session.run(self._outputs, inputs), strict=True))


def _open(ort: Any, path: Path, graph: Graph, options: Any, providers: list[str]) -> Any:
    """Open a graph as it was optimised before, or optimise it and keep the result.

    It is optimised here and not in the bundle, since the blocked layout of convolutions that the
    optimiser picks, which saves a quarter of a call, fits one kind of CPU.
    """
    key = _key(ort, graph, providers)
    if key is None:
        return ort.InferenceSession(str(path), options, providers=providers)
    levels, level = ort.GraphOptimizationLevel, options.graph_optimization_level
    kept = compiled.find_file(key)
    if kept is not None:
        options.graph_optimization_level = levels.ORT_DISABLE_ALL
        with suppress(Exception):  # whatever is wrong with a kept file, it is made again
            session = ort.InferenceSession(str(kept), options, providers=providers)
            _check_ports(kept, graph, session)
            return session
    options.graph_optimization_level = level
    with suppress(Exception), compiled.new_file(key) as new:  # such as a full disk
        if new is not None:
            options.optimized_model_filepath = str(new)
            return ort.InferenceSession(str(path), options, providers=providers)
    options.optimized_model_filepath = ""
    return ort.InferenceSession(str(path), options, providers=providers)


def _key(ort: Any, graph: Graph, providers: list[str]) -> dict[str, str] | None:
    """Return all that an optimised graph depends on; None if it cannot be kept.

    A graph without hashes is not yet part of a bundle. One with a second file has its weights
    there, and needs no copy of them. One with weights in few bits opens hardly faster, and takes
    more memory, as it was kept.
    """
    kind = machine.processor_kind()
    plain = len(graph.sha256) == 1 and not graph.precision.endswith("-weights")
    if not plain or providers != [CPU] or kind is None:
        return None
    return {
        "engine": f"onnxruntime {ort.__version__} {ort.get_build_info()}",
        "device": kind,
        "graph": json.dumps(graph.sha256),
        "optimised": "all",
    }


def _check_ports(path: Path, graph: Graph, session: Any) -> None:
    """Raise a BundleError if a session's inputs or outputs are not those of the manifest."""
    for side in ("inputs", "outputs"):
        if problem := _difference(getattr(session, f"get_{side}")(), getattr(graph, side)):
            raise BundleError(f"{path}: {side}: {problem}")


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
