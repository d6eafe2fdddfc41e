"""`edgedistill plan`: turn the command line's words into tables and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from edgedistill import recipes
from edgedistill.common.files import write_text
from edgedistill.common.progress import rate
from edgedistill.planning.costs import Costs, costs
from edgedistill.planning.fit import Verdict, fit, parse_bytes
from edgedistill.planning.memory import Launch
from edgedistill.planning.time import Duration
from edgedistill.recipes.schema import Recipe

__all__ = ["as_json", "cost_recipe", "plan", "tables", "time_table"]


def plan(
    words: Sequence[str], size: str | None = None, launch: Launch | None = None
) -> tuple[Costs, Verdict | None]:
    """Plan the recipe that `words` name, and compare it with a device.

    Args:
        words: The arguments recipe=NAME and overrides.
        size: Memory of a device, such as "24GB".
        launch: Processes and sharding of the run.

    Raises:
        ValueError: If the request is wrong or cannot be planned; one line.
    """
    named = [word.removeprefix("recipe=") for word in words if word.startswith("recipe=")]
    if len(named) != 1 or not named[0]:
        raise ValueError(
            f"name one recipe: edgedistill plan recipe=NAME, of {', '.join(recipes.shipped())}"
        )
    # The place of the run dir changes no cost.
    rest = [word for word in words if not word.startswith(("recipe=", "out="))]
    return cost_recipe(named[0], rest, size, launch or Launch())


def cost_recipe(
    given: str | Recipe, overrides: Sequence[str], size: str | None, launch: Launch
) -> tuple[Costs, Verdict | None]:
    """Plan the costs of a recipe, and whether it fits a device of `size`, such as "24GB".

    The recipe is a name, a path ending in .yaml, or resolved already.

    Raises:
        ValueError: If the recipe or the size is wrong or cannot be planned; one line.
    """
    limit = None if size is None else parse_bytes(size)
    with TemporaryDirectory() as folder:
        name = given if isinstance(given, str) else _written(given, Path(folder))
        found = costs(recipes.load(name, overrides), launch)
        if limit is None:
            return found, None
        return found, fit(name, overrides, launch, limit, found.memory.total, found.planned)


def _written(recipe: Recipe, folder: Path) -> str:
    """Write a resolved recipe into a file that further overrides can follow."""
    place = folder / f"{recipe.name}.yaml"
    write_text(place, recipes.dump(recipe))
    return str(place)


def as_json(found: Costs, verdict: Verdict | None, time: Duration | None = None) -> dict[str, Any]:
    """Merge costs, verdict and time into one mapping."""
    merged = {**found.to_json(), **({"fit": verdict.to_json()} if verdict else {})}
    return {**merged, **({"time": time.to_json()} if time else {})}


def tables(found: Costs) -> list[Table]:
    """Make tables of parameters and memory by role, then of disk, arithmetic and samples."""
    return [_memory(found), _networks(found), _rest(found)]


def time_table(found: Duration) -> Table:
    """Make the table of a run's time and energy."""
    table = Table("time", "", box=None)
    table.columns[1].justify = "right"
    table.add_row("device", found.device)
    table.add_row("speed", found.source)
    table.add_row("steps", rate(found.steps_per_second))
    table.add_row("training", f"{_figure(found.training_hours)} h")
    if found.samples_hours:
        table.add_row("teacher samples", f"{_figure(found.samples_hours)} h")
    if found.kwh is not None:
        table.add_row(f"energy at {found.watts:g} W, an estimate", f"{_figure(found.kwh)} kWh")
    return table


def _networks(found: Costs) -> Table:
    table = Table("network", "parameters", box=None)
    table.columns[1].justify = "right"
    for role, networks in found.parameters.items():
        for name, count in networks.items():
            table.add_row(f"{role} {name}", f"{count:,}")
    table.add_row("student trained", f"{found.trained:,}")
    return table


def _memory(found: Costs) -> Table:
    table = Table("memory (GB)", "weights", "gradients", "optimizer", "total", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, role in found.memory.roles.items():
        parts = (role.weights, role.gradients, role.optimizer)
        table.add_row(name, *(_gb(part) if part else "" for part in parts), _gb(role.total))
    for name, size in found.by_role().items():
        if name not in found.memory.roles:
            table.add_row(name, "", "", "", _gb(size))
    return table


def _rest(found: Costs) -> Table:
    table = Table("further costs", "", box=None)
    table.columns[1].justify = "right"
    if found.students > 1:
        table.add_row("students, one after the other", str(found.students))
    for name, size in found.disk.items():
        table.add_row(f"disk: {name}", f"{_gb(size)} GB")
    for name, count in found.flops.items():
        table.add_row(f"operations: {name.replace('_', ' ')}", f"{_figure(count / 1e12)} TFLOP")
    for name, count in found.samples.items():
        table.add_row(SAMPLES[name], f"{count:,}")
    return table


SAMPLES = {
    "made": "samples that the teacher makes first",
    "drawn": "samples that training reads",
}
"""Words for the numbers of samples."""


def _gb(size: int) -> str:
    return _figure(size / 1e9)


def _figure(value: float) -> str:
    """Format a number below 1, which may be tiny, with three digits, others with one decimal."""
    return f"{value:.3g}" if value < 1 else f"{value:,.1f}"
