"""This machine: how many cores this process may use, and the processor's name."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["cores", "device", "processor"]


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.is_file() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), None)
    return model or platform.processor() or platform.machine()


def device() -> str:
    """Return a line that names this machine: its processor, cores and system."""
    return f"{processor()}, {cores()} cores, {platform.system()}"
