"""Distribution matching with guidance as a term of its own.

Liu et al. 2025, "Decoupled DMD: CFG Augmentation as the Spear, Distribution Matching as the
Shield" (arXiv 2511.22677): the gradient of DMD with a guided teacher is that with an unguided one,
plus (scale - 1) times the teacher's difference between condition and none. The first term corrects
and is taken at all noise levels; the second drives, and is taken below the student's own time
only, as what is noisier than that has been decided (in the paper, whose clean end is 1,
tau_CA > t).
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgedistill.diffusion.denoiser import Guided
from edgedistill.diffusion.losses import matching_gradient, surrogate_loss
from edgedistill.diffusion.times import sample_times
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.parts import Matching, health
from edgedistill.objectives.matching.rollout import Sample, renoised

__all__ = ["DecoupledDMD"]


class DecoupledDMD(Matching):
    """Matches the unguided teacher, and adds guidance. Without guidance it is DMD."""

    name = "decoupled-dmd"
    chooses_levels = True

    def __init__(self, config: DecoupledDMD.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.guided: Guided | None = None
        if isinstance(setup.teacher, Guided):
            self.guided, self.teacher = setup.teacher, setup.teacher.denoiser

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        return self.helped(self.decoupled(sample, batch), sample, batch)

    def decoupled(self, sample: Sample, batch: Batch) -> Losses:
        """x0 descends the unguided teacher's matching and, below its own time, the guidance."""
        view = self.view(sample, batch)
        with torch.no_grad():
            gradient = matching_gradient(view.x0, view.real, view.fake)
            logs = health(view, gradient, batch.x0)
            if self.guided:
                added = self.augmentation(self.guided, sample, batch)
                logs["augmentation"] = added.square().mean().sqrt()
                gradient = gradient + added
        return Losses(surrogate_loss(sample.x0, torch.nan_to_num(gradient)), logs)

    def augmentation(self, teacher: Guided, sample: Sample, batch: Batch) -> Tensor:
        """Guidance at levels below the student's time, scaled as the matching is, (N, ...)."""
        times, x0 = self.config.times, sample.x0
        high = min(max(float(sample.t), 2 * times.low), times.high)
        below = times.model_copy(update={"high": high})
        t = sample_times(below, self.student.schedule, len(x0), batch.generator)
        noised = renoised(self.student, x0, t, batch)
        null, wanted = teacher.both(noised.x_t, noised.t, batch.cond)
        # As a step from the guided x0 to the unguided one, so that the scales are those of DMD.
        return matching_gradient(x0, wanted, wanted - (teacher.scale - 1) * (wanted - null))
