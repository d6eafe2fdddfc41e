"""A reward of points that is linear in them, whose optimum is known in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgedistill.common.settings import Settings
from edgedistill.rewards.base import RewardModel
from edgedistill.teachers.base import Teacher

__all__ = ["LinearReward"]


class LinearReward(RewardModel):
    """The reward direction . x of points (N, D), which moves a Gaussian's mean."""

    class Config(Settings):
        """Options."""

        direction: tuple[float, ...]
        """One number a coordinate."""

    def __init__(self, config: LinearReward.Config, teacher: Teacher) -> None:
        shape = (len(config.direction),)
        if teacher.sample_shape != shape:
            raise ValueError(
                f"reward.options.direction={list(config.direction)}: samples of teacher "
                f"{teacher.name!r} have shape {tuple(teacher.sample_shape)}, not {shape}"
            )
        self.direction = torch.tensor(config.direction)

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        return samples @ self.direction.to(samples)
