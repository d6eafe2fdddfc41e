"""Write teacher paths before a run, from a recipe to a folder that `data.paths` may name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgedistill.common.files import check_writable
from edgedistill.data import find_captions
from edgedistill.data.paths import captions_of, make_paths, spec_of
from edgedistill.diffusion.solvers import student_times
from edgedistill.recipes.schema import Recipe
from edgedistill.teachers import load_teacher
from edgedistill.tiny import make_tiny, tiny_place
from edgedistill.training.trainer import engine

__all__ = ["synth"]


def synth(recipe: Recipe, out: str | None, progress: Callable[[int], None]) -> Path:
    """Write `data.samples` paths at the student's times, or those that are missing.

    Args:
        recipe: Recipe, whose teacher, student, data and train.seed are used.
        out: The folder; paths/NAME of the recipe if None.
        progress: Called with the number of paths made so far.

    Returns:
        The folder.

    Raises:
        ValueError: If the recipe's method does not use paths, or they cannot be made.
    """
    if not recipe.method().needs_paths:
        name = recipe.objective["name"]
        raise ValueError(f"objective.name={name}: method {name!r} needs no paths")
    folder = Path(out) if out else Path("paths") / recipe.name
    check_writable(folder / "manifest.json", f"out={folder}")
    section, few = recipe.teacher, recipe.student
    place = str(tiny_place(section.family, folder)) if section.tiny else section.path
    if section.tiny and not Path(place).exists():
        make_tiny(section.family, Path(place), recipe.train.seed)
    config = None if section.tiny else section.config
    teacher = load_teacher(section.family, place, config, section.loras)
    teacher.to(engine(recipe.train.precision).device)
    data = recipe.data
    find_captions(teacher, data.prompts, data.samples, data.caption)  # refuses bad data
    captions = captions_of(teacher, data.prompts, data.caption)
    times = student_times(teacher.denoiser.schedule, few.steps, few.spacing, few.sampler)
    spec = spec_of(
        teacher,
        captions,
        guidance=section.guidance,
        solver=section.solver,
        steps=section.steps,
        times=times,
        seed=recipe.train.seed,
    )
    make_paths(folder, teacher, spec, captions, recipe.data.samples, progress)
    return folder
