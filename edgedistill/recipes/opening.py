"""A recipe's teacher: loaded, moved to the device, and proven before anything trains."""

from __future__ import annotations

import torch

from edgedistill.proof.drawing import prove
from edgedistill.recipes.schema import Recipe
from edgedistill.teachers import Teacher, load_teacher

__all__ = ["open_teacher"]


def open_teacher(recipe: Recipe, device: torch.device) -> tuple[Teacher, str]:
    """The recipe's teacher, on the device, and a line that says how it was proven.

    Raises:
        ValueError: If it cannot be loaded, or is not drawn as its own pipeline draws it.
    """
    section, train = recipe.teacher, recipe.train
    teacher = load_teacher(section.family, section.path, section.config, section.loras)
    teacher.spare(checkpointing=train.checkpointing, offload=train.offload)
    teacher.to(device)
    proof = prove(teacher) if section.verify else ""
    if recipe.student.decoder:
        teacher.use_decoder(recipe.student.decoder)
    return teacher, proof
