"""Improved MeanFlow: the mean velocity by a regression of the velocity.

Geng et al. 2025, "Improved Mean Flows: On the Challenges of Fastforward Generative Models"
(arXiv 2512.02012), in the straight coordinates of `flow_map`. The student's compound prediction

    V = u(y, t, r) + (t - r) sg du/dt

is trained to be the velocity v. The derivative is taken along the network's own velocity
u(y, t, t), where `meanflow` takes it along v: with v = eps - x0 of the data, V does not depend on
the draw of the noise, and the regression is an ordinary one. The paper's guidance as a condition
and its second head for u(y, t, t) are left out.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from edgedistill.objectives.base import Batch
from edgedistill.objectives.trajectory.flow_map import FlowMap, Legs, MeanFlow, slope_along

__all__ = ["IMF"]


class IMF(FlowMap):
    """MeanFlow's rule, with the derivative along the student's own velocity."""

    class Config(MeanFlow.Config):
        """Hyperparameters (the authors': MeanFlow's, with half of the batch at s = t)."""

        rule: Literal["eulerian"] = "eulerian"
        instant_share: float = Field(0.5, ge=0, lt=1)

    name = "imf"

    def wanted(self, legs: Legs, batch: Batch) -> Tensor:
        own = legs.ours(legs.y, legs.tau, legs.tau)
        # V - v is u less this.
        return legs.v - legs.length * slope_along(legs, own)
