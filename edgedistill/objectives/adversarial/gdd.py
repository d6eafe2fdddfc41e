"""GAN distillation at distribution level: one step, adversarially, most of the network frozen.

Zheng & Yang 2024, "Diffusion Models Are Innate One-Step Generators" (arXiv 2405.20750): a student
need not imitate the teacher sample by sample, and most convolutions may stay as they are. The
paper's features are an image classifier's; here they are the teacher's own at hardly any noise.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from edgedistill.networks.adapters import Role, find_layers
from edgedistill.objectives.adversarial.parts import GAN, Round
from edgedistill.objectives.base import Batch, Setup

__all__ = ["GDD"]


class GDD(GAN):
    """The student's x0 is as likely as data, and some of its layers are the teacher's."""

    class Config(GAN.Config):
        """Hyperparameters."""

        loss: Literal["hinge", "non-saturating", "lsgan", "relativistic"] = "non-saturating"
        r1_weight: float = Field(1e-4, ge=0)
        keep: tuple[str, ...] = ("conv1", "conv2")
        """Ends of the paths of the student's layers that do not train: the 3x3 convolutions of a
        U-Net's residual blocks. Empty trains all."""

    config: GDD.Config
    name = "gdd"

    def __init__(self, config: GDD.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        if not config.keep:
            return
        if isinstance(self.student.net, Role):
            raise ValueError(
                "train.roles=adapters: a LoRA leaves every layer of the teacher as it is; choose "
                "objective.keep=[] or train.roles=copies"
            )
        ends = tuple(f".{end}" for end in find_layers(self.student.net, config.keep))
        for path, layer in self.student.net.named_modules():
            if f".{path}".endswith(ends):
                layer.requires_grad_(False)

    def round(self, batch: Batch) -> Round:
        x_t, t = self.begin(batch)
        x0 = self.student(x_t, t, batch.cond)
        return Round(x_t, t, x0, [self.clean(x0)], [self.clean(batch.x0)])
