"""Score identity distillation, in one step and in few.

Zhou et al. 2024, "Score identity Distillation" (arXiv 2404.04057): with x0 of the student, both
scores' x0 at x_t, r and f, and gradients through all three but the networks' weights, the student
descends (r - f) ((r - x0) - alpha (r - f)) / mean|x0 - r|, whose first part is an unbiased
estimate of the Fisher divergence by the score identities.

Zhou et al. 2025, "Few-Step Diffusion via Score identity Distillation" (arXiv 2505.12674): in
several steps the mixture of all their outputs, each as likely, is matched to the data, which is
what a rollout of one random step a batch does; and guidance goes into the fake score as well.
`gan_weight` above 0 is its adversarial form, and SiDA's (arXiv 2410.14919).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition, Guided, cat, expand
from edgedistill.diffusion.losses import matching_scale
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.parts import FakeScore, Matching, View, health
from edgedistill.objectives.matching.rollout import Noised, TeacherRegression

__all__ = ["SiD"]


class GuidedFakeScore(FakeScore):
    """A fake score that is guided, where it learns and where it is asked.

    Args:
        setup: The run's.
        head: Whether there is a head.
        null: The null condition, of one row.
        scale: Guidance scale; 0 is the null condition alone.
    """

    def __init__(self, setup: Setup, head: bool, null: Condition, scale: float) -> None:
        super().__init__(setup, head)
        self.null, self.scale = null, scale

    def output(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        if self.scale == 1:
            return super().output(x_t, t, cond)
        null = expand(self.null, len(x_t))
        if self.scale == 0:
            return super().output(x_t, t, null)
        t = t.expand(len(x_t))
        both = super().output(torch.cat([x_t, x_t]), torch.cat([t, t]), cat(null, cond))
        without, wanted = both.chunk(2)
        return torch.lerp(without, wanted, self.scale)

    def denoising_and_logits(self, noised: Noised, cond: Condition) -> tuple[Tensor, Tensor]:
        if self.scale == 1:
            return super().denoising_and_logits(noised, cond)
        # Data is judged under its condition, which the denoising call had not alone.
        return self.denoising(noised, cond), self.logits(noised, cond)


class SiD(Matching):
    """x0 descends an estimate of the Fisher divergence to the teacher."""

    class Config(Matching.Config):
        """Hyperparameters (few-step SiD's)."""

        alpha: float = 1.0
        """Weight of the part to be taken off; 1.2 and 1 are the one-step paper's."""
        guidance: Literal["teacher", "long-short", "zero", "anti"] = "teacher"
        """`teacher`: only the teacher is guided, as the recipe says. `long-short`: the fake score
        as well, where it learns and where it is asked (SiD-LSG). `zero`: the teacher without
        guidance, the fake score without condition. `anti`: the same, the fake score guided by -1.
        All but the first need `teacher.guidance` to differ from 1."""

    name = "sid"
    config: Config

    def __init__(self, config: SiD.Config, setup: Setup) -> None:
        if config.guidance == "teacher":
            super().__init__(config, setup)
            return
        guided = setup.teacher
        if not isinstance(guided, Guided):
            raise ValueError(
                f"guidance={config.guidance}: teacher.guidance=1 has no null condition; "
                "choose another, or guidance=teacher"
            )
        null = guided.null
        scale = {"long-short": guided.scale, "zero": 0.0, "anti": -1.0}[config.guidance]

        def fake_score(setup: Setup, head: bool) -> FakeScore:
            return GuidedFakeScore(setup, head, null, scale)

        super().__init__(config, setup, fake_score=fake_score)
        if config.guidance != "long-short":
            self.teacher, steps = guided.denoiser, config.regression_steps
            self.regression = TeacherRegression(self.teacher, self.rollout, steps)

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        x0 = sample.x0
        noised = self.noising(sample, self.levels(batch), batch)
        x_t, t = noised.x_t, noised.t

        # Both scores, with their gradients in x_t.
        real = self.teacher(x_t, t, batch.cond)
        fake = self.fake_score.x0(x_t, t, batch.cond)
        apart, scale = real - fake, matching_scale(x0, real)
        loss = torch.nan_to_num(apart * ((real - x0) - self.config.alpha * apart) / scale).mean()

        view = View(x0, x_t, t, real, fake)
        return self.helped(Losses(loss, health(view, apart / scale, batch.x0)), sample, batch)
