"""Load recipes, plan their costs and run them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgedistill import recipes
from edgedistill.common.progress import bar
from edgedistill.planning.costs import Costs
from edgedistill.planning.fit import Verdict
from edgedistill.planning.memory import Launch
from edgedistill.planning.report import as_json, cost_recipe, tables, time_table
from edgedistill.planning.time import UTILISATION, Duration, check_utilisation, duration
from edgedistill.recipes.schema import Recipe
from edgedistill.runs.run import Run
from edgedistill.runs.run_dir import open_run
from edgedistill.training.metrics import read_metrics
from edgedistill.verbs.html import figures_html, picture_html, table_html
from edgedistill.verbs.students import StudentDir, load_student

__all__ = ["CostReport", "TrainedRun", "distill", "load_recipe", "plan"]

log = logging.getLogger(__name__)

Progress = Callable[[int, "dict[str, float] | None"], None]
"""Progress callback (steps done, figures of the last interval or None)."""


def load_recipe(name: str, overrides: Sequence[str] = (), /, **keys: Any) -> Recipe:
    """Resolve a recipe.

    Args:
        name: A shipped recipe's name, or a path ending in .yaml.
        overrides: "key.sub=value" each, as on the command line.
        keys: Further overrides as Python values, e.g. `**{"train.steps": 100}`.

    Raises:
        ValueError: One line that names the recipe, key or value, and the choices.
    """
    words = [*overrides, *(f"{key}={_yaml(value)}" for key, value in keys.items())]
    return recipes.load(name, words)


def _yaml(value: Any) -> str:
    """Format a value as YAML in one line."""
    plain = str(value) if isinstance(value, Path) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10**9)
    return text.removesuffix("\n...\n").strip()


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        folder: The run dir.
        product: Folder that the run made: of the student, a decoder, or several students.
    """

    folder: Path
    product: Path

    @property
    def student(self) -> StudentDir:
        """The student; ValueError if the run made something else."""
        return load_student(self.product)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Training figures of metrics.jsonl, one mapping for each interval."""
        return read_metrics(self.folder)

    @property
    def samples(self) -> list[Path]:
        """Pictures that the student drew during training, the oldest first."""
        return sorted((self.folder / "samples").glob("step-*.png"))

    def __repr__(self) -> str:
        return f"TrainedRun({str(self.folder)!r}, product={self.product.name!r})"

    def _repr_html_(self) -> str:
        lines = self.metrics
        last = {k: f"{v:.4g}" for k, v in lines[-1].items()} if lines else {}
        shown = [picture_html(file) for file in self.samples[-1:]]
        return figures_html(f"run {self.folder}", last, shown)


def distill(
    recipe: Recipe | str,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    typed: Sequence[str] | None = None,
    opened: Callable[[Run], None] = lambda run: None,
) -> TrainedRun:
    """Train a recipe's student or decoder.

    Each stage is logged in a line, at level INFO or WARNING of the logger "edgedistill".

    Args:
        recipe: A recipe, or a shipped one's name.
        out: The run dir; runs/NAME, or the next free runs/NAME-2, ... if None.
        resume: Whether to resume the existing run from its newest checkpoint.
        progress: Called after each step; a progress bar on stderr if None.
        typed: Keys that the user typed, which are compared with those of a resumed run.
        opened: Called with each run before it is trained.

    Returns:
        The finished run, whose `student` can be drawn with, exported and measured.

    Raises:
        ValueError: If the recipe cannot be run, or `out` already holds a run.
        FloatingPointError: If training diverges; the last checkpoint stays.
        Interrupted: On Ctrl-C, after a checkpoint was written.
    """
    resolved = recipes.load(recipe) if isinstance(recipe, str) else recipe
    group = open_run(resolved, None if out is None else str(out), resume, typed=typed)
    made, several = group.folder, resolved.parts.count > 1
    for run in group.runs():
        opened(run)
        begin = run.restore() if resume else 0
        if resume:
            whole = begin >= run.recipe.train.steps
            log.info(f"all {begin} steps are done" if whole else f"resuming at step {begin}")
        with _meter(run.recipe.train.steps, begin, progress) as follow:
            made = run.train(follow)
        if several:
            log.info(f"{run.objective.product} {made}")
        del run  # before the next one is opened
    return TrainedRun(group.folder, made.parent if several else made)


@contextmanager
def _meter(steps: int, begin: int, progress: Progress | None) -> Iterator[Progress]:
    if progress is not None:
        yield progress
        return
    with bar("distil", steps, begin) as meter:
        yield meter.follow


@dataclass(frozen=True)
class CostReport:
    """Costs of a recipe, and whether it fits a device.

    Attributes:
        costs: Parameters, memory by role, disk, compute.
        verdict: Whether it fits and what would make it fit; None where no device was named.
        time: Hours and energy; None where no GPU was named.
    """

    costs: Costs
    verdict: Verdict | None
    time: Duration | None = None

    def to_json(self) -> dict[str, Any]:
        """Return all figures, as `edgedistill plan --json` prints them."""
        return as_json(self.costs, self.verdict, self.time)

    def __repr__(self) -> str:
        total = self.costs.memory.total / 1e9
        return f"CostReport({total:.2f} GB{f', {self.verdict}' if self.verdict else ''})"

    def _repr_html_(self) -> str:
        made = [*tables(self.costs), *([time_table(self.time)] if self.time else [])]
        shown = "".join(table_html(table) for table in made)
        return shown + (f"<p>{self.verdict}</p>" if self.verdict else "")


def plan(
    recipe: Recipe | str,
    overrides: Sequence[str] = (),
    *,
    memory: str | None = None,
    processes: int = 1,
    shard: bool = False,
    gpu: str | None = None,
    utilisation: float = UTILISATION,
) -> CostReport:
    """Plan the costs of a recipe. Nothing is downloaded, and no weight is read.

    Args:
        recipe: A recipe, a shipped one's name, or a path ending in .yaml.
        overrides: "key.sub=value" each.
        memory: Memory of a device, such as "24GB".
        processes: Number of processes, one on each device.
        shard: Whether trained networks are sharded over the processes, by FSDP or ZeRO.
        gpu: A GPU whose time and energy are estimated, a key of `planning.time.GPUS`.
        utilisation: Share of the GPU's peak that training is taken to reach.

    Raises:
        ValueError: If the request is wrong or cannot be planned; one line.
    """
    check_utilisation(utilisation)
    launch = Launch(processes, shard)
    found, verdict = cost_recipe(recipe, list(overrides), memory, launch)
    made = found.planned.recipe
    time = duration(found, made, gpu, utilisation, processes) if gpu else None
    return CostReport(found, verdict, time)
