"""Distribution matching under any f-divergence.

Xu et al. 2025, "One-step Diffusion Models with f-Divergence Distribution Matching"
(arXiv 2502.15681): D_f = E_student[f(r)], r being the teacher's density over the student's at x_t,
has DMD's gradient weighted by h(r) = r^2 f''(r) (Theorem 1, Table 1). The ratio is the GAN head's:
its logit at the optimum is log r. `reverse-kl` is dmd2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field
from torch import Tensor

from edgedistill.objectives.base import Batch
from edgedistill.objectives.matching.dmd2 import DMD2
from edgedistill.objectives.matching.parts import View

__all__ = ["WEIGHTS", "Divergence", "FDistill"]

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


class FDistill(DMD2):
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

    def gradient(self, view: View, batch: Batch) -> Tensor:
        weight = WEIGHTS[self.config.divergence](self.ratio(view))
        # Of mean 1 in each batch: the divergence says which samples count, not how much all do.
        weight = weight / weight.mean().clamp(min=1e-6)
        shape = (-1,) + (1,) * (view.x_t.ndim - 1)
        return weight.reshape(shape).to(view.x_t) * super().gradient(view, batch)

    def ratio(self, view: View) -> Tensor:
        """Density of the teacher over the student's at x_t, as the head has it, (N,)."""
        assert self.tap is not None
        # The features are those of the fake score's call at x_t.
        logits: Tensor = self.head(self.tap.take()).flatten().float()
        most = self.config.max_ratio
        return logits.exp().clamp(1 / most, most)
