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
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.parts import FakeScored, View, health
from edgedistill.objectives.matching.rollout import Noised, Sample

__all__ = ["SiD"]


class SiD(FakeScored):
    """x0 descends an estimate of the Fisher divergence to the teacher."""

    class Config(FakeScored.Config):
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
        super().__init__(config, setup)
        self.scale = 1.0
        if config.guidance != "teacher":
            if not isinstance(setup.teacher, Guided):
                raise ValueError(
                    f"guidance={config.guidance}: teacher.guidance=1 has no null condition; "
                    "choose another, or guidance=teacher"
                )
            self.null = setup.teacher.null
            scales = {"long-short": setup.teacher.scale, "zero": 0.0, "anti": -1.0}
            self.scale = scales[config.guidance]
            if config.guidance != "long-short":
                self.teacher = setup.teacher.denoiser

    def fake_output(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        if self.scale == 1:
            return super().fake_output(x_t, t, cond)
        null = expand(self.null, len(x_t))
        if self.scale == 0:
            return super().fake_output(x_t, t, null)
        t = t.expand(len(x_t))
        both = super().fake_output(torch.cat([x_t, x_t]), torch.cat([t, t]), cat(null, cond))
        without, wanted = both.chunk(2)
        return torch.lerp(without, wanted, self.scale)

    def seen(self, noised: Noised, cond: Condition) -> Tensor:
        # Data is judged under its condition, which the denoising call had not alone.
        return super().seen(noised, cond) if self.scale == 1 else self.logits(noised, cond)

    def move(self, sample: Sample, batch: Batch) -> Losses:
        x0 = sample.x0
        noised = self.place(sample, self.levels(batch), batch)
        x_t, t = noised.x_t, noised.t
        real, fake = self.real(x_t, t, batch), self.fake(x_t, t, batch.cond)
        apart = real - fake
        dims = tuple(range(1, x0.ndim))
        scale = (x0 - real).detach().abs().mean(dims, keepdim=True).clamp(min=1e-3)
        loss = torch.nan_to_num(apart * ((real - x0) - self.config.alpha * apart) / scale).mean()
        return Losses(loss, health(View(x0, x_t, t, real, fake), apart / scale, batch.x0))
