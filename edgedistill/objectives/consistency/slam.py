"""Consistency from any point of a sub-path, which is approximated by a line.

Xu et al. 2024, "Accelerating Image Generation with Sub-path Linear Approximation Model"
(arXiv 2404.13903).
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.distances import Distance
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.tensors import expand_like
from edgedistill.objectives.base import Batch
from edgedistill.objectives.consistency.consistency import CD

__all__ = ["SLAM", "between"]


class SLAM(CD):
    """Trains f(x_gamma) = sg f_ema(x_s, s), with x_gamma at a random point of the chord to x_t.

    Near x_s the task is easy, so the task at x_t is approached in steps of any size, and intervals
    can be long.
    """

    class Config(CD.Config):
        """Hyperparameters (the paper's, which are LCM's: 50 intervals, pseudo-Huber)."""

        first_intervals: int = Field(50, ge=2, le=100_000)
        last_intervals: int = Field(50, ge=2, le=100_000)
        distance: Distance = Distance(kind="pseudo-huber")

    name = "slam"

    def start(
        self, batch: Batch, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        gamma = torch.rand(len(t), generator=batch.generator, dtype=torch.float64)
        return between(self.student.schedule, x_t, t, x_s, s, gamma.to(t.device))


def between(
    schedule: Schedule, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor, gamma: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a point of the chord from x_s to x_t, and the time with its share of noise.

    x_gamma = (1 - gamma) (alpha_t / alpha_s) x_s + gamma x_t has signal alpha_t and noise (1 -
    gamma) (alpha_t / alpha_s) sigma_s + gamma sigma_t (the paper's sub-path linear ODE). The
    paper's network reads t and gamma; here x_gamma is scaled to the schedule at the time u with
    that ratio of noise to signal, and the network reads u, which is as informative.

    Args:
        schedule: Schedule of the data.
        x_t: Noisy data (N, ...).
        t: Times (N,) of x_t.
        x_s: Less noisy data on the same path, (N, ...).
        s: Times (N,) of x_s, below t, with signal.
        gamma: Position in [0, 1], (N,); 0 is x_s.

    Returns:
        (x_u, u): (N, ...) and (N,).
    """
    gamma = gamma.clamp(min=1e-3)  # at s = 0 the ratio is 0, and its logarithm none
    alpha_t = schedule.alpha(t)
    keep = (1 - gamma) * alpha_t / schedule.alpha(s)
    sigma = keep * schedule.sigma(s) * (s > 0) + gamma * schedule.sigma(t)
    u = schedule.time_of(2 * (alpha_t.log() - sigma.log())).clamp(s, t)
    scale = schedule.sigma(u) / sigma
    parts = [expand_like(scale * part, x_t).to(x_t) for part in (keep, gamma)]
    return parts[0] * x_s + parts[1] * x_t, u
