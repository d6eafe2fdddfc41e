"""The choice that `auto` made for a student on this device, read without building anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.table import Table

from edgedistill.common.decibels import decibels
from edgedistill.common.files import read_json, write_json
from edgedistill_runtime.machine import device
from edgedistill_runtime.manifest import Choice, Manifest, Speed

__all__ = [
    "AUTO",
    "BATCH",
    "BEST",
    "FILE",
    "PURPOSES",
    "check_alone",
    "find_choice",
    "keep_choice",
    "key_of",
    "table",
]

AUTO = "auto"
"""Target that stands for the best of those that run here."""

FILE = "auto.json"
"""File of the choices, beside the bundles."""

PURPOSES: Mapping[str, str] = {
    "latency": "least time for one picture",
    "throughput": "most pictures a second, several a call",
    "memory": "least memory at the peak",
    "size": "smallest files",
    "start": "least time from loading to the first picture",
}
"""Purposes that a bundle can be chosen for, each with its meaning."""

BATCH = 8
"""Pictures of a call where the rate counts."""

BEST: Mapping[str, Callable[[Speed], float]] = {
    "latency": lambda speed: speed.p50_s,
    "throughput": lambda speed: -speed.pictures_per_s,
    "memory": lambda speed: speed.peak_rss_mb or float("inf"),
    "size": lambda speed: speed.size_mb,
    "start": lambda speed: speed.start_s,
}
"""Figure that is least for the best bundle, by purpose."""


ENGINES = ("onnxruntime", "openvino", "edgedistill", "edgedistill-runtime")
"""Distributions whose version may change what is fastest."""


def check_alone(
    targets: Sequence[str],
    precisions: Sequence[str],
    out: Path | None,
    *,
    dry_run: bool = False,
    layout: str = "",
) -> None:
    """Raise a ValueError if something is asked for beside target auto, which chooses it itself."""
    if dry_run:
        raise ValueError("--target auto builds and measures; name targets for --dry-run")
    if layout:
        raise ValueError(f"--layout {layout}: name the target that it is for in place of auto")
    if len(targets) > 1 or precisions:
        raise ValueError("--target auto chooses target and precision itself; name it alone")
    if out:
        raise ValueError("--target auto keeps its bundles beside the student; leave out --out")


def key_of(settings: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """Return the text of all settings that differ from the plain ones."""
    other = {name: str(value) for name, value in settings.items() if value != plain[name]}
    return json.dumps(other, sort_keys=True)


def find_choice(student: Path, purpose: str, settings: str) -> Path | None:
    """Return the bundle that was chosen before, if nothing that it depends on has changed.

    Args:
        student: The student dir.
        purpose: One of `PURPOSES`.
        settings: Text of all other settings of the export.
    """
    file = _file(student)
    if not file.is_file():
        return None
    try:
        entry = read_json(file).get(purpose)
        if not isinstance(entry, dict) or entry.get("key") != _key(student, settings):
            return None
        place = file.parent / str(entry.get("bundle"))
        kept = any(choice.purpose == purpose for choice in Manifest.read(place).choices)
        return place if kept else None
    except ValueError:
        return None  # damaged, or the bundle is gone: chosen anew


def keep_choice(student: Path, purpose: str, settings: str, bundle: Path) -> None:
    """Remember which bundle was chosen."""
    file = _file(student)
    try:
        entries = read_json(file) if file.is_file() else {}
    except ValueError:
        entries = {}
    entry = {"key": _key(student, settings), "bundle": bundle.name}
    write_json(file, {**entries, purpose: entry})


def _home(student: Path) -> Path:
    """Return the student dir of a run dir, or of itself."""
    inner = student / "student"
    return inner if (inner / "student.json").is_file() else student


def _file(student: Path) -> Path:
    return _home(student).parent / "bundles" / FILE


def _key(student: Path, settings: str) -> dict[str, Any]:
    made = (_home(student) / "student.json").read_bytes()
    return {
        "student": hashlib.sha256(made).hexdigest(),
        "device": device(),
        "versions": {name: _version(name) for name in ENGINES},
        "settings": settings,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def table(choice: Choice, chosen: str) -> Table:
    """Make the table of a choice for a terminal, the chosen bundle marked."""
    made = Table(title=f"For {choice.purpose}: {PURPOSES[choice.purpose]}", box=None)
    made.title_justify = "left"
    made.add_column("bundle", no_wrap=True)
    for heading in ("threads", "p50 ms", f"1/s at {BATCH}", "start s", "peak MiB", "MiB", "dB"):
        made.add_column(heading, justify="right")
    for speed in sorted(choice.speeds, key=BEST[choice.purpose]):
        peak = speed.peak_rss_mb
        made.add_row(
            f"{'* ' if speed.bundle == chosen else '  '}{speed.bundle}",
            str(speed.threads),
            f"{1000 * speed.p50_s:.1f}",
            f"{speed.pictures_per_s:.1f}",
            f"{speed.start_s:.2f}",
            "-" if peak is None else f"{peak:.0f}",
            f"{speed.size_mb:.1f}",
            decibels(speed.worst_db),
        )
    return made
