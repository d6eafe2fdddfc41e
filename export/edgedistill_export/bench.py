"""Benchmark of teacher, student and bundles, each in a process of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgedistill import assets
from edgedistill.common.files import atomic_file, read_json
from edgedistill.common.progress import Progress
from edgedistill.students.folder import StudentInfo, student_sha256
from edgedistill.students.group import group_of
from edgedistill_runtime.machine import busy_cores, cores, processor
from edgedistill_runtime.manifest import FILE_NAME, Manifest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

__all__ = [
    "SCHEMA_VERSION",
    "BenchSubject",
    "chart",
    "find_subjects",
    "home_of",
    "measure",
    "run_bench",
    "subjects_of",
    "tables",
    "warn_if_busy",
]

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
TEACHER, STUDENT = "teacher", "student"
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


@dataclass(frozen=True, kw_only=True)
class BenchSubject:
    """One subject of a benchmark, measured by one process.

    Attributes:
        name: Key in the results: teacher, student or bundle:NAME.
        path: A bundle dir, or a pipeline folder or Hub id.
        bundle: Whether the runtime runs it; else torch does.
        steps: Scheduler steps of a pipeline; a student's own if None.
        guidance: Guidance scale of a pipeline.
        student: `Student.sha256` of the student, or of the one a bundle was made from; "" of a
            teacher, and where it cannot be told.
    """

    name: str
    path: str
    bundle: bool = False
    steps: int | None = None
    guidance: float = 1.0
    student: str = ""

    def command(
        self, runs: int, threads: int, file: Path, options: Sequence[str] = ()
    ) -> list[str]:
        """Return the command line of the subject's process; `options` are for a bundle only."""
        module = "edgedistill_runtime.bench" if self.bundle else "edgedistill.draw.bench"
        command = [sys.executable, "-m", module, self.path, "--runs", str(runs)]
        command += ["--threads", str(threads), "--json", str(file)]
        if not self.bundle:
            command += ["--guidance", str(self.guidance)]
            command += ["--steps", str(self.steps)] if self.steps else []
        return [*command, *options]


def find_subjects(paths: Sequence[str | Path]) -> list[BenchSubject]:
    """Find subjects of bundles, students and run dirs; the first student's teacher is added.

    A run dir stands for its student and all its bundles. A folder that is given twice is one
    subject, and different folders of one name are told apart by a number.

    Raises:
        ValueError: For a folder that is neither, or a broken manifest.json or student.json.
    """
    found: dict[str, BenchSubject] = {}
    known = set[Path]()
    for subject in (subject for path in map(Path, paths) for subject in _subjects(path)):
        if subject.name != TEACHER:
            folder = Path(subject.path).resolve()
            if folder in known:
                continue
            known.add(folder)
        name, count = subject.name, 1
        while name in found and subject.name != TEACHER:
            count += 1
            name = f"{subject.name}-{count}"
        found.setdefault(name, replace(subject, name=name))
    order = {TEACHER: 0, STUDENT: 1}
    return sorted(found.values(), key=lambda subject: order.get(subject.name, 2))


def home_of(paths: Sequence[str | Path]) -> Path | None:
    """Return the run dir of all paths (RUN, RUN/student, RUN/bundles/NAME), if they share one."""
    homes = set()
    for path in map(Path, paths):
        whole = path.absolute()
        parent = whole.parent.parent if whole.parent.name == "bundles" else whole.parent
        homes.add(whole if _is_run(whole) else parent)
    home = homes.pop()
    return home if not homes and _is_run(home) else None


def _is_run(path: Path) -> bool:
    return (path / "student" / "student.json").is_file()


def _subjects(path: Path) -> list[BenchSubject]:
    if (path / FILE_NAME).is_file():
        made_from = Manifest.read(path).student.sha256
        name = f"bundle:{path.resolve().name}"
        return [BenchSubject(name=name, path=str(path), bundle=True, student=made_from)]
    if _is_run(path):
        bundles = sorted(file.parent for file in path.glob(f"bundles/*/{FILE_NAME}"))
        return [s for each in (path / "student", *bundles) for s in _subjects(each)]
    group = group_of(path)
    if group:
        raise ValueError(f"{path}: several students; name one, as {group / '0'}")
    if not (path / "student.json").is_file():
        raise ValueError(f"{path}: neither a bundle ({FILE_NAME}) nor a student (student.json)")
    info = read_json(path / "student.json")
    student = BenchSubject(name=STUDENT, path=str(path), student=_hash(path, info))
    # A closed-form teacher is no pipeline, and its time is meaningless.
    if not (path / "model_index.json").is_file():
        return [student]
    teacher, recipe = info.get("teacher") or {}, info.get("recipe") or {}
    chosen = recipe.get("teacher") or {}
    where = str(teacher.get("path") or teacher.get("name") or "")
    shipped = assets.ROOT / where
    return [
        BenchSubject(
            name=TEACHER,
            path=str(shipped) if where and shipped.is_dir() else where,
            steps=int(chosen.get("steps") or 25),
            guidance=float(chosen.get("guidance") or teacher.get("guidance") or 1.0),
        ),
        student,
    ]


def _hash(folder: Path, info: Mapping[str, Any]) -> str:
    """Return the hash of a student; "" of a broken one, which its own process reports."""
    try:
        return student_sha256(folder, StudentInfo.model_validate(info))
    except (ValueError, OSError):
        return ""


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
