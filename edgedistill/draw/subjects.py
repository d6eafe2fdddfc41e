"""Teacher, student and bundle behind one call, so that all draw from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgedistill.common.pictures import to_uint8
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.schedules import schedule_from_json
from edgedistill.diffusion.solvers import solve
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.draw.kept import Kept
from edgedistill.draw.teacher_help import TeacherAssistance, sample_with
from edgedistill.networks.attention_steering import NegativeAttention
from edgedistill.students.folder import Student
from edgedistill.students.group import Students
from edgedistill.teachers import Teacher

__all__ = [
    "Noise",
    "Subject",
    "bundle_subject",
    "helped_subject",
    "student_subject",
    "teacher_subject",
]


class Noise(Protocol):
    """Function that returns the noise of pictures first .. first + count - 1 of a seed.

    It returns an array (count, *shape) for each shape.
    """

    def __call__(
        self, seed: int, first: int, count: int, shapes: Sequence[tuple[int, ...]]
    ) -> list[NDArray[np.float32]]: ...


@dataclass(frozen=True)
class Subject:
    """A teacher, student or bundle that draws samples.

    Attributes:
        name: Name in eval.json.
        calls: Network calls a sample takes.
        draw: Function (prompts, or a count for subjects that take none; seed; progress) ->
            pictures (N, H, W, 3) bytes, or points (N, D). Sample i depends on (seed, i) alone.
    """

    name: str
    calls: int
    draw: Callable[[Sequence[str] | int, int, Callable[[int], None]], NDArray[Any]]


Sampler = Callable[[list[Tensor], dict[str, Tensor]], Tensor]


def _drawer(
    teacher: Teacher,
    sampler: Sampler,
    table: TorchStepTable | None,
    noise: Noise,
    batch: int,
    kept: Kept | None = None,
) -> Callable[[Sequence[str] | int, int, Callable[[int], None]], NDArray[Any]]:
    whole = teacher.sample_shape
    shapes = [whole] if table is None else table.shapes(whole)

    @torch.no_grad()
    def piece(seed: int, start: int, size: int, words: Sequence[str] | None) -> NDArray[Any]:
        given = noise(seed, start, size, shapes)
        cond = {} if words is None else teacher.encode(words)
        decoded = teacher.decode(sampler([torch.from_numpy(z) for z in given], cond))
        finite = decoded.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            first = start + int(finite.int().argmin())
            raise FloatingPointError(
                f"sample {first} of seed {seed} is not finite: {teacher.path}"
            )
        return to_uint8(decoded) if decoded.ndim == 4 else decoded.float().numpy()

    def draw(
        prompts: Sequence[str] | int, seed: int, progress: Callable[[int], None]
    ) -> NDArray[Any]:
        count = prompts if isinstance(prompts, int) else len(prompts)
        made = []
        for start in range(0, count, batch):
            size = min(batch, count - start)
            words = None if isinstance(prompts, int) else list(prompts[start : start + size])
            asked = (seed, start, size, words)
            made.append(kept(asked, partial(piece, *asked)) if kept else piece(*asked))
            progress(start + size)
        return np.concatenate(made)

    return draw


def teacher_subject(
    name: str,
    teacher: Teacher,
    noise: Noise,
    *,
    guidance: float,
    steps: int,
    solver: str = "ddim",
    batch: int = 64,
    kept: Callable[..., Kept] | None = None,
) -> Subject:
    """Make a subject of the teacher at this number of solver steps and this guidance scale.

    Args:
        name: Name in eval.json.
        teacher: The teacher.
        noise: Source of the noise.
        guidance: Guidance scale; 1 is none.
        steps: Number of solver steps.
        solver: A key of `SOLVERS`.
        batch: Number of samples drawn at once.
        kept: Function that opens the cache of its samples for the settings that decide them.
    """
    denoise = teacher.guided(guidance)
    times = teacher.grid(steps)

    def sampler(given: list[Tensor], cond: dict[str, Tensor]) -> Tensor:
        return solve(denoise, given[0], times, cond, solver)

    calls = steps * (1 if guidance == 1 else 2)
    place = kept(guidance, steps, solver) if kept else None
    return Subject(name, calls, _drawer(teacher, sampler, None, noise, batch, place))


def student_subject(
    name: str, student: Student | Students, noise: Noise, batch: int = 64
) -> Subject:
    """Make a subject of a student on its step table, or of several, each for its conditions."""

    def sampler(given: list[Tensor], cond: dict[str, Tensor]) -> Tensor:
        return student.sample(cond, given)

    draw = _drawer(student.teacher, sampler, student.table, noise, batch)
    return Subject(name, len(student.table.rows), draw)


def helped_subject(
    name: str,
    student: Student,
    teacher: Teacher,
    given: TeacherAssistance,
    noise: Noise,
    batch: int = 64,
) -> Subject:
    """Make a subject of a student with its teacher's help, guided as in training."""
    info, table = student.info, student.table
    if table.grows:
        raise ValueError(f"{student.path}: the student's steps grow, and its teacher's do not")
    if table.reach:
        raise ValueError(f"{student.path}: the student's steps use earlier ones, its own")
    if table.reuses:
        raise ValueError(
            f"{student.path}: the teacher cannot take a part in a student whose steps reuse deep "
            "blocks; leave its help out, or take the student without reuse"
        )
    denoiser = Denoiser(student.net, schedule_from_json(info.schedule), info.prediction)
    scale = float(info.teacher.get("guidance", 1.0))
    guided = teacher.guided(scale)

    def sampler(noises: list[Tensor], cond: dict[str, Tensor]) -> Tensor:
        return sample_with(denoiser, table, guided, given, noises, cond)

    draw = _drawer(student.teacher, sampler, table, noise, batch)
    rows, twice = len(table.rows), 1 if scale == 1 else 2
    refined = len(range(1 if given.first else 0, rows - 1)) if given.share else 0
    calls = rows - bool(given.first) + twice * (given.first + refined)
    return Subject(name, calls, draw)


def steered_subject(
    name: str, student: Student, negative: str, scale: float, noise: Noise, batch: int = 64
) -> Subject:
    """Make a subject of a student whose attention moves away from a negative prompt."""
    teacher, table = student.teacher, student.table
    if table.reuses:
        raise ValueError(
            f"{student.path}: a student whose steps reuse deep blocks takes no negative prompts; "
            "take the student without reuse"
        )
    net = NegativeAttention(student.net, teacher.encode([negative]), scale)

    def sampler(given: list[Tensor], cond: dict[str, Tensor]) -> Tensor:
        return table.sample(net, given, cond)

    draw = _drawer(teacher, sampler, table, noise, batch)
    return Subject(name, 2 * len(table.rows), draw)


def bundle_subject(name: str, pipeline: Any) -> Subject:
    """Make a subject of a bundle in the runtime (an `edgedistill_runtime.Pipeline`)."""

    def draw(
        prompts: Sequence[str] | int, seed: int, progress: Callable[[int], None]
    ) -> NDArray[Any]:
        if isinstance(prompts, int):
            result = pipeline.samples(prompts, seed=seed)
        else:
            result = pipeline(prompts, seed=seed)
        if not np.isfinite(result.samples).all():
            raise FloatingPointError(f"{name}: a sample of seed {seed} is not finite")
        drawn: NDArray[Any] = result.samples if result.images is None else result.images
        progress(len(drawn))
        return drawn

    return Subject(name, len(pipeline.manifest.steps.rows), draw)
