"""Opens runs that make one student, as most benchmarks do."""

from __future__ import annotations

from pathlib import Path

from edgedistill.recipes.schema import Recipe
from edgedistill.runs.run import Run
from edgedistill.runs.run_dir import open_run


def open_one(recipe: Recipe, folder: Path, *, resume: bool = False, runs: Path) -> Run:
    """Open a run in `folder`; `runs` gets the link to the latest one."""
    run = open_run(recipe, str(folder), resume, runs)
    assert isinstance(run, Run)
    return run
