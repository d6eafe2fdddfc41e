"""Several exports of one student in one call, and a table of the results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from edgedistill.common.decibels import decibels
from edgedistill.common.files import write_json
from edgedistill.common.plugins import unknown
from edgedistill.common.progress import Progress
from edgedistill_export.auto.kept import AUTO
from edgedistill_export.bundle import ExportSettings, Peaks, export_student
from edgedistill_export.parity import ParityError
from edgedistill_export.targets import find_target, target_names
from edgedistill_runtime.manifest import FILE_NAME, Manifest, Parity
from edgedistill_runtime.routes import ROUTES, Routes

__all__ = [
    "ExportRow",
    "as_json",
    "export_group",
    "export_many",
    "memory_lines",
    "pairs",
    "table",
]

ALL = "all"
"""Name of all targets that build here, or of all precisions of a target."""


@dataclass(frozen=True, kw_only=True)
class ExportRow:
    """Result of one export.

    Attributes:
        name: TARGET-PRECISION, with a suffix for other settings.
        place: The bundle dir, None if there is none.
        seconds: Duration of the whole export, including the proof.
        size_mb: Size of all files, MiB.
        parity: Parity figures, also of a bundle below its floor.
        error: Reason why there is no bundle, "" if there is one.
        problem: Exception behind `error`.
        peaks: Memory used to compile each network; empty if nothing was built.
    """

    name: str
    place: Path | None
    seconds: float
    size_mb: float
    parity: Parity | None
    error: str
    problem: Exception | None = None
    peaks: Peaks = field(default_factory=dict)


def pairs(targets: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    """Return (target, precision) of every requested export.

    Args:
        targets: Names of targets, or "all" for those that build here.
        precisions: Precisions for every target; "all" for all that it has; empty for its first.

    Raises:
        ValueError: If a name is unknown, or a target cannot build here.
    """
    names = list(targets)
    if ALL in names:
        names = [name for name in target_names() if find_target(name).problem() is None]
    found = []
    for name in names:
        if name not in target_names():
            raise unknown("target", name, (ALL, AUTO, *target_names()))
        target = find_target(name)
        wanted = list(precisions) or [next(iter(target.precisions))]
        if ALL in wanted:
            wanted = list(target.precisions)
        for precision in wanted:
            target.check(precision)
            found.append((name, precision))
    return list(dict.fromkeys(found))


def export_many(
    student: Path,
    wanted: Sequence[tuple[str, str]],
    out: Path | None,
    settings: ExportSettings,
    *,
    rebuild: bool = False,
    keep_going: bool = False,
    progress: Progress | None = None,
) -> list[ExportRow]:
    """Export to each (target, precision) in turn; a failure does not stop the others.

    Args:
        student: A student dir.
        wanted: Exports as from `pairs`.
        out: The bundle dir of a single export.
        settings: Settings of all exports.
        rebuild: Whether to build bundles that are up to date again.
        keep_going: Record a failure instead of raising it, even for a single export.
        progress: Called as each part begins.

    Raises:
        ValueError: If the request is wrong for every target.
    """
    rows = _rows(student, wanted, out, settings, rebuild=rebuild, progress=progress)
    if len(rows) == 1 and not keep_going:
        [problem] = [row.problem for row in rows]
        if problem and not isinstance(problem, ParityError):
            raise problem
    _check_request(rows)
    return rows


def _check_request(rows: Sequence[ExportRow]) -> None:
    """Raise the ValueError that all exports ended in, since the request itself is wrong."""
    problems = [row.problem for row in rows]
    refused = [problem for problem in problems if isinstance(problem, ValueError)]
    if refused and len(refused) == len(rows) and len({row.error for row in rows}) == 1:
        raise refused[0]


def _rows(
    student: Path,
    wanted: Sequence[tuple[str, str]],
    out: Path | None,
    settings: ExportSettings,
    *,
    rebuild: bool,
    progress: Progress | None,
) -> list[ExportRow]:
    """Run `export_many`, with every failure in its row."""
    rows = []
    for index, (target, precision) in enumerate(wanted):
        name = f"{target}-{precision}{settings.suffix}"

        def tell(done: int, total: int, what: str, index: int = index, name: str = name) -> None:
            if progress:
                progress(index * total + done, len(wanted) * total, f"{name} {what}")

        start = time.perf_counter()
        place, parity, error, failure = None, None, "", None
        peaks: Peaks = {}
        try:
            place = export_student(
                student,
                target,
                precision,
                out,
                settings=settings,
                rebuild=rebuild,
                progress=tell,
                peaks=peaks,
            )
            parity = Manifest.read(place).parity
        except Exception as problem:  # an SDK's errors may be of any type
            failure, error = problem, _told(problem)
            parity = problem.parity if isinstance(problem, ParityError) else None
        seconds = time.perf_counter() - start
        rows.append(
            ExportRow(
                name=name,
                place=place,
                seconds=seconds,
                size_mb=_size_mb(place) if place else 0.0,
                parity=parity,
                error=error,
                problem=failure,
                peaks=peaks,
            )
        )
    return rows


def _told(problem: Exception) -> str:
    """Describe an exception in one line; the type is left out of our own errors."""
    words = (str(problem).strip() or "no message").splitlines()[0]
    ours = isinstance(problem, ParityError | ValueError)
    return words if ours else f"{type(problem).__name__}: {words}"


def export_group(
    group: Path,
    wanted: Sequence[tuple[str, str]],
    out: Path | None,
    settings: ExportSettings,
    *,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> list[ExportRow]:
    """Export each of several students; each (target, precision) gets one folder of bundles.

    The folder gets a students.json once all are built, as `edgedistill_runtime.Router` reads it.
    The arguments are those of `export_many`, with the group's folder for the student's.

    Raises:
        ValueError: If the request is wrong.
    """
    if settings.fused:
        raise ValueError(
            "--fused: a fused bundle has no text encoder by which prompts find their student; "
            f"name one student, as {group / '0'}"
        )
    if out and (out / FILE_NAME).is_file():
        raise ValueError(f"--out {out}: holds one bundle; choose another place")
    routes, rows = Routes.read(group), []
    count = len(routes.parts)
    for index, pair in enumerate(wanted):
        made = []
        for part in range(count):

            def tell(done: int, total: int, what: str, at: int = index * count + part) -> None:
                if progress:
                    progress(at * total + done, len(wanted) * count * total, what)

            place = out / str(part) if out else None
            student = group / str(part)
            made += _rows(student, [pair], place, settings, rebuild=rebuild, progress=tell)
            made[-1] = replace(made[-1], name=f"{made[-1].name}/{part}")
        places = [row.place for row in made if row.place]
        if len(places) == count:
            write_json(places[0].parent / ROUTES, routes.to_json())
        rows += made
    _check_request(rows)
    return rows


def table(rows: Sequence[ExportRow]) -> Table:
    """Make the table of results for a terminal."""
    made = Table(box=None)
    made.add_column("bundle", no_wrap=True)
    for heading in ("MiB", "s", "graphs dB", "picture dB", "worst", "LPIPS-like", "text-image"):
        made.add_column(heading, justify="right")
    for row in rows:
        made.add_row(
            row.name,
            f"{row.size_mb:.1f}" if row.place else "-",
            f"{row.seconds:.0f}",
            *_figures(row.parity),
        )
    return made


def as_json(row: ExportRow) -> dict[str, Any]:
    """Return a row as `edgedistill export --json` prints it."""
    return {
        "name": row.name,
        "bundle": str(row.place) if row.place else None,
        "seconds": round(row.seconds, 3),
        "size_mb": row.size_mb,
        "parity": asdict(row.parity) if row.parity else None,
        "error": row.error or None,
    }


def memory_lines(row: ExportRow) -> list[str]:
    """Return lines on the memory used to compile each network."""
    return [
        f"{row.name} {name}: peak memory {peak:.0f} MiB, float32 weights {weights:.0f} MiB"
        for name, (peak, weights) in row.peaks.items()
        if peak is not None
    ]


def _figures(parity: Parity | None) -> list[str]:
    if parity is None:
        return ["-"] * 5
    worst = min(figures.worst for figures in parity.graphs.values())
    return [
        *map(decibels, (worst, parity.final.mean, parity.final.worst)),
        "-" if parity.perceptual is None else f"{parity.perceptual:.4f}",
        "-" if parity.text_image is None else f"{parity.text_image:.3f}",
    ]


def _size_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
