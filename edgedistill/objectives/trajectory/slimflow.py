"""SlimFlow: annealed reflow, then one step trained by pairs and by the flow.

Zhu et al. 2024, "SlimFlow: Training Smaller One-Step Diffusion Models with Rectified Flow" (arXiv
2407.12718). It changes `instaflow` in two ways, for students that are smaller than the teacher
(`compress`), whose own flow is a poor start and whose capacity is limited:

- annealing reflow: the pairs' noise is sqrt(1 - beta^2) eps + beta eps', eps' fresh, and beta goes
  from 1, where noise and data are independent, to 0, where they are the teacher's pairs;
- flow-guided distillation: the one step learns the pairs' ends, and for fresh noise the end
  of two Euler steps of the straightened flow, with a random time between them.

The paper's distance is LPIPS; here it is of latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.common.settings import renamed
from edgedistill.diffusion.distances import distance
from edgedistill.diffusion.solvers import init_scale
from edgedistill.objectives.base import Batch
from edgedistill.objectives.trajectory.instaflow import InstaFlow
from edgedistill.objectives.trajectory.reflow import straight_time

__all__ = ["ANNEALINGS", "SlimFlow"]

ANNEALINGS: dict[str, Callable[[float], float]] = {
    "exponential": lambda done: math.exp(-done),
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * min(1.0, done))),
    "linear": lambda done: 1 - min(1.0, done),
}
"""Functions from the share of the annealing done to beta."""


class SlimFlow(InstaFlow):
    """Anneals from independent pairs to the teacher's, then learns from pairs and flow."""

    class Config(InstaFlow.Config):
        """Hyperparameters of SlimFlow."""

        old_keys = renamed(annealed="annealed_share", guided="guided_weight")

        annealing: Literal["exponential", "cosine", "linear"] = "exponential"
        annealed_share: float = Field(0.2, gt=0, le=1)
        """Length of the annealing, as a share of the steps that straighten the flow; the
        exponential keeps falling after it."""
        guided_weight: float = Field(1.0, ge=0)
        """Weight of the flow's ends, relative to the pairs'."""

    name = "slimflow"
    config: SlimFlow.Config

    def beta(self, step: int) -> float:
        """Share of fresh noise in the pairs at a step."""
        return ANNEALINGS[self.config.annealing](step / (self.config.annealed_share * self.begin))

    def pairs(self, batch: Batch) -> Tensor:
        path, beta = super().pairs(batch), self.beta(batch.step)
        fresh = batch.noise() * init_scale(self.student.schedule, self.times[0])
        mixed = math.sqrt(1 - beta**2) * path[:, 0] + beta * fresh
        return torch.stack([mixed, path[:, -1]], 1)

    def distil(self, batch: Batch) -> Tensor:
        path = super().pairs(batch)
        ours = self.one_step(path[:, 0], batch)
        loss = distance(self.config.distance, ours, path[:, -1]).mean()
        if not self.config.guided_weight:
            return loss
        share = 0.2 + 0.6 * torch.rand((), generator=batch.shared, dtype=torch.float64)
        between = straight_time(self.student.schedule, share)
        first = self.times[:1]
        grid = torch.cat([first, between.reshape(1), torch.zeros_like(first)])
        return loss + self.config.guided_weight * self.apart(batch.noise(), batch, grid)
