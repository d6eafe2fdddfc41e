"""This machine: how many cores this process may use, and the processor's name."""

from __future__ import annotations

import functools
import os
import platform
import time
from pathlib import Path

__all__ = ["busy_cores", "cores", "device", "processor", "processor_kind"]


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def busy_cores(seconds: float = 0.3) -> float | None:
    """Return how many cores are busy while this process waits; None where the system says nothing.

    Args:
        seconds: Time to wait.
    """
    before = _ticks()
    if before is None:
        return None
    time.sleep(seconds)
    after = _ticks()
    if after is None or after[1] <= before[1]:
        return None
    return (os.cpu_count() or 1) * (after[0] - before[0]) / (after[1] - before[1])


def _ticks() -> tuple[int, int] | None:
    """Return the busy and all ticks of all cores since the system began, by Linux's /proc/stat."""
    file = Path("/proc/stat")
    if not file.is_file():
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    numbers = [int(word) for word in file.read_text("utf-8").split("\n")[0].split()[1:9]]
    return sum(numbers) - sum(numbers[3:5]), sum(numbers)


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), None)
    return model or platform.processor() or platform.machine()


_KIND = {
    *("vendor_id", "cpu family", "model", "model name", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
}
"""Keys of /proc/cpuinfo that tell kinds of processors apart, of x86 and of ARM."""


@functools.cache
def processor_kind() -> str | None:
    """Return what tells this kind of processor from others, with its instruction sets.

    None where the system does not say which instruction sets there are.
    """
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return None
    lines = {line for line in info.read_text("utf-8").splitlines() if _key(line) in _KIND}
    if not any(_key(line) in ("flags", "Features") for line in lines):
        return None
    return "\n".join([platform.machine(), *sorted(lines)])


def _key(line: str) -> str:
    return line.partition(":")[0].strip()


def device() -> str:
    """Return a line that names this machine: its processor, cores and system."""
    return f"{processor()}, {cores()} cores, {platform.system()}"
