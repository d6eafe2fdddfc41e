"""What a recipe's method is made of: the one place where a recipe becomes an objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from edgedistill.compress.plan import Plan
from edgedistill.objectives.base import Objective, Setup
from edgedistill.objectives.compose import ordered
from edgedistill.recipes.schema import Recipe
from edgedistill.teachers.base import Teacher

__all__ = ["build_setup", "compose"]


def build_setup(recipe: Recipe, family: Teacher | type[Teacher], **networks: Any) -> Setup:
    """What the recipe's method is given.

    Args:
        recipe: Its choices.
        family: Says where in its networks features and the time embedding are.
        networks: The other fields of `Setup`, with weights or on the meta device.
    """
    return Setup(
        sampler=recipe.student.sampler,
        optim=recipe.train.optim,
        tap=family.tap,
        time_layer=family.time_layer,
        **networks,
    )


def compose(recipe: Recipe, setup: Setup, depths: Mapping[str, Plan]) -> Objective:
    """The recipe's method, with what its other sections train before it and beside it.

    Args:
        recipe: Its choices.
        setup: Its networks.
        depths: The smaller students inside the student, by name.
    """
    with torch.random.fork_rng(devices=[]):
        # Networks of the method, such as heads, draw weights from the global generator.
        torch.manual_seed(recipe.train.seed)
        method = recipe.method()(recipe.method_config(), setup)
        sections = (recipe.embedding, recipe.reward)
        return ordered(method, setup, recipe.compress, depths, *sections)
