"""Measure quality and latency, and write one page with all figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.table import Table

from edgedistill.common.files import check_writable, recover, write_json
from edgedistill.common.progress import bar
from edgedistill.evaluation import tables as evaluation_tables
from edgedistill.evaluation.run import evaluate_subjects
from edgedistill.reporting.compared import compare_runs
from edgedistill.reporting.page import home_of, write_report
from edgedistill.verbs.html import table_html
from edgedistill.verbs.places import collect, newest, newest_run, student_at
from edgedistill_export import bench as benching
from edgedistill_export import bench_subjects
from edgedistill_runtime.hub import hub_name
from edgedistill_runtime.manifest import FILE_NAME as BUNDLE

__all__ = ["Compared", "Results", "bench", "compare", "evaluate", "report"]

Place = str | os.PathLike[str]


class Results(dict[str, Any]):
    """Results by name, with tables for people.

    Args:
        results: Contents of the JSON file.
        file: The JSON file.
        tables: Tables for a terminal or a notebook.
        notes: Lines below the tables.
    """

    def __init__(
        self,
        results: Mapping[str, Any],
        file: Path,
        tables: Sequence[Table],
        notes: Sequence[str] = (),
    ) -> None:
        super().__init__(results)
        self.file, self.tables, self.notes = file, list(tables), list(notes)

    def __repr__(self) -> str:
        return f"Results({str(self.file)!r}, {', '.join(self)})"

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in self.notes)
        return "".join(table_html(table) for table in self.tables) + lines


class Compared:
    """Runs that were compared.

    Args:
        page: The HTML page.
        tables: A table for each group of figures that can be compared.
        notes: Lines below the tables.
    """

    def __init__(self, page: Path, tables: Sequence[Table], notes: Sequence[str] = ()) -> None:
        self.page, self.tables, self.notes = page, list(tables), list(notes)

    def __repr__(self) -> str:
        return f"Compared({str(self.page)!r})"

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in self.notes)
        return "".join(table_html(table) for table in self.tables) + lines


def evaluate(
    subjects: Place | Sequence[Place] | None = None,
    samples: int | None = None,
    prompts: Path | None = None,
    features: str | None = None,
    json: Path | None = None,
) -> Results:
    """Measure quality against teacher and data: FD, KID, distances, classes, memorization.

    Args:
        subjects: A student and its bundles; the newest run's student if None.
        samples: Number of pictures that each draws, at least 2; the recipe's number if None.
        prompts: A file of captions, a line each.
        features: Folder or Hub id of a vision model that judges, "pixels" or "teacher".
        json: File of the figures; eval.json beside the student if None.

    Raises:
        ValueError: If a path is neither student nor bundle, or they belong to different students.
        FloatingPointError: If a picture or a figure is not finite.
    """
    given = _listed(subjects) or [str(newest())]
    with bar("evaluate", 1, parts=True) as meter:
        results, file = evaluate_subjects(given, samples, prompts, json, meter, features)
    return Results(
        results, file, evaluation_tables.tables(results), evaluation_tables.notes(results)
    )


def bench(
    subjects: Place | Sequence[Place] | None = None,
    runs: int = 20,
    json: Path | None = None,
) -> Results:
    """Time teacher, student and bundles: load, first call, percentiles by stage, memory.

    Args:
        subjects: Students and bundles; those of the newest run, and its teacher, if None.
        runs: Number of timed calls of each, at least 1.
        json: File of the figures; bench.json in the run of the subjects if None.

    Raises:
        ValueError: If a path is neither student nor bundle.
    """
    given, run = _listed(subjects), newest_run()
    collect(run)
    bundles = sorted(path.parent for path in run.glob("bundles/*/manifest.json"))
    planned = bench_subjects.find_subjects(given or [run / "student", *bundles])
    home = (bench_subjects.home_of(given) or Path()) if given else run
    file = json or Path(os.path.relpath(home)) / "bench.json"
    check_writable(file, f"--json {file}")
    with bar("bench", len(planned), parts=True) as meter:
        results = benching.run_bench(planned, runs, progress=meter.step)
    write_json(file, results)
    benching.chart(results, file.with_suffix(".png"))
    return Results(results, file, benching.tables(results))


def report(run: Place | None = None, out: Path | None = None) -> Path:
    """Write one self-contained HTML page: pictures side by side, losses, latencies, figures.

    Args:
        run: A run dir, or a student, here or on the Hub; the newest run if None.
        out: The page; report.html in the run dir, so beside the student, if None.

    Raises:
        ValueError: If the run has no student; says what is there.
    """
    folder = newest_run() if run is None else student_at(run)
    _check_run(folder, folder if run is None else run)
    if run is not None and hub_name(run):
        folder = folder.parent  # its copy lies in a run dir
    place = out or home_of(folder) / "report.html"
    check_writable(place, f"--out {place}" if out else str(place))
    return write_report(folder, place)


def _check_run(folder: Path, given: Place) -> None:
    """Raise a ValueError for what is neither a run dir nor a student; `given` is how it was named.

    A run dir without a student is left to `load_student`, which knows what it lacks.
    """
    recover(folder / "student")
    wanted = "give a run dir, a student, or a folder of runs"
    if not folder.exists():
        raise ValueError(f"{given}: no such file or folder; {wanted}")
    if not folder.is_dir():
        raise ValueError(f"{given}: a file; {wanted}")
    if any((folder / name).is_file() for name in (BUNDLE, f"0/{BUNDLE}")):
        raise ValueError(f"{given}: a bundle; {wanted}, such as the one that it was exported from")
    parts = ("student.json", "students.json", "student", "students", "decoder", "recipe.yaml")
    if not any((folder / name).exists() for name in parts):
        raise ValueError(f"{given}: no run, student or folder of runs; {wanted}")


def compare(folder: Place, out: Path | None = None) -> Compared:
    """Compare the runs of a folder by quality and speed, and write one HTML page.

    Args:
        folder: A folder of run dirs, such as "runs".
        out: The page; compared.html in the folder if None.

    Raises:
        ValueError: If the folder has no run with figures.
    """
    place = out or Path(folder) / "compared.html"
    check_writable(place, f"--out {place}" if out else str(place))
    return Compared(place, *compare_runs(Path(folder), place))


def _listed(subjects: Place | Sequence[Place] | None) -> list[str]:
    if subjects is None:
        return []
    several = [subjects] if isinstance(subjects, (str, os.PathLike)) else subjects
    return [str(student_at(each)) for each in several]
