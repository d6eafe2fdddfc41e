"""Backward distillation: the student is trained at the points that its own steps reach.

Kohler et al. 2024, "Imagine Flash: Accelerating Emu Diffusion Models with Backward Distillation"
(arXiv 2405.05224): inputs from the student's own sampling, which contain no data; the shifted
reconstruction loss; and noise correction of the first step.

A student whose steps draw noise learns the end of the teacher's path. One whose steps are
deterministic learns the x0 with which its step lands on the path at its next time. The path's end
would be wrong there: between it and x_t the DDIM step follows a straight line, and the samples on
that line do not have the teacher's distribution (`benchmarks/exact_limits.py`).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.boundary import flow_map
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import to_eps
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import SOLVERS, one_step_x0
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup

__all__ = ["BackwardDistill", "noise_corrected"]


class BackwardDistill(Objective):
    """Trains S(x_t) so that the student's step lands on the teacher's path from x_t.

    x_t is the student's own.
    """

    class Config(Settings):
        """Hyperparameters of backward distillation."""

        shift: float = Field(1.0, gt=0, le=1)
        """Factor on the path's length up to t. The teacher starts at this share of it, from the
        student's x0 noised along x_t's noise; at 1 it starts from x_t itself. Below 1 the target
        keeps the student's structure and adds the teacher's detail."""
        solver_steps: int = Field(8, ge=1, le=10_000)
        """Number of the teacher's steps from there to the end of its path."""
        noise_correction: bool = True
        """Whether the first step uses its input as the noise, which it is."""
        distance: Distance = Distance()

    name = "backward-distill"

    def __init__(self, config: BackwardDistill.Config, setup: Setup) -> None:
        self.config, self.setup = config, setup
        self.teacher, self.student, self.times = setup.teacher, setup.student, setup.times
        self.steps = self.table()

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.setup.optim)]

    def table(self) -> TorchStepTable:
        student, sampler = self.student, self.setup.sampler
        table = few_step_table(student.schedule, student.prediction, self.times, sampler)
        if sampler == "ddim" and self.config.noise_correction:
            return noise_corrected(table, student, self.times)
        return table

    def loss(self, player: str, batch: Batch) -> Losses:
        index = int(torch.randint(len(self.times) - 1, (), generator=batch.shared))
        with torch.no_grad():
            x_t = self.own(index, batch)
        x0: Tensor = self.student(x_t, self.times[index].to(x_t.device), batch.cond)
        with torch.no_grad():
            target = self.target(index, x_t, x0, batch)
        loss = distance(self.config.distance, x0, target).mean()
        return Losses(loss, {"apart": loss.detach()})

    def own(self, index: int, batch: Batch) -> Tensor:
        """Return the student's own sample at times[index], (N, ...)."""
        steps = TorchStepTable(self.steps.rows[:index], self.steps.init_scale)
        noise = [batch.noise() for _ in range(steps.draws)]
        return steps.sample(self.student.net, noise, batch.cond)

    def target(self, index: int, x_t: Tensor, x0: Tensor, batch: Batch) -> Tensor:
        """Return the x0 that the student's step from x_t at times[index] is to predict, (N, ...).

        The teacher's path begins where the student's step to x0 is at `shift` of the way, and ends
        at time 0, or at the student's next time if its steps are deterministic.
        """
        config, schedule, device = self.config, self.student.schedule, x_t.device
        t = self.times[index].cpu()
        s = self.times[index + 1].cpu() if self.setup.sampler == "ddim" else torch.zeros_like(t)
        fractions = torch.linspace(config.shift, 0, config.solver_steps + 1, dtype=torch.float64)
        path = torch.unique_consecutive(schedule.snap(s + (t - s) * fractions[:-1]))
        times = torch.cat([path[path > s], s[None]]).to(device)
        x = flow_map(schedule, x_t, x0, t.to(device).expand(len(x_t)), times[0].expand(len(x_t)))
        x_s = SOLVERS["dpm++2m"](self.teacher, x, times, batch.cond)
        if s == 0:
            return x_s
        if index == 0 and config.noise_correction:
            return corrected_x0(schedule, x_t, x_s, t, s)
        return one_step_x0(schedule, x_t, x_s, t, s)


def corrected_x0(schedule: Schedule, x_T: Tensor, x_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the x0 with which the noise-corrected first step from x_T lands on x_s, (N, ...)."""
    eps = x_T / schedule.sigma(t).to(x_T)
    return (x_s - schedule.sigma(s).to(x_T) * eps) / schedule.alpha(s).to(x_T)


def noise_corrected(table: TorchStepTable, student: Denoiser, times: Tensor) -> TorchStepTable:
    """Return a deterministic table whose first step uses x_T, not the predicted noise.

    At the first time x_T is pure noise, up to its scale, so that x_s = alpha_s x0 + sigma_s x_T /
    sigma_T (the paper's noise correction). If the schedule ends without signal, v and flow
    predictions already give the same.
    """
    t, s = times[0].double().cpu(), times[1].double().cpu()
    schedule, kind, first = student.schedule, student.prediction, table.rows[0]
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    eps = to_eps(kind, alpha, sigma)
    left = schedule.sigma(s) * (s > 0)
    a = first.a + float(left * (1 / sigma - eps.x))
    b = first.b - float(left * eps.y)
    return TorchStepTable((replace(first, a=a, b=b), *table.rows[1:]), table.init_scale)
