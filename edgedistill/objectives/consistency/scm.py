"""Continuous-time consistency distillation and training in TrigFlow.

Lu & Song 2024, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models"
(arXiv 2410.11081, Alg. 1).

Any schedule is seen as TrigFlow: x = x_t / sqrt(alpha^2 s^2 + sigma^2), s = sigma_data, is
cos(a) x0 / s + sin(a) eps at the angle a = atan(sigma / (alpha s)). The network there is F, with
f / s = cos(a) x - sin(a) F for the consistency function f, which is the student's x0.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from edgedistill.common.settings import check_used, renamed
from edgedistill.diffusion.boundary import boundary_of, consistency_function
from edgedistill.diffusion.denoiser import Condition
from edgedistill.diffusion.few_step import Boundary
from edgedistill.diffusion.solvers import ddim_step
from edgedistill.diffusion.tangents import DERIVATIVES
from edgedistill.diffusion.tensors import expand_like
from edgedistill.diffusion.times import TimeSampling, sample_times
from edgedistill.networks.ema import follow
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup

__all__ = ["SCM", "Points"]

DECAY = 0.99
"""Decay of the running loss by time, per step."""

UNUSED = {"jvp": ("ema", "difference", "last_difference"), "difference": ("ema",)}
"""Settings that a tangent does not use."""


@dataclass(frozen=True)
class Points:
    """Points on paths from noise to data, with the directions of the paths.

    Attributes:
        x_t: Points (N, ...).
        t: Times (N,), float64.
        cond: Condition of N rows.
        x0: Data end of the path's direction, (N, ...).
        eps: Noise end of the path's direction, (N, ...).
    """

    x_t: Tensor
    t: Tensor
    cond: Condition
    x0: Tensor
    eps: Tensor


class RunningLoss(nn.Module):
    """Mean loss at each time, kept in bins.

    The paper's adaptive weight w(t) minimises e^w loss - w: e^w is 1 / E[loss | t]. With bins of
    t, this mean needs no network and no optimizer.
    """

    mean: Tensor

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.ones(bins))

    @torch.no_grad()
    def weigh(self, loss: Tensor, t: Tensor) -> Tensor:
        """Record losses (N,) at t (N,) and return e^w of each."""
        bins = len(self.mean)
        index = (t * bins).long().clamp(0, bins - 1)
        count = torch.bincount(index, minlength=bins)
        total = torch.zeros_like(self.mean).index_add_(0, index, loss.detach().to(self.mean))
        fresh = torch.where(count > 0, total / count.clamp(min=1), self.mean)
        self.mean.lerp_(fresh, 1 - DECAY)
        return 1 / self.mean[index].clamp(min=1e-6).to(loss)


class SCM(Objective):
    """Trains d f(x_t, t) / dt = 0 along the teacher's path, the limit of consistency steps."""

    class Config(Settings):
        """Hyperparameters (the paper's for ImageNet)."""

        old_keys = renamed(warmup="warmup_steps")

        path: Literal["teacher", "data"] = "teacher"
        """Paths: the teacher's (sCD), or straight lines from noise to data (sCT)."""
        tangent: Literal["jvp", "difference", "backward"] = "jvp"
        """Derivative along the path: by forward differentiation of the network, by a central
        difference of two calls, or by a difference from the point before, which is one step of the
        path nearer to the data."""
        difference: float = Field(1e-2, gt=0, lt=1)
        """Step of the difference, as a share of the distance to the ends of the path."""
        last_difference: float | None = Field(None, gt=0, lt=1)
        """Step at the end of the run, reached by equal factors; None keeps `difference`."""
        ema: float = Field(0.0, ge=0, lt=1)
        """Decay of the average of the student that gives the point before; 0 is the student."""
        warmup_steps: int = Field(10_000, ge=0)
        """Number of steps over which the derivative of the network is phased in."""
        constant: float = Field(0.1, gt=0)
        """Constant c of the normalised tangent g / (|g| + c)."""
        sigma_data: float = Field(0.5, gt=0)
        """Standard deviation of the data."""
        times: TimeSampling = TimeSampling(kind="log-normal", mean=-1.0, std=1.4)
        bins: int = Field(64, ge=1, le=100_000)
        """Number of time bins of the adaptive weight; 1 weights all times alike."""

        @model_validator(mode="after")
        def _difference_fits(self) -> SCM.Config:
            check_used(self, "tangent", UNUSED, "backward")
            if self.last_difference and self.last_difference > self.difference:
                raise ValueError(
                    f"last_difference={self.last_difference:g} must not be above "
                    f"difference={self.difference:g}"
                )
            return self

    name = "scm"

    def __init__(self, config: SCM.Config, setup: Setup) -> None:
        self.config = config
        self.teacher, self.student, self.optim = setup.teacher, setup.student, setup.optim
        self.running = RunningLoss(config.bins).to(setup.example[0].device)
        self.train_steps = setup.train_steps
        self.target = setup.student
        if config.ema:
            self.target = copy.deepcopy(setup.student).requires_grad_(False)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def followers(self) -> dict[str, nn.Module]:
        averages: dict[str, nn.Module] = {"target": self.target} if self.config.ema else {}
        return {"running_loss": self.running, **averages}

    def updated(self, player: str) -> None:
        if self.config.ema and player == "student":
            follow(self.target, self.student, self.config.ema)

    def boundary(self) -> Boundary:
        return boundary_of(self.student, self.config.sigma_data)

    def points(self, batch: Batch) -> Points:
        """Draw noised data at random times."""
        count, schedule = len(batch.x0), self.student.schedule
        t = sample_times(self.config.times, schedule, count, batch.generator)
        # At the very ends there is no path to follow.
        t = t.clamp(1e-4, 1 - 1e-4).to(batch.x0.device)
        eps = batch.noise()
        x_t = self.student.noised(batch.x0, t, eps)
        x0 = batch.x0
        if self.config.path == "teacher":
            x0 = self.teacher(x_t, t, batch.cond)
            alpha, sigma = schedule.at(t, like=x_t)
            eps = (x_t - alpha * x0) / sigma
        return Points(x_t, t, batch.cond, x0, eps)

    def trig(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (cos, sin, size) at t (N,), to multiply `like`; x_t / size is TrigFlow's x."""
        alpha, sigma = self.student.schedule.at(t, like=like)
        scaled = self.config.sigma_data * alpha
        size = torch.hypot(scaled, sigma)
        return scaled / size, sigma / size, size

    def flow(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Return F, the student's network in TrigFlow."""
        cos, sin, size = self.trig(t, x_t)
        clean = consistency_function(self.boundary(), x_t, self.student(x_t, t, cond), t)
        return (cos * x_t / size - clean / self.config.sigma_data) / sin

    def time_by_angle(self, t: Tensor) -> Tensor:
        """Return dt/da at t (N,), float64."""
        schedule, scale = self.student.schedule, self.config.sigma_data
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        turned = alpha * schedule.d_sigma(t) - sigma * schedule.d_alpha(t)
        return ((scale * alpha).square() + sigma.square()) / (scale * turned)

    def share(self, step: int) -> float:
        """Return the step of the difference at a step of the run."""
        first, last = self.config.difference, self.config.last_difference or self.config.difference
        return float(first * (last / first) ** (step / max(1, self.train_steps)))

    @torch.no_grad()
    def tangent(self, at: Points, flow: Tensor, warm: float, step: int = 0) -> Tensor:
        """Return cos df/da at warm = 1, and its part without the network's derivative at warm = 0.

        Args:
            at: Points on paths.
            flow: F at these points.
            warm: Share of the rest, in [0, 1].
            step: Step of the run.
        """
        cos, sin, size = self.trig(at.t, at.x_t)
        direction = cos * at.eps - sin * at.x0 / self.config.sigma_data
        still = -cos.square() * (flow - direction)
        if warm == 0:
            return still
        reach = self.share(step) * torch.minimum(cos, sin).flatten().double()
        if self.config.tangent == "backward":
            return still.lerp(self.backward(at, flow, reach), warm)
        dt = self.time_by_angle(at.t)
        schedule = self.student.schedule
        d_alpha, d_sigma = (
            expand_like(d(at.t) * dt, at.x_t).to(at.x_t)
            for d in (schedule.d_alpha, schedule.d_sigma)
        )
        derivative = DERIVATIVES[self.config.tangent](
            lambda x, t: self.flow(x, t, at.cond),
            *(at.x_t, at.t, d_alpha * at.x0 + d_sigma * at.eps, dt, reach),
        )
        return still - warm * cos * sin * (at.x_t / size + derivative)

    def backward(self, at: Points, flow: Tensor, reach: Tensor) -> Tensor:
        """Return cos (f(x_t) - f'(x_s)) / (a_t - a_s), x_s on the path and f' of the average.

        Args:
            at: Points on paths.
            flow: F at these points.
            reach: Angles from t to s, (N,), float64.
        """
        schedule, scale = self.student.schedule, self.config.sigma_data
        s = (at.t - reach * self.time_by_angle(at.t)).clamp(min=at.t / 10)
        x_s = ddim_step(schedule, at.x_t, at.x0, at.t, s)
        before = consistency_function(self.boundary(), x_s, self.target(x_s, s, at.cond), s)
        cos, sin, size = self.trig(at.t, at.x_t)
        angles = (torch.atan2(schedule.sigma(t), scale * schedule.alpha(t)) for t in (at.t, s))
        apart = expand_like(torch.sub(*angles), at.x_t).to(at.x_t)
        return cos * (cos * at.x_t / size - sin * flow - before / scale) / apart

    def loss(self, player: str, batch: Batch) -> Losses:
        config = self.config
        with torch.no_grad():
            at = self.points(batch)
        flow = self.flow(at.x_t, at.t, at.cond)
        warm = min(1.0, (batch.step + 1) / (config.warmup_steps + 1))
        tangent = self.tangent(at, flow.detach(), warm, batch.step)
        norm = expand_like(tangent.flatten(1).norm(dim=1), flow)
        target = flow.detach() + tangent / (norm + config.constant)
        loss = (flow - target).square().flatten(1).mean(1)
        weight = self.running.weigh(loss, at.t)
        return Losses((weight * loss).mean(), {"tangent": norm.mean()})
