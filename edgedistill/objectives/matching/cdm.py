"""Distribution matching at all times: along schedules of random length, and off them.

Liu et al. 2026, "Continuous-Time Distribution Matching for Few-Step Diffusion Distillation"
(arXiv 2605.06376): the student walks deterministic steps between random times, as many as chance
says, and its x0 anywhere on the way is matched as in decoupled-dmd. From there its own velocity
leads to a point at any other time, which no schedule need pass; its x0 there is matched as well,
at noise of its own.

The paper's code also draws the fake score's weights towards the student's, which is left out.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.losses import matching_gradient, surrogate_loss
from edgedistill.diffusion.solvers import ddim_step
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.decoupled_dmd import DecoupledDMD
from edgedistill.objectives.matching.rollout import Rollout, Sample, TeacherRegression

__all__ = ["CDM", "Dynamic"]


class Dynamic(Rollout):
    """A rollout over other times at each update, the same on all ranks.

    Args:
        rollout: The whole student's; the noisiest time is its first.
        steps: Most steps.
        low: Least time of a step.
        high: Largest, but for the first step's.
    """

    def __init__(self, rollout: Rollout, steps: int, low: float, high: float) -> None:
        super().__init__(rollout.student, rollout.times, rollout.sampler, rollout.source)
        self.steps, self.low, self.high = steps, low, high

    def __call__(self, batch: Batch) -> Sample:
        times = self.drawn(batch)
        return Rollout(self.student, times, self.sampler, self.source)(batch)

    def drawn(self, batch: Batch) -> Tensor:
        """Decreasing times from the student's first to 0: 1 .. `steps` steps, float64."""
        count = int(torch.randint(self.steps, (), generator=batch.shared))
        inner = self.time(count, batch).sort(descending=True).values
        times: Tensor = torch.unique_consecutive(torch.cat([self.times[:1], inner.to(self.times)]))
        return torch.cat([times, self.times[-1:]])

    def time(self, count: int, batch: Batch) -> Tensor:
        """Random times of steps, (count,)."""
        unit = torch.rand(count, generator=batch.shared, dtype=torch.float64)
        return self.student.schedule.snap(self.low + (self.high - self.low) * unit)


class AnyTimeRegression(TeacherRegression):
    """Regression from a time of a random schedule to where its step is to land.

    That is the next time of the schedule if steps are deterministic, else time 0.
    """

    rollout: Dynamic

    def span(self, batch: Batch) -> tuple[Tensor, Tensor]:
        times = self.rollout.drawn(batch)
        index = int(torch.randint(len(times) - 1, (), generator=batch.shared))
        t, s = times[index], times[index + 1]
        return t, s if self.rollout.sampler == "ddim" else torch.zeros_like(t)


class CDM(DecoupledDMD):
    """Decoupled matching on random schedules, and plain matching off them.

    Raises:
        ValueError: Unless low is below high.
    """

    class Config(DecoupledDMD.Config):
        """Hyperparameters (the paper's on SD3, whose times are those of its shifted flow).

        `low` and `high` are no `TimeSampling`: they are of the times of a whole schedule, one
        draw for all ranks, and not of the rows of a batch.
        """

        turns: int = Field(5, ge=1, le=1_000)
        max_steps: int = Field(28, ge=1, le=10_000)
        """Most steps of a schedule; each number from 1 on is as likely."""
        low: float = Field(0.25, gt=0, lt=1)
        high: float = Field(0.95, gt=0, lt=1)
        """Range of a schedule's times between the first and 0."""
        off_weight: float = Field(1.0, ge=0)
        """Weight of the matching off the schedule."""

    name = "cdm"
    config: CDM.Config

    def __init__(self, config: CDM.Config, setup: Setup) -> None:
        if config.low >= config.high:
            raise ValueError(f"low={config.low:g} must be below high={config.high:g}")
        super().__init__(config, setup)
        rollout = Dynamic(self.rollout, config.max_steps, config.low, config.high)
        self.rollout = rollout
        self.regression = AnyTimeRegression(setup.teacher, rollout, config.regression_steps)

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        losses = self.decoupled(sample, batch)
        if self.config.off_weight > 0:
            off = self.off(sample, batch)
            view = self.view(off, batch)
            gradient = torch.nan_to_num(matching_gradient(view.x0, view.real, view.fake))
            total = losses.total + self.config.off_weight * surrogate_loss(off.x0, gradient)
            losses = Losses(total, {**losses.logs, "off": gradient.square().mean().sqrt()})
        return self.helped(losses, sample, batch)

    def off(self, sample: Sample, batch: Batch) -> Sample:
        """The student where its velocity at the sample leads by other times, one each."""
        x_t, schedule = sample.x_t, self.student.schedule
        s = schedule.snap(self.levels(batch)).to(x_t.device)
        with torch.no_grad():
            x_s = ddim_step(schedule, x_t, sample.x0, sample.t.to(x_t.device), s)
        return Sample(self.student(x_s, s, batch.cond), x_s, sample.index, s)
