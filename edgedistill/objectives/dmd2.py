"""Improved distribution matching distillation.

Yin et al. 2024, "Improved Distribution Matching Distillation for Fast Image Synthesis"
(arXiv 2405.14867): a fake score trained several turns to the student's one, a GAN head on its
features, and multi-step students trained on their own backward simulation.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.denoiser import Condition
from edgedistill.losses import (
    gan_discriminator,
    gan_generator,
    matching_gradient,
    toward,
)
from edgedistill.networks.heads import Tap, head_for
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Settings, Setup
from edgedistill.sampling import SOLVERS, ddim_step
from edgedistill.times import stratified

__all__ = ["DMD2"]


class DMD2(Objective):
    """Moves the student's samples from their own distribution to the teacher's."""

    class Config(Settings):
        """Hyperparameters (defaults: the paper's SDXL 4-step run)."""

        turns: int = Field(5, ge=1)
        """Updates of fake_score to one of the student (two time-scale rule, Sec. 4.2)."""
        warmup: int = Field(0, ge=0)
        """Steps in which only fake_score trains."""
        regression: int = Field(0, ge=0)
        """Steps before that in which the student learns the teacher's ODE map from each of its
        times, as before the paper's one-step SDXL run (Sec. 5.2); it starts with every mode."""
        regression_steps: int = Field(8, ge=1)
        """Solver steps of that map."""
        regression_weight: float = Field(0, ge=0)
        """Weight of the same loss afterwards, beside the matching, as in DMD (Yin et al. 2023,
        arXiv 2311.18828, Eq. 9): it holds the share of every mode."""
        rollout: Literal["simulate", "data"] = "simulate"
        """Inputs of later steps: the student's own samples (Sec. 4.5), or noised data."""
        min_time: float = Field(0.02, ge=0, le=1)
        max_time: float = Field(0.98, ge=0, le=1)
        """Range of the noise at which the two scores are compared."""
        gan_weight: float = Field(5e-3, ge=0)
        """Weight of the GAN term in the student's loss (Sec. 4.3); 0 builds no head."""
        classify_weight: float = Field(1e-2, ge=0)
        """Weight of the discriminator term in fake_score's loss."""
        fake_score: Optim = Optim()

    name = "dmd2"

    def __init__(self, config: DMD2.Config, setup: Setup) -> None:
        if config.min_time >= config.max_time:
            raise ValueError(f"min_time {config.min_time} is not below {config.max_time}")
        self.config = config
        self.teacher, self.student = setup.teacher, setup.student
        self.fake_score = setup.spawn()
        self.times, self.sampler, self.optim = setup.times, setup.sampler, setup.optim
        self.tap: Tap | None = None
        self.head: nn.Module = nn.Identity()
        if config.gan_weight > 0:
            self.tap = Tap(self.fake_score.net, setup.tap)
            x0, cond = setup.example
            with torch.no_grad():
                self.fake_score(x0, torch.full((len(x0),), 0.5, device=x0.device), cond)
            self.head = head_for(self.tap.take()).to(x0.device)

    def players(self) -> list[Player]:
        config = self.config
        follower = nn.ModuleList([self.fake_score, self.head])
        return [
            Player("fake_score", follower, config.fake_score, start=config.regression),
            Player(
                "student",
                self.student,
                self.optim,
                every=config.turns,
                start=config.regression + config.warmup,
                prelude=config.regression,
            ),
        ]

    def loss(self, player: str, batch: Batch) -> Losses:
        return {"student": self._student, "fake_score": self._fake_score}[player](batch)

    def _generate(self, batch: Batch) -> Tensor:
        """x0 of the student at one of its steps, with gradient through that step only.

        One step index a batch, the same on all ranks, so that every rank does equal work.
        """
        index = int(torch.randint(len(self.times) - 1, (), generator=batch.shared))
        t = self.times[index]
        if index == 0 or self.config.rollout == "simulate":
            with torch.no_grad():
                x_t = self._simulate(index, batch)
        else:
            x_t = self.student.noised(batch.x0, t, batch.noise())
        x0: Tensor = self.student(x_t, t.to(x_t.device), batch.cond)
        return x0

    def _simulate(self, index: int, batch: Batch) -> Tensor:
        """The student's own sample at times[index] (backward simulation, Sec. 4.5)."""
        x_t = batch.noise()
        for t, s in zip(self.times[:index], self.times[1 : index + 1], strict=True):
            x0 = self.student(x_t, t.to(x_t.device), batch.cond)
            if self.sampler == "renoise":
                x_t = self.student.noised(x0, s.to(x_t.device), batch.noise())
            else:
                x_t = ddim_step(self.student.schedule, x_t, x0, t.to(x_t.device), s.to(x_t.device))
        return x_t

    def _noised(self, x0: Tensor, batch: Batch, low: float, high: float) -> tuple[Tensor, ...]:
        """(x_t, t, eps) at stratified times."""
        t = self.student.schedule.snap(stratified(len(x0), batch.generator, low, high))
        t = t.to(x0.device)
        eps = batch.noise()
        return self.student.noised(x0, t, eps), t, eps

    def _logits(self, x0: Tensor, batch: Batch, cond: Condition) -> Tensor:
        """Discriminator logits on x0 noised at any level (diffusion GAN, Sec. 4.3)."""
        assert self.tap is not None
        x_t, t, _ = self._noised(x0, batch, 0.0, 1.0)
        self.fake_score.output(x_t, t, cond)
        logits: Tensor = self.head(self.tap.take())
        return logits

    def _regression(self, batch: Batch) -> Tensor:
        """Distance to where the teacher's ODE leads from one of the student's times."""
        index = int(torch.randint(len(self.times) - 1, (), generator=batch.shared))
        t = self.times[index]
        x_t = self.student.noised(batch.x0, t.to(batch.x0.device), batch.noise())
        fractions = torch.linspace(1, 0, self.config.regression_steps + 1, dtype=torch.float64)
        times = self.student.schedule.snap(t * fractions[:-1])
        with torch.no_grad():
            path = torch.cat([times, torch.zeros_like(times[:1])]).to(x_t.device)
            target = SOLVERS["dpm++2m"](self.teacher, x_t, path, batch.cond)
        return F.mse_loss(self.student(x_t, t.to(x_t.device), batch.cond), target)

    def _student(self, batch: Batch) -> Losses:
        config = self.config
        if batch.step < config.regression:
            loss = self._regression(batch)
            return Losses(loss, {"regression": loss.detach()})
        x0 = self._generate(batch)
        with torch.no_grad():
            x_t, t, _ = self._noised(x0, batch, config.min_time, config.max_time)
            real = self.teacher(x_t, t, batch.cond)
            fake = self.fake_score(x_t, t, batch.cond)
            gradient = torch.nan_to_num(matching_gradient(x0, real, fake))
        loss = toward(x0, gradient)
        logs = {"matching": gradient.square().mean().sqrt(), "x0_std": x0.detach().std()}
        if config.regression_weight > 0:
            regression = self._regression(batch)
            loss = loss + config.regression_weight * regression
            logs["regression"] = regression.detach()
        if config.gan_weight > 0:
            gan = gan_generator(self._logits(x0, batch, batch.cond))
            loss = loss + config.gan_weight * gan
            logs["gan"] = gan.detach()
        return Losses(loss, logs)

    def _fake_score(self, batch: Batch) -> Losses:
        config = self.config
        with torch.no_grad():
            x0 = self._generate(batch)
        x_t, t, eps = self._noised(x0, batch, 0.0, 1.0)
        output = self.fake_score.output(x_t, t, batch.cond)
        denoising = F.mse_loss(output, self.fake_score.target(x0, t, eps))
        if config.gan_weight == 0:
            return Losses(denoising, {"denoising": denoising.detach()})
        # The features of the denoising call are the fake logits: one forward fewer.
        assert self.tap is not None
        fake_logits = self.head(self.tap.take())
        real_logits = self._logits(batch.x0, batch, batch.cond)
        gan = gan_discriminator(real_logits, fake_logits)
        accuracy = 0.5 * ((real_logits > 0).float().mean() + (fake_logits < 0).float().mean())
        logs = {"denoising": denoising.detach(), "gan": gan.detach(), "accuracy": accuracy}
        return Losses(denoising + config.classify_weight * gan, logs)
