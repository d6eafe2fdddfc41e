"""How much memory a piece of work takes at its highest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from edgedistill_runtime.bench import peak_rss_mb

__all__ = ["Peak", "watch_peak", "weights_mb"]


@dataclass
class Peak:
    """Peak resident memory in MiB, once the work is done; None where the system does not tell."""

    mb: float | None = None


@contextmanager
def watch_peak() -> Iterator[Peak]:
    """Peak resident memory of this process from here on.

    On Linux the mark is set back first; elsewhere it is the highest since the process began.
    """
    peak = Peak()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    yield peak
    peak.mb = peak_rss_mb()


def weights_mb(module: nn.Module) -> float:
    """What a module's parameters take in float32, MiB."""
    return sum(p.numel() for p in {id(p): p for p in module.parameters()}.values()) * 4 / 2**20
