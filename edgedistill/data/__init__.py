"""Prompts and clean data of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from edgedistill.common.finite import bad_row
from edgedistill.data.prompts import CAPTION, read_prompts, recipe_prompts
from edgedistill.data.shards import fault_of, write_shard
from edgedistill.diffusion.solvers import solve
from edgedistill.teachers.base import DataSource, Teacher
from edgedistill.teachers.classes import ClassTeacher
from edgedistill.teachers.latents import Latents

__all__ = ["find_captions", "open_source", "read_prompts", "recipe_prompts"]


def find_captions(
    teacher: Teacher, prompts: str | None, samples: int, caption: str = CAPTION
) -> list[str]:
    """Return the captions to make samples for; an empty list where the teacher's own data serves.

    Args:
        teacher: The teacher.
        prompts: A file for `read_prompts`, or None for the teacher's own data. A teacher that
            takes no prompts needs neither; its captions are empty. Nor does a teacher of classes;
            its captions are the classes, each equally often.
        samples: Samples to make.
        caption: The caption's column, as in `read_prompts`.

    Raises:
        ValueError: If the file is unusable, or there is no data without one.
    """
    if prompts is None:
        return [] if teacher.source() is not None else _known(teacher, samples)
    lines = recipe_prompts(prompts, caption)
    if not teacher.prompts:
        raise ValueError(f"data.prompts={prompts}: teacher {teacher.name!r} takes no prompts")
    return [lines[i % len(lines)] for i in range(samples)]


def _known(teacher: Teacher, samples: int) -> list[str]:
    """Return captions that need no file: none, or a teacher's classes."""
    if not teacher.prompts:
        return [""] * samples
    if isinstance(teacher, ClassTeacher):
        return [teacher.each[i % len(teacher.each)] for i in range(samples)]
    raise ValueError(
        f"teacher {teacher.name!r} brings no data; name a prompt file with data.prompts, or "
        "pictures with data.pictures"
    )


def open_source(
    teacher: Teacher,
    captions: Sequence[str],
    guidance: float,
    steps: int,
    seed: int,
    folder: Path,
    progress: Callable[[int], None],
) -> DataSource:
    """Open the clean data of a run.

    This is the teacher's own data unless captions are given. With captions, the teacher makes
    samples for them, which are kept in `folder` for a resumed run.

    Args:
        teacher: The teacher.
        captions: As from `find_captions`.
        guidance: Guidance scale of the samples.
        steps: Solver steps of the samples.
        seed: Seed of the samples.
        folder: The run dir.
        progress: Called with the number of samples made so far, first with 0.

    Raises:
        ValueError: If a file kept in `folder` is damaged; names it.
        FloatingPointError: If the teacher's samples are not finite.
    """
    if not captions:
        own = teacher.source()
        assert own is not None
        return own
    file = folder / "data" / "latents.safetensors"
    if not file.is_file():
        x0 = _make(teacher, captions, guidance, steps, seed, progress)
        write_shard(file, {"latents": x0})
    fault = fault_of(file, "latents", hashed=False)
    if fault:
        raise ValueError(f"{file}: {fault}; remove it, and the teacher makes them again")
    return Latents(load_file(file)["latents"], captions, teacher)


def _make(
    teacher: Teacher,
    captions: Sequence[str],
    guidance: float,
    steps: int,
    seed: int,
    progress: Callable[[int], None],
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    denoise = teacher.guided(guidance)
    times = teacher.grid(steps)
    device = next(teacher.denoiser.parameters()).device
    made = []
    progress(0)
    for start in range(0, len(captions), 16):
        piece = captions[start : start + 16]
        cond = teacher.encode(piece)
        noise = torch.randn(len(piece), *teacher.sample_shape, generator=generator).to(device)
        made.append(solve(denoise, noise, times, cond, "dpm++2m").cpu())
        row = bad_row(made[-1])
        if row is not None:
            raise FloatingPointError(f"the teacher's sample {start + row} is not finite")
        progress(start + len(piece))
    return torch.cat(made)
