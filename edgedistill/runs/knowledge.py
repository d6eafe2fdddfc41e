"""Open the distilled student that a method learns from, and check that the two fit together."""

from __future__ import annotations

import math

from torch import Tensor

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.step_table import Step
from edgedistill.recipes.schema import Recipe
from edgedistill.students.folder import Student, load_student
from edgedistill.teachers.base import Teacher

__all__ = ["as_denoiser", "open_knowledge"]

KEY = "objective.knowledge"


def open_knowledge(recipe: Recipe, teacher: Teacher, times: Tensor) -> Student | None:
    """Open the student that the recipe's method learns from; None if it names none.

    Args:
        recipe: The recipe.
        teacher: The recipe's teacher.
        times: The times of the student that learns, (steps + 1,).

    Raises:
        ValueError: If there is no student, or it has another family, shape of x0, number of steps
            or times.
    """
    folder = recipe.method().wants_knowledge(recipe.method_config())
    if folder is None:
        return None
    try:
        found = load_student(folder)
    except ValueError as error:
        raise ValueError(f"{KEY}: {error}") from None
    own = [float(teacher.denoiser.schedule.net_time(t)) for t in times[:-1].double()]
    theirs = [row.t for row in found.table.rows]
    shape, wanted = (list(each["shape"]) for each in (found.info.latent, teacher.describe()))
    _compare(folder, "family is", found.info.family, teacher.family)
    _compare(folder, "shape of x0 is", shape, wanted)
    _compare(folder, "number of steps is", len(theirs), len(own))
    if not _close(theirs, own):
        _compare(folder, "times are", theirs, own)
    return found


def as_denoiser(found: Student, student: Denoiser, times: Tensor, sampler: str) -> Denoiser:
    """Return the frozen denoiser of a student to learn from.

    Args:
        found: The student to learn from.
        student: The student that learns.
        times: Times of the student that learns, (steps + 1,).
        sampler: The rule by which the steps of both land.

    Raises:
        ValueError: If the two differ in their prediction or in the numbers of their steps.
    """
    folder, prediction = str(found.path), found.info.prediction
    _compare(folder, "prediction is", prediction.value, student.prediction.value)
    own = few_step_table(student.schedule, prediction, times, sampler)
    plain = all(row.size == 1 and not (row.past or row.reuse) for row in found.table.rows)
    pairs = zip(found.table.rows, own.rows, strict=True)
    if not plain or not all(_close(_numbers(a), _numbers(b)) for a, b in pairs):
        raise ValueError(
            f"{KEY}={folder}: its steps land in another way than this student's, by another "
            "sampler, sizes, reuse, or a consistency function; name a student of the same kind"
        )
    denoiser = student.with_net(found.net)
    denoiser.eval().requires_grad_(False)
    return denoiser


def _compare(folder: str, what: str, theirs: object, own: object) -> None:
    if theirs != own:
        raise ValueError(f"{KEY}={folder}: its {what} {theirs}, and this student's {own}")


def _numbers(row: Step) -> list[float]:
    return [row.t, row.scale, row.a, row.b, row.c]


def _close(theirs: list[float], own: list[float]) -> bool:
    """Whether the numbers are equal but for rounding to float32."""
    pairs = zip(theirs, own, strict=True)
    return all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6) for a, b in pairs)
