"""Samples: by the student's own steps, by the teacher's ODE, and noise added to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import SOLVERS, ddim_step, init_scale, one_step_x0
from edgedistill.diffusion.tensors import expand_like
from edgedistill.diffusion.times import TimeSampling, sample_times
from edgedistill.objectives.base import Batch, Setup

__all__ = [
    "Levels",
    "Noised",
    "Noising",
    "Regression",
    "Renoising",
    "Rollout",
    "Sample",
    "TeacherRegression",
    "onward",
    "renoised",
]


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
        weight: Weight of the denoising loss at each sample, broadcastable to it; None is 1.
    """

    x_t: Tensor
    t: Tensor
    x0: Tensor
    eps: Tensor
    weight: Tensor | None = None


Noising = Callable[[Sample, Tensor, Batch], Noised]
"""A sample of the student, times (N,) and the batch -> the sample at these times.

What two scores see when they are compared, what the fake score learns, and what a discriminator
judges is all made by one and the same noising.
"""


def renoised(denoiser: Denoiser, x0: Tensor, t: Tensor, batch: Batch) -> Noised:
    """x0 (N, ...) noised to the denoiser's times nearest to t (N,)."""
    t = denoiser.schedule.snap(t).to(x0.device)
    eps = batch.noise()
    return Noised(denoiser.noised(x0, t, eps), t, x0, eps)


class Renoising:
    """The plain noising: fresh noise on the sample's x0 (DMD, DMD2).

    Args:
        student: Gives the schedule.
    """

    def __init__(self, student: Denoiser) -> None:
        self.student = student

    def __call__(self, sample: Sample, t: Tensor, batch: Batch) -> Noised:
        """x0 noised to times t (N,)."""
        return renoised(self.student, sample.x0, t, batch)


class Rollout:
    """Samples of the student's own steps.

    Args:
        student: The student.
        times: Its steps (steps + 1,), decreasing to 0.
        sampler: How its steps land; a key of `sampling.SAMPLERS`.
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

    @classmethod
    def of(cls, setup: Setup, source: Literal["simulate", "data"]) -> Rollout:
        """The rollout of a run's student along its own times."""
        return Rollout(setup.student, setup.times, setup.sampler, source)

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
            x_t = self.land(x_t, x0, t, s, batch)
        return x_t

    def land(self, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, batch: Batch) -> Tensor:
        """Samples of the student's step from t to s."""
        t, s = t.to(x_t.device), s.to(x_t.device)
        if self.sampler == "renoise":
            return self.student.noised(x0, s, batch.noise())
        return ddim_step(self.student.schedule, x_t, x0, t, s)


class Levels:
    """Random times at which scores are compared.

    Args:
        times: Their distribution.
        schedule: Schedule that finds the time of a noise level.
    """

    def __init__(self, times: TimeSampling, schedule: Schedule) -> None:
        self.times, self.schedule = times, schedule

    def __call__(self, batch: Batch) -> Tensor:
        """Draw the times of the batch's rows, (N,), float64."""
        return sample_times(self.times, self.schedule, len(batch.x0), batch.generator)


Regression = Callable[[Batch], Tensor]
"""A batch -> the student's distance, a scalar, from what the teacher's ODE makes of it."""


class TeacherRegression:
    """Regression on where the teacher's ODE leads from noised data at the student's times.

    To the ODE's end; to the next of the student's times, if its steps are deterministic.

    Args:
        teacher: Whose ODE it is.
        rollout: The student's; chooses the step.
        steps: Solver steps of the teacher.
    """

    def __init__(self, teacher: Denoiser | Guided, rollout: Rollout, steps: int) -> None:
        self.teacher, self.student, self.steps = teacher, rollout.student, steps
        self.rollout = rollout

    def __call__(self, batch: Batch) -> Tensor:
        """The mean square distance of the student's x0 from it, a scalar."""
        schedule, device = self.student.schedule, batch.x0.device
        t, s = self.span(batch)
        x_t = self.student.noised(batch.x0, t.to(device), batch.noise())
        fractions = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        between = schedule.snap(s + (t - s) * fractions[:-1])
        # On the CPU, as solvers read these times' values.
        path = torch.unique_consecutive(torch.cat([between, s[None]]))
        with torch.no_grad():
            x_s = SOLVERS["dpm++2m"](self.teacher, x_t, path, batch.cond)
            target = one_step_x0(schedule, x_t, x_s, path[0], path[-1]) if s > 0 else x_s
        return F.mse_loss(self.student(x_t, t.to(device), batch.cond), target)

    def span(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Times between which the regression goes, scalars, the same on all ranks."""
        times, index = self.rollout.times, self.rollout.index(batch)
        t = times[index]
        return t, times[index + 1] if self.rollout.sampler == "ddim" else torch.zeros_like(t)


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
    s_, t_ = (expand_like(time.double(), x_s) for time in (s, t))
    alpha_s, sigma_s = schedule.alpha(s_), schedule.sigma(s_)
    alpha_t, sigma_t = schedule.alpha(t_), schedule.sigma(t_)
    a = alpha_t / alpha_s
    r = (sigma_t.square() - (a * sigma_s).square()).sqrt()
    x_t = a.to(x_s) * x_s + r.to(x_s) * noise
    x0 = (x_s - (a * sigma_s.square() / r).to(x_s) * noise) / alpha_s.to(x_s)
    eps = (sigma_t / r).to(x_s) * noise
    return Noised(x_t, t, x0, eps, (r / sigma_t).square().to(x_s))
