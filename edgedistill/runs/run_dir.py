"""Run dirs: make a new one, or open one to resume its run."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from edgedistill import recipes
from edgedistill.common.files import WriteError, atomic_link, write_text
from edgedistill.common.logs import dropped
from edgedistill.recipes.schema import Recipe
from edgedistill.runs.claims import RECIPE, Claim, claim_new, claim_old
from edgedistill.runs.group import Group
from edgedistill.runs.run import Run
from edgedistill.tiny import make_tiny, tiny_place
from edgedistill.training.checkpoint import latest
from edgedistill.training.trackers import check_installed
from edgedistill.training.trainer import engine

__all__ = ["RESUMABLE", "open_run"]

RESUMABLE = {
    "train.steps",
    "train.log_every",
    "train.trackers",
    "train.sample_every",
    "train.checkpoint_every",
    "train.compile",
    "parts.only",
}
"""Keys that may change when a run is resumed."""
STEPS = "train.steps"

SHOWN = 4
"""Number of differences that one line names."""

log = logging.getLogger(__name__)


def open_run(
    recipe: Recipe,
    out: str | None,
    resume: bool,
    runs: Path = Path("runs"),
    typed: Collection[str] | None = None,
) -> Run | Group:
    """Open a new or resumed run in its run dir, with recipe.yaml; a group for several parts.

    Afterwards runs/latest points at it if it makes a student. A new run never writes into an older
    one: runs/NAME, then runs/NAME-2, ... No other process can open the run meanwhile. If a run has
    several processes, the main one chooses and writes the folder, and the others read it.

    A resumed run keeps the recipe in its run dir, whatever the recipe's file and defaults are now;
    one line names the differences. Keys that the user types must be equal, except `RESUMABLE`
    keys, which are changed.

    Args:
        recipe: The recipe as it resolves now.
        out: The run dir; None is the next or, resumed, the newest of the recipe's name.
        resume: Whether to resume a run.
        runs: Folder of the run dirs.
        typed: Keys of `recipe` that the user set now; None is all.

    Raises:
        ValueError: If there is nothing to resume, a typed key differs from the run's, `out`
            already holds a run or belongs to another process, a tracker is not installed, or the
            recipe names something that cannot be loaded. The folder is then unchanged.
    """
    check_installed(recipe.train.trackers)
    if not engine(recipe.train.precision).is_main_process:
        folder = Path(_from_main(""))
        with dropped():
            return _opened(_stored(folder), folder)
    claim = _claim(recipe, out, resume, runs)
    folder = claim.folder
    try:
        recipe = _taken_up(recipe, folder, typed) if resume else _placed(recipe, folder)
        write_text(folder / RECIPE, recipes.dump(recipe))
        if recipe.teacher.tiny and not Path(recipe.teacher.path).exists():
            make_tiny(recipe.teacher.family, Path(recipe.teacher.path), recipe.train.seed)
        _from_main(str(folder))
        run = _opened(recipe, folder)
    except BaseException as error:  # an interrupt too: the same command must run again
        wrong = isinstance(error, ValueError) and not isinstance(error, WriteError)
        claim.give_up(all_of_it=wrong)
        raise
    claim.keep(run)
    if recipe.method().product == "student":
        _point(runs, folder)
    return run


def _point(runs: Path, folder: Path) -> None:
    """Point runs/latest at a run dir; if that fails, only warn, as nothing depends on it."""
    try:
        atomic_link(runs / "latest", os.path.relpath(folder, runs))
    except ValueError as error:
        log.warning(f"{error}; name the run, as {folder}")


def _opened(recipe: Recipe, folder: Path) -> Run | Group:
    return (Group if recipe.parts.count > 1 else Run)(recipe, folder)


def _placed(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with a tiny teacher placed in the run dir."""
    if not recipe.teacher.tiny:
        return recipe
    place = tiny_place(recipe.teacher.family, folder)
    teacher = recipe.teacher.model_copy(update={"path": str(place), "config": None})
    return recipe.model_copy(update={"teacher": teacher})


def _from_main(word: str) -> str:
    """Return the main process's word on all processes."""
    words = [word]
    broadcast_object_list(words)
    return words[0]


def _claim(recipe: Recipe, out: str | None, resume: bool, runs: Path) -> Claim:
    place = Path(out) if out else runs / recipe.name
    if not resume:
        return claim_new(place, numbered=out is None)
    taken = _numbered(runs, recipe.name)
    return claim_old(taken[-1] if taken and out is None else place)


def _numbered(runs: Path, name: str) -> list[Path]:
    found = {}
    for file in runs.glob(f"{glob.escape(name)}*/{RECIPE}"):
        suffix = file.parent.name[len(name) :]
        if suffix == "":
            found[1] = file.parent
        elif suffix.startswith("-") and suffix[1:].isdecimal():
            found[int(suffix[1:])] = file.parent
    return [found[key] for key in sorted(found)]


def _stored(folder: Path) -> Recipe:
    """Load the recipe of a run dir."""
    file = folder / RECIPE
    try:
        return recipes.resolve(recipes.read(file))
    except ValueError as error:
        raise ValueError(f"{file}: {str(error).removeprefix(f'{file}: ')}") from None


def _taken_up(new: Recipe, folder: Path, typed: Collection[str] | None) -> Recipe:
    """Return the recipe of the run dir, with the changes that may be typed."""
    old = _stored(folder)
    ours, theirs = _flat(new.model_dump(mode="json")), _flat(old.model_dump(mode="json"))
    placed = {"teacher.path", "teacher.config"} if new.teacher.tiny else set()
    differ = [key for key in sorted({*ours, *theirs} - placed) if ours.get(key) != theirs.get(key)]
    # The recipe's name is always typed.
    asked = differ if typed is None else [k for k in differ if k == "name" or _among(k, typed)]
    for key in asked:
        if key not in RESUMABLE:
            raise ValueError(
                f"{folder} was trained with {key}={theirs.get(key)!r}, not {ours.get(key)!r}; "
                "a resumed run keeps its recipe"
            )
    if STEPS in asked:
        _check_steps(folder, ours[STEPS], theirs[STEPS])
    kept = [key for key in differ if key not in asked]
    if kept:
        shown = [f"{key}={theirs.get(key)!r}, not {ours.get(key)!r}" for key in kept[:SHOWN]]
        more = f"; {len(kept) - SHOWN} more" if len(kept) > SHOWN else ""
        log.info(f"resumed with the recipe in {folder}: {'; '.join(shown)}{more}")
    data = old.model_dump(mode="json")
    for key in asked:
        section, _, name = key.partition(".")
        data[section][name] = ours[key]
    return recipes.resolve(data)


def _check_steps(folder: Path, steps: int, before: int) -> None:
    """Raise a ValueError if a run has done more than `steps`; tell what another number means."""
    newest = latest(folder / "checkpoints")
    done = int(newest.name.removeprefix("step-")) if newest else 0
    if steps < done:
        raise ValueError(f"{STEPS}={steps}: {folder} has done {done} steps already")
    if steps != before:
        log.info(
            f"{STEPS}={steps} instead of {before}: the learning rate and other schedules follow "
            f"{steps} steps from here on; they followed {before} in the {done} steps done"
        )


def _among(key: str, typed: Collection[str]) -> bool:
    """Whether the user typed `key` or a section around it."""
    return any(f"{key}.".startswith(f"{word}.") for word in typed)


def _flat(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat
