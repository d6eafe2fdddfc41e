"""The commands `bench`, `evaluate` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgedistill.common.progress import console, say

__all__ = ["bench", "evaluate", "report"]

JSON = Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")]
LATEST = Path("runs/latest")


def bench(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            help="Students and bundles; teacher, student and bundles of the newest run "
            "when left out."
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed calls a subject.")] = 20,
    json: JSON = None,
) -> None:
    """Time teacher, student and bundles: load, first call, percentiles by stage, memory."""
    from edgedistill.verbs.measuring import bench as measure

    found = measure(subjects, runs, json)
    for table in found.tables:
        console.print(table)
    say(f"{found.file}  {found.file.with_suffix('.png')}")


def evaluate(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STUDENT|BUNDLE...",
            help="A student and its bundles; the newest run's student when left out.",
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Pictures a subject draws.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Captions, a line each.")] = None,
    features: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of a vision model that judges, pixels or teacher."),
    ] = None,
    json: JSON = None,
) -> None:
    """Measure quality against teacher and data: FD, KID, distances, classes, memorization."""
    from edgedistill.verbs.measuring import evaluate as measure

    found = measure(subjects, samples, prompts, features, json)
    for table in found.tables:
        console.print(table)
    for line in found.notes:
        say(line)
    say(str(found.file))


def report(
    run: Annotated[Path, typer.Argument(help="A run dir, or a student.")] = LATEST,
    out: Annotated[Path | None, typer.Option(help="The page; by default RUN/report.html.")] = None,
) -> None:
    """One self-contained HTML page: pictures side by side, losses, latencies, figures, recipe."""
    from edgedistill.verbs.measuring import report as write

    say(str(write(run, out)))
