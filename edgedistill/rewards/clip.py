"""How well a picture fits its prompt, by a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.common.settings import Settings
from edgedistill.networks.clip import Features, Outline, features_of
from edgedistill.rewards.base import RewardModel
from edgedistill.teachers.base import Teacher

__all__ = ["ClipScore"]


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
