"""One student for 1 to 8 steps: segmented consistency, human feedback, and scores for one step.

Ren et al. 2024, "Hyper-SD: Trajectory Segmented Consistency Model for Efficient Image Synthesis"
(arXiv 2404.13686). Three losses follow one another in one run, and none is given up:

- Trajectory Segmented Consistency Distillation (Sec. 3.1): consistency inside segments of time,
  whose number falls from stage to stage (8, 4, 2, 1), with an adversarial loss. With one segment
  left, the student's x0 is the path's end from anywhere, so any number of steps serves.
- Human feedback (Sec. 3.2): the recipe's `reward` section from its `start` on, with the reward of
  samples in 1, 2, 4 or 8 steps, one number drawn each time.
- Score distillation (Sec. 3.3): from the end of the stages on, samples in one step descend DMD's
  gradient, while consistency holds all other steps.

One LoRA for all numbers of steps (Sec. 3.3) is `train.roles=adapters`.

The following are choices of this project. All stages have the teacher's own ODE. The weight of the
adversarial loss grows in equal parts with the stages, for the paper's moving weights, and heads
are as in `pcm-gan`. Fake score and student have a turn each. A sample in one step begins at the
first time of sampling, while the paper's begins a little later. Rewards are those of
`edgedistill.rewards`, and not the paper's aesthetic and segmentation models.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.diffusion.losses import matching_gradient, surrogate_loss
from edgedistill.diffusion.times import TimeSampling
from edgedistill.objectives.adversarial.pcm_gan import PCMGAN
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Setup
from edgedistill.objectives.combined.anyflow import StepCount
from edgedistill.objectives.consistency.pcm import stage_of
from edgedistill.objectives.matching.parts import FakeScore, health
from edgedistill.objectives.matching.rollout import Levels, Rollout, times_of

__all__ = ["TSCD", "HyperSD"]


class TSCD(PCMGAN):
    """`pcm-gan` whose adversarial loss reaches its weight in the last stage, in equal parts.

    Args:
        config: The method's configuration.
        setup: The run's setup.
        steps: Number of steps of all stages; the last one goes on afterwards.
    """

    def __init__(self, config: HyperSD.Config, setup: Setup, steps: int) -> None:
        super().__init__(config, setup)
        self.pcm.steps = steps

    def weight(self, step: int) -> float:
        counts = self.pcm.counts
        return self.config.gan_weight * (stage_of(step, counts, self.pcm.steps) + 1) / len(counts)


class HyperSD(Objective):
    """Trains TSCD, then also `matching_weight` times DMD's loss of samples in one step.

    Raises:
        ValueError: If steps of the student draw no noise, so that one network serves one number of
            steps alone, or the run is too short for its stages.
    """

    class Config(PCMGAN.Config):
        """Hyperparameters of `pcm-gan`, and this project's of the score distillation."""

        segments: tuple[StepCount, ...] = (8, 4, 2, 1)
        """Numbers of equal segments of time, one after the other; the last is 1."""
        choice: Literal["stages"] = "stages"
        """The segments follow one another."""
        tscd_share: float = Field(0.6, gt=0, le=1)
        """Share of the run in which the segments take turns, in equal parts. Afterwards one
        segment is left, and scores are distilled."""
        step_counts: tuple[StepCount, ...] = Field((1, 2, 4, 8), min_length=1, max_length=64)
        """Numbers of steps that the student is for. Losses on its samples draw one of them."""
        matching_weight: float = Field(0.3, ge=0)
        """Weight of DMD's loss in one step; 0 builds no fake score."""
        matching_times: TimeSampling = TimeSampling(low=0.02, high=0.98)
        """Distribution of the noise at which the two scores are compared."""
        warmup_steps: int = Field(100, ge=0)
        """Steps after the stages in which fake_score trains and DMD's loss is still left out."""
        fake_score: Optim = Optim()
        """Optimizer of fake_score."""

    name = "hyper-sd"

    def __init__(self, config: HyperSD.Config, setup: Setup) -> None:
        if setup.sampler != "renoise":
            raise ValueError(
                f"student.sampler={setup.sampler}: one network takes several numbers of steps "
                "only where steps draw noise; choose student.sampler=renoise"
            )
        self.config, self.setup, self.teacher = config, setup, setup.teacher
        self.start = round(config.tscd_share * setup.train_steps)
        if self.start < len(config.segments):
            raise ValueError(
                f"train.steps={setup.train_steps}: objective.tscd_share={config.tscd_share:g} of "
                f"them is less than a step for each of objective.segments={config.segments}"
            )
        self.tscd = TSCD(config, setup, self.start)
        self.one_step = Rollout(setup.student, times_of(1, setup), setup.sampler)
        self.levels = Levels(config.matching_times, setup.student.schedule)
        self.fake_score = FakeScore(setup, head=False) if config.matching_weight > 0 else None

    def players(self) -> list[Player]:
        players = self.tscd.players()
        if self.fake_score is None:
            return players
        net, optim = self.fake_score.net, self.config.fake_score
        return [Player("fake_score", net, optim, start=self.start), *players]

    def followers(self) -> dict[str, nn.Module]:
        return self.tscd.followers()

    def updated(self, player: str) -> None:
        self.tscd.updated(player)

    def step_times(self) -> list[Tensor]:
        return [times_of(count, self.setup) for count in self.config.step_counts]

    def loss(self, player: str, batch: Batch) -> Losses:
        if player == "fake_score":
            assert self.fake_score is not None
            with torch.no_grad():
                sample = self.one_step(batch)
            return self.fake_score.learning(sample.x0, batch)
        losses = self.tscd.loss(player, batch)
        early = batch.step < self.start + self.config.warmup_steps
        if player != "student" or self.fake_score is None or early:
            return losses
        matching, figures = self.matching(self.fake_score, batch)
        logs = {f"scores/{name}": value for name, value in figures.items()}
        return losses.plus("dmd", self.config.matching_weight, matching, **logs)

    def matching(self, fake_score: FakeScore, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a loss by which samples in one step descend DMD's gradient, and figures on it."""
        x0 = self.one_step(batch).x0
        view = fake_score.view(self.teacher, x0, self.levels(batch), batch)
        gradient = torch.nan_to_num(matching_gradient(view.x0, view.real, view.fake))
        return surrogate_loss(x0, gradient), health(view, gradient, batch.x0)
