"""Progressive adversarial distillation.

Lin et al. 2024, "SDXL-Lightning: Progressive Adversarial Diffusion Distillation" (arXiv
2402.13929): steps are halved as in progressive distillation, the first time by regression, and
afterwards a discriminator tells where the student lands from where two steps of its teacher do.
First it sees x_t beside it, so that the student keeps to the teacher's paths; then it does not,
and the student may leave them where it has not the capacity to follow (Sec. 3.3). The
discriminator is a diffusion network that trains.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import nn

from edgedistill.common.settings import renamed
from edgedistill.diffusion.solvers import ddim_step
from edgedistill.objectives.adversarial.parts import GAN, Round
from edgedistill.objectives.base import Batch, Losses, Player, Setup
from edgedistill.objectives.trajectory.progressive import Progressive

__all__ = ["Lightning"]


class Lightning(GAN):
    """A discriminator makes one step of the student land as likely as two of the teacher."""

    class Config(GAN.Config):
        """Hyperparameters (the paper's: 128 steps, at once 32, then 8, 4, 2, 1)."""

        old_keys = renamed(alone="alone_share")

        loss: Literal["hinge", "non-saturating", "lsgan", "relativistic"] = "non-saturating"
        halving: Progressive.Config = Progressive.Config()
        regressed: int = Field(1, ge=0, le=1_000)
        """First stages without the discriminator."""
        alone_share: float = Field(0.5, ge=0, le=1)
        """Share of each later stage, at its end, in which the discriminator does not see x_t."""

    config: Lightning.Config
    name = "lightning"
    restarts = True
    frozen = False
    places = 2

    def __init__(self, config: Lightning.Config, setup: Setup) -> None:
        self.halving = Progressive(config.halving, setup)
        if config.regressed >= config.halving.stages:
            raise ValueError(
                f"objective.regressed={config.regressed}: none of the "
                f"{config.halving.stages} stages is adversarial"
            )
        super().__init__(config, setup)

    def players(self) -> list[Player]:
        stages = self.halving.stages
        first = -(-self.config.regressed * stages.train_steps // stages.count)
        discriminator, student = super().players()
        return [
            Player("discriminator", discriminator.net, discriminator.optim, start=first),
            replace(student, prelude=first),  # it plays alone
        ]

    def followers(self) -> dict[str, nn.Module]:
        return self.halving.followers()

    def started(self, step: int) -> None:
        self.halving.started(step)

    def updated(self, player: str) -> None:
        if player == "student":
            self.halving.updated(player)

    def loss(self, player: str, batch: Batch) -> Losses:
        if self.halving.stages.at(batch.step) < self.config.regressed:
            return self.halving.loss(player, batch)
        return super().loss(player, batch)

    def lonely(self, step: int) -> bool:
        """Whether the discriminator does not see x_t at this step of the run."""
        stages = self.halving.stages
        done = step * stages.count / stages.train_steps - stages.at(step)
        return done >= 1 - self.config.alone_share

    def round(self, batch: Batch) -> Round:
        step = self.halving.step(batch)
        x_t, t = step.x_t, step.t
        x0 = self.student(x_t, t, batch.cond)
        s = self.seen(step.s)
        fake = (ddim_step(self.student.schedule, x_t, x0, t, step.s), s)
        real = (step.x_s, s)
        if self.lonely(batch.step):
            return Round(x_t, t, x0, [fake, fake], [real, real])
        return Round(x_t, t, x0, [fake, (x_t, t)], [real, (x_t, t)])
