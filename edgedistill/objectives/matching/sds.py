"""Score distillation without a fake score to train: baselines, and partners of other terms.

`sds`: Poole et al. 2022, "DreamFusion" (arXiv 2209.14988), Eq. 3: x0 descends
w(t) (eps_teacher - eps), w = sigma^2. It is vsd with a fake score that knows each sample for
certain, and seeks modes: alone, it does not keep the teacher's distribution.

`nfsd`: Katzir et al. 2023, "Noise-Free Score Distillation" (arXiv 2310.17590): the noise
is left out. At little noise (t < 0.2) nothing stands against the teacher's eps; at more, its eps
for a negative prompt, in whose place the null condition is taken here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgedistill.diffusion.denoiser import Guided, expand
from edgedistill.diffusion.losses import surrogate_loss
from edgedistill.diffusion.tensors import expand_like
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.parts import ScoreConfig, Scored, moved
from edgedistill.objectives.matching.rollout import Noised, renoised

__all__ = ["NFSD", "SDS"]

CLEAN = 0.2
"""Below this time NFSD takes the teacher's eps to hold no noise."""


class SDS(Scored):
    """x0 descends sigma^2 (eps_teacher - eps), sigma^2 times the difference of two eps."""

    name = "sds"

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        with torch.no_grad():
            noised = renoised(self.student, sample.x0, self.levels(batch), batch)
            real = self.teacher(noised.x_t, noised.t, batch.cond)
            alpha, sigma = self.student.schedule.at(noised.t, like=noised.x_t)
            gradient = torch.nan_to_num(alpha * sigma * (self.reference(noised, batch) - real))
        logs = moved(sample.x0, gradient, batch.x0)
        return self.regressed(Losses(surrogate_loss(sample.x0, gradient), logs), batch)

    def reference(self, noised: Noised, batch: Batch) -> Tensor:
        """The x0 in the fake score's place, which no one trains, (N, ...)."""
        return noised.x0


class NFSD(SDS):
    """x0 descends sigma^2 of the guided teacher's eps, less that of the null condition.

    Raises:
        ValueError: Unless the teacher is guided.
    """

    name = "nfsd"

    def __init__(self, config: ScoreConfig, setup: Setup) -> None:
        if not isinstance(setup.teacher, Guided):
            raise ValueError(
                "teacher.guidance=1: nfsd sets a null condition against the wanted one; "
                "choose a guidance above 1 (the paper's is 7.5)"
            )
        super().__init__(config, setup)

    def reference(self, noised: Noised, batch: Batch) -> Tensor:
        assert isinstance(self.teacher, Guided)
        x_t, t = noised.x_t, noised.t
        alpha, _ = self.student.schedule.at(t, like=x_t)
        null = self.teacher.denoiser(x_t, t, expand(self.teacher.null, len(x_t)))
        return torch.where(expand_like(t < CLEAN, x_t), x_t / alpha, null)
