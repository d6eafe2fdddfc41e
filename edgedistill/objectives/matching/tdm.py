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
from edgedistill.objectives.base import Batch, Setup, check_deterministic
from edgedistill.objectives.matching.parts import Matching, View
from edgedistill.objectives.matching.rollout import Noised, Sample, onward

__all__ = ["TDM", "Landing"]


class Landing(Matching):
    """Matching where the student's step lands, noised from there on."""

    def place(self, sample: Sample, t: Tensor, batch: Batch) -> Noised:
        """As the base class's, t being the share of the way from where the step lands up."""
        schedule, x0 = self.student.schedule, sample.x0
        first, s = self.times[sample.index], self.times[sample.index + 1]
        x_s = self.rollout.landed(sample.x_t, x0, first, s, batch)
        top = self.top(sample)
        level = schedule.snap(s + (top - s) * t)
        level = torch.where(level > s, level, top).to(x0.device)
        return onward(schedule, x_s, s.to(x0.device).expand(len(x0)), level, batch.noise())

    def top(self, sample: Sample) -> Tensor:
        """The noisiest time at which this step is compared, a scalar."""
        return self.times[sample.index]

    def gradient(self, view: View, batch: Batch) -> Tensor:
        return matching_gradient(view.x0, view.real, view.fake)


class TDM(Landing):
    """Matching inside each of the student's own intervals of time."""

    name = "tdm"

    def __init__(self, config: Landing.Config, setup: Setup) -> None:
        check_deterministic(self.name, setup)
        super().__init__(config, setup)
