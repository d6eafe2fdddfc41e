"""How much memory a piece of work takes at its highest, and weights that need none."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgedistill_runtime.bench import peak_rss_mb

__all__ = ["Peak", "WeightsOnDisk", "watch_peak", "weights_mb"]


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


class WeightsOnDisk:
    """A module's weights, moved to a file and mapped from there: read when they are needed.

    Args:
        module: Its parameters change place, not value; nobody may write to them from now on.
        path: The file to write. Where the system allows, it may be deleted while it is mapped.
    """

    def __init__(self, module: nn.Module, path: Path) -> None:
        parameters, places = [p for p in module.parameters() if p.numel()], []
        with path.open("wb+") as file:
            for parameter in parameters:
                file.write(bytes(-file.tell() % mmap.ALLOCATIONGRANULARITY))
                places.append(file.tell())
                flat = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8)
                file.write(flat.numpy().data)
            file.flush()
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if places else None
        for parameter, place in zip(parameters, places, strict=True):
            flat = torch.frombuffer(
                self._map, dtype=parameter.dtype, count=parameter.numel(), offset=place
            )
            parameter.data = flat.view(parameter.shape)

    def forget(self) -> None:
        """Give back the memory of what was read so far; it will be read again when asked for."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


def weights_mb(module: nn.Module) -> float:
    """What a module's parameters take in float32, MiB."""
    return sum(p.numel() for p in {id(p): p for p in module.parameters()}.values()) * 4 / 2**20
