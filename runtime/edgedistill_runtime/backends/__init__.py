"""Backends that run graphs, by name, imported when a bundle asks for one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgedistill_runtime.manifest import FILE_NAME, BundleError, Graph
from edgedistill_runtime.strict_json import short

__all__ = ["BACKENDS", "ENTRY_POINTS", "Session", "open_graph"]

BACKENDS = {
    "ort": "edgedistill_runtime.backends.ort:OrtSession",
    "openvino": "edgedistill_runtime.backends.openvino:OpenVINOSession",
    "trt": "edgedistill_runtime.backends.trt:TensorRTSession",
}
"""Classes by their name in the manifest, as "module:class", called as class(path, graph, threads=,
providers=)."""

ENTRY_POINTS = "edgedistill_runtime.backends"
"""Entry-point group in which other distributions offer backends, under names of their own."""


class Session(Protocol):
    """A loaded graph.

    Its class may have a function `reads(path)` that returns names of further files that the engine
    would open for the graph at `path`, relative to its folder.
    """

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run on named inputs, (N, ...) each, into named outputs."""


def open_graph(
    backend: str,
    directory: Path,
    graph: Graph,
    *,
    threads: int | None = None,
    providers: Sequence[str] | None = None,
) -> Session:
    """Load one graph of a bundle.

    Raises:
        BundleError: If the backend is unknown, naming the choices; if the backend cannot open or
            run a graph, or the graph needs a file without a hash, naming the graph.
        ValueError: If a provider is not available.
    """
    table = dict(BACKENDS)
    if backend not in table:
        table |= {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}
    if backend not in table:
        choices = ", ".join(sorted(table))
        raise BundleError(
            f"{directory / FILE_NAME}: backend: unknown {short(backend)}; choose from {choices}"
        )
    module, _, name = table[backend].partition(":")
    kind, file = getattr(import_module(module), name), directory / graph.file
    with _named(file):
        _check_reads(getattr(kind, "reads", None), file, graph)
        session: Session = kind(file, graph, threads=threads, providers=providers)
    named = _Named(session, file)
    return named if graph.batch is None else _Rows(named, graph.batch)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """Turn an engine's errors into one line that names the graph."""
    try:
        yield
    except (ValueError, MemoryError, ImportError):
        raise  # already our own message, or not the graph's fault
    except Exception as error:  # each engine has its own exceptions, some without text
        line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BundleError(f"{file}: {line}") from error


def _check_reads(reads: Callable[[Path], Iterable[str]] | None, file: Path, graph: Graph) -> None:
    """Refuse a graph that takes weights from a file without a hash.

    A graph without any hash is not yet part of a bundle.
    """
    if reads is None or not graph.sha256:
        return
    try:
        names = sorted(reads(file))
    except (OSError, ValueError) as error:
        raise BundleError(f"{file}: {error}") from None
    folder = PurePosixPath(graph.file).parent
    hashed = {PurePosixPath(name) for name in graph.sha256}
    for name in names:
        if folder / name not in hashed:
            raise BundleError(f"{file}: reads {short(name)}, which is not in its sha256")


class _Named:
    """A session whose errors name the graph."""

    def __init__(self, session: Session, file: Path) -> None:
        self._session, self._file = session, file

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        with _named(self._file):
            return self._session(**inputs)


class _Rows:
    """A session with a fixed batch, called with any: in pieces, the last one padded."""

    def __init__(self, session: Session, batch: int) -> None:
        self._session, self._batch = session, batch

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        count, batch = len(next(iter(inputs.values()))), self._batch
        pieces = []
        for start in range(0, count, batch):
            piece = {name: value[start : start + batch] for name, value in inputs.items()}
            lack = batch - min(batch, count - start)
            if lack:
                piece = {k: np.concatenate([v, v[-1:].repeat(lack, 0)]) for k, v in piece.items()}
            pieces.append(self._session(**piece))
        if len(pieces) == 1 and count == batch:
            return pieces[0]
        return {name: np.concatenate([p[name] for p in pieces])[:count] for name in pieces[0]}
