"""Consistency distillation (`cd`) and training (`ct`), and distillation by random paths (`scott`).

Song et al. 2023, "Consistency Models" (arXiv 2303.01469, Alg. 2 and 3); Song & Dhariwal 2023,
"Improved Techniques for Training Consistency Models" (arXiv 2310.14189, Table 1); Liu et al. 2024,
"SCott: Accelerating Diffusion Models with Stochastic Consistency Distillation"
(arXiv 2403.01505), its consistency loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from edgedistill.common.settings import renamed
from edgedistill.diffusion.boundary import boundary_of, consistency_function
from edgedistill.diffusion.denoiser import Condition, Denoiser
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.few_step import Boundary
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import ddim_step, time_grid
from edgedistill.diffusion.times import (
    TimeSampling,
    doubling,
    interval_masses,
    neighbours,
    with_edges,
)
from edgedistill.networks.ema import follow
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup

__all__ = ["CD", "CT", "SCott", "posterior_mean"]


def _teacher_step(
    method: CD, batch: Batch, eps: Tensor, x_t: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    schedule, parts = method.student.schedule, method.config.solver_steps
    for k in range(1, parts + 1):
        u = s if k == parts else schedule.snap(torch.lerp(t, s, 1 / (parts + 1 - k)))
        x_t, t = ddim_step(schedule, x_t, method.teacher(x_t, t, batch.cond), t, u), u
    return x_t


def _same_noise(
    method: CD, batch: Batch, eps: Tensor, x_t: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    return method.student.noised(batch.x0, s, eps)


def _random_step(
    method: CD, batch: Batch, eps: Tensor, x_t: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    """Take a random step: the share `fresh` of the noise variance at s is drawn anew."""
    schedule, fresh = method.student.schedule, method.config.fresh_share
    x0 = method.teacher(x_t, t, batch.cond)
    alpha_t, sigma_t = schedule.at(t, like=x_t)
    eps = (1 - fresh) ** 0.5 * (x_t - alpha_t * x0) / sigma_t + fresh**0.5 * batch.noise()
    return method.student.noised(x0, s, eps)


def _batch_mean(
    method: CD, batch: Batch, eps: Tensor, x_t: Tensor, t: Tensor, s: Tensor
) -> Tensor:
    x0 = posterior_mean(method.student.schedule, x_t, t, batch.x0)
    return ddim_step(method.student.schedule, x_t, x0, t, s)


def posterior_mean(schedule: Schedule, x_t: Tensor, t: Tensor, data: Tensor) -> Tensor:
    """Return the mean of x0 given x_t (N, ...) at t (N,), were `data` (M, ...) all there is.

    This is the stable target: its variance is far below that of the single x0 that x_t was made
    of, at the price of a bias that falls with M (Xu et al. 2023, "Stable Target Field",
    arXiv 2302.00670, Eq. 4; for consistency training, Wang et al. 2024, "Stable Consistency
    Tuning", arXiv 2410.18958).
    """
    alpha, sigma = (f(t.double())[:, None] for f in (schedule.alpha, schedule.sigma))
    points, x = data.double().flatten(1), x_t.double().flatten(1)
    # log N(x; alpha x0, sigma^2), but for what is the same for all x0.
    logits = (alpha * x @ points.T - alpha.square() * points.square().sum(1) / 2) / sigma.square()
    return (logits.softmax(1) @ points).reshape(x_t.shape).to(x_t.dtype)


PATHS: dict[str, Callable[[CD, Batch, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "teacher": _teacher_step,
    "data": _same_noise,
    "batch-mean": _batch_mean,
    "random": _random_step,
}
"""Steps to the neighbour, (method, batch, eps of x_t, x_t, t, s) -> x_s; the student's answer is
the same at both points."""


def _inverse_gap(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Return 1 / (t - s), times being angles of noise: sigma / alpha if small, else finite."""

    def angle(time: Tensor) -> Tensor:
        return torch.atan2(schedule.sigma(time), schedule.alpha(time))

    return 1 / (angle(t) - angle(s))


WEIGHTS: dict[str, Callable[[Schedule, Tensor, Tensor], Tensor]] = {
    "uniform": lambda schedule, t, s: torch.ones_like(t),
    "inverse-gap": _inverse_gap,
}


class CD(Objective):
    """Trains f(x_t, t) = sg f_ema(x_s, s), with x_s one step down the teacher's path from x_t."""

    class Config(Settings):
        """Hyperparameters (the paper's for ImageNet, but DDIM for Heun's steps, l2 for LPIPS)."""

        old_keys = renamed(fresh="fresh_share")

        path: Literal["teacher", "data", "batch-mean", "random"] = "teacher"
        """Path from x_t to x_s: a DDIM step of the teacher; the data with the same noise, which
        needs no teacher; a DDIM step with the mean of x0 given x_t over the batch's data, which
        needs no teacher either and varies less (unconditional models only); or a random step of
        the teacher."""
        fresh_share: float = Field(0.0, ge=0, le=1)
        """Share of the noise variance that a random step draws anew; 0 is the DDIM step."""
        solver_steps: int = Field(1, ge=1, le=10_000)
        """Number of the teacher's DDIM steps that an interval is divided into."""
        first_intervals: int = Field(40, ge=2, le=100_000)
        """Number of intervals of the time axis at the start, in equal steps of the schedule."""
        last_intervals: int = Field(40, ge=2, le=100_000)
        """Number of intervals at the end, reached by doubling."""
        ema: float = Field(0.95, ge=0, lt=1)
        """Decay of the target network; 0 makes the student itself the target."""
        distance: Distance = Distance()
        times: TimeSampling = TimeSampling()
        """Distribution of the times, which decides how often each interval is drawn."""
        weighting: Literal["uniform", "inverse-gap"] = "uniform"
        sigma_data: float = Field(0.5, gt=0)
        """Standard deviation of the data, for the boundary of a network that predicts x0."""

        @model_validator(mode="after")
        def _consistent(self) -> CD.Config:
            if self.first_intervals > self.last_intervals:
                raise ValueError(
                    f"first_intervals={self.first_intervals} must not be above "
                    f"last_intervals={self.last_intervals}"
                )
            if self.fresh_share and self.path != "random":
                raise ValueError(f"fresh={self.fresh_share:g} needs path=random, not {self.path}")
            if self.solver_steps > 1 and self.path != "teacher":
                raise ValueError(
                    f"solver_steps={self.solver_steps} needs path=teacher, not {self.path}"
                )
            return self

    name = "cd"

    def __init__(self, config: CD.Config, setup: Setup) -> None:
        if config.path == "batch-mean" and setup.example[1]:
            raise ValueError(
                "objective.path=batch-mean averages over data of all conditions; this teacher has "
                "conditions, so choose path=data"
            )
        self.config = config
        self.teacher, self.student = setup.teacher, setup.student
        self.target = setup.student
        if config.ema:
            self.target = copy.deepcopy(setup.student).requires_grad_(False)
        self.optim, self.times, self.steps = setup.optim, setup.times, setup.train_steps

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def followers(self) -> dict[str, nn.Module]:
        return {"target": self.target} if self.config.ema else {}

    def boundary(self) -> Boundary:
        return boundary_of(self.student, self.config.sigma_data)

    def updated(self, player: str) -> None:
        if self.config.ema:
            follow(self.target, self.student, self.config.ema)

    def grid(self, step: int) -> Tensor:
        """Return the interval edges at a step of the run, including the student's own times."""
        config, schedule = self.config, self.student.schedule
        count = doubling(step, self.steps, config.first_intervals, config.last_intervals)
        return with_edges(time_grid(schedule, count), self.times)

    def consistency(self, denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Return f(x_t, t), which is x_0 itself at t = 0 (Song et al. 2023, Eq. 5)."""
        x0: Tensor = denoiser(x_t, t, cond)
        return consistency_function(self.boundary(), x_t, x0, t)

    def start(
        self, batch: Batch, x_t: Tensor, t: Tensor, x_s: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the student's start on the interval from (x_t, t) to (x_s, s): point and time."""
        return x_t, t

    def loss(self, player: str, batch: Batch) -> Losses:
        schedule, grid = self.student.schedule, self.grid(batch.step)
        masses = interval_masses(self.config.times, schedule, grid)
        t, s = neighbours(grid, len(batch.x0), batch.generator, masses=masses)
        weight = WEIGHTS[self.config.weighting](schedule, t, s).to(batch.x0)
        t, s = t.to(batch.x0.device), s.to(batch.x0.device)
        eps = batch.noise()
        x_t = self.student.noised(batch.x0, t, eps)
        with torch.no_grad():
            x_s = PATHS[self.config.path](self, batch, eps, x_t, t, s)
            target = self.consistency(self.target, x_s, s, batch.cond)
            x_t, t = self.start(batch, x_t, t, x_s, s)
        ours = self.consistency(self.student, x_t, t, batch.cond)
        apart = distance(self.config.distance, ours, target)
        return Losses((weight * apart).mean(), {"consistency": apart.detach().mean()})


class CT(CD):
    """Consistency training: x_s comes from the data; the teacher only gives the first weights."""

    class Config(CD.Config):
        """Hyperparameters (iCT, Table 1)."""

        path: Literal["teacher", "data", "batch-mean", "random"] = "data"
        first_intervals: int = Field(10, ge=2, le=100_000)
        last_intervals: int = Field(1280, ge=2, le=100_000)
        ema: float = Field(0.0, ge=0, lt=1)
        distance: Distance = Distance(kind="vector-huber", c=0.00054)
        times: TimeSampling = TimeSampling(kind="log-normal", mean=-1.1, std=2.0)
        weighting: Literal["uniform", "inverse-gap"] = "inverse-gap"

    name = "ct"


class SCott(CD):
    """Consistency with a random step of the teacher to x_s, so that the student averages paths."""

    class Config(CD.Config):
        """Hyperparameters (the paper's, without its discriminator)."""

        path: Literal["teacher", "data", "batch-mean", "random"] = "random"
        fresh_share: float = Field(0.1, ge=0, le=1)

    name = "scott"
