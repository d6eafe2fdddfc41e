"""Paths that a verb works on, fixed when it starts."""

from __future__ import annotations

import os
from pathlib import Path

from edgedistill.common.files import read_link, recover
from edgedistill.students.hub import working_copy

__all__ = ["LATEST", "collect", "newest", "newest_run", "settled", "student_at"]

LATEST = Path("runs/latest")
"""Link to the newest run."""


def newest_run() -> Path:
    """Return the newest run's own path, so that a run that starts later changes nothing."""
    return settled(LATEST)


def newest() -> Path:
    """Return the newest run's student, or its folder of several."""
    run = newest_run()
    group = run / "students"
    return group if group.is_dir() else run / "student"


def settled(path: str | os.PathLike[str]) -> Path:
    """Replace a link `latest` in a path by the run that it points at now; other links stay."""
    found = Path(path)
    for link in (found, *found.parents):
        to = read_link(link) if link.name == LATEST.name else None
        if to is not None:
            # A run dir lies beside the link, so that the path stays as relative as it was.
            run = link.parent / to
            # `runs/../mine` is `mine`, unless `runs` is itself a link.
            run = run if link.parent.is_symlink() else Path(os.path.normpath(run))
            return run / found.relative_to(link)
    return found


def student_at(path: str | os.PathLike[str]) -> Path:
    """Return `settled(path)`; of a student on the Hub, a copy that can be written beside.

    Raises:
        ValueError: If the Hub has no such student.
    """
    return working_copy(settled(path))


def collect(run: Path) -> None:
    """Remove what killed processes left in a run dir: unfinished bundles, students and files."""
    for folder in (run, run / "bundles"):
        recover(folder / "x")
