"""The commands `bench`, `evaluate` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgedistill.commands.general import STDOUT, Json, write_figures
from edgedistill.common.progress import answer
from edgedistill.common.tables import show

__all__ = ["bench", "evaluate", "report"]


def _file(json: str | None) -> Path | None:
    """Return the file that --json names; None stands for the run's own."""
    return None if json in (None, STDOUT) else Path(str(json))


def bench(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STUDENT|BUNDLE",
            help="Students and bundles; teacher, student and bundles of the newest run "
            "when left out.",
        ),
    ] = None,
    runs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of timed calls of each.")
    ] = 20,
    json: Json = None,
) -> None:
    """Time teacher, student and bundles: load, first call, percentiles by stage, memory."""
    from edgedistill.verbs.measuring import bench as measure

    found = measure(subjects, runs, _file(json))
    if json == STDOUT:
        write_figures(dict(found), json)
        return
    for table in found.tables:
        show(table)
    answer(f"{found.file}  {found.file.with_suffix('.png')}")


def evaluate(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STUDENT|BUNDLE",
            help="A student and its bundles; the newest run's student when left out.",
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Number of pictures that each draws.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A file of captions, a line each.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The network that judges: a vision model's folder or Hub id, inception:FILE, "
            "pixels or teacher.",
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Measure quality against teacher and data: FD, KID, distances, classes, memorization."""
    from edgedistill.verbs.measuring import evaluate as measure

    found = measure(subjects, samples, prompts, features, _file(json))
    if json == STDOUT:
        write_figures(dict(found), json)
        return
    for table in found.tables:
        show(table)
    for line in found.notes:
        answer(line)
    answer(str(found.file))


def report(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|FOLDER",
            help="A run dir, or the student in it; the newest run when left out. The runs of a "
            "folder, such as runs, are compared.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The page to write, by default RUN/report.html (of a student, beside it), or "
            "FOLDER/compared.html.",
        ),
    ] = None,
) -> None:
    """Write one HTML page: pictures side by side, losses, latencies, figures, recipe.

    Of a folder of runs, the page shows which are best in quality and speed.
    """
    from edgedistill.reporting.compared import is_folder_of_runs
    from edgedistill.verbs.measuring import compare
    from edgedistill.verbs.measuring import report as write

    if run is not None and is_folder_of_runs(run):
        compared = compare(run, out)
        for table in compared.tables:
            show(table)
        for line in compared.notes:
            answer(line)
        answer(str(compared.page))
        return
    answer(str(write(run, out)))
