"""Transitive closure time-distillation.

Berthelot et al. 2023, "TRACT: Denoising Diffusion Models with Transitive Closure
Time-Distillation" (arXiv 2303.04248).
"""

from __future__ import annotations

import copy
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.solvers import one_step_x0
from edgedistill.diffusion.times import with_edges
from edgedistill.networks.ema import follow
from edgedistill.objectives.base import Batch, Setup
from edgedistill.objectives.consistency.pcm import PCM, Phases, stage_of, wanted
from edgedistill.objectives.trajectory.progressive import WEIGHTS

__all__ = ["TRACT"]

LEFT = 1e-3
"""Share of a stage's start that is left in its average at its end."""


class StageTeacher(nn.Module):
    """The student of the last stage, and the index of the stage it teaches."""

    stage: Tensor

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = copy.deepcopy(denoiser).requires_grad_(False)
        self.register_buffer("stage", torch.zeros((), dtype=torch.long))


class TRACT(PCM):
    """Trains consistency inside groups of the teacher's steps; each stage teaches the next.

    A stage's teacher takes one step for each segment of its own stage, so errors add up over the
    few stages and not over the many steps. The teacher is the student's long average over that
    stage, in which the start has weight 1/1000 at the end.
    """

    class Config(PCM.Config):
        """Hyperparameters (the paper's two stages, and its short average of the self-teacher)."""

        segments: tuple[Annotated[int, Field(ge=1)], ...] = (32, 4)
        solver_steps: int = Field(1024, ge=2, le=10_000)
        ema: float = Field(0.5, ge=0, lt=1)
        distance: Distance = Distance()
        """Distance of two x0, which is weighted by max(SNR, 1)."""

    name = "tract"

    def __init__(self, config: TRACT.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        if config.choice != "stages":
            raise ValueError(f"choice={config.choice}: tract needs stages")
        for many, few in zip(self.counts, self.counts[1:], strict=False):
            if many <= few:
                raise ValueError(f"segments: {many} then {few}; each must be below the last")
        self.stage_teacher = StageTeacher(setup.student)
        self.average = copy.deepcopy(setup.student).requires_grad_(False)
        self.decay = LEFT ** (len(self.counts) / setup.train_steps)

    def followers(self) -> dict[str, nn.Module]:
        own = {"average": self.average, "stage_teacher": self.stage_teacher}
        return {**super().followers(), **own}

    def updated(self, player: str) -> None:
        super().updated(player)
        follow(self.average, self.student, self.decay)

    def path(self, stage: int) -> tuple[Denoiser | Guided, Tensor]:
        if stage == 0:
            return super().path(stage)
        return self.stage_teacher.denoiser, with_edges(self.edges[stage - 1], self.edges[stage])

    def started(self, step: int) -> None:
        stage = stage_of(step, self.counts, self.steps)
        if stage > int(self.stage_teacher.stage):
            follow(self.stage_teacher.denoiser, self.average, 0.0)
            self.stage_teacher.stage.fill_(stage)

    def apart(self, guide: Denoiser | Guided, batch: Batch, legs: Phases) -> Tensor:
        """Return the distance of the x0 with which one step leads to the edge (`progressive`)."""
        schedule, t = self.student.schedule, legs.t
        x_t, edge = wanted(self.target, guide, batch, legs)
        x0 = one_step_x0(schedule, x_t, edge, t, legs.edge)
        apart = distance(self.config.distance, self.student(x_t, t, batch.cond), x0)
        weight = WEIGHTS["truncated-snr"](schedule.log_snr(t).exp()).to(apart)
        return (weight * apart).mean()
