"""Distribution matching under any f-divergence.

Xu et al. 2025, "One-step Diffusion Models with f-Divergence Distribution Matching"
(arXiv 2502.15681): D_f = E_student[f(r)], r being the teacher's density over the student's at x_t,
has DMD's gradient weighted by h(r) = r^2 f''(r) (Theorem 1, Table 1). The ratio is the GAN head's:
its logit at the optimum is log r. `reverse-kl` is dmd2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.losses import matching_gradient
from edgedistill.diffusion.tensors import expand_like
from edgedistill.objectives.base import Batch, Losses
from edgedistill.objectives.matching.dmd2 import DMD2
from edgedistill.objectives.matching.parts import Matching, View
from edgedistill.objectives.matching.rollout import Sample

__all__ = ["WEIGHTS", "Divergence", "FDistill", "density_ratio"]

Divergence = Literal[
    "reverse-kl",
    "softened-reverse-kl",
    "jensen-shannon",
    "hellinger",
    "forward-kl",
    "jeffreys",
    "neyman",
]

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "reverse-kl": lambda r: r.new_ones(r.shape),
    "softened-reverse-kl": lambda r: 1 / (r + 1),
    "jensen-shannon": lambda r: r / (r + 1),
    "hellinger": lambda r: 0.5 * r.sqrt(),
    "forward-kl": lambda r: r,
    "jeffreys": lambda r: 1 + r,
    "neyman": lambda r: 2 / r,
}
"""h(r) of each divergence. The first seek modes, forward-kl covers them."""


def density_ratio(logits: Tensor, most: float) -> Tensor:
    """Density of the teacher over the student's, (N,), as a head's logits (N, 1) have it.

    Held between `most` and its inverse.
    """
    return logits.flatten().float().exp().clamp(1 / most, most)


class FDistill(Matching):
    """DMD2 whose gradient is weighted by how much the teacher likes each sample."""

    class Config(DMD2.Config):
        """Hyperparameters (the paper's best divergence)."""

        divergence: Divergence = "jensen-shannon"
        max_ratio: float = Field(10.0, gt=1)
        """The ratio is held between this and its inverse."""
        gan_weight: float = Field(5e-3, gt=0)
        """Above 0: the ratio is the discriminator's."""

    name = "f-distill"
    config: Config

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        view, weight = self.weighted(sample, batch)
        gradient = weight * matching_gradient(view.x0, view.real, view.fake)
        return self.descent(sample, view, gradient, batch)

    @torch.no_grad()
    def weighted(self, sample: Sample, batch: Batch) -> tuple[View, Tensor]:
        """The sample noised, as both scores see it, and the weight of each, (N, 1, ...)."""
        noised = self.noising(sample, self.levels(batch), batch)
        x_t, t = noised.x_t, noised.t
        real = self.teacher(x_t, t, batch.cond)
        fake, logits = self.fake_score.x0_and_logits(x_t, t, batch.cond)
        ratio = density_ratio(logits, self.config.max_ratio)
        weight = WEIGHTS[self.config.divergence](ratio)
        # Of mean 1 in each batch: the divergence says which samples count, not how much all do.
        weight = weight / weight.mean().clamp(min=1e-6)
        view = View(sample.x0.detach(), x_t, t, real, fake)
        return view, expand_like(weight, x_t).to(x_t)
