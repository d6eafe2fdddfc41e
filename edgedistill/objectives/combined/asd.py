"""Distribution matching beside adversarial self-distillation: n steps learn from n + 1.

Yang et al. 2025, "Towards One-step Causal Video Generation via Adversarial Self-Distillation"
(arXiv 2511.01419). One network takes any of several numbers of steps. Its samples in n steps move
to the teacher's distribution by DMD's gradient, and a discriminator tells them from its own
samples in n + 1 steps. So few steps have a target that is near, and all of them the teacher's.

The following are choices of this project. An x0 that serves every number of steps is the end of
the path, so steps draw noise (`student.sampler=renoise`). The discriminator has heads on the
frozen teacher's features of samples noised anew, as `ladd` has, and each n has heads of its own,
because samples in n + 1 steps are real to n and fake to n + 2. Each loss draws its n. The gradient
goes through a sample's last step, as in `dmd2`. The paper's first-frame enhancement is for video
and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.networks.heads import Shown
from edgedistill.objectives.adversarial.parts import GAN, Round
from edgedistill.objectives.base import Batch, Losses, Player, Setup
from edgedistill.objectives.matching.dmd2 import DMD2
from edgedistill.objectives.matching.rollout import (
    AnySteps,
    Levels,
    Rollout,
    Sample,
    TeacherRegression,
    drawn,
    renoised,
    times_of,
)

__all__ = ["ASD", "StepPairs"]


class StepPairs(GAN):
    """A game in which the student's samples in n steps are fake, and those in n + 1 real.

    Args:
        config: The method's configuration.
        setup: The run's setup.
        rollouts: The rollouts of n, n + 1, ... steps, at least two.
    """

    def __init__(self, config: ASD.Config, setup: Setup, rollouts: Sequence[Rollout]) -> None:
        # The last step begins at another time for each n, which tells their heads apart.
        begins = torch.stack([rollout.times[-2] for rollout in rollouts])
        super().__init__(config, replace(setup, times=begins))
        self.pairs = list(pairwise(rollouts))
        self.levels = Levels(config.times, setup.student.schedule)

    def weight(self, step: int) -> float:
        return 1.0

    def round(self, batch: Batch) -> Round:
        fewer, more = drawn(self.pairs, batch)
        ours = self.sample(fewer, batch)
        with torch.no_grad():
            better = self.sample(more, batch)
        t = ours.t.to(ours.x0.device).expand(len(ours.x0))
        fake, real = (self.shown(sample.x0, batch) for sample in (ours, better))
        return Round(ours.x_t, t, ours.x0, fake, real)

    def sample(self, rollout: Rollout, batch: Batch) -> Sample:
        """Run all steps of a rollout, with the gradient of the last."""
        return rollout.at(len(rollout.times) - 2, batch)

    def shown(self, x0: Tensor, batch: Batch) -> Shown:
        """Return samples (N, ...) noised anew, at the noise at which scores are compared."""
        noised = renoised(self.student, x0, self.levels(batch), batch)
        return [(noised.x_t, noised.t)]


class ASD(DMD2):
    """Trains DMD2's loss in n steps, plus `self_weight` times the game of n against n + 1.

    Raises:
        ValueError: If the student's steps are outside the range of n, the range has no pair of n
            and n + 1, or steps draw no noise.
    """

    class Config(DMD2.Config, GAN.Config):
        """Hyperparameters of `dmd2`, of the range of n, and of the discriminator."""

        least_steps: int = Field(1, ge=1, le=1_000)
        """Least number of steps n that the student is trained for."""
        most_steps: int | None = Field(None, ge=1, le=1_000)
        """Largest number of steps; none is student.steps. A student of one step, for example,
        learns from more by a larger number."""
        self_weight: float = Field(0.1, ge=0)
        """Weight of the adversarial loss of n steps against n + 1; 0 builds no discriminator."""
        turns: int = Field(5, ge=1, le=1_000)
        """Updates of fake_score and of the discriminator to one of the student."""
        gan_weight: float = Field(0, ge=0)
        """Weight of DMD2's GAN term against data, which is not of this paper; 0 builds no head."""
        loss: Literal["hinge", "non-saturating", "lsgan", "relativistic"] = "relativistic"
        r1_weight: float = Field(0.1, ge=0)
        """Weight of the gradient penalty on the samples in n + 1 steps."""
        r2_weight: float = Field(0.1, ge=0)
        """Weight of the same penalty on the samples in n steps."""
        r1_step: float = Field(0.05, ge=0)
        heads_per_step: bool = True
        """Whether each n has heads of its own."""

    name = "asd"
    chooses_levels = True
    config: ASD.Config

    def __init__(self, config: ASD.Config, setup: Setup) -> None:
        grids = [times_of(count, setup) for count in counts_of(config, setup)]
        self._grids, student, sampler = grids, setup.student, setup.sampler
        each = [Rollout(student, times, sampler, config.rollout) for times in grids]
        super().__init__(config, setup, rollout=AnySteps(Rollout.of(setup, config.rollout), each))
        steps = config.regression_steps
        regressions = [TeacherRegression(setup.teacher, rollout, steps) for rollout in each]
        self.regression = lambda batch: drawn(regressions, batch)(batch)
        self.game: StepPairs | None = None
        if config.self_weight > 0:
            self.game = StepPairs(config, setup, [Rollout(student, t, sampler) for t in grids])

    def players(self) -> list[Player]:
        fake_score, student = super().players()
        if self.game is None:
            return [fake_score, student]
        net, optim = self.game.discriminator, self.config.discriminator
        return [
            fake_score,
            Player("discriminator", net, optim, start=fake_score.start),
            student,
        ]

    def step_times(self) -> list[Tensor]:
        return self._grids

    def loss(self, player: str, batch: Batch) -> Losses:
        if player == "discriminator":
            assert self.game is not None
            return self.game.loss(player, batch)
        return super().loss(player, batch)

    def student_loss(self, batch: Batch) -> Losses:
        # The student's x0 at a random step of n moves to the teacher's distribution.
        losses = super().student_loss(batch)
        if self.game is None:
            return losses
        # Its samples in n steps become as likely as those in n + 1, which have no gradient.
        game = self.game.loss("student", batch)
        return losses.plus("self", self.config.self_weight, game.total)


def counts_of(config: ASD.Config, setup: Setup) -> range:
    """Return the numbers of steps that a student is trained for, increasing.

    Raises:
        ValueError: If the method cannot train them.
    """
    steps = len(setup.times) - 1
    least, most = config.least_steps, steps if config.most_steps is None else config.most_steps
    if not least <= steps <= most:
        raise ValueError(
            f"student.steps={steps}: not from objective.least_steps={least} to "
            f"objective.most_steps={most}, the numbers of steps that asd trains"
        )
    if least == most and config.self_weight > 0:
        raise ValueError(
            f"student.steps={steps}: asd compares samples in n steps with those in n + 1; choose "
            f"objective.most_steps={steps + 1} or more, or objective.self_weight=0"
        )
    if least < most and setup.sampler != "renoise":
        raise ValueError(
            f"student.sampler={setup.sampler}: one network takes several numbers of steps only "
            "where steps draw noise; choose student.sampler=renoise"
        )
    return range(least, most + 1)
