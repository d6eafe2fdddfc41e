"""Progressive distillation: one step of the student equals two of its teacher, in stages.

Salimans & Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models" (arXiv
2202.00512), Alg. 2: x_s lies two DDIM steps below x_t, the target is the x0 with which one step
lands there, and the weight does not vanish where there is no signal (Sec. 4). Then the student is
the next stage's teacher, and takes half as many steps. The first stage also distils the guidance,
as the first of the two stages of Meng et al. 2022 (arXiv 2210.03142).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.solvers import ddim_step, one_step_x0
from edgedistill.diffusion.times import refine
from edgedistill.networks.ema import follow
from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Player,
    Settings,
    Setup,
    check_deterministic,
)
from edgedistill.objectives.stages import Stages

__all__ = ["WEIGHTS", "Progressive", "TeacherStep"]

WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "truncated-snr": lambda snr: snr.clamp(min=1),
    "snr-plus-one": lambda snr: snr + 1,
}
"""Weights of the squared error of x0, by SNR. The first is the larger of the errors of x0 and eps,
the second the error of v."""


@dataclass(frozen=True)
class TeacherStep:
    """Target of one step of the student: from x_t at t to the teacher's x_s at s."""

    x_t: Tensor
    t: Tensor
    x_s: Tensor
    s: Tensor


class Progressive(Objective):
    """Halves the teacher's steps in each stage, down to the student's."""

    class Config(Settings):
        """Hyperparameters of progressive distillation."""

        stages: int = Field(4, ge=1, le=12)
        """Number of stages; the first teacher takes 2^stages times the student's steps."""
        weight: Literal["truncated-snr", "snr-plus-one"] = "truncated-snr"
        distance: Distance = Distance()
        """Distance of two x0, which is weighted."""
        ema: float = Field(0.99, ge=0, lt=1)
        """Decay of the average of the student that becomes the next stage's teacher and the
        student's start there; 0 is the student itself."""

    name = "progressive"
    restarts = True

    def __init__(self, config: Progressive.Config, setup: Setup) -> None:
        check_deterministic(self.name, setup)
        self.config, self.optim = config, setup.optim
        self.student, self.first = setup.student, setup.teacher
        self.teacher = copy.deepcopy(setup.student).requires_grad_(False)
        self.average = self.student
        if config.ema:
            self.average = copy.deepcopy(self.teacher)
        self.stages = Stages(setup.train_steps, config.stages)
        schedule, steps = setup.student.schedule, len(setup.times) - 1
        # Step counts of the teachers: each includes the next one's times, the last the student's.
        counts = [2 ** (config.stages - i) for i in range(config.stages)]
        self.grids = [refine(schedule, setup.times, count) for count in counts]
        if len(self.grids[0]) <= steps * counts[0]:
            raise ValueError(
                f"objective.stages={config.stages}: the first teacher takes {steps * counts[0]} "
                f"steps, more than it has timesteps"
            )

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def followers(self) -> dict[str, nn.Module]:
        averages = {"average": self.average} if self.config.ema else {}
        return {"teacher": self.teacher, **averages}

    def updated(self, player: str) -> None:
        if self.config.ema:
            follow(self.average, self.student, self.config.ema)

    def started(self, step: int) -> None:
        if self.stages.at(step) and self.stages.begins(step):
            follow(self.teacher, self.average, 0.0)
            follow(self.student, self.average, 0.0)

    def step(self, batch: Batch) -> TeacherStep:
        """Return noised data, and the result of two steps of the stage's teacher."""
        stage = self.stages.at(batch.step)
        teacher: Denoiser | Guided = self.teacher if stage else self.first
        grid, schedule = self.grids[stage], self.student.schedule
        index = 2 * torch.randint(len(grid) // 2, (len(batch.x0),), generator=batch.generator)
        t, middle, s = (grid[index + i].to(batch.x0.device) for i in range(3))
        x_t = self.student.noised(batch.x0, t, batch.noise())
        with torch.no_grad():
            x_m = ddim_step(schedule, x_t, teacher(x_t, t, batch.cond), t, middle)
            x_s = ddim_step(schedule, x_m, teacher(x_m, middle, batch.cond), middle, s)
        return TeacherStep(x_t, t, x_s, s)

    def loss(self, player: str, batch: Batch) -> Losses:
        step, schedule = self.step(batch), self.student.schedule
        x_t, t = step.x_t, step.t
        target = one_step_x0(schedule, x_t, step.x_s, t, step.s)
        apart = distance(self.config.distance, self.student(x_t, t, batch.cond), target)
        weight = WEIGHTS[self.config.weight](schedule.log_snr(t).exp()).to(apart)
        loss = (weight * apart).mean()
        return Losses(loss, {"x0": apart.detach().mean()})
