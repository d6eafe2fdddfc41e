"""Shortcut models: a step equals two half steps.

Frans et al. 2024, "One Step Diffusion via Shortcut Models" (arXiv 2410.12557), Eq. 4 and Alg. 1,
in the straight coordinates of `flow_map`: the steps have lengths 1, 1/2, 1/4, ... of the flow, and
as often as each of these the length of a student's own step, which on most schedules differs from
them; they start anywhere. An average of the student makes the target's two half steps.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.networks.ema import follow
from edgedistill.objectives.base import Batch, Setup
from edgedistill.objectives.trajectory.flow_map import FlowMap, tau_of

__all__ = ["Shortcut"]


class Shortcut(FlowMap):
    """A flow map with the progressive rule, an average's targets, and steps of given lengths."""

    class Config(FlowMap.Config):
        """Hyperparameters (the paper's: a quarter of the batch is trained by self-consistency)."""

        rule: Literal["progressive"] = "progressive"
        velocity: Literal["teacher", "data"] = "data"
        instant_share: float = Field(0.75, ge=0, lt=1)
        levels: int = Field(7, ge=1, le=20)
        """Number of step lengths; the shortest is 1 / 2^(levels - 1) of the flow, its halves the
        paper's 1 / 128."""
        ema: float = Field(0.999, ge=0, lt=1)
        """Decay of the average whose two half steps are the target; 0 is the student itself."""

    config: Shortcut.Config
    name = "shortcut"

    def __init__(self, config: Shortcut.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        if config.ema:
            self.target = copy.deepcopy(self.student).requires_grad_(False)
        stops = tau_of(self.student.schedule, setup.times)
        to_end = setup.sampler == "renoise"
        self.own = stops[:-1], torch.zeros_like(stops[:-1]) if to_end else stops[1:]

    def followers(self) -> dict[str, nn.Module]:
        return {"target": self.target} if self.config.ema else {}

    def updated(self, player: str) -> None:
        if self.config.ema:
            follow(self.target, self.student, self.config.ema)

    def drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        anywhere, count, random = self.taus(batch), len(batch.x0), batch.generator
        level = torch.randint(self.config.levels + 1, (count,), generator=random)
        own = torch.randint(len(self.own[0]), (count,), generator=random)
        length = self.limit * 0.5 ** level.double()
        end = (1 - length / self.limit) * anywhere
        tau, end = (
            torch.where(level == self.config.levels, mine[own], halved)
            for mine, halved in zip(self.own, (end + length, end), strict=True)
        )
        instant = self.instant(count)
        return torch.where(instant, anywhere, tau), torch.where(instant, anywhere, end)
