"""What a reward model is: it says how good samples are."""

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
    """Says how good samples are, the more the better."""

    Config: ClassVar[type[Settings]] = Settings
    """What `reward.options` may hold."""

    @abstractmethod
    def __init__(self, config: Any, teacher: Teacher) -> None:
        """ValueError if this teacher's samples cannot be judged; `config` is a `Config`."""

    @abstractmethod
    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        """Rewards (N,), with their gradient in the samples where there is one.

        Args:
            samples: Pictures (N, 3, H, W) in [-1, 1], or points (N, D).
            prompts: What each was made for; none where the teacher takes none.
        """

    @classmethod
    def outline(cls, config: Any, folder: Path, *, prompted: bool) -> RewardModel | None:
        """The same without weights, on the meta device, to plan with; None if it has no such form.

        Args:
            config: A `Config` of the subclass.
            folder: Of the teacher's configurations.
            prompted: Whether the teacher takes prompts.

        Raises:
            ValueError: As the constructor, or if its networks' configurations are not there.
        """
        return None

    def networks(self) -> dict[str, nn.Module]:
        """Its networks by name."""
        return {}
