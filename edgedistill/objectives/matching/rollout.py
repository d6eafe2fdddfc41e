"""Where the student's own steps take it, and noise on what it makes there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import ddim_step, init_scale
from edgedistill.objectives.base import Batch

__all__ = ["Noised", "Rollout", "Sample", "onward"]


@dataclass(frozen=True)
class Sample:
    """What the student makes of x_t at one of its steps.

    Attributes:
        x0: Its estimate (N, ...), with the gradient of that step alone.
        x_t: Where it stood, (N, ...).
        index: Which step, 0 being the noisiest.
        t: Its time, a scalar, or (N,) where samples stand at times of their own.
    """

    x0: Tensor
    x_t: Tensor
    index: int
    t: Tensor


@dataclass(frozen=True)
class Noised:
    """x_t at times t, (N, ...) and (N,), and what a denoiser should find in it.

    Attributes:
        x0: Clean data, or what has its mean given x_t.
        eps: Noise, likewise: x_t = alpha x0 + sigma eps.
        weight: Of the denoising loss at each sample, broadcastable to it; None is 1.
    """

    x_t: Tensor
    t: Tensor
    x0: Tensor
    eps: Tensor
    weight: Tensor | None = None


class Rollout:
    """Where the student's own steps take it.

    Args:
        student: Whose.
        times: Its steps (steps + 1,).
        sampler: How they land.
        source: Inputs of later steps: the student's own samples (backward simulation, DMD2, Yin
            et al. 2024, arXiv 2405.14867, Sec. 4.5), or noised data.
    """

    def __init__(
        self,
        student: Denoiser,
        times: Tensor,
        sampler: str,
        source: Literal["simulate", "data"] = "simulate",
    ) -> None:
        self.student, self.times, self.sampler, self.source = student, times, sampler, source

    def index(self, batch: Batch) -> int:
        """A step, the same on all ranks, so that every rank does equal work."""
        return int(torch.randint(len(self.times) - 1, (), generator=batch.shared))

    def __call__(self, batch: Batch) -> Sample:
        """The student at a random step."""
        index = self.index(batch)
        t = self.times[index]
        if index == 0 or self.source == "simulate":
            with torch.no_grad():
                x_t = self.simulate(index, batch)
        else:
            x_t = self.student.noised(self.clean(index, batch), t, batch.noise())
        return Sample(self.student(x_t, t.to(x_t.device), batch.cond), x_t, index, t)

    def clean(self, index: int, batch: Batch) -> Tensor:
        """The data that stand in for the student's sample before step `index`, (N, ...)."""
        return batch.x0

    def simulate(self, index: int, batch: Batch) -> Tensor:
        """The student's own sample at times[index], (N, ...)."""
        x_t = init_scale(self.student.schedule, self.times[0]) * batch.noise()
        for t, s in zip(self.times[:index], self.times[1 : index + 1], strict=True):
            x0 = self.student(x_t, t.to(x_t.device), batch.cond)
            x_t = self.landed(x_t, x0, t, s, batch)
        return x_t

    def landed(self, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, batch: Batch) -> Tensor:
        """Where the student's step from t to s lands."""
        t, s = t.to(x_t.device), s.to(x_t.device)
        if self.sampler == "renoise":
            return self.student.noised(x0, s, batch.noise())
        return ddim_step(self.student.schedule, x_t, x0, t, s)


def onward(schedule: Schedule, x_s: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Noised:
    """x_s noised further, from s to t > s: x_t = a x_s + r noise, a = alpha_t / alpha_s.

    r^2 = sigma_t^2 - a^2 sigma_s^2. The noise alone gives the score at x_t without bias (Vincent
    2011), whatever is in x_s: E[-noise / r | x_t]. Its x0 and eps are those of that score, and
    the weight (r / sigma_t)^2 keeps the loss finite as t nears s (Phased DMD, Fan et al. 2025,
    arXiv 2510.27684, Sec. 3). At s = 0 it is plain noising with weight 1.

    Args:
        schedule: Gives alpha and sigma.
        x_s: (N, ...).
        s: Its times, (N,).
        t: Times above them, (N,).
        noise: Standard normal (N, ...).
    """
    shape = (-1,) + (1,) * (x_s.ndim - 1)
    s_, t_ = s.double().reshape(shape), t.double().reshape(shape)
    alpha_s, sigma_s = schedule.alpha(s_), schedule.sigma(s_)
    alpha_t, sigma_t = schedule.alpha(t_), schedule.sigma(t_)
    a = alpha_t / alpha_s
    r = (sigma_t.square() - (a * sigma_s).square()).sqrt()
    x_t = a.to(x_s) * x_s + r.to(x_s) * noise
    x0 = (x_s - (a * sigma_s.square() / r).to(x_s) * noise) / alpha_s.to(x_s)
    eps = (sigma_t / r).to(x_s) * noise
    return Noised(x_t, t, x0, eps, (r / sigma_t).square().to(x_s))
