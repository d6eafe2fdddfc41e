"""Tiny teachers (`teacher.tiny=true`): to be planned they are made, which takes a second."""

from __future__ import annotations

import functools
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.planning.inputs import Inputs, row
from edgedistill.recipes.schema import Recipe
from edgedistill.teachers import load_teacher
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.tiny import make_tiny

__all__ = ["tiny_inputs", "with_tiny"]

ROWS = 7
"""Number of rows of the call that shows a network's inputs; no other axis of them is as long."""


def with_tiny(recipe: Recipe) -> Recipe:
    """Return the recipe with the folder of its tiny teacher for `teacher.path`, if it has one.

    Raises:
        ValueError: If the family has no tiny teacher.
    """
    section = recipe.teacher
    if not section.tiny:
        return recipe
    place, _ = _made(section.family)
    teacher = section.model_copy(update={"path": place.name, "config": None})
    return recipe.model_copy(update={"teacher": teacher})


def tiny_inputs(recipe: Recipe) -> Inputs | None:
    """Return the inputs of a tiny teacher's denoiser; None if the recipe has no tiny teacher."""
    return _made(recipe.teacher.family)[1] if recipe.teacher.tiny else None


@functools.cache
def _made(family: str) -> tuple[TemporaryDirectory[str], Inputs]:
    """Make a tiny teacher once, in a folder that goes with the process, and see its inputs."""
    place: TemporaryDirectory[str] = TemporaryDirectory()
    make_tiny(family, Path(place.name))
    teacher = load_teacher(family, place.name)
    assert isinstance(teacher, PipelineTeacher)
    return place, _inputs(teacher)


@torch.no_grad()
def _inputs(teacher: PipelineTeacher) -> Inputs:
    """Return the inputs that a teacher gives its diffusers model."""
    given: dict[str, Any] = {}

    def see(core: nn.Module, args: tuple[Any, ...], words: dict[str, Any]) -> None:
        given.update(signature(core.forward).bind(*args, **words).arguments)

    core = teacher.net.get_submodule(teacher.core)
    handle = core.register_forward_pre_hook(see, with_kwargs=True)
    x, t = torch.zeros(ROWS, *teacher.sample_shape), torch.full((ROWS,), 0.5)
    try:
        teacher.net(x, t, **teacher.encode([*teacher.prompts[:1], ""][:1] * ROWS))
    finally:
        handle.remove()
    del given["timestep"]
    sample = tuple(given.pop(next(iter(given))).shape[1:])
    more = given.pop("added_cond_kwargs", None) or {}
    found = {k: v for k, v in {**given, **more}.items() if isinstance(v, Tensor)}
    cond = {k: row(*v.shape[1:], dtype=v.dtype) for k, v in found.items() if len(v) == ROWS}
    fixed = {k: v.to("meta") for k, v in found.items() if k not in cond}
    latent = () if sample == teacher.sample_shape else teacher.sample_shape
    return Inputs(sample, latent, cond, tuple(k for k in more if k in cond), fixed)
