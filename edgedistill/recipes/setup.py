"""The one place where a recipe becomes an objective."""

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
    """Build the `Setup` of the recipe's method.

    Args:
        recipe: The recipe.
        family: The teacher, or its class, which names the layers of features and of the time
            embedding.
        networks: Other fields of `Setup`, with weights or on the meta device.
    """
    return Setup(
        sampler=recipe.student.sampler,
        optim=recipe.train.optim,
        reuse=recipe.student.reuse,
        reuse_layers=recipe.student.reuse_layers,
        tap=family.tap,
        time_layer=family.time_layer,
        **networks,
    )


def compose(recipe: Recipe, setup: Setup, depths: Mapping[str, Plan]) -> Objective:
    """Build the recipe's method, with the losses and steps that its other sections add.

    Args:
        recipe: The recipe.
        setup: Networks of the method.
        depths: Plans of the smaller students inside the student, by name.
    """
    with torch.random.fork_rng(devices=[]):
        # The method's own networks, such as heads, draw weights from the global generator.
        torch.manual_seed(recipe.train.seed)
        method = recipe.method()(recipe.method_config(), setup)
        sections = (recipe.embedding, recipe.reward)
        return ordered(method, setup, recipe.compress, depths, *sections)
