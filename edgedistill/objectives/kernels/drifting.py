"""A generator whose samples follow a drift field: towards the data, and away from each other.

Deng et al. 2026, "Generative Modeling via Drifting" (arXiv 2602.04770), Alg. 1 and 2. The student
makes samples x. The field V(x) is the mean of the data around x minus that of the student's other
samples around x, both weighted by the kernel exp(-|x - y| / tau), and x learns x + V(x). Where
samples and data have one distribution, exchanging them changes nothing but the sign of V, so that
V is 0. No network beside the student trains, and the teacher is not called: the target is the
distribution of the recipe's data.

As in the paper, the kernel is normalised over y and over x, x is scaled so that tau has no unit,
each temperature's field is scaled to size 1, and the fields are summed. A pair under two different
conditions neither attracts nor repels, and a sample whose condition no other row of the batch has
does not move. So a batch needs several rows of each condition, as a teacher of few classes gives
them; captions that all differ teach nothing. The teacher's guidance plays no part.

In pictures the distances of x0 mean little; `features=teacher` takes the paper's loss in the
features of the frozen teacher at one layer, averaged over places. The paper's features are an
encoder's at several scales, place by place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition
from edgedistill.networks.taps import Taps
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup
from edgedistill.objectives.matching.parts import moved
from edgedistill.objectives.matching.rollout import Rollout

__all__ = ["Drifting", "Pairs", "alike"]

NEVER = -1e9
"""Logit of a pair that has no share in the field."""
CLEAN = 0.02
"""Time at which the teacher reads clean data, as it has hardly seen an earlier one."""


def alike(cond: Condition, count: int, device: torch.device) -> Tensor:
    """Return which pairs of `count` rows have equal conditions, (N, N)."""
    same = torch.ones(count, count, dtype=torch.bool, device=device)
    for value in cond.values():
        rows = value.reshape(count, -1)
        same &= torch.stack([(rows == row).all(1) for row in rows])
    return same


@dataclass(frozen=True)
class Pairs:
    """Samples, and the data and other samples around each.

    Attributes:
        x: Samples (N, D).
        data: Data (N, D).
        distances: Distance of each sample from all data, then from all samples, (N, 2N).
        counted: Whether a pair attracts or repels at all, (N, 2N).
    """

    x: Tensor
    data: Tensor
    distances: Tensor
    counted: Tensor

    @classmethod
    def of(cls, x: Tensor, data: Tensor, same: Tensor) -> Pairs:
        """Measure the pairs of which `same` (N, N) says that they are of one condition."""
        # The faster product of matrices loses the small distances.
        distances = torch.cdist(
            x, torch.cat([data, x]), compute_mode="donot_use_mm_for_euclid_dist"
        )
        others = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        return cls(x, data, distances, torch.cat([same, others], 1))

    def unit(self) -> Tensor:
        """Return the factor, a scalar, after which the mean distance is sqrt(D)."""
        mean = (self.distances * self.counted).sum() / self.counted.sum()
        return math.sqrt(self.x.shape[1]) / mean.clamp(min=1e-8)

    def scaled(self, factor: Tensor) -> Pairs:
        """Return the pairs with samples and data times a factor."""
        return Pairs(factor * self.x, factor * self.data, factor * self.distances, self.counted)

    def drift(self, tau: float) -> Tensor:
        """Return the field V (N, D) of the kernel exp(-distance / tau) at each sample (Alg. 2)."""
        logits = torch.where(self.counted, -self.distances / tau, NEVER)
        kernel = (logits.softmax(1) * logits.softmax(0)).sqrt()
        attracts, repels = kernel.chunk(2, 1)
        # Each side is weighted by the other's sum, so that V is a mean of y_data - y_student.
        towards = (attracts * repels.sum(1, keepdim=True)) @ self.data
        away = (repels * attracts.sum(1, keepdim=True)) @ self.x
        return towards - away


class Drifting(Objective):
    """x0 learns sg(x0 + V(x0))."""

    class Config(Settings):
        """Hyperparameters (the paper's temperatures)."""

        temperatures: tuple[float, ...] = (0.02, 0.05, 0.2)
        """Temperatures of the kernel, each times sqrt(D) where the mean distance is sqrt(D)."""
        features: Literal["x0", "teacher"] = "x0"
        """Space of the field: x0 itself, or the frozen teacher's features at its tap."""
        rollout: Literal["simulate", "data"] = "simulate"
        """Inputs of later steps: the student's own samples, or noised data."""
        weight: float = Field(1.0, gt=0)
        """Weight of the loss, which stays near the number of temperatures as the field is scaled
        to size 1."""

        @field_validator("temperatures")
        @classmethod
        def _positive(cls, temperatures: tuple[float, ...]) -> tuple[float, ...]:
            if not temperatures or min(temperatures) <= 0:
                raise ValueError("one or more, each above 0")
            return temperatures

    name = "drifting"

    def __init__(self, config: Drifting.Config, setup: Setup) -> None:
        self.config, self.optim, self.student = config, setup.optim, setup.student
        self.rollout = Rollout.of(setup, config.rollout)
        if config.features == "teacher":
            self.frozen = setup.spawn().requires_grad_(False)
            self.taps = Taps(self.frozen.net, [setup.tap])

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def features(self, x0: Tensor, cond: Condition) -> Tensor:
        """Return the vectors (N, D), float32, that attract and repel."""
        if self.config.features == "x0":
            return x0.flatten(1).float()
        clean = torch.full((len(x0),), CLEAN, dtype=torch.float64, device=x0.device)
        t = self.frozen.schedule.snap(clean)
        with self.taps:
            self.frozen.output(self.frozen.noised(x0, t, torch.zeros_like(x0)), t, cond)
        (found,) = self.taps.take()
        if found.ndim == 4:
            found = found.flatten(2).transpose(1, 2)
        return (found.mean(1) if found.ndim == 3 else found).float()

    def loss(self, player: str, batch: Batch) -> Losses:
        x0 = self.rollout(batch).x0
        x = self.features(x0, batch.cond)
        with torch.no_grad():
            data = self.features(batch.x0, batch.cond)
            pairs = Pairs.of(x, data, alike(batch.cond, len(x), x.device))
            scale = pairs.unit()
            pairs = pairs.scaled(scale)
            field, logs = torch.zeros_like(x), {}
            for tau in self.config.temperatures:
                drift = pairs.drift(tau * math.sqrt(x.shape[1]))
                size = drift.square().mean().sqrt()
                logs[f"drift_{tau:g}"] = size
                field += drift / size.clamp(min=1e-8)
            target = pairs.x + field
        loss = (scale * x - target).square().mean()
        logs = {**moved(x0.detach(), field, batch.x0), **logs}
        return Losses(self.config.weight * loss, logs)
