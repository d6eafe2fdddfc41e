"""Improved distribution matching distillation.

Yin et al. 2024, "Improved Distribution Matching Distillation for Fast Image Synthesis"
(arXiv 2405.14867): a fake score trained several turns to the student's one, a GAN head on its
features, and multi-step students trained on their own backward simulation.
"""

from __future__ import annotations

import torch
from pydantic import Field

from edgedistill.diffusion.losses import (
    gan_accuracy,
    gan_discriminator,
    gan_generator,
    matching_gradient,
    surrogate_loss,
)
from edgedistill.diffusion.times import stratified
from edgedistill.objectives.base import Batch, Losses
from edgedistill.objectives.matching.parts import Matching, View, health
from edgedistill.objectives.matching.rollout import renoised

__all__ = ["DMD2"]


class DMD2(Matching):
    """Moves the student's samples from their own distribution to the teacher's.

    Both turns of the algorithm are spelled out here, in terms of the parts that `Matching` holds.
    """

    class Config(Matching.Config):
        """Hyperparameters (defaults: the paper's SDXL 4-step run)."""

        turns: int = Field(5, ge=1, le=1_000)
        """Updates of fake_score to one of the student (two time-scale rule, Sec. 4.2)."""
        gan_weight: float = Field(5e-3, ge=0)
        """Weight of the GAN term in the student's loss (Sec. 4.3); 0 builds no head."""

    name = "dmd2"

    def student_loss(self, batch: Batch) -> Losses:
        config, cond = self.config, batch.cond

        # The student's x0 at one of its own steps, reached by its own samples (Sec. 4.5).
        sample = self.rollout(batch)

        # Noised to random levels, it is seen by the real score and by the fake one, whose
        # difference leads from the student's distribution to the teacher's (Eq. 2).
        with torch.no_grad():
            noised = self.noising(sample, self.levels(batch), batch)
            real = self.teacher(noised.x_t, noised.t, cond)
            fake = self.fake_score.x0(noised.x_t, noised.t, cond)
            gradient = torch.nan_to_num(matching_gradient(sample.x0, real, fake))
        view = View(sample.x0, noised.x_t, noised.t, real, fake)
        losses = Losses(surrogate_loss(sample.x0, gradient), health(view, gradient, batch.x0))

        # A regression on the teacher's ODE holds every mode; the GAN makes up for what the teacher
        # does not know of the data, at any level of noise (Sec. 4.3).
        if config.regression_weight > 0:
            losses = losses.plus("regression", config.regression_weight, self.regression(batch))
        if config.gan_weight > 0:
            anywhere = stratified(len(sample.x0), batch.generator)
            noised = self.noising(sample, anywhere, batch)
            gan = gan_generator(self.fake_score.logits(noised, cond))
            losses = losses.plus("gan", config.gan_weight, gan)
        return losses

    def fake_score_loss(self, batch: Batch) -> Losses:
        config, student, cond = self.config, self.student, batch.cond

        # The student's samples as they are now, noised to all levels.
        with torch.no_grad():
            sample = self.rollout(batch)
            anywhere = stratified(len(sample.x0), batch.generator)
            noised = self.noising(sample, anywhere, batch)

        # The fake score learns to denoise them, and its head to tell them from data (Sec. 4.3).
        if config.gan_weight == 0:
            denoising = self.fake_score.denoising(noised, cond)
            return Losses(denoising, {"denoising": denoising.detach()})
        denoising, fake = self.fake_score.denoising_and_logits(noised, cond)
        real = self.fake_score.logits(renoised(student, batch.x0, noised.t, batch), cond)
        losses = Losses(denoising, {"denoising": denoising.detach()})
        gan = gan_discriminator(real, fake)
        return losses.plus("gan", config.classify_weight, gan, accuracy=gan_accuracy(real, fake))
