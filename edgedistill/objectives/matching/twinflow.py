"""TwinFlow: one network is the student and both scores.

Cheng et al. 2025, "TwinFlow: Realizing One-step Generation on Large Models with Self-adversarial
Flows" (arXiv 2512.05150). With the target time s = 0 the network is the student; with s = t, the
denoiser of data; with s = -t, that of the student's samples, its twin. x0 descends the difference
of the two, clamped to [-1, 1].

The paper trains the first two on data alone, with recursive consistency; here a teacher is at
hand: it says where its ODE leads, and what it sees in x_t.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from edgedistill.diffusion.denoiser import Condition, Denoiser
from edgedistill.diffusion.losses import surrogate_loss
from edgedistill.diffusion.times import stratified
from edgedistill.networks.two_times import TwoTimes, steps_of
from edgedistill.objectives.base import Batch, Losses, Setup
from edgedistill.objectives.matching.parts import ScoreConfig, Scored, View, health
from edgedistill.objectives.matching.rollout import Noised, Sample, renoised

__all__ = ["TwinFlow"]


class TwinFlow(Scored):
    """Distribution matching with neither a teacher's nor a fake score's call in it."""

    class Config(ScoreConfig):
        """Hyperparameters."""

        regression_weight: float = Field(1.0, ge=0)
        """Weight of where the teacher's ODE leads; the paper's is recursive consistency."""
        real_weight: float = Field(1.0, gt=0)
        """Weight of the denoiser of data."""
        fake_weight: float = Field(1.0, gt=0)
        """Weight of the denoiser of samples."""
        matching_weight: float = Field(0.5, gt=0)

    name = "twinflow"
    config: Config

    def __init__(self, config: TwinFlow.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.example = setup.example
        # Steps lead to time 0 whatever the sampler makes of the x0 that is found there.
        steps = steps_of(self.student, setup.times, to_end=True)
        net = TwoTimes(self.student.net, setup.time_layer, steps)
        self.student.net = net.to(setup.example[0].device)

    def finished(self, student: Denoiser) -> Denoiser:
        net = student.net
        assert isinstance(net, TwoTimes)
        return student.with_net(net.folded(*self.example))

    def predicted(self, x_t: Tensor, t: Tensor, sign: int, cond: Condition) -> Tensor:
        """Predict x0 from x_t as the score of data (sign 1) or of the student's samples (-1)."""
        x0: Tensor = self.student(x_t, t, {**cond, "s": sign * t})
        return x0

    def student_loss(self, batch: Batch) -> Losses:
        config, count = self.config, len(batch.x0)
        sample = self.rollout(batch)

        # As the student it is moved by what it says as both scores.
        view = self.view(sample, batch)
        gradient = torch.nan_to_num(view.fake - view.real).clamp(-1, 1)
        matching = config.matching_weight * surrogate_loss(sample.x0, gradient)
        losses = Losses(matching, health(view, gradient, batch.x0))

        # As the scores it learns what the teacher sees in data, and its own samples.
        data, own = (
            renoised(self.student, x0, stratified(count, batch.generator), batch)
            for x0 in (batch.x0, sample.x0.detach())
        )
        with torch.no_grad():
            seen = self.teacher(data.x_t, data.t, batch.cond)
        losses = self.regressed(losses, batch)
        real = self.denoising(data, seen, 1, batch.cond)
        fake = self.denoising(own, own.x0, -1, batch.cond)
        return losses.plus("real", config.real_weight, real).plus("fake", config.fake_weight, fake)

    @torch.no_grad()
    def view(self, sample: Sample, batch: Batch) -> View:
        """Noise the sample, and predict x0 as either score: with s = t, and with s = -t."""
        noised = renoised(self.student, sample.x0, self.levels(batch), batch)
        x_t, t = noised.x_t, noised.t
        real, fake = (self.predicted(x_t, t, sign, batch.cond) for sign in (1, -1))
        return View(sample.x0.detach(), x_t, t, real, fake)

    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.view(self.rollout(batch), batch).roles()

    def denoising(self, noised: Noised, x0: Tensor, sign: int, cond: Condition) -> Tensor:
        """Return the denoising loss of the network as the score of `sign`, a scalar."""
        student, x_t, t = self.student, noised.x_t, noised.t
        alpha, sigma = student.schedule.at(t, like=x_t)
        eps = (x_t - alpha * x0) / sigma.clamp(min=1e-6)
        output = student.output(x_t, t, {**cond, "s": sign * t})
        return F.mse_loss(output, student.target(x0, t, eps))
