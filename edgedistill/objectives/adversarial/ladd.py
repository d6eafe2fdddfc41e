"""Latent adversarial diffusion distillation.

Sauer et al. 2024, "Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion
Distillation" (arXiv 2403.12015): the student's x0 is noised anew, and heads on the frozen
teacher's features judge it at that noise. Where the noise is drawn from decides whether they see
the whole or the details (its Sec. 4.1); real are the teacher's samples, if the data are.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from edgedistill.diffusion.times import TimeSampling, sample_times
from edgedistill.networks.heads import Shown
from edgedistill.objectives.adversarial.parts import GAN, Round
from edgedistill.objectives.base import Batch

__all__ = ["LADD"]


class LADD(GAN):
    """The student's x0 from noised data, noised anew, is as likely as data noised alike."""

    class Config(GAN.Config):
        """Hyperparameters (the paper's)."""

        loss: Literal["hinge", "non-saturating", "lsgan", "relativistic"] = "hinge"
        times: TimeSampling = TimeSampling(kind="logit-normal", mean=1.0, std=1.0)
        """Noise levels at which the discriminator judges."""

    config: LADD.Config
    name = "ladd"

    def shown(self, x0: Tensor, batch: Batch) -> Shown:
        """Samples noised anew."""
        schedule = self.student.schedule
        t = sample_times(self.config.times, schedule, len(x0), batch.generator)
        t = schedule.snap(t).to(x0.device)
        return [(self.student.noised(x0, t, batch.noise()), t)]

    def round(self, batch: Batch) -> Round:
        x_t, t = self.begin(batch)
        x0 = self.student(x_t, t, batch.cond)
        return Round(x_t, t, x0, self.shown(x0, batch), self.shown(batch.x0, batch))
