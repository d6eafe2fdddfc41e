"""A flow map for any number of steps, corrected where its own rollouts end.

Gu et al. 2026, "AnyFlow: Any-Step Video Diffusion Model with On-Policy Flow Map Distillation"
(arXiv 2605.13724). The student's mean velocity u takes y from any time tau to any earlier one,
y - (tau - end) u(y, tau, end), in the coordinates of `flow_map`. It learns from two losses:

- on the teacher's paths, the loss of `flow-map` on random intervals;
- on the student's own rollouts, distribution matching: Flow Map Backward Simulation takes noise
  through transitions of the student, and the end x0 descends DMD's gradient, which compares the
  teacher's score with that of a fake score that learns these ends.

The paper trains the flow map first and then on rollouts. This project adds both losses in every
step of the student. These are its choices, too: a rollout has the uniform grid of a random number
of steps, and after a random number of its transitions a last one goes straight to the end. Only
that last one has a gradient.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.losses import matching_gradient, surrogate_loss
from edgedistill.diffusion.times import TimeSampling
from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Optim,
    Player,
    Setup,
    check_deterministic,
)
from edgedistill.objectives.matching.parts import FakeScore, health
from edgedistill.objectives.matching.rollout import Levels
from edgedistill.objectives.trajectory.flow_map import FlowMap, Path, over

__all__ = ["AnyFlow"]

StepCount: TypeAlias = Annotated[int, Field(ge=1, le=1_000)]
"""Number of steps of a rollout."""


class AnyFlow(Objective):
    """Trains `flow-map`'s loss plus `matching_weight` times DMD's on the student's rollouts.

    Raises:
        ValueError: If steps of the student draw noise.
    """

    class Config(FlowMap.Config):
        """Hyperparameters (this project's)."""

        matching_weight: float = Field(0.3, ge=0)
        """Weight of distribution matching; 0 is `flow-map` and builds no fake score."""
        matching_times: TimeSampling = TimeSampling(low=0.02, high=0.98)
        """Distribution of the noise at which the two scores are compared."""
        rollout_steps: tuple[StepCount, ...] = Field((1, 2, 4, 8), min_length=1, max_length=64)
        """Numbers of steps of a rollout, one of which is drawn each time, each from 1 to 1000."""
        turns: int = Field(1, ge=1, le=1_000)
        """Updates of fake_score to one of the student."""
        fake_score: Optim = Optim()
        """Optimizer of fake_score."""

    name = "anyflow"

    def __init__(self, config: AnyFlow.Config, setup: Setup) -> None:
        check_deterministic(self.name, setup)
        self.config, self.setup = config, setup
        self.fake_score = FakeScore(setup, head=False) if config.matching_weight > 0 else None
        # The flow map tells the student's network the time that its step leads to.
        self.map = FlowMap(config, setup)
        self.teacher, self.student = setup.teacher, setup.student
        self.levels = Levels(config.matching_times, setup.student.schedule)

    def players(self) -> list[Player]:
        if self.fake_score is None:
            return self.map.players()
        fake = Player("fake_score", self.fake_score.net, self.config.fake_score)
        return [fake, Player("student", self.student, self.setup.optim, every=self.config.turns)]

    def finished(self, student: Denoiser) -> Denoiser:
        return self.map.finished(student)

    def loss(self, player: str, batch: Batch) -> Losses:
        if player == "fake_score":
            assert self.fake_score is not None
            with torch.no_grad():
                x0 = self.rollout(batch)
            return self.fake_score.learning(x0, batch)
        losses = self.map.loss(player, batch)
        if self.fake_score is None:
            return losses
        matching, logs = self.matching(self.fake_score, batch)
        return losses.plus("dmd", self.config.matching_weight, matching, **logs)

    # --- Flow Map Backward Simulation -----------------------------------------------------------

    def rollout(self, batch: Batch) -> Tensor:
        """Return the end x0 (N, ...) of a rollout, with the gradient of its last transition."""
        student, (y, _) = Path(self.student, batch.cond), self.map.noise(batch)
        *before, last = pairwise(self.times(batch).to(y.device))
        with torch.no_grad():
            for tau, end in before:
                y = transition(student, y, tau, end)
        return transition(student, y, *last)

    def times(self, batch: Batch) -> Tensor:
        """Draw the times of a rollout on the straight flow, (transitions + 1,), float64.

        They begin as the uniform grid of a number of steps, and end in 0. They are the same on all
        ranks, so that every rank does equal work.
        """
        choices = self.config.rollout_steps
        steps = choices[int(torch.randint(len(choices), (), generator=batch.shared))]
        index = int(torch.randint(steps, (), generator=batch.shared))
        grid = self.map.limit * (1 - torch.arange(index + 1, dtype=torch.float64) / steps)
        return torch.cat([grid, torch.zeros(1, dtype=torch.float64)])

    # --- Distribution matching ------------------------------------------------------------------

    def matching(self, fake_score: FakeScore, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a loss by which a rollout's end descends DMD's gradient, and figures on it."""
        x0 = self.rollout(batch)
        view = fake_score.view(self.teacher, x0, self.levels(batch), batch)
        gradient = torch.nan_to_num(matching_gradient(view.x0, view.real, view.fake))
        figures = health(view, gradient, batch.x0)
        logs = {f"scores/{name}": value for name, value in figures.items()}
        return surrogate_loss(x0, gradient), logs


def transition(student: Path, y: Tensor, tau: Tensor, end: Tensor) -> Tensor:
    """Return where the student's step takes y (N, ...) from tau to `end`, scalars."""
    tau, end = tau.expand(len(y)), end.expand(len(y))
    return y - over(tau - end, y) * student(y, tau, end)
