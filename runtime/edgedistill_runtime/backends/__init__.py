"""What executes a graph: a table of names, each imported when a bundle asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgedistill_runtime.manifest import FILE_NAME, BundleError, Graph

__all__ = ["BACKENDS", "ENTRY_POINTS", "Session", "open_graph"]

BACKENDS = {
    "ort": "edgedistill_runtime.backends.ort:OrtSession",
    "openvino": "edgedistill_runtime.backends.openvino:OpenVINOSession",
    "trt": "edgedistill_runtime.backends.trt:TensorRTSession",
}
"""Name in the manifest -> "module:class", called as class(path, graph, threads=, providers=)."""

ENTRY_POINTS = "edgedistill_runtime.backends"
"""Entry-point group in which other distributions offer backends, under names of their own."""


class Session(Protocol):
    """A loaded graph."""

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
        BundleError: for a backend that nobody offers, naming the choices.
    """
    table = dict(BACKENDS)
    if backend not in table:
        table |= {entry.name: entry.value for entry in entry_points(group=ENTRY_POINTS)}
    if backend not in table:
        choices = ", ".join(sorted(table))
        raise BundleError(
            f"{directory / FILE_NAME}: backend: unknown {backend!r}; choose from {choices}"
        )
    module, _, name = table[backend].partition(":")
    session: Session = getattr(import_module(module), name)(
        directory / graph.file, graph, threads=threads, providers=providers
    )
    return session if graph.batch is None else _Rows(session, graph.batch)


class _Rows:
    """A graph fixed to a batch, called with any: in pieces, the last one filled up."""

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
