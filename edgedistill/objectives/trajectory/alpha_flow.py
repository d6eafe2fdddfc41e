"""Alpha-Flow: from trajectory flow matching to MeanFlow by a curriculum.

Zhang et al. 2025, "AlphaFlow: Understanding and Improving MeanFlow Models" (arXiv 2510.20771), in
the straight coordinates of `flow_map`. A step from t to r has a time s = alpha r + (1 - alpha) t
between, and

    loss = 1 / alpha |u(y_t, t, r) - alpha v(y_t) - (1 - alpha) sg u(y_s, s, r)|^2,
    y_s = y_t - (t - s) v(y_t).

With alpha = 1 the student's mean velocity is trained to be v (trajectory flow matching). With
alpha = 1/2 it is a shortcut model's, whose first half step is v. As alpha goes to 0 the gradient
becomes MeanFlow's, and below `eta` MeanFlow's own rule is used. Alpha falls from 1 to 0 along a
sigmoid of the training's progress.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from edgedistill.objectives.base import Batch
from edgedistill.objectives.trajectory.flow_map import FlowMap, Legs, MeanFlow

__all__ = ["AlphaFlow"]


class AlphaFlow(FlowMap):
    """Trains the student's mean velocity with a part alpha of each step done by the flow."""

    class Config(MeanFlow.Config):
        """Hyperparameters (the authors' settings for B/2 on ImageNet without guidance).

        The weight of a step is alpha^(2p - 1) / (e + c)^p: the objective's 1 / alpha for p = 0,
        and the paper's adaptive weight alpha / (e + c) for p = 1. Where s = t and where MeanFlow's
        rule is used it is 1 / (e + c)^p.
        """

        rule: Literal["eulerian"] = "eulerian"
        """Rule below `eta`: MeanFlow's."""
        instant_share: float = Field(0.5, ge=0, lt=1)
        start_share: float = Field(0.0, ge=0, lt=1)
        """Share of the training before which alpha is 1."""
        end_share: float = Field(1.0, gt=0, le=1)
        """Share of the training after which alpha is 0."""
        temperature: float = Field(25.0, gt=0, le=1000)
        """Steepness of the sigmoid between the two: alpha = sigmoid(temperature (1/2 - done)),
        done being the share of the way between them."""
        eta: float = Field(0.005, ge=0, lt=0.5)
        """Smallest alpha: below it alpha is 0, above 1 - eta it is 1."""

        @model_validator(mode="after")
        def _ordered(self) -> AlphaFlow.Config:
            if self.start_share >= self.end_share:
                raise ValueError(
                    f"start_share={self.start_share:g} must be below end_share={self.end_share:g}"
                )
            return self

    name = "alpha-flow"
    config: AlphaFlow.Config

    def alpha(self, step: int) -> float:
        """Return the part of each step that the flow does, at a step of the run."""
        config = self.config
        begin, end = config.start_share, config.end_share
        done = (step / self.setup.train_steps - begin) / (end - begin)
        if not 0 < done < 1:
            return float(done <= 0)
        alpha = 1 / (1 + math.exp(config.temperature * (done - 0.5)))
        return 0.0 if alpha < config.eta else 1.0 if alpha > 1 - config.eta else alpha

    def wanted(self, legs: Legs, batch: Batch) -> Tensor:
        alpha = self.alpha(batch.step)
        if alpha == 0:
            return super().wanted(legs, batch)
        if alpha == 1:
            return legs.v
        s = torch.lerp(legs.tau, legs.end, alpha)
        y_s = legs.y - alpha * legs.length * legs.v
        return alpha * legs.v + (1 - alpha) * legs.theirs(y_s, s, legs.end)

    def weight(self, error: Tensor, legs: Legs, batch: Batch) -> Tensor:
        weight = super().weight(error, legs, batch)
        alpha = self.alpha(batch.step) or 1.0
        return torch.where(
            legs.tau > legs.end, alpha ** (2 * self.config.power - 1) * weight, weight
        )
