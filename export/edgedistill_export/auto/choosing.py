"""Choose the bundle that suits this device best: build candidates, prove them, measure them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from edgedistill.common.files import atomic_folder
from edgedistill.common.plugins import unknown
from edgedistill.common.progress import Progress
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.students.folder import load_student_info
from edgedistill_export.auto.kept import BATCH, BEST, PURPOSES, keep_choice
from edgedistill_export.bench import measure, warn_if_busy
from edgedistill_export.bench_subjects import BenchSubject
from edgedistill_export.many import ExportRow, export_many
from edgedistill_export.settings import ExportSettings
from edgedistill_export.targets import find_target
from edgedistill_runtime.machine import cores, device
from edgedistill_runtime.manifest import Choice, Manifest, Speed, schema_for

__all__ = ["CANDIDATES", "Chosen", "choose"]

log = logging.getLogger(__name__)

CANDIDATES = (
    ("openvino", "bf16"),
    ("openvino", "int8"),
    ("openvino", "fp32"),
    ("ort", "fp32"),
    ("ort", "int8"),
)
"""Targets and precisions whose bundles run where they are built."""

MORE = {"size": (("openvino", "int8-weights"), ("openvino", "int4-weights"))}
"""Further candidates, by purpose."""

FUSED_FOR = ("latency",)
"""Purposes for which the best bundle is built as one graph too, which takes minutes to compile."""

FINALISTS = 2
"""So many of the best are measured again, in turns with the one that is one graph."""

ROUNDS, RUNS, SECONDS = 3, 20, 10.0
"""Every candidate is measured in so many processes, in turns, each with so many calls at most."""


@dataclass(frozen=True)
class Chosen:
    """A choice among bundles.

    Attributes:
        place: The bundle that was chosen.
        choice: All that were measured.
        rows: All exports, with the reasons of those that failed.
    """

    place: Path
    choice: Choice
    rows: tuple[ExportRow, ...]


def choose(
    student: Path,
    purpose: str,
    settings: ExportSettings,
    key: str,
    *,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> Chosen:
    """Build every candidate that can be built here, and choose the best that passes its proof.

    The bundles are ordinary ones and stay beside the student. The chosen one's manifest gets the
    table of all. A student whose steps reuse deep blocks has fused candidates only.

    Args:
        student: The student dir.
        purpose: One of `PURPOSES`.
        settings: Settings of all exports.
        key: Text of the settings, by which the choice is found again.
        rebuild: Whether to build bundles that are up to date again.
        progress: Called as each part begins.

    Raises:
        ValueError: If the purpose is unknown, or no candidate can be built and proven here.
    """
    if purpose not in PURPOSES:
        raise unknown("purpose", purpose, PURPOSES)
    if TorchStepTable.from_json(load_student_info(student).step_table).reuses:
        settings = replace(settings, fused=True)
    pairs = (*CANDIDATES, *MORE.get(purpose, ()))
    wanted = [pair for pair in pairs if find_target(pair[0]).problem() is None]
    if not wanted:
        raise ValueError("--target auto: no target that runs here is installed; see doctor")

    def build(pairs: Sequence[tuple[str, str]], settings: ExportSettings) -> list[ExportRow]:
        return export_many(
            student, pairs, None, settings, rebuild=rebuild, keep_going=True, progress=progress
        )

    rows = build(wanted, settings)
    made = {row.name: (pair, row) for pair, row in zip(wanted, rows, strict=True) if row.place}
    if not made:
        raise ValueError(f"--target auto: no bundle passes; {rows[0].name}: {rows[0].error}")
    speeds = _measured([row for _, row in made.values()], progress)
    best = min(speeds, key=BEST[purpose])
    if purpose in FUSED_FOR and not settings.fused:
        pair, _ = made[best.bundle]
        fused = build([pair], replace(settings, fused=True))
        rows += fused
        near = [each.bundle for each in sorted(speeds, key=BEST[purpose])[:FINALISTS]]
        finalists = [made[name][1] for name in near] + [each for each in fused if each.place]
        again = _measured(finalists, progress)
        speeds = [*(speed for speed in speeds if speed.bundle not in near), *again]
        best = min(speeds, key=BEST[purpose])
    home = next(row.place.parent for row in rows if row.place)
    choice = Choice(device=device(), purpose=purpose, threads=best.threads, speeds=tuple(speeds))
    _record(home / best.bundle, choice)
    keep_choice(student, purpose, key, home / best.bundle)
    return Chosen(home / best.bundle, choice, tuple(rows))


def _measured(rows: Sequence[ExportRow], progress: Progress | None) -> list[Speed]:
    """Measure all bundles in turns: first with one thread and with all cores, then the faster way.

    The rate of several pictures a call is measured once.
    """
    warn_if_busy()
    trial = _Trial(rows, progress)
    counts = sorted({1, cores()})
    threads = {}
    for row in rows:
        by_count = {count: trial.run(row, count)["p50_s"] for count in counts}
        threads[row.name] = min(by_count, key=lambda count: by_count[count])
    rates = {row.name: trial.run(row, threads[row.name], BATCH)["p50_s"] for row in rows}
    for _ in range(ROUNDS - 1):
        for row in rows:
            trial.run(row, threads[row.name])
    return [
        _speed(row, threads[row.name], trial.found[row.name, threads[row.name]], rates[row.name])
        for row in rows
    ]


class _Trial:
    """Processes that measure bundles, one after the other."""

    def __init__(self, rows: Sequence[ExportRow], progress: Progress | None) -> None:
        self._progress, self._done = progress, 0
        self._total = len(rows) * (len({1, cores()}) + ROUNDS)
        self.found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        """Figures of one picture a call, by name and threads."""

    def run(self, row: ExportRow, threads: int, batch: int = 1) -> dict[str, Any]:
        """Measure one bundle in a process of its own."""
        if self._progress:
            self._progress(self._done, self._total, f"{row.name} is measured")
        self._done += 1
        subject = BenchSubject(name=row.name, path=str(row.place), bundle=True)
        options = ("--seconds", str(SECONDS), "--batch", str(batch))
        figures = measure(subject, RUNS, threads, options)
        if batch == 1:
            self.found.setdefault((row.name, threads), []).append(figures)
        return figures


def _speed(
    row: ExportRow, threads: int, rounds: Sequence[dict[str, Any]], batch_s: float
) -> Speed:
    assert row.place is not None
    assert row.parity is not None
    peaks = [figures["peak_rss_mb"] for figures in rounds]
    return Speed(
        bundle=row.place.name,
        threads=threads,
        p50_s=median(figures["p50_s"] for figures in rounds),
        pictures_per_s=BATCH / batch_s,
        start_s=median(figures["load_s"] + figures["first_s"] for figures in rounds),
        peak_rss_mb=None if None in peaks else median(peaks),
        size_mb=row.size_mb,
        worst_db=row.parity.final.worst,
    )


def _record(place: Path, choice: Choice) -> None:
    """Write the table into a bundle's manifest; a kill leaves the old bundle or the new one."""
    manifest = Manifest.read(place)
    others = [each for each in manifest.choices if each.purpose != choice.purpose]
    choices = (*others, choice)
    version = schema_for(manifest.steps, choices)
    with atomic_folder(place) as work:
        shutil.copytree(place, work, dirs_exist_ok=True)
        replace(manifest, choices=choices, schema_version=version).write(work)
