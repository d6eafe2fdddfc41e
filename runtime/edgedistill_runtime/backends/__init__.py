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

BACKENDS = {"ort": "edgedistill_runtime.backends.ort:OrtSession"}
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
    return session
