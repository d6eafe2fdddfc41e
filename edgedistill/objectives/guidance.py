"""Guidance distillation: one call for classifier-free guidance's two, at any scale.

Meng et al. 2022, "On Distillation of Guided Diffusion Models" (arXiv 2210.03142), Sec. 3.1 and
Alg. 1. The network is told the scale; the finished student keeps one, folded into its weights. It
takes as many steps as its teacher would: give it to another method as `student.init` for fewer.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from edgedistill.denoiser import Denoiser, Guided
from edgedistill.distances import Distance, distance
from edgedistill.networks.two_times import TwoTimes
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup
from edgedistill.objectives.progressive import WEIGHTS
from edgedistill.times import TimeSampling, sample_times, stratified

__all__ = ["Guidance"]


class Guidance(Objective):
    """S(x_t, t, w) = T(x_t, null) + w (T(x_t, cond) - T(x_t, null)), w = 1 being no guidance."""

    class Config(Settings):
        """Hyperparameters (the paper's scales for latent models, in this convention)."""

        low: float = Field(1.0, ge=0)
        """Least scale."""
        high: float = Field(14.0, gt=0)
        """Largest."""
        distance: Distance = Distance()
        times: TimeSampling = TimeSampling(low=0.001)

        @model_validator(mode="after")
        def _ordered(self) -> Guidance.Config:
            if self.low >= self.high:
                raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
            return self

    name = "guidance"

    def __init__(self, config: Guidance.Config, setup: Setup) -> None:
        teacher = setup.teacher
        if not isinstance(teacher, Guided) or teacher.scale == 1:
            raise ValueError(
                "method 'guidance' needs a teacher with a null condition and a scale to keep; "
                "choose teacher.guidance above 1"
            )
        if not config.low <= teacher.scale <= config.high:
            raise ValueError(
                f"teacher.guidance={teacher.scale:g}: the scale to keep is not among those "
                f"trained, {config.low:g} to {config.high:g}"
            )
        self.config, self.setup = config, setup
        self.teacher, self.student = teacher, setup.student
        schedule = self.student.schedule
        times = schedule.net_time(setup.times[:-1].double().cpu())
        kept = torch.full_like(times, self.told(torch.tensor(teacher.scale)).item())
        steps = torch.stack([times, kept], dim=1)
        net = TwoTimes(self.student.net, setup.time_layer, steps)
        self.student.net = net.to(setup.example[0].device)

    def told(self, scale: Tensor) -> Tensor:
        """A scale as the network reads it, in [0, 1]."""
        return (scale - self.config.low) / (self.config.high - self.config.low)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.setup.optim)]

    def finished(self, student: Denoiser) -> Denoiser:
        net = student.net
        assert isinstance(net, TwoTimes)
        return student.with_net(net.folded(*self.setup.example))

    def loss(self, player: str, batch: Batch) -> Losses:
        config, schedule, count = self.config, self.student.schedule, len(batch.x0)
        t = schedule.snap(sample_times(config.times, schedule, count, batch.generator))
        scale = stratified(count, batch.generator, config.low, config.high)
        t, scale = t.to(batch.x0.device), scale.to(batch.x0.device)
        x_t = self.student.noised(batch.x0, t, batch.noise())
        shape = (-1,) + (1,) * (x_t.ndim - 1)
        with torch.no_grad():
            null, wanted = self.teacher.both(x_t, t, batch.cond)
            target = torch.lerp(null, wanted, scale.reshape(shape).to(x_t))
        ours = self.student(x_t, t, {**batch.cond, "s": self.told(scale)})
        apart = distance(config.distance, ours, target)
        # The paper's weight of x0, as progressive distillation's.
        weight = WEIGHTS["truncated-snr"](schedule.log_snr(t).exp()).to(apart)
        return Losses((weight * apart).mean(), {"apart": apart.detach().mean()})
