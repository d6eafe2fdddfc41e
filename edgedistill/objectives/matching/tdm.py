"""Trajectory distribution matching: every interval of the student's path has the teacher's law.

Luo et al. 2025, "Learning Few-Step Diffusion Models by Trajectory Distribution Matching"
(arXiv 2503.06674). A deterministic step from t to s lands on x_s; noised further to a time between
the two, it is compared there and nowhere else, so that one fake score serves all intervals.

The fake score learns from the noise that was added after s, without bias; the paper's code
regresses the student's x0 under importance weights instead.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgedistill.diffusion.losses import matching_gradient
from edgedistill.objectives.base import Batch, Losses, Setup, check_deterministic
from edgedistill.objectives.matching.parts import Matching
from edgedistill.objectives.matching.rollout import Noised, Rollout, Sample, onward

__all__ = ["TDM", "LandingNoise"]


class LandingNoise:
    """The noising of where the student's step lands, further from there on.

    Args:
        rollout: The student's steps.
        top: The noisiest time at which a step is compared, a scalar; by default the step's own.
    """

    def __init__(self, rollout: Rollout, top: Tensor | None = None) -> None:
        self.rollout, self.top = rollout, top

    def __call__(self, sample: Sample, t: Tensor, batch: Batch) -> Noised:
        """The landing noised; t (N,) is the share of the way from its time up to the top."""
        rollout, x0 = self.rollout, sample.x0
        schedule = rollout.student.schedule
        first, s = rollout.times[sample.index], rollout.times[sample.index + 1]
        x_s = rollout.land(sample.x_t, x0, first, s, batch)
        top = first if self.top is None else self.top
        level = schedule.snap(s + (top - s) * t)
        level = torch.where(level > s, level, top).to(x0.device)
        return onward(schedule, x_s, s.to(x0.device).expand(len(x0)), level, batch.noise())


class TDM(Matching):
    """Matching inside each of the student's own intervals of time."""

    name = "tdm"
    chooses_levels = True

    def __init__(self, config: TDM.Config, setup: Setup) -> None:
        check_deterministic(self.name, setup)
        super().__init__(config, setup)
        self.noising = LandingNoise(self.rollout)

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        view = self.view(sample, batch)
        gradient = matching_gradient(view.x0, view.real, view.fake)
        return self.descent(sample, view, gradient, batch)
