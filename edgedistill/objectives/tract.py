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

from edgedistill.denoiser import Denoiser, Guided
from edgedistill.ema import follow
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.pcm import PCM
from edgedistill.times import with_edges

__all__ = ["TRACT"]


class StageTeacher(nn.Module):
    """The student of the last stage, and which stage it teaches."""

    stage: Tensor

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = copy.deepcopy(denoiser).requires_grad_(False)
        self.register_buffer("stage", torch.zeros((), dtype=torch.long))


class TRACT(PCM):
    """Consistency inside groups of the teacher's steps, where each stage's teacher is the last's.

    A stage's teacher takes one step where its own stage had a segment, so that errors add up over
    the few stages and not over the many steps.
    """

    class Config(PCM.Config):
        """Hyperparameters; two stages, and the self-teacher's short average, are the paper's."""

        segments: tuple[Annotated[int, Field(ge=1)], ...] = (32, 4)
        solver_steps: int = Field(1024, ge=2)
        ema: float = Field(0.5, ge=0, lt=1)

    name = "tract"

    def __init__(self, config: TRACT.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        if config.choice != "stages":
            raise ValueError(f"choice={config.choice}: tract needs stages")
        for many, few in zip(self.counts, self.counts[1:], strict=False):
            if many <= few:
                raise ValueError(f"segments: {many} then {few}; each must be below the last")
        self.stage_teacher = StageTeacher(self.target)

    def followers(self) -> dict[str, nn.Module]:
        return {**super().followers(), "stage_teacher": self.stage_teacher}

    def path(self, stage: int) -> tuple[Denoiser | Guided, Tensor]:
        if stage == 0:
            return super().path(stage)
        return self.stage_teacher.denoiser, with_edges(self.edges[stage - 1], self.edges[stage])

    def loss(self, player: str, batch: Batch) -> Losses:
        stage = self.stage(batch)
        if stage > int(self.stage_teacher.stage):
            follow(self.stage_teacher.denoiser, self.target, 0.0)
            self.stage_teacher.stage.fill_(stage)
        return super().loss(player, batch)
