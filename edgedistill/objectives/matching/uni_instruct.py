"""Distribution matching under an f-divergence that is expanded along the diffusion.

Wang et al. 2025, "Uni-Instruct: One-step Diffusion Model through Unified Diffusion Divergence
Instruction" (arXiv 2505.20755): an f-divergence of student and teacher is the integral over all
noise levels of E_student[h(r) |score_student - score_teacher|^2], with f-distill's ratio r and
its h(r) = r^2 f''(r) (Theorem 3.1). Its gradient needs no derivative of the student's density: it
is that of a score identity loss under h, plus one that moves x_t where the integrand is smaller
(Theorem 3.2). `reverse-kl` is SiD with alpha = 1/2; of `forward-kl` the second part vanishes.

The gradient is the exact one. The paper's code takes h as a constant in the first part, and leaves
the distance's own gradient out of the second.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.losses import matching_scale
from edgedistill.diffusion.tensors import expand_like
from edgedistill.objectives.base import Batch, Losses
from edgedistill.objectives.matching.f_distill import (
    WEIGHTS,
    Divergence,
    FDistill,
    density_ratio,
)
from edgedistill.objectives.matching.parts import Matching, View, health

__all__ = ["UniInstruct", "expanded"]


def expanded(x0: Tensor, real: Tensor, fake: Tensor, weight: Tensor, rest: Tensor) -> Tensor:
    """The integrand's surrogate, (N, ...): its mean has the divergence's gradient.

    Over x0, with real, fake, weight and rest as they depend on x_t, and the student's weights in
    nothing else. In units of 2 alpha^2 / sigma^4, which make of two x0 the scores' distance.

    Args:
        x0: The student's samples (N, ...), with gradient.
        real: The teacher's x0 at x_t.
        fake: The student's own, exact.
        weight: h(r), broadcastable to them.
        rest: h(r) - r h'(r).
    """
    apart = real - fake
    return apart * (weight * (fake - x0) + 0.5 * rest * apart)


def with_rest(h: Callable[[Tensor], Tensor], ratio: Tensor) -> tuple[Tensor, Tensor]:
    """h(r) and h(r) - r h'(r), each (N,), with gradient."""
    found = torch.func.jvp(h, (ratio,), (ratio,))
    return found[0], found[0] - found[1]


class UniInstruct(Matching):
    """x0 descends an f-divergence through the distance of the scores along the diffusion."""

    class Config(FDistill.Config):
        """Hyperparameters (the paper's on CIFAR-10)."""

        divergence: Divergence = "forward-kl"
        turns: int = Field(1, ge=1, le=1_000)
        gan_weight: float = Field(1e-4, gt=0)
        """Above 0: the ratio is the discriminator's."""

    name = "uni-instruct"
    config: Config

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        x0 = sample.x0
        noised = self.noising(sample, self.levels(batch), batch)
        x_t, t = noised.x_t, noised.t

        # Both scores and the ratio of the densities, with their gradients in x_t.
        real = self.teacher(x_t, t, batch.cond)
        fake, logits = self.fake_score.x0_and_logits(x_t, t, batch.cond)
        ratio = density_ratio(logits, self.config.max_ratio)
        weight, rest = with_rest(WEIGHTS[self.config.divergence], ratio)
        # Of mean 1 in each batch: the divergence says which samples count, not how much all do.
        mean = weight.detach().mean().clamp(min=1e-6)
        weight, rest = (expand_like(w / mean, x_t).to(x_t) for w in (weight, rest))

        scale = matching_scale(x0, real)
        loss = torch.nan_to_num(expanded(x0, real, fake, weight, rest) / scale).mean()
        view, gradient = View(x0, x_t, t, real, fake), weight * (real - fake) / scale
        return self.helped(Losses(loss, health(view, gradient, batch.x0)), sample, batch)
