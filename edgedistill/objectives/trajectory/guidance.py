"""Guidance distillation: one call in place of classifier-free guidance's two, at any scale.

Meng et al. 2022, "On Distillation of Guided Diffusion Models" (arXiv 2210.03142), Sec. 3.1 and
Alg. 1. The network is conditioned on the scale; the finished student keeps one scale, folded into
its weights. It takes as many steps as its teacher; pass it to another method as `student.init` for
fewer.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.times import TimeSampling, sample_times
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup
from edgedistill.objectives.scales import Scales
from edgedistill.objectives.trajectory.progressive import WEIGHTS

__all__ = ["Guidance"]


class Guidance(Objective):
    """Trains S(x_t, t, w) = T(x_t, null) + w (T(x_t, cond) - T(x_t, null)).

    The scale w is random; w = 1 is no guidance.
    """

    class Config(Settings):
        """Hyperparameters of guidance distillation."""

        low: float = Field(1.0, ge=0)
        """Smallest guidance scale."""
        high: float = Field(14.0, gt=0)
        """Largest guidance scale."""
        distance: Distance = Distance()
        times: TimeSampling = TimeSampling(low=0.001)

        @model_validator(mode="after")
        def _ordered(self) -> Guidance.Config:
            if self.low >= self.high:
                raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
            return self

    name = "guidance"

    def __init__(self, config: Guidance.Config, setup: Setup) -> None:
        self.config, self.setup = config, setup
        self.scales = Scales(self.name, setup, config.low, config.high)
        self.student = setup.student

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.setup.optim)]

    def finished(self, student: Denoiser) -> Denoiser:
        return self.scales.kept(student)

    def loss(self, player: str, batch: Batch) -> Losses:
        config, schedule, count = self.config, self.student.schedule, len(batch.x0)
        t = schedule.snap(sample_times(config.times, schedule, count, batch.generator))
        t, scale = t.to(batch.x0.device), self.scales.draw(batch)
        x_t = self.student.noised(batch.x0, t, batch.noise())
        with torch.no_grad():
            target = self.scales.guided(x_t, t, batch.cond, scale)
        ours = self.student(x_t, t, self.scales.tell(batch.cond, scale))
        apart = distance(config.distance, ours, target)
        # This is the paper's weight of x0, as in progressive distillation.
        weight = WEIGHTS["truncated-snr"](schedule.log_snr(t).exp()).to(apart)
        return Losses((weight * apart).mean(), {"apart": apart.detach().mean()})
