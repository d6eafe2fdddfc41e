"""Distribution matching that keeps the teacher's variety: its first step is a regression.

"Diversity-Preserved Distribution Matching Distillation" (DP-DMD, arXiv 2602.03139). What a sample
shows is decided in the noisiest step. So this step learns where the teacher's path leads, which
drops no mode, and only the later steps, which sharpen, match distributions as in DMD. The gradient
of a later step does not reach the first: a sample is handed on detached.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.losses import matching_gradient
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.parts import Matching
from edgedistill.objectives.matching.rollout import TeacherRegression

__all__ = ["DPDMD"]


class FirstStep(TeacherRegression):
    """Regression of the noisiest step on the teacher's path."""

    def span(self, batch: Batch) -> tuple[Tensor, Tensor]:
        times = self.rollout.times
        deterministic = self.rollout.sampler == "ddim"
        return times[0], times[1] if deterministic else torch.zeros_like(times[0])


class DPDMD(Matching):
    """Trains the first step by regression, and the later ones by DMD.

    Raises:
        ValueError: For a student of one step, which would match nothing.
    """

    class Config(Matching.Config):
        """Hyperparameters."""

        turns: int = Field(5, ge=1, le=1_000)
        """Updates of fake_score to one of the student."""

    name = "dp-dmd"

    def __init__(self, config: DPDMD.Config, setup: Setup) -> None:
        if len(setup.times) < 3:
            raise ValueError(
                "student.steps=1: the first step of dp-dmd learns the teacher's path, and a later "
                "one matches; choose student.steps=2 or more"
            )
        super().__init__(config, setup)
        self.first = FirstStep(setup.teacher, self.rollout, config.regression_steps)

    def student_loss(self, batch: Batch) -> Losses:
        # The rollout will draw the same step from the same state of the shared generator.
        shared = batch.shared.get_state()
        index = self.rollout.index(batch)
        batch.shared.set_state(shared)
        if index == 0:
            regression = self.first(batch)
            return Losses(regression, {"first": regression.detach()})
        sample = self.rollout(batch)
        view = self.view(sample, batch)
        gradient = matching_gradient(view.x0, view.real, view.fake)
        return self.descent(sample, view, gradient, batch)
