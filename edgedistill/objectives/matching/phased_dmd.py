"""Phased distribution matching: one step after the other, each on all noise above its end.

Fan et al. 2025, "Phased DMD: Few-step Distribution Matching Distillation via Score Matching
within Subintervals" (arXiv 2510.27684). A phase takes x_t to x_s; its distribution is matched on
(s, 1], where the fake score learns from the noise added after s. Phases join one by one.

The paper gives each phase a network, an expert. A student here is one network, which is why the
phases before go on being trained.
"""

from __future__ import annotations

import torch

from edgedistill.diffusion.losses import matching_gradient
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.parts import Matching
from edgedistill.objectives.matching.rollout import Rollout
from edgedistill.objectives.matching.tdm import LandingNoise
from edgedistill.objectives.stages import Stages

__all__ = ["PhasedDMD"]


class PhasedDMD(Matching):
    """Matching of a growing number of the student's steps."""

    name = "phased-dmd"
    chooses_levels = True

    def __init__(self, config: PhasedDMD.Config, setup: Setup) -> None:
        begin = config.pretraining_steps + config.warmup_steps
        stages = Stages(max(1, setup.train_steps - begin), len(setup.times) - 1)
        rollout = PhasedRollout(Rollout.of(setup, config.rollout), stages, begin)
        super().__init__(config, setup, rollout=rollout)
        self.noising = LandingNoise(self.rollout, top=self.times[0])

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        view = self.view(sample, batch)
        gradient = matching_gradient(view.x0, view.real, view.fake)
        return self.descent(sample, view, gradient, batch)


class PhasedRollout(Rollout):
    """A rollout that goes one step further at each stage.

    Args:
        rollout: The whole student's.
        stages: As many as it has steps.
        begin: The first step of the run that counts.
    """

    def __init__(self, rollout: Rollout, stages: Stages, begin: int) -> None:
        super().__init__(rollout.student, rollout.times, rollout.sampler, rollout.source)
        self.stages, self.begin = stages, begin

    def index(self, batch: Batch) -> int:
        if batch.step < self.begin:
            return super().index(batch)
        reached = self.stages.at(batch.step - self.begin) + 1
        return int(torch.randint(reached, (), generator=batch.shared))
