"""Continuous-time consistency distillation and training in TrigFlow.

Lu & Song 2024, "Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models"
(arXiv 2410.11081, Alg. 1).

Any schedule is seen as TrigFlow: x = x_t / sqrt(alpha^2 s^2 + sigma^2), s = sigma_data, is
cos(a) x0 / s + sin(a) eps at the angle a = atan(sigma / (alpha s)). The network there is F, with
f / s = cos(a) x - sin(a) F for the consistency function f, which is the student's x0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.common.settings import renamed
from edgedistill.diffusion.boundary import boundary_of, consistency_function
from edgedistill.diffusion.denoiser import Condition
from edgedistill.diffusion.few_step import Boundary
from edgedistill.diffusion.tangents import DERIVATIVES
from edgedistill.diffusion.tensors import expand_like
from edgedistill.diffusion.times import TimeSampling, sample_times
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup

__all__ = ["SCM", "Points"]

DECAY = 0.99
"""Decay of the running loss by time, per step."""


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
        tangent: Literal["jvp", "difference"] = "jvp"
        """Derivative of the network: by forward differentiation, or by a central difference of two
        calls."""
        difference: float = Field(1e-2, gt=0, lt=1)
        """Step of the difference, as a share of the distance to the ends of the path."""
        warmup_steps: int = Field(10_000, ge=0)
        """Number of steps over which the derivative of the network is phased in."""
        constant: float = Field(0.1, gt=0)
        """Constant c of the normalised tangent g / (|g| + c)."""
        sigma_data: float = Field(0.5, gt=0)
        """Standard deviation of the data."""
        times: TimeSampling = TimeSampling(kind="log-normal", mean=-1.0, std=1.4)
        bins: int = Field(64, ge=1, le=100_000)
        """Number of time bins of the adaptive weight; 1 weights all times alike."""

    name = "scm"

    def __init__(self, config: SCM.Config, setup: Setup) -> None:
        self.config = config
        self.teacher, self.student, self.optim = setup.teacher, setup.student, setup.optim
        self.running = RunningLoss(config.bins).to(setup.example[0].device)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def followers(self) -> dict[str, nn.Module]:
        return {"running_loss": self.running}

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

    @torch.no_grad()
    def tangent(self, at: Points, flow: Tensor, warm: float) -> Tensor:
        """Return G = -cos^2 (F - dx/da) - warm cos sin (x + dF/da); cos df/da at warm = 1."""
        schedule, scale = self.student.schedule, self.config.sigma_data
        cos, sin, size = self.trig(at.t, at.x_t)
        direction = cos * at.eps - sin * at.x0 / scale
        tangent = -cos.square() * (flow - direction)
        if warm == 0:
            return tangent
        alpha, sigma = schedule.alpha(at.t), schedule.sigma(at.t)
        d_alpha, d_sigma = schedule.d_alpha(at.t), schedule.d_sigma(at.t)
        squares = (scale * alpha).square() + sigma.square()
        dt = squares / (scale * (alpha * d_sigma - sigma * d_alpha))
        d_alpha, d_sigma = (expand_like(d * dt, at.x_t).to(at.x_t) for d in (d_alpha, d_sigma))
        dx = d_alpha * at.x0 + d_sigma * at.eps
        step = self.config.difference * torch.minimum(cos, sin).flatten().double()
        derivative = DERIVATIVES[self.config.tangent](
            lambda x, t: self.flow(x, t, at.cond), at.x_t, at.t, dx, dt, step
        )
        return tangent - warm * cos * sin * (at.x_t / size + derivative)

    def loss(self, player: str, batch: Batch) -> Losses:
        config = self.config
        with torch.no_grad():
            at = self.points(batch)
        flow = self.flow(at.x_t, at.t, at.cond)
        warm = min(1.0, (batch.step + 1) / (config.warmup_steps + 1))
        tangent = self.tangent(at, flow.detach(), warm)
        norm = expand_like(tangent.flatten(1).norm(dim=1), flow)
        target = flow.detach() + tangent / (norm + config.constant)
        loss = (flow - target).square().flatten(1).mean(1)
        weight = self.running.weigh(loss, at.t)
        return Losses((weight * loss).mean(), {"tangent": norm.mean()})
