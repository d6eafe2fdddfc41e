"""Guidance distillation: one call for classifier-free guidance's two, at any scale.

Meng et al. 2022, "On Distillation of Guided Diffusion Models" (arXiv 2210.03142), Sec. 3.1 and
Alg. 1. The network is told the scale; the finished student keeps one, folded into its weights. It
takes as many steps as its teacher would: give it to another method as `student.init` for fewer.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor

from edgedistill.denoiser import Condition, Denoiser, Guided
from edgedistill.distances import Distance, distance
from edgedistill.networks.two_times import TwoTimes
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup
from edgedistill.objectives.progressive import WEIGHTS
from edgedistill.times import TimeSampling, sample_times, stratified

__all__ = ["Guidance", "Scales"]


class Scales:
    """The guidance scales a student is told while it trains; it ends with one, the teacher's.

    Gives the student's network a second time, in whose place it reads the scale.

    Args:
        name: Of the method, for errors.
        setup: Its student's network is replaced.
        low: Least scale.
        high: Largest.

    Raises:
        ValueError: If the teacher has no guidance, or a scale that is not between the two.
    """

    def __init__(self, name: str, setup: Setup, low: float, high: float) -> None:
        teacher = setup.teacher
        if not isinstance(teacher, Guided) or teacher.scale == 1:
            raise ValueError(
                f"method {name!r} needs a teacher with a null condition and a scale to keep; "
                "choose teacher.guidance above 1"
            )
        if not low <= teacher.scale <= high:
            raise ValueError(
                f"teacher.guidance={teacher.scale:g}: the scale to keep is not among those "
                f"trained, {low:g} to {high:g}"
            )
        self.teacher, self.low, self.high, self.example = teacher, low, high, setup.example
        times = setup.student.schedule.net_time(setup.times[:-1].double().cpu())
        kept = torch.full_like(times, self.told(torch.tensor(teacher.scale)).item())
        steps = torch.stack([times, kept], dim=1)
        net = TwoTimes(setup.student.net, setup.time_layer, steps)
        setup.student.net = net.to(setup.example[0].device)

    def told(self, scale: Tensor) -> Tensor:
        """A scale as the network reads it, in [0, 1]."""
        return (scale - self.low) / (self.high - self.low)

    def tell(self, cond: Condition, scale: Tensor) -> Condition:
        """The condition with the scales (N,)."""
        return {**cond, "s": self.told(scale)}

    def draw(self, batch: Batch) -> Tensor:
        """A scale for each row, stratified, (N,)."""
        scale = stratified(len(batch.x0), batch.generator, self.low, self.high)
        return scale.to(batch.x0.device)

    def guided(self, x_t: Tensor, t: Tensor, cond: Condition, scale: Tensor) -> Tensor:
        """The teacher's x0 at each row's scale, (N, ...)."""
        null, wanted = self.teacher.both(x_t, t, cond)
        weight = scale.reshape((-1,) + (1,) * (x_t.ndim - 1)).to(x_t)
        return self.teacher.bounded(torch.lerp(null, wanted, weight), t)

    def kept(self, student: Denoiser) -> Denoiser:
        """The student at the teacher's scale, its network as it was before it was told any."""
        net = student.net
        assert isinstance(net, TwoTimes)
        return student.with_net(net.folded(*self.example))


class Guidance(Objective):
    """S(x_t, t, w) = T(x_t, null) + w (T(x_t, cond) - T(x_t, null)), w = 1 being no guidance."""

    class Config(Settings):
        """Hyperparameters."""

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
        # The paper's weight of x0, as progressive distillation's.
        weight = WEIGHTS["truncated-snr"](schedule.log_snr(t).exp()).to(apart)
        return Losses((weight * apart).mean(), {"apart": apart.detach().mean()})
