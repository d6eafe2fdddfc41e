"""Variational score distillation, and two methods that are it with other settings.

`vsd`: Wang et al. 2023, "ProlificDreamer" (arXiv 2305.16213), Eq. 9: a sample descends
w(t) (eps_teacher - eps_fake), with w = sigma^2 and one update of the fake score to one of the
student.

`diff-instruct`: Luo et al. 2023, "Diff-Instruct" (arXiv 2305.18455): the same gradient, derived
as that of a KL divergence integrated over the noise levels. Its levels are EDM's log-normal ones,
and the difference of the two x0 is taken as it is.

`swiftbrush`: Nguyen & Tran 2023, "SwiftBrush" (arXiv 2312.05239): vsd of a one-step student from
prompts alone, its fake score a LoRA. `train.roles: adapters` gives the LoRA; what is left of it
is that it takes one step.

`pg-sb`: Nguyen et al. 2024, "SNOOPI: Supercharged One-step Diffusion Distillation with Proper
Guidance" (arXiv 2412.02687): swiftbrush with a random guidance scale for each sample, in the
teacher and in the fake score alike, which steadies the training on other backbones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.common.settings import renamed
from edgedistill.diffusion.denoiser import Condition, Guided, cat, expand, take
from edgedistill.diffusion.tensors import expand_like
from edgedistill.diffusion.times import TimeSampling, stratified
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.parts import FakeScore, Matching, View
from edgedistill.objectives.matching.rollout import Noised, Sample

__all__ = ["PGSB", "VSD", "WEIGHTS", "DiffInstruct", "SwiftBrush"]

WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigma2": lambda alpha, sigma: alpha * sigma,
    "x0": lambda alpha, sigma: alpha.new_ones(()),
}
"""(alpha, sigma) -> factor of the difference of two x0, which is alpha / sigma of that of eps."""


class VSD(Matching):
    """x0 descends w(t) (eps_teacher - eps_fake)."""

    class Config(Matching.Config):
        """Hyperparameters (ProlificDreamer's)."""

        weight: Literal["sigma2", "x0"] = "sigma2"
        """w = sigma^2 between the eps, or 1 between the x0."""

    name = "vsd"
    config: Config

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        view = self.view(sample, batch)
        alpha, sigma = self.student.schedule.at(view.t, like=view.x_t)
        gradient = WEIGHTS[self.config.weight](alpha, sigma) * (view.fake - view.real)
        return self.descent(sample, view, gradient, batch)


class DiffInstruct(VSD):
    """VSD at EDM's noise levels, between the x0."""

    class Config(VSD.Config):
        """Hyperparameters (the paper's on CIFAR-10)."""

        old_keys = renamed(mean="times.mean", std="times.std")

        weight: Literal["sigma2", "x0"] = "x0"
        times: TimeSampling = TimeSampling(
            kind="log-normal", low=0.02, high=0.98, mean=-1.2, std=1.2
        )
        """Distribution of the noise at which the scores are compared. An EDM teacher's x0 has
        deviation 1, the paper's 0.5: there the same noise is mean=-0.5."""

    name = "diff-instruct"
    config: Config


class SwiftBrush(VSD):
    """VSD of a student of one step."""

    name = "swiftbrush"
    single_step = True


class GuidableFakeScore(FakeScore):
    """A fake score that learns some samples without condition, so that it can be guided.

    Args:
        setup: The run's.
        head: Whether there is a head.
        null: The null condition, of one row.
        share: Share of samples learned under it, at least one a batch.
    """

    def __init__(self, setup: Setup, head: bool, null: Condition, share: float) -> None:
        super().__init__(setup, head)
        self.null, self.share = null, share

    def denoising(self, noised: Noised, cond: Condition) -> Tensor:
        # Rows of a batch are drawn at random: the first are as good as any.
        count = math.ceil(self.share * len(noised.x0))
        without = expand(self.null, count)
        return super().denoising(noised, cat(without, take(cond, slice(count, None))))

    def denoising_and_logits(self, noised: Noised, cond: Condition) -> tuple[Tensor, Tensor]:
        # Data is judged under its condition, in every row.
        return self.denoising(noised, cond), self.logits(noised, cond)


class PGSB(VSD):
    """VSD of a student of one step where both scores are guided, at random scales.

    Raises:
        ValueError: Unless the teacher has a null condition.
    """

    class Config(VSD.Config):
        """Hyperparameters (the paper's on SD1.5, Table 6; it does not say `null_share`)."""

        low: float = Field(0.5, ge=0)
        high: float = Field(4.0, gt=0)
        """Range of the guidance scale; 1 is none."""
        null_share: float = Field(0.1, gt=0, lt=1)
        """Share of samples that the fake score learns without condition, at least one a batch."""

    name = "pg-sb"
    single_step = True
    config: Config

    def __init__(self, config: PGSB.Config, setup: Setup) -> None:
        if not isinstance(setup.teacher, Guided):
            raise ValueError(
                "teacher.guidance=1: pg-sb guides by a null condition, which there is none of; "
                "choose a larger guidance"
            )
        if config.low >= config.high:
            raise ValueError(f"low={config.low:g} must be below high={config.high:g}")
        null, share = setup.teacher.null, config.null_share

        def fake_score(setup: Setup, head: bool) -> FakeScore:
            return GuidableFakeScore(setup, head, null, share)

        super().__init__(config, setup, fake_score=fake_score)
        self.guided = setup.teacher
        self.guided_fake = Guided(self.fake_score.denoiser, null, 1.0)

    @torch.no_grad()
    def view(self, sample: Sample, batch: Batch, target: nn.Module | None = None) -> View:
        """Noise the sample, and predict x0 by both scores, guided at the same random scales."""
        noised = self.noising(sample, self.levels(batch), batch)
        x_t, t = noised.x_t, noised.t
        scale = stratified(len(x_t), batch.generator, self.config.low, self.config.high)
        scale = expand_like(scale, x_t).to(x_t)
        real, fake = (
            guided.clip_x0(torch.lerp(*guided.both(x_t, t, batch.cond), scale), t)
            for guided in (self.guided, self.guided_fake)
        )
        return View(sample.x0.detach(), x_t, t, real, fake)
