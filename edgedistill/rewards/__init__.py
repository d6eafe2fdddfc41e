"""Reward models by name: what may judge a student's samples."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from edgedistill.common.plugins import resolve
from edgedistill.objectives.added.reward import Reward
from edgedistill.objectives.base import RewardOf
from edgedistill.rewards.base import RewardModel
from edgedistill.teachers.base import Teacher

__all__ = ["REWARDS", "RewardModel", "find", "reward_of"]

REWARDS = {
    "clip": "edgedistill.rewards.clip:ClipScore",
    "linear": "edgedistill.rewards.linear:LinearReward",
}
"""Imported when asked for. Others join by the entry-point group `edgedistill.rewards`."""


def find(name: str) -> type[RewardModel]:
    """The reward called `name`; ValueError names the choices."""
    kind: type[RewardModel] = resolve("reward", REWARDS, name, "edgedistill.rewards")
    return kind


def reward_of(section: Reward, teacher: Teacher) -> RewardOf:
    """The reward of a teacher's x0, decoded first.

    Raises:
        ValueError: If there is no such reward, or it cannot judge this teacher's samples.
    """
    kind = find(section.name)
    model = kind(kind.Config(**section.options), teacher)

    def reward(x0: Tensor, prompts: Sequence[str]) -> Tensor:
        return model(teacher.decode(x0), prompts).float()

    return reward
