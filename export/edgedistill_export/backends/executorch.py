"""ExecuTorch's own runtime, with the kernels of a device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray

from edgedistill_export.quiet import no_stderr, quiet
from edgedistill_runtime.manifest import Graph

with quiet(), no_stderr():
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._threadpool_get_thread_count()  # starts the pool, which looks for Android's files

__all__ = ["ExecuTorchSession"]


class ExecuTorchSession:
    """A session of one .pte file.

    Args:
        path: The file.
        graph: Entry of the graph in the manifest.
        threads: Threads of the pool that all sessions of the process share; by default the pool is
            not changed.
        providers: Must be None, since the file fixes what runs each operator.

    Raises:
        ValueError: If providers are given, or another number of threads while other sessions are
            open.
    """

    def __init__(
        self,
        path: Path,
        graph: Graph,
        *,
        threads: int | None = None,
        providers: Sequence[str] | None = None,
    ) -> None:
        if providers:
            raise ValueError(
                f"unknown provider {providers[0]!r}; executorch has none, a bundle runs on the "
                "backend it was compiled for"
            )
        if threads:
            _resize_pool(threads)
        program = Runtime.get().load_program(path)
        self._method = program.load_method("forward")
        self._inputs = [port.name for port in graph.inputs]
        self._outputs = [port.name for port in graph.outputs]
        _open.add(self)

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Run on named inputs into named outputs, a batch of one."""
        results = self._method.execute([torch.tensor(inputs[name]) for name in self._inputs])
        return {name: result.numpy() for name, result in zip(self._outputs, results, strict=True)}


_open: WeakSet[ExecuTorchSession] = WeakSet()


def _resize_pool(threads: int) -> None:
    """Resize the thread pool; only without loaded programs, which would hang."""
    current = portable_lib._threadpool_get_thread_count()
    if threads == current:
        return
    if _open:
        raise ValueError(
            f"threads={threads}: {len(_open)} executorch graphs are open, which share a pool of "
            f"{current} threads; close them first"
        )
    with no_stderr():
        portable_lib._unsafe_reset_threadpool(threads)
