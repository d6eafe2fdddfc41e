"""Open a recipe's teacher: load it, move it to the device, and prove it before training."""

from __future__ import annotations

import torch

from edgedistill.proof.drawing import prove
from edgedistill.recipes.schema import Recipe
from edgedistill.teachers import Teacher, load_teacher

__all__ = ["open_teacher"]


def open_teacher(recipe: Recipe, device: torch.device) -> tuple[Teacher, str]:
    """Open the recipe's teacher on the device; also return a line on how it was proven.

    Raises:
        ValueError: If the teacher cannot be loaded, or its samples differ from its own pipeline's.
    """
    section, train = recipe.teacher, recipe.train
    teacher = load_teacher(section.family, section.path, section.config, section.loras)
    teacher.set_memory_options(checkpointing=train.checkpointing, offload=train.offload)
    teacher.to(device)
    proof = prove(teacher) if section.verify else ""
    if recipe.student.decoder:
        teacher.use_decoder(recipe.student.decoder)
    return teacher, proof
