"""A flow map from noise to any time, learned without data: prediction and correction.

Tong et al. 2025, "Flow Map Distillation Without Data" (FreeFlow, arXiv 2511.19428). From noise z
at tau = 1 the student's mean velocity u(z, d) leads to f(z, d) = z - d u(z, d) at tau = 1 - d, in
the coordinates of `flow_map`, whose velocities point towards noise. Both losses need noise and
conditions alone:

- prediction: where the student has come to, it moves as the teacher does, so that
  u = v(f(z, d), 1 - d) - d du/dd, the right side without a gradient;
- correction: errors of that path add up, so the ends f(z, 1) also descend v - v_fake where they
  are noised anew: the teacher's velocity minus that of a fake score, which learns the student's
  ends (distribution matching).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from edgedistill.common.settings import check_used
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.losses import surrogate_loss
from edgedistill.diffusion.tangents import DERIVATIVES
from edgedistill.diffusion.times import TimeSampling, sample_times
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Settings, Setup
from edgedistill.objectives.matching.parts import FakeScore, health
from edgedistill.objectives.matching.rollout import Levels, Rollout
from edgedistill.objectives.trajectory.flow_map import (
    STRAIGHT,
    UNUSED,
    FlowMap,
    Path,
    over,
    tau_of,
)

__all__ = ["FreeFlow"]


class FreeFlow(Objective):
    """Trains u(z, d) to move with the teacher, plus `correction_weight` times the correction."""

    class Config(Settings):
        """Hyperparameters."""

        times: TimeSampling = TimeSampling()
        """Distribution of 1 - d, the time that a step from noise leads to."""
        derivative: Literal["jvp", "difference"] = "jvp"
        """Derivative in d: by forward differentiation, or by a central difference of two calls."""
        difference: float = Field(1e-2, gt=0, lt=1)
        """Step of the difference, as a share of the distance to the ends of the flow."""
        correction_weight: float = Field(1.0, ge=0)
        """Weight of the correction; 0 builds no fake score."""
        correction_times: TimeSampling = TimeSampling(low=0.02, high=0.98)
        """Distribution of the noise at which the two velocities are compared."""
        turns: int = Field(1, ge=1, le=1_000)
        """Updates of fake_score to one of the student."""
        fake_score: Optim = Optim()

        @model_validator(mode="after")
        def _difference_is_used(self) -> FreeFlow.Config:
            check_used(self, "derivative", UNUSED, "difference")
            return self

    name = "free-flow"
    single_step = True

    def __init__(self, config: FreeFlow.Config, setup: Setup) -> None:
        self.config, self.setup = config, setup
        self.fake_score = FakeScore(setup, head=False) if config.correction_weight > 0 else None
        # The flow map tells the student's network the time that its step leads to.
        self.map = FlowMap(FlowMap.Config(), setup)
        self.teacher, self.student = setup.teacher, setup.student
        self.rollout = Rollout(setup.student, setup.times, setup.sampler)
        self.levels = Levels(config.correction_times, setup.student.schedule)

    def players(self) -> list[Player]:
        turns = self.config.turns if self.fake_score else 1
        student = Player("student", self.student, self.setup.optim, every=turns)
        if self.fake_score is None:
            return [student]
        return [Player("fake_score", self.fake_score.net, self.config.fake_score), student]

    def finished(self, student: Denoiser) -> Denoiser:
        return self.map.finished(student)

    def loss(self, player: str, batch: Batch) -> Losses:
        if player == "fake_score":
            assert self.fake_score is not None
            with torch.no_grad():
                x0 = self.rollout(batch).x0
            return self.fake_score.learning(x0, batch)
        prediction = self.prediction(batch)
        losses = Losses(prediction, {"prediction": prediction.detach()})
        if self.fake_score is None:
            return losses
        correction, logs = self.correction(self.fake_score, batch)
        return losses.plus("correction", self.config.correction_weight, correction, **logs)

    # --- Prediction -----------------------------------------------------------------------------

    def prediction(self, batch: Batch) -> Tensor:
        """Return the mean squared distance of u from the teacher's v - d du/dd, a scalar."""
        z, tau = self.map.noise(batch)
        drawn = sample_times(self.config.times, STRAIGHT, len(z), batch.generator)
        end = drawn.to(tau).clamp(max=self.map.limit)
        target = self.target(z, tau, end, batch)
        return F.mse_loss(Path(self.student, batch.cond)(z, tau, end), target)

    @torch.no_grad()
    def target(self, z: Tensor, tau: Tensor, end: Tensor, batch: Batch) -> Tensor:
        """Return v(f(z, d), 1 - d) - d du/dd, (N, ...), where d = tau - end."""
        config, teacher = self.config, Path(self.teacher, batch.cond)
        student, d = Path(self.student, batch.cond), over(tau - end, z)

        def u(z: Tensor, end: Tensor) -> Tensor:
            return student(z, tau, end)

        # The differences stay inside the flow's ends.
        step = config.difference * torch.minimum(end, 1 - end).clamp(min=1e-3)
        still, back = torch.zeros_like(z), -torch.ones_like(end)
        slope = DERIVATIVES[config.derivative](u, z, end, still, back, step)
        return teacher(z - d * u(z, end), end) - d * slope

    # --- Correction -----------------------------------------------------------------------------

    def correction(self, fake_score: FakeScore, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a loss by which f(z, 1) descends v - v_fake, a scalar, and figures on both."""
        x0 = self.rollout(batch).x0
        view = fake_score.view(self.teacher, x0, self.levels(batch), batch)
        # v = (y - x0) / tau, at one y.
        gradient = (view.fake - view.real) / over(tau_of(self.student.schedule, view.t), x0)
        gradient = torch.nan_to_num(gradient)
        figures = health(view, gradient, batch.x0)
        logs = {f"scores/{name}": value for name, value in figures.items()}
        return surrogate_loss(x0, gradient), logs
