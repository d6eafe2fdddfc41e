"""Score distillation without a fake score to train: baselines, and partners of other terms.

`sds`: Poole et al. 2022, "DreamFusion" (arXiv 2209.14988), Eq. 3: x0 descends
w(t) (eps_teacher - eps), w = sigma^2. It is vsd with a fake score that knows each sample for
certain, and seeks modes: alone, it does not keep the teacher's distribution.

`nfsd`: Katzir et al. 2023, "Noise-Free Score Distillation" (arXiv 2310.17590): the noise
is left out. At little noise (t < 0.2) nothing stands against the teacher's eps; at more, its eps
for a negative prompt, in whose place the null condition is taken here.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from edgedistill.diffusion.denoiser import Guided, expand
from edgedistill.diffusion.losses import toward
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.parts import Scored, moved
from edgedistill.objectives.matching.rollout import Noised, Sample

__all__ = ["NFSD", "SDS"]

CLEAN = 0.2
"""Below this time NFSD takes the teacher's eps to hold no noise."""


class Alone(Scored):
    """x0 descends sigma^2 times the difference to the eps of something that no one trains."""

    def move(self, sample: Sample, batch: Batch) -> Losses:
        with torch.no_grad():
            noised = self.noised(sample.x0, self.levels(batch), batch)
            real = self.teacher(noised.x_t, noised.t, batch.cond)
            alpha, sigma = self.student.schedule.at(noised.t, like=noised.x_t)
            apart = self.against(noised, batch) - real
            gradient = torch.nan_to_num(alpha * sigma * apart)
        return Losses(toward(sample.x0, gradient), moved(sample.x0, gradient, batch.x0))

    @abstractmethod
    def against(self, noised: Noised, batch: Batch) -> Tensor:
        """The x0 in the fake score's place, (N, ...)."""


class SDS(Alone):
    """x0 descends sigma^2 (eps_teacher - eps)."""

    name = "sds"

    def against(self, noised: Noised, batch: Batch) -> Tensor:
        return noised.x0


class NFSD(Alone):
    """x0 descends sigma^2 of the guided teacher's eps, less that of the null condition.

    Raises:
        ValueError: Unless the teacher is guided.
    """

    name = "nfsd"

    def __init__(self, config: Scored.Config, setup: Setup) -> None:
        if not isinstance(setup.teacher, Guided):
            raise ValueError(
                "teacher.guidance=1: nfsd sets a null condition against the wanted one; "
                "choose a guidance above 1 (the paper's is 7.5)"
            )
        super().__init__(config, setup)

    def against(self, noised: Noised, batch: Batch) -> Tensor:
        assert isinstance(self.teacher, Guided)
        x_t, t = noised.x_t, noised.t
        alpha, _ = self.student.schedule.at(t, like=x_t)
        null = self.teacher.denoiser(x_t, t, expand(self.teacher.null, len(x_t)))
        clean = (t < CLEAN).reshape((-1,) + (1,) * (x_t.ndim - 1))
        return torch.where(clean, x_t / alpha, null)
