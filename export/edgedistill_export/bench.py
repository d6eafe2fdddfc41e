"""Benchmark of teacher, student and bundles, each in a process of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill.common.files import atomic_file, read_json
from edgedistill.common.progress import Progress
from edgedistill_export.bench_subjects import TEACHER, BenchSubject
from edgedistill_runtime.machine import busy_cores, cores, processor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

__all__ = [
    "SCHEMA_VERSION",
    "chart",
    "measure",
    "run_bench",
    "subjects_of",
    "tables",
    "warn_if_busy",
]

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
_STAGES = {
    "text_encoder": ("text encoder", "#4c78a8"),
    "denoiser": ("denoiser", "#f58518"),
    "decoder": ("decoder", "#54a24b"),
    "pipeline": ("fused", "#72b7b2"),
    "other": ("other", "#9d9da1"),
}
"""Names and colours of the stages, by key."""

BUSY = 0.25
"""Share of the machine's cores from which on other processes are told of."""
BEAT = 10.0
"""Seconds between two signs of life of a subject."""

_TOTAL = "#4b4453"
"""Colour of the time that belongs to no stage."""


def run_bench(
    subjects: Sequence[BenchSubject],
    runs: int = 30,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure subjects one after another, one picture a call, all with the same threads.

    Args:
        subjects: Subjects to measure.
        runs: Number of timed calls of each, after the first and a few to warm up.
        threads: Threads of torch and of the runtime; by default the cores this process may use.
        progress: Called as progress(done, total, name) when a subject begins, and at the end.

    Returns:
        bench.json: by subject name `load_s`, `first_s`, `p50_s`, `p90_s`, `p99_s`, `stages`,
        `peak_rss_mb` and, but for the teacher, `student_sha256`; and `schema_version`,
        `speedup_over_teacher` (by p50) and `machine`.

    Raises:
        ValueError: If a subject cannot be loaded; contains the message of its process.
        RuntimeError: If a process fails otherwise.
    """
    threads = threads or cores()
    machine = _machine(threads, runs)
    results: dict[str, Any] = {}
    warn_if_busy()
    for done, subject in enumerate(subjects):

        def beat(seconds: float, done: int = done, name: str = subject.name) -> None:
            if progress:
                waited = f", {seconds:.0f} s" if seconds else ""
                progress(done, len(subjects), f"{name}{waited}")

        beat(0)
        results[subject.name] = measure(subject, runs, threads, beat=beat)
        if subject.student:
            results[subject.name]["student_sha256"] = subject.student
    if progress:
        progress(len(subjects), len(subjects), "done")
    return {
        "schema_version": SCHEMA_VERSION,
        **results,
        "speedup_over_teacher": _speedups(results),
        "machine": machine,
    }


def subjects_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of `run_bench` by subject, without its other entries."""
    return {name: r for name, r in results.items() if isinstance(r, dict) and "p50_s" in r}


def warn_if_busy() -> None:
    """Warn if other processes keep much of the processor, since times are then too long."""
    busy, whole = busy_cores(), os.cpu_count() or 1
    if busy is not None and busy > BUSY * whole:
        log.warning(
            f"other processes keep {busy:.1f} of {whole} cores busy: times here are too long"
        )


def measure(
    subject: BenchSubject,
    runs: int,
    threads: int,
    options: Sequence[str] = (),
    *,
    beat: Callable[[float], None] = lambda seconds: None,
) -> dict[str, Any]:
    """Measure one subject in a process of its own.

    Args:
        subject: The subject.
        runs: Number of timed calls.
        threads: Threads of torch or of the runtime.
        options: Further options of the process, for a bundle.
        beat: Called every `BEAT` seconds with the seconds that have passed.

    Raises:
        ValueError: If the subject cannot be loaded; contains the message of its process.
        RuntimeError: If the process fails otherwise.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        command = subject.command(runs, threads, file, options)
        log.debug(f"{subject.name}: {shlex.join(command)}")
        process = subprocess.Popen(  # noqa: S603  this Python and our modules, and no shell
            command,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        said = _waited(process, beat)
        if process.returncode:
            last = (said.strip().splitlines() or ["no message"])[-1]
            kind = ValueError if process.returncode == 2 else RuntimeError
            raise kind(f"{subject.name}: {last}")
        return read_json(file)


def _waited(process: subprocess.Popen[str], beat: Callable[[float], None]) -> str:
    """Wait for a process and return its standard error; it ends with this one."""
    begin = time.monotonic()
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.communicate(timeout=BEAT)[1]
            beat(time.monotonic() - begin)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _speedups(results: Mapping[str, Any]) -> dict[str, float]:
    if TEACHER not in results:
        return {}
    reference = results[TEACHER]["p50_s"]
    return {name: reference / r["p50_s"] for name, r in results.items() if name != TEACHER}


def _machine(threads: int, runs: int) -> dict[str, Any]:
    engines = packages_distributions().get("onnxruntime", ())  # onnxruntime, onnxruntime-gpu, ...
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": cores(),
        "threads": threads,
        "runs": runs,
        # A value above about 0.5 before the first subject means that something else was running.
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": version("torch"),
        "onnxruntime": version(engines[0]) if engines else None,
    }


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Format results for a terminal of 80 columns, times in milliseconds: totals, then stages."""
    from rich.table import Table

    subjects = subjects_of(results)
    whole = Table(title="One sample a call, ms", box=None, title_justify="left")
    whole.add_column("subject", no_wrap=True)
    for head in ("load", "first", "p50", "p90", "p99", "peak MiB", "speed-up"):
        whole.add_column(head, justify="right")
    for name, r in subjects.items():
        times = (r[key] for key in ("load_s", "first_s", "p50_s", "p90_s", "p99_s"))
        peak, speedup = r["peak_rss_mb"], results["speedup_over_teacher"].get(name)
        whole.add_row(
            name,
            *map(_milliseconds, times),
            "-" if peak is None else f"{peak:.0f}",
            "-" if speedup is None else f"{speedup:.1f}x",
        )
    stages = Table(title="By stage, ms p50 / p90 / p99", box=None, title_justify="left")
    stages.add_column("subject", no_wrap=True)
    shown = {s: label for s, (label, _) in _STAGES.items() if _timed(subjects.values(), s)}
    for label in shown.values():
        stages.add_column(label, justify="right")
    for name, r in subjects.items():
        stages.add_row(name, *(_spread(r["stages"].get(stage)) for stage in shown))
    return [whole, stages]


def _timed(subjects: Iterable[Mapping[str, Any]], stage: str) -> bool:
    return any(stage in subject["stages"] for subject in subjects)


def _spread(figures: Mapping[str, float] | None) -> str:
    return " / ".join(map(_milliseconds, figures.values())) if figures else "-"


def _milliseconds(seconds: float) -> str:
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def chart(results: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: p50 of each subject on a log axis, divided into stages."""
    from matplotlib.figure import Figure

    names = list(subjects_of(results))
    figure = Figure(figsize=(10, 1.6 + 0.55 * len(names)), layout="constrained")
    total, share = figure.subplots(1, 2, sharey=True)
    _draw_totals(total, results)
    _draw_shares(share, results)
    total.set_yticks(range(len(names)), names, parse_math=False)
    total.invert_yaxis()
    for axes in (total, share):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *share.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    with atomic_file(path) as made:
        figure.savefig(made, dpi=150)


def _draw_totals(axes: Axes, results: Mapping[str, Any]) -> None:
    from edgedistill.common.axes import log_scale

    times = [1000 * r["p50_s"] for r in subjects_of(results).values()]
    axes.barh(range(len(times)), times, color=_TOTAL, height=0.6)
    log_scale(axes)
    axes.set_xlim(min(times) / 3, max(times) * 6)
    for row, (name, value) in enumerate(zip(subjects_of(results), times, strict=True)):
        speedup = results["speedup_over_teacher"].get(name)
        label = f" {_milliseconds(value / 1000)} ms" + (f", {speedup:.1f}x" if speedup else "")
        axes.text(value, row, label, va="center")
    axes.set_title("Time of one sample (p50, log scale)")
    axes.set_xlabel("milliseconds")


def _draw_shares(axes: Axes, results: Mapping[str, Any]) -> None:
    subjects = list(subjects_of(results).values())
    whole = [sum(stage["p50_s"] for stage in r["stages"].values()) for r in subjects]
    left = [0.0] * len(subjects)
    for stage, (label, colour) in _STAGES.items():
        if not _timed(subjects, stage):
            continue
        parts = [
            100 * r["stages"].get(stage, {"p50_s": 0.0})["p50_s"] / w
            for r, w in zip(subjects, whole, strict=True)
        ]
        axes.barh(range(len(parts)), parts, left=left, color=colour, label=label, height=0.6)
        left = [a + b for a, b in zip(left, parts, strict=True)]
    axes.set_xlim(0, 100)
    axes.set_title("Where the time goes")
    axes.set_xlabel("percent")
