"""What may judge a student's samples: a name, and the class that says how good they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.common.plugins import resolve
from edgedistill.common.settings import Settings
from edgedistill.networks.clip import Features, Outline, features_of
from edgedistill.objectives.added.reward import Reward
from edgedistill.objectives.base import RewardOf
from edgedistill.teachers.base import Teacher

__all__ = ["REWARDS", "ClipScore", "Linear", "RewardModel", "find", "reward_of"]


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


class Linear(RewardModel):
    """Of points, direction . x: tilts a Gaussian to another mean, a mixture to one side."""

    class Config(Settings):
        """Options."""

        direction: tuple[float, ...]
        """One number a coordinate."""

    def __init__(self, config: Linear.Config, teacher: Teacher) -> None:
        shape = (len(config.direction),)
        if teacher.sample_shape != shape:
            raise ValueError(
                f"reward.options.direction={list(config.direction)}: samples of teacher "
                f"{teacher.name!r} have shape {tuple(teacher.sample_shape)}, not {shape}"
            )
        self.direction = torch.tensor(config.direction)

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        return samples @ self.direction.to(samples)


class ClipScore(RewardModel):
    """Cosine of picture and prompt in a CLIP model, in [-1, 1].

    Where the same model judges in `evaluate`, its scores are what was trained for; look at FD too.
    """

    class Config(Settings):
        """Options."""

        features: str | None = None
        """Folder or Hub id of the CLIPModel; by default the one the teacher ships."""

    def __init__(self, config: ClipScore.Config, teacher: Teacher) -> None:
        if not teacher.prompts:
            raise ValueError(f"reward.name=clip: teacher {teacher.name!r} takes no prompts")
        keys = "reward.options.features"
        self.features = Features(features_of(teacher.name, teacher.path, config.features, keys))

    @classmethod
    def outline(cls, config: ClipScore.Config, folder: Path, *, prompted: bool) -> ClipScore:
        if not prompted:
            raise ValueError(f"reward.name=clip: teacher {folder.name!r} takes no prompts")
        place = Path(config.features) if config.features else folder / "clip"
        if not (place / "config.json").is_file():
            what = "costs are read from configurations; name the folder of a CLIPModel"
            raise ValueError(f"reward.options.features={config.features}: {what}")
        made = cls.__new__(cls)
        made.features = Outline(place)
        return made

    def networks(self) -> dict[str, nn.Module]:
        return {"clip": self.features.model}

    def __call__(self, samples: Tensor, prompts: Sequence[str]) -> Tensor:
        images = self.features.embed(samples)
        texts = self.features.texts(prompts).to(images)
        return F.cosine_similarity(images, texts)


REWARDS = {
    "clip": "edgedistill.rewards:ClipScore",
    "linear": "edgedistill.rewards:Linear",
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
