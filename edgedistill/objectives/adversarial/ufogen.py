"""Diffusion and GAN in one: samples are compared where the student's step lands.

Xu et al. 2023, "UFOGen: You Forward Once Large Scale Text-to-Image Generation via Diffusion GANs"
(arXiv 2311.09257): the student's x0, noised to the next time, is as likely as data noised to it,
and predicts the data as a denoiser does. So the joint distribution of two times of the path is
matched by a marginal and a conditional part. The discriminator is a diffusion network that trains.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from edgedistill.common.settings import renamed
from edgedistill.objectives.adversarial.parts import GAN, Round
from edgedistill.objectives.base import Batch

__all__ = ["UFOGen"]


class UFOGen(GAN):
    """q(x_s | student's x0) is as likely as q(x_s | x0), and the two x0 are near."""

    class Config(GAN.Config):
        """Hyperparameters (the paper's)."""

        old_keys = renamed(reconstruction="reconstruction_weight")

        loss: Literal["hinge", "non-saturating", "lsgan", "relativistic"] = "non-saturating"
        reconstruction_weight: float = Field(1.0, ge=0)
        """Weight of the denoising loss, in the error of eps: alpha^2 / sigma^2 of that of x0."""

    config: UFOGen.Config
    name = "ufogen"
    frozen = False

    def round(self, batch: Batch) -> Round:
        x_t, t, s = self.start(batch)
        x0, s = self.student(x_t, t, batch.cond), self.seen(s)
        fake = [(self.student.noised(x0, s, batch.noise()), s)]
        real = [(self.student.noised(batch.x0, s, batch.noise()), s)]
        return Round(x_t, t, x0, fake, real)

    def others(self, made: Round, batch: Batch) -> dict[str, Tensor]:
        weight = self.student.schedule.log_snr(made.t).exp().to(made.x0)
        error = (made.x0 - batch.x0).square().flatten(1).mean(1)
        return {"reconstruction": self.config.reconstruction_weight * (weight * error).mean()}
