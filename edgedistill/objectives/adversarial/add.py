"""Adversarial diffusion distillation.

Sauer et al. 2023, "Adversarial Diffusion Distillation" (arXiv 2311.17042, Eq. 1-4): heads on
frozen features of clean samples, and the teacher's opinion of the student's noised sample. The
paper's features are an image encoder's; here they are the teacher's own at hardly any noise, which
need no decoder and know the condition.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.common.settings import renamed
from edgedistill.diffusion.times import TimeSampling, sample_times
from edgedistill.objectives.adversarial.parts import GAN, Round
from edgedistill.objectives.base import Batch

__all__ = ["ADD"]


class ADD(GAN):
    """The student's x0 is as likely as data, and near what the teacher makes of it noised."""

    class Config(GAN.Config):
        """Hyperparameters (the paper's)."""

        old_keys = renamed(distillation="distillation_weight")

        loss: Literal["hinge", "non-saturating", "lsgan", "relativistic"] = "hinge"
        r1_weight: float = Field(1e-5, ge=0)
        """Weight of the penalty on the gradient in x, where the paper takes that in the heads'
        inputs."""
        distillation_weight: float = Field(2.5, ge=0)
        """Weight (lambda) of score distillation."""
        times: TimeSampling = TimeSampling()
        """Noise levels at which the teacher is asked."""

    config: ADD.Config
    name = "add"

    def round(self, batch: Batch) -> Round:
        x_t, t = self.begin(batch)
        x0 = self.student(x_t, t, batch.cond)
        return Round(x_t, t, x0, [self.clean(x0)], [self.clean(batch.x0)])

    def others(self, made: Round, batch: Batch) -> dict[str, Tensor]:
        return {
            "distillation": self.config.distillation_weight * self._distillation(made.x0, batch)
        }

    def _distillation(self, x0: Tensor, batch: Batch) -> Tensor:
        """alpha(t) |x0 - sg(teacher's x0 of sg(x0) noised)|^2, its mean (Eq. 4, c(t) = alpha)."""
        schedule = self.student.schedule
        t = sample_times(self.config.times, schedule, len(x0), batch.generator)
        t = schedule.snap(t).to(x0.device)
        with torch.no_grad():
            x_t = self.student.noised(x0, t, batch.noise())
            target = self.teacher(x_t, t, batch.cond)
        apart = (x0 - target).square().flatten(1).mean(1)
        loss: Tensor = (schedule.alpha(t).to(x0) * apart).mean()
        return loss
