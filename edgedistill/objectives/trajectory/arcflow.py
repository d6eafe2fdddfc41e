"""A policy whose velocity is a mixture of momenta.

Yang et al. 2026, "ArcFlow: Unleashing 2-Step Text-to-Image Generation via High-Precision
Non-Linear Flow Distillation" (arXiv 2602.09014). Along a step, r going from 0 to 1,

    v(r) = sum_k w_k v_k exp(lambda_k r),

which integrates to the mean velocity sum_k w_k v_k (exp(lambda_k) - 1) / lambda_k; one component
has no momentum, lambda = 0. The network outputs weights, velocities and momenta, element by
element. If the mixture is written as that mean plus sum_k d_k (exp(lambda_k r) - its mean), d_k =
w_k v_k, the mean velocity is the network's own output, and d_k and lambda_k are outputs of further
heads. So the student lands exactly by DDIM's step with its own output alone, and keeps the
teacher's architecture. It is trained as `pi_flow`. The paper's exponent grows with sigma itself; r
is the share of the step, a factor that the momenta absorb.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.objectives.base import Setup
from edgedistill.objectives.trajectory.flow_map import over
from edgedistill.objectives.trajectory.pi_flow import Imitation, PolicyConfig

__all__ = ["ArcFlow", "Momenta"]

SPREAD = 4.0
"""The momenta start evenly spaced between this and its negative."""


def grown(rate: Tensor, r: Tensor) -> Tensor:
    """Return the integral of exp(rate u) over u from 0 to r."""
    small = rate.abs() < 1e-3
    safe = torch.where(small, torch.ones_like(rate), rate)
    return torch.where(small, r + 0.5 * rate * r.square(), torch.expm1(safe * r) / safe)


class Momenta:
    """The mixture of momenta on one step.

    Args:
        mean: Mean velocity (N, ...).
        leaves: Offsets d_k, (K, N, ...).
        rates: Momenta lambda_k, (K, N, ...).
        y: Start point of the step.
        tau: Start time, the same for all rows.
        end: End time.
    """

    def __init__(
        self, mean: Tensor, leaves: Tensor, rates: Tensor, y: Tensor, tau: Tensor, end: Tensor
    ) -> None:
        self.mean, self.leaves, self.rates = mean, leaves, rates
        self.y, self.tau, self.length = y, tau, tau - end
        self.means = grown(rates, torch.ones_like(rates))

    def _share(self, tau: Tensor) -> Tensor:
        return over((self.tau - tau) / self.length, self.y)

    def at(self, tau: Tensor) -> Tensor:
        r = self._share(tau)
        bent = self.leaves * (grown(self.rates, r.expand_as(self.rates)) - r * self.means)
        return self.y - self.length.to(self.y) * (r * self.mean + bent.sum(0))

    def velocity(self, y: Tensor, tau: Tensor) -> Tensor:
        r = self._share(tau)
        return self.mean + (self.leaves * ((self.rates * r).exp() - self.means)).sum(0)


class ArcFlow(Imitation):
    """Trains a student whose policy is a mixture of momenta."""

    class Config(PolicyConfig):
        """Hyperparameters of the mixture."""

        components: int = Field(16, ge=2, le=1_024)
        """Number of components, including the one without momentum (the paper's 16)."""

    name = "arcflow"

    def __init__(self, config: ArcFlow.Config, setup: Setup) -> None:
        self.count = config.components - 1
        super().__init__(config, setup, 2 * self.count)
        # The spread leaves out 0, where a component has no gradient in its rate and leaf.
        spread = torch.linspace(-SPREAD, SPREAD, self.count + self.count % 2)[: self.count]
        self.spread = spread.to(setup.example[0])

    def policy(self, x0: Tensor, extra: Tensor, y: Tensor, tau: Tensor, end: Tensor) -> Momenta:
        leaves, rates = extra[: self.count], extra[self.count :]
        rates = rates + self.spread.reshape(-1, *[1] * y.ndim)
        return Momenta((y - x0) / tau.to(y), leaves, rates, y, tau, end)
