"""Peak memory of a piece of work, and weights that stay on disk."""

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
    """Peak resident memory in MiB, set once the work is done; None if the system has no figure."""

    mb: float | None = None


@contextmanager
def watch_peak() -> Iterator[Peak]:
    """Watch the peak resident memory of this process from here on.

    On Linux the peak is reset first; elsewhere it is the highest since the process began.
    """
    peak = Peak()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    yield peak
    peak.mb = peak_rss_mb()


class WeightsOnDisk:
    """A module's weights, moved to a file and mapped from there, so they are read when needed.

    Args:
        module: Module whose parameters keep their values, but must not be written to from now on.
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
        """Free the memory of what was read so far; it is read again when needed."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


@contextmanager
def reading_frugally(folder: Path, pause: float = 0.1) -> Iterator[None]:
    """Free again and again, during the block, the memory of files mapped from a folder.

    Pages that a library reads of a mapped file stay in the process's resident memory as long as
    there is room. This works on Linux only; elsewhere nothing is done.

    Args:
        folder: Folder of the files, which are already mapped. The caller must keep them mapped
            until the end of the block.
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
    """Return start and end addresses of this process's read-only maps of files in a folder."""
    places = []
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text().splitlines():
            # fields: address, permissions, offset, device, inode, path
            addresses, permissions, *_, path = line.split(maxsplit=5)
            # Changes in writable pages would be lost.
            if "w" not in permissions and Path(path).parent == folder.resolve():
                start, end = addresses.split("-")
                places.append((int(start, 16), int(end, 16)))
    return places


def weights_mb(module: nn.Module) -> float:
    """Return the size of a module's parameters in float32, MiB."""
    return sum(p.numel() for p in {id(p): p for p in module.parameters()}.values()) * 4 / 2**20
