"""Distribution backtracking: the student follows, backwards, the way a teacher degrades to it.

Zhang et al. 2024, "Distribution Backtracking Builds A Faster Convergence Trajectory for Diffusion
Distillation" (arXiv 2408.15991). Degradation recording: the fake score, which starts as the
teacher, learns the untrained student's samples, and is copied at equal distances on the way.
Backtracking: the copies, last first, and in the end the teacher, are the targets of equal parts of
the run.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from edgedistill.diffusion.losses import matching_gradient
from edgedistill.networks.ema import follow
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.parts import Matching, View
from edgedistill.objectives.matching.rollout import Sample
from edgedistill.objectives.stages import Stages

__all__ = ["DisBack"]


class DisBack(Matching):
    """Matching with a target that comes nearer to the teacher from stage to stage."""

    class Config(Matching.Config):
        """Hyperparameters."""

        warmup_steps: int = Field(1000, ge=1)
        """Steps of the degradation, in which only fake_score trains."""
        checkpoints: int = Field(4, ge=1, le=1_000)
        """Copies on the way, each a network in memory."""

    name = "disback"
    config: Config

    def __init__(self, config: DisBack.Config, setup: Setup) -> None:
        if config.warmup_steps < config.checkpoints:
            raise ValueError(
                f"warmup={config.warmup_steps}: fewer steps than checkpoints={config.checkpoints}"
            )
        super().__init__(config, setup)
        self.path = [setup.spawn().requires_grad_(False) for _ in range(config.checkpoints)]
        left = setup.train_steps - config.pretraining_steps - config.warmup_steps
        self.stages = Stages(max(left, config.checkpoints + 1), config.checkpoints + 1)

    def followers(self) -> dict[str, nn.Module]:
        return {f"degraded-{i + 1}": net for i, net in enumerate(self.path)}

    def started(self, step: int) -> None:
        config, done = self.config, step - self.config.pretraining_steps
        for i, net in enumerate(self.path):
            if done == (i + 1) * config.warmup_steps // config.checkpoints:
                follow(net, self.fake_score.denoiser, 0.0)

    def target(self, step: int) -> nn.Module:
        """Return the network whose distribution is the target at a step."""
        config = self.config
        stage = self.stages.at(max(0, step - config.pretraining_steps - config.warmup_steps))
        return [*self.path[::-1], self.teacher][stage]

    @torch.no_grad()
    def view(self, sample: Sample, batch: Batch, target: nn.Module | None = None) -> View:
        """Noise the sample, and predict x0 by the stage's target and the fake score."""
        return super().view(sample, batch, target or self.target(batch.step))

    def student_loss(self, batch: Batch) -> Losses:
        sample = self.rollout(batch)
        view = self.view(sample, batch)
        gradient = matching_gradient(view.x0, view.real, view.fake)
        return self.descent(sample, view, gradient, batch)
