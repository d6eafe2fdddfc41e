"""Score-regularised continuous-time consistency: sCM and distribution matching, jointly.

Zheng et al. 2025, "Large Scale Diffusion Distillation via Score-Regularized Continuous-Time
Consistency" (rCM, arXiv 2510.08431). The consistency loss on the teacher's paths is a forward
divergence: it covers every mode and blurs. Distribution matching on the student's own samples is
a reverse one: it sharpens and may drop modes. Their sum needs no pairs of the teacher, no GAN, and
no regression.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.diffusion.boundary import consistency_function
from edgedistill.diffusion.denoiser import Condition, Denoiser
from edgedistill.diffusion.few_step import Boundary
from edgedistill.diffusion.losses import matching_gradient, surrogate_loss
from edgedistill.diffusion.times import TimeSampling
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Setup
from edgedistill.objectives.consistency.scm import SCM
from edgedistill.objectives.matching.parts import FakeScore, health
from edgedistill.objectives.matching.rollout import Levels, Rollout

__all__ = ["RCM", "Consistent"]


class Consistent(Denoiser):
    """A denoiser's network under its consistency function: x0 at t = 0 is x_t itself.

    Args:
        denoiser: The denoiser; its network is shared.
        boundary: The boundary that makes its x0 a consistency function.
    """

    def __init__(self, denoiser: Denoiser, boundary: Boundary) -> None:
        super().__init__(denoiser.net, denoiser.schedule, denoiser.prediction)
        self.boundary = boundary

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Condition, net_time: Tensor | None = None
    ) -> Tensor:
        x0 = super().forward(x_t, t, cond, net_time)
        return consistency_function(self.boundary, x_t, x0, t.expand(len(x_t)))


class RCM(Objective):
    """Trains the sCM loss plus `matching_weight` times DMD's, each on inputs of its own."""

    class Config(SCM.Config):
        """Hyperparameters (the authors' for Wan 2.1)."""

        matching_weight: float = Field(0.01, ge=0)
        """Weight of distribution matching; 0 is `scm`."""
        matching_times: TimeSampling = TimeSampling(low=0.02, high=0.98)
        """Distribution of the noise at which the two scores are compared."""
        turns: int = Field(5, ge=1, le=1_000)
        """Updates of fake_score to one of the student."""
        fake_score: Optim = Optim()

    name = "rcm"

    def __init__(self, config: RCM.Config, setup: Setup) -> None:
        self.config, self.setup = config, setup
        self.scm = SCM(config, setup)
        self.teacher, self.student = setup.teacher, setup.student
        generator = Consistent(setup.student, self.scm.boundary())
        self.rollout = Rollout(generator, setup.times, setup.sampler)
        self.levels = Levels(config.matching_times, setup.student.schedule)
        self.fake_score = FakeScore(setup, head=False)

    def players(self) -> list[Player]:
        fake = Player("fake_score", self.fake_score.net, self.config.fake_score)
        return [fake, Player("student", self.student, self.setup.optim, every=self.config.turns)]

    def followers(self) -> dict[str, nn.Module]:
        return self.scm.followers()

    def updated(self, player: str) -> None:
        self.scm.updated(player)

    def boundary(self) -> Boundary:
        return self.scm.boundary()

    def loss(self, player: str, batch: Batch) -> Losses:
        if player == "fake_score":
            with torch.no_grad():
                x0 = self.rollout(batch).x0
            return self.fake_score.learning(x0, batch)
        losses = self.scm.loss("student", batch)
        if self.config.matching_weight == 0:
            return losses
        sample = self.rollout(batch)
        view = self.fake_score.view(self.teacher, sample.x0, self.levels(batch), batch)
        gradient = torch.nan_to_num(matching_gradient(view.x0, view.real, view.fake))
        matching = surrogate_loss(sample.x0, gradient)
        logs = {
            f"scores/{name}": value for name, value in health(view, gradient, batch.x0).items()
        }
        return losses.plus("dmd", self.config.matching_weight, matching, **logs)
