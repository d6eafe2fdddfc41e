"""Distribution matching with an auxiliary loss on patches, SwD's.

Starodubcev et al. 2025, "Scale-wise Distillation of Diffusion Models" (arXiv 2503.16397): samples
and data at the same little noise have the same mean features in the fake score's network, a patch
being a token of its middle block (maximum mean discrepancy with a linear kernel, under a Huber
loss in each channel). The mean is over all patches of a batch; the paper's code has that as an
option, and compares each sample with the data of its prompt by default.

Steps are of one resolution here; the paper's students that grow from step to step are `swd`.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.losses import matching_gradient
from edgedistill.diffusion.times import stratified
from edgedistill.networks.heads import Tap
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.dmd2 import DMD2
from edgedistill.objectives.matching.parts import FakeScore, Matching
from edgedistill.objectives.matching.rollout import Rollout, renoised

__all__ = ["PDM", "patch_distance", "patches"]


def patches(features: Tensor) -> Tensor:
    """Features of points (N, C), of maps (N, C, H, W) or of tokens (N, L, C), as (M, C)."""
    if features.ndim == 4:
        features = features.movedim(1, -1)
    return features.flatten(0, -2)


def patch_distance(real: Tensor, fake: Tensor, c: float) -> Tensor:
    """Mean over channels of sqrt(d^2 + c^2) - c, where two means over (M, C) differ by d."""
    apart = real.float().mean(0) - fake.float().mean(0)
    return ((apart.square() + c**2).sqrt() - c).mean()


class PatchLoss:
    """Distance of the mean features of samples and data, in the fake score's network.

    Args:
        fake_score: The fake score, whose network gives the features and does not learn from them.
        path: Module path of the features in that network.
        config: The method's.
    """

    def __init__(self, fake_score: FakeScore, path: str, config: PDM.Config) -> None:
        self.config, self.fake_score = config, fake_score
        self.tap = Tap(fake_score.denoiser.net, path)

    def __call__(self, x0: Tensor, batch: Batch) -> Tensor:
        """Distance of samples x0 (N, ...) from the batch's data, a scalar."""
        config, student = self.config, self.fake_score.student
        t = stratified(len(x0), batch.generator, config.times.low, config.patch_max_time)
        noised = renoised(student, x0, t, batch)
        fake = self._patches(noised.x_t, noised.t, batch)
        with torch.no_grad():
            data = student.noised(batch.x0, noised.t, noised.eps)
            real = self._patches(data, noised.t, batch)
        return patch_distance(real, fake, config.patch_c)

    def _patches(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        self.fake_score.denoiser.output(x_t, t, batch.cond)
        return patches(self.tap.take())


class PDM(Matching):
    """DMD2 with mean features that match."""

    class Config(DMD2.Config):
        """Hyperparameters (the paper's on SD3.5)."""

        patch_weight: float = Field(1.0, gt=0)
        patch_c: float = Field(1e-3, gt=0)
        """Huber constant."""
        patch_max_time: float = Field(0.36, gt=0, le=1)
        """Most noise at which features are compared, at uniform times from `times.low` up; the
        last 10 of 28. Only its end is free, so it is no `TimeSampling`."""

    name = "pdm"
    config: Config

    def __init__(self, config: PDM.Config, setup: Setup, rollout: Rollout | None = None) -> None:
        if config.times.low >= config.patch_max_time:
            raise ValueError(
                f"patch_max_time={config.patch_max_time:g} is not above "
                f"min_time={config.times.low:g}"
            )
        super().__init__(config, setup, rollout=rollout)
        self.patch = PatchLoss(self.fake_score, setup.tap, config)

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        view = self.view(sample, batch)
        gradient = matching_gradient(view.x0, view.real, view.fake)
        losses = self.descent(sample, view, gradient, batch)
        return losses.plus("patch", self.config.patch_weight, self.patch(sample.x0, batch))
