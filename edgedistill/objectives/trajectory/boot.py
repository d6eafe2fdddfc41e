"""Data-free distillation to one step by bootstrapping along the path of the signal.

Gu et al. 2023, "BOOT: Data-free Distillation of Denoising Diffusion Models with Bootstrapping"
(arXiv 2306.05544). On the teacher's ODE from the noise eps, y_t = (x_t - sigma_t eps) / alpha_t is
the signal so far: the teacher's x0 of pure noise at the noisiest time, and the sample at 0. The
student predicts y_s from eps and s alone, and learns it from its own y_t a little earlier and the
teacher's x0 there. Only noise and prompts are needed.

The paper's network reads s as its time. Here it reads the elapsed time, t_1 - s, so that its final
result, y_0, is an ordinary step from the noisiest time t_1, which any sampler can take.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.prediction import to_x0
from edgedistill.diffusion.solvers import init_scale
from edgedistill.diffusion.tensors import expand_like
from edgedistill.diffusion.times import neighbours, refine
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup

__all__ = ["BOOT"]


class BOOT(Objective):
    """Trains y(eps, s) = r sg y(eps, t) + (1 - r) T(x_t), one DDIM step of the signal from t to s.

    Here r = (sigma_s / alpha_s) / (sigma_t / alpha_t) and x_t = alpha_t y(eps, t) + sigma_t eps.
    """

    class Config(Settings):
        """Hyperparameters of bootstrapping."""

        solver_steps: int = Field(50, ge=2, le=10_000)
        """Number of steps that the path is divided into; each is one DDIM step."""
        boundary_weight: float = Field(0.5, ge=0)
        """Weight of the start: y(eps, t_1) is the teacher's x0 of pure noise."""
        distance: Distance = Distance()

    name = "boot"
    single_step = True

    def __init__(self, config: BOOT.Config, setup: Setup) -> None:
        self.config, self.optim = config, setup.optim
        self.teacher, self.student = setup.teacher, setup.student
        self.first = setup.times[0]
        self.grid = refine(setup.student.schedule, setup.times, config.solver_steps)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def signal(self, x_1: Tensor, s: Tensor, cond: Condition) -> Tensor:
        """Return the student's y_s, s (N,), from the noise x_1 that a table starts from."""
        student = self.student
        schedule, first = student.schedule, self.first.expand(len(x_1))
        read = schedule.snap(first - s.cpu())
        scale = schedule.input_scale(first) / schedule.input_scale(read)
        output = student.output(expand_like(scale, x_1).to(x_1) * x_1, read, cond)
        linear = to_x0(student.prediction, *schedule.at(first, like=x_1))
        return linear.x * x_1 + linear.y * output

    def loss(self, player: str, batch: Batch) -> Losses:
        config, schedule = self.config, self.student.schedule
        eps = batch.noise()
        x_1 = eps * init_scale(schedule, self.first)
        t, s = neighbours(self.grid, len(eps), batch.generator)
        with torch.no_grad():
            y = self.signal(x_1, t, batch.cond)
            t_here = t.to(eps.device)
            x0 = self.teacher(self.student.noised(y, t_here, eps), t_here, batch.cond)
            # This form is 0 where there is no signal yet, alpha_t = 0.
            kept = schedule.sigma(s) * schedule.alpha(t) / (schedule.alpha(s) * schedule.sigma(t))
            r = expand_like(kept, eps).to(eps)
            target = r * y + (1 - r) * x0
        loss = distance(config.distance, self.signal(x_1, s, batch.cond), target).mean()
        logs = {"bootstrap": loss.detach()}
        if config.boundary_weight > 0:
            first = self.first.expand(len(eps))
            with torch.no_grad():
                start = self.teacher(x_1, first.to(eps.device), batch.cond)
            boundary = distance(config.distance, self.signal(x_1, first, batch.cond), start).mean()
            loss = loss + config.boundary_weight * boundary
            logs["boundary"] = boundary.detach()
        return Losses(loss, logs)
