"""Samples of the student's own steps and of the teacher's ODE, and noise added to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import (
    SOLVERS,
    ddim_step,
    init_scale,
    one_step_x0,
    student_times,
)
from edgedistill.diffusion.tensors import expand_like
from edgedistill.diffusion.times import TimeSampling, sample_times
from edgedistill.objectives.base import Batch, Setup

__all__ = [
    "NOISINGS",
    "AnySteps",
    "IntervalRenoising",
    "Levels",
    "Noised",
    "Noising",
    "Regression",
    "Renoising",
    "Rollout",
    "Sample",
    "TeacherRegression",
    "drawn",
    "onward",
    "renoised",
    "times_of",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """The student's x0 at one of its steps.

    Attributes:
        x0: The student's prediction (N, ...), with the gradient of that step alone.
        x_t: Input of the step, (N, ...).
        index: Index of the step, 0 being the noisiest.
        t: Time of x_t, a scalar, or (N,) where samples have times of their own.
    """

    x0: Tensor
    x_t: Tensor
    index: int
    t: Tensor


@dataclass(frozen=True)
class Noised:
    """A noised sample x_t (N, ...) at times t (N,), and a denoiser's targets.

    Attributes:
        x_t: The noised sample.
        t: The times.
        x0: Clean data, or an unbiased estimate of its mean given x_t.
        eps: Noise, or such an estimate of it: x_t = alpha x0 + sigma eps.
        weight: Weight of the denoising loss at each sample, broadcastable to it; None is 1.
    """

    x_t: Tensor
    t: Tensor
    x0: Tensor
    eps: Tensor
    weight: Tensor | None = None


Noising = Callable[[Sample, Tensor, Batch], Noised]
"""Function from a sample of the student, times (N,) and the batch to the noised sample.

The same noising makes the inputs at which two scores are compared, the fake score's training data
and the discriminator's inputs.
"""


def renoised(denoiser: Denoiser, x0: Tensor, t: Tensor, batch: Batch) -> Noised:
    """Noise x0 (N, ...) to the times nearest to t (N,) that the denoiser was trained at."""
    t = denoiser.schedule.snap(t).to(x0.device)
    eps = batch.noise()
    return Noised(denoiser.noised(x0, t, eps), t, x0, eps)


class Renoising:
    """Noising by fresh noise on the sample's x0 (DMD, DMD2).

    Args:
        student: Denoiser with the schedule.
    """

    def __init__(self, student: Denoiser) -> None:
        self.student = student

    def __call__(self, sample: Sample, t: Tensor, batch: Batch) -> Noised:
        """Noise the sample's x0 to times t (N,)."""
        return renoised(self.student, sample.x0, t, batch)


class Rollout:
    """Samples of the student's own steps.

    Args:
        student: The student.
        times: The student's steps (steps + 1,), decreasing to 0.
        sampler: Rule by which a step lands; a key of `few_step.SAMPLERS`.
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
        """Make the rollout of a run's student along its own times."""
        return Rollout(setup.student, setup.times, setup.sampler, source)

    def index(self, batch: Batch) -> int:
        """Draw a step, the same on all ranks, so that every rank does equal work."""
        return int(torch.randint(len(self.times) - 1, (), generator=batch.shared))

    def __call__(self, batch: Batch) -> Sample:
        """Run the student at a random step."""
        return self.at(self.index(batch), batch)

    def at(self, index: int, batch: Batch) -> Sample:
        """Run the student at step `index`, 0 being the noisiest."""
        t = self.times[index]
        if index == 0 or self.source == "simulate":
            with torch.no_grad():
                x_t = self.simulate(index, batch)
        else:
            x_t = self.student.noised(self.clean(index, batch), t, batch.noise())
        return Sample(self.student(x_t, t.to(x_t.device), batch.cond), x_t, index, t)

    def clean(self, index: int, batch: Batch) -> Tensor:
        """Return the data that replace the student's sample before step `index`, (N, ...)."""
        return batch.x0

    def simulate(self, index: int, batch: Batch) -> Tensor:
        """Return the student's own sample at times[index], (N, ...)."""
        x_t = init_scale(self.student.schedule, self.times[0]) * batch.noise()
        for t, s in zip(self.times[:index], self.times[1 : index + 1], strict=True):
            x0 = self.student(x_t, t.to(x_t.device), batch.cond)
            x_t = self.land(x_t, x0, t, s, batch)
        return x_t

    def land(self, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor, batch: Batch) -> Tensor:
        """Return x_s (N, ...), where the student's step from t to s lands."""
        t, s = t.to(x_t.device), s.to(x_t.device)
        if self.sampler == "renoise":
            return self.student.noised(x0, s, batch.noise())
        return ddim_step(self.student.schedule, x_t, x0, t, s)


class IntervalRenoising:
    """Noising by fresh noise on the sample's x0, to times within its step's own interval.

    One fake score for all steps learns, at each level of noise, the average of what the steps
    draw there. Where every level belongs to one step, that average is the step's own (as in TDM,
    Luo et al. 2025, arXiv 2503.06674, whose samples are noised from where they land).

    Args:
        rollout: The student's steps.
    """

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout

    def __call__(self, sample: Sample, t: Tensor, batch: Batch) -> Noised:
        """Noise the sample's x0 to shares t (N,) of the way from the step's end to its start."""
        start, end = self.rollout.times[sample.index], self.rollout.times[sample.index + 1]
        return renoised(self.rollout.student, sample.x0, end + (start - end) * t, batch)


NOISINGS: dict[str, Callable[[Rollout], Noising]] = {
    "all": lambda rollout: Renoising(rollout.student),
    "interval": IntervalRenoising,
}
"""Makers of noisings by which times a step's samples are noised to."""


def drawn(choices: Sequence[T], batch: Batch) -> T:
    """Draw one of the choices, the same on all ranks; no number is drawn for one alone."""
    if len(choices) == 1:
        return choices[0]
    return choices[int(torch.randint(len(choices), (), generator=batch.shared))]


class AnySteps(Rollout):
    """Samples of the student at a random step of a random number of steps.

    Args:
        whole: The rollout of the student's own number of steps.
        each: The rollouts of all numbers of steps.
    """

    def __init__(self, whole: Rollout, each: Sequence[Rollout]) -> None:
        super().__init__(whole.student, whole.times, whole.sampler, whole.source)
        self.each = each

    def __call__(self, batch: Batch) -> Sample:
        return drawn(self.each, batch)(batch)


def times_of(count: int, setup: Setup) -> Tensor:
    """Return the times (count + 1,) of `count` steps: the student's own, or trailing ones."""
    if count == len(setup.times) - 1:
        return setup.times
    return student_times(setup.student.schedule, count, "trailing", setup.sampler)


class Levels:
    """Random times at which scores are compared.

    Args:
        times: Distribution of the times.
        schedule: Schedule that finds the time of a noise level.
    """

    def __init__(self, times: TimeSampling, schedule: Schedule) -> None:
        self.times, self.schedule = times, schedule

    def __call__(self, batch: Batch) -> Tensor:
        """Draw the times of the batch's rows, (N,), float64."""
        return sample_times(self.times, self.schedule, len(batch.x0), batch.generator)


Regression = Callable[[Batch], Tensor]
"""Function from a batch to the student's mean distance, a scalar, from the teacher's ODE."""


class TeacherRegression:
    """Regression on the teacher's ODE from noised data at the student's times.

    The ODE is solved to its end, or to the next of the student's times if steps are deterministic.

    Args:
        teacher: Denoiser that defines the ODE.
        rollout: The student's rollout, which chooses the step.
        steps: Solver steps of the teacher.
    """

    def __init__(self, teacher: Denoiser | Guided, rollout: Rollout, steps: int) -> None:
        self.teacher, self.student, self.steps = teacher, rollout.student, steps
        self.rollout = rollout

    def __call__(self, batch: Batch) -> Tensor:
        """Return the mean squared distance of the student's x0 from the ODE's, a scalar."""
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
        """Return start and end times of the ODE, scalars, the same on all ranks."""
        times, index = self.rollout.times, self.rollout.index(batch)
        t = times[index]
        return t, times[index + 1] if self.rollout.sampler == "ddim" else torch.zeros_like(t)


def onward(schedule: Schedule, x_s: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Noised:
    """Noise x_s further, from s to t > s: x_t = a x_s + r noise, a = alpha_t / alpha_s.

    r^2 = sigma_t^2 - a^2 sigma_s^2. The noise alone gives the score at x_t without bias (Vincent
    2011), whatever is in x_s: E[-noise / r | x_t]. Its x0 and eps are those of that score, and
    the weight (r / sigma_t)^2 keeps the loss finite as t nears s (Phased DMD, Fan et al. 2025,
    arXiv 2510.27684, Sec. 3). At s = 0 it is plain noising with weight 1.

    Args:
        schedule: Schedule with alpha and sigma.
        x_s: Samples (N, ...).
        s: Times of x_s, (N,).
        t: Times above s, (N,).
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
