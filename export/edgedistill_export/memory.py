"""How much memory a piece of work takes at its highest, and weights that need none."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from edgedistill_runtime.bench import peak_rss_mb

__all__ = ["Peak", "WeightsOnDisk", "reading_frugally", "watch_peak", "weights_mb"]


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


@contextmanager
def reading_frugally(folder: Path, pause: float = 0.1) -> Iterator[None]:
    """Meanwhile give back, again and again, the memory of what is read of files mapped from here.

    What a library reads of a mapped file stays in the process's resident memory for as long as
    there is room. On Linux only; elsewhere nothing is done.

    Args:
        folder: Holds the files, which are mapped already. They stay so to the end of the context:
            the caller keeps hold of what maps them.
        pause: Seconds between two rounds.
    """
    places = _mapped(folder)
    madvise = getattr(ctypes.CDLL(None), "madvise", None) if places else None
    if madvise is None:
        yield
        return
    done = threading.Event()

    def give_back() -> None:
        while not done.wait(pause):
            for start, end in places:
                madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)

    thread = threading.Thread(target=give_back, name="give-back", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _mapped(folder: Path) -> list[tuple[int, int]]:
    """Addresses at which this process maps files of a folder to be read, start and end."""
    places = []
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            # address, permissions, offset, device, inode, path
            addresses, permissions, *_, path = line.split(maxsplit=5)
            # Pages that could have been written to would be lost.
            if "w" not in permissions and Path(path).parent == folder.resolve():
                start, end = addresses.split("-")
                places.append((int(start, 16), int(end, 16)))
    return places


def weights_mb(module: nn.Module) -> float:
    """What a module's parameters take in float32, MiB."""
    return sum(p.numel() for p in {id(p): p for p in module.parameters()}.values()) * 4 / 2**20
