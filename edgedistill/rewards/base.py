"""Base class of reward models, which rate samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from edgedistill.common.settings import Settings
from edgedistill.teachers.base import Teacher

__all__ = ["RewardModel"]


class RewardModel(ABC):
    """A model that rates samples; higher is better."""

    Config: ClassVar[type[Settings]] = Settings
    """Class of `reward.options`."""

    @abstractmethod
    def __init__(self, config: Any, teacher: Teacher) -> None:
        """Raise a ValueError if this teacher's samples cannot be judged.

        `config` is a `Config` of the subclass.
        """

    @abstractmethod
    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return rewards (N,), with their gradient in the samples where there is one.

        Args:
            samples: Pictures (N, 3, H, W) in [-1, 1], or points (N, D).
            prompts: Prompt of each sample; empty where the teacher takes none.
        """

    @classmethod
    def outline(cls, config: Any, folder: Path, *, prompted: bool) -> RewardModel | None:
        """Return the model without weights, on the meta device, for planning; None if unsupported.

        Args:
            config: A `Config` of the subclass.
            folder: Folder of the teacher's configurations.
            prompted: Whether the teacher takes prompts.

        Raises:
            ValueError: As in the constructor, or if its networks' configurations are missing.
        """
        return None

    def networks(self) -> dict[str, nn.Module]:
        """Networks of the reward by name."""
        return {}
