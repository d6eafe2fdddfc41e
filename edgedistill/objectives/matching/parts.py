"""What methods that move a student by scores share: its rollout, its noise, its fake score.

Such a method takes a sample x0 of the student at one of its own steps, noises it to x_t, and moves
it by what the teacher makes of x_t against what a fake score, which learns the student's samples
as they are now, makes of it. Both are x0-predictions; the scores of the two distributions differ
by alpha / sigma^2 times their difference.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.diffusion.denoiser import Condition
from edgedistill.diffusion.distances import drift
from edgedistill.diffusion.losses import gan_discriminator, gan_generator, toward
from edgedistill.diffusion.solvers import SOLVERS, one_step_x0
from edgedistill.diffusion.times import stratified
from edgedistill.networks.heads import Tap, head_for
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Settings, Setup
from edgedistill.objectives.matching.rollout import Noised, Rollout, Sample

__all__ = ["FakeScored", "Matching", "Scored", "View", "health", "moved"]


@dataclass(frozen=True)
class View:
    """A noised sample of the student, and the x0 that both scores see in it; no gradients."""

    x0: Tensor
    x_t: Tensor
    t: Tensor
    real: Tensor
    fake: Tensor

    def roles(self) -> dict[str, Tensor]:
        """By who made it: the student, noise on that, the teacher, the fake score; (N, ...)."""
        seen = {"teacher": self.real, "fake_score": self.fake}
        return {"student": self.x0, "x_t": self.x_t, **seen}


@torch.no_grad()
def moved(x0: Tensor, gradient: Tensor, data: Tensor) -> dict[str, Tensor]:
    """`drift`, and `matching`, the root mean square of the gradient that moves x0; scalars."""
    return {"matching": _size(gradient), "x0_std": x0.std(), **drift(x0, data)}


@torch.no_grad()
def health(view: View, gradient: Tensor, data: Tensor) -> dict[str, Tensor]:
    """`moved`, and figures that tell whether the fake score is well; scalars.

    `lag` and `teacher_lag` are the root mean square distances of the fake score's and the
    teacher's x0 from the sample. `fake_error` says from them how much of the two scores' square
    difference is the fake score's own error: 0 where it knows the student's samples exactly, near
    1 where it does not keep up, or where there is nothing left to learn.
    """
    lag, teacher_lag = _size(view.fake - view.x0), _size(view.real - view.x0)
    apart = _size(view.fake - view.real).clamp(min=1e-6)
    return {
        **moved(view.x0, gradient, data),
        "lag": lag,
        "teacher_lag": teacher_lag,
        "fake_error": 0.5 + 0.5 * (lag.square() - teacher_lag.square()) / apart.square(),
    }


def _size(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


class Scored(Objective):
    """A student that moves by `move` from where its rollout brought it.

    The teacher's score is known; what stands against it is the subclass's.
    """

    class Config(Settings):
        """Hyperparameters."""

        regression: int = Field(0, ge=0)
        """First steps, in which the student learns the teacher's ODE map from each of its times,
        as before DMD2's one-step SDXL run (Sec. 5.2); it starts with every mode."""
        regression_steps: int = Field(8, ge=1, le=10_000)
        """Solver steps of that map."""
        regression_weight: float = Field(0, ge=0)
        """Weight of the same loss afterwards, beside the matching, as in DMD (Yin et al. 2023,
        arXiv 2311.18828, Eq. 9): it holds the share of every mode."""
        rollout: Literal["simulate", "data"] = "simulate"
        """Inputs of later steps: the student's own samples (DMD2, Sec. 4.5), or noised data."""
        min_time: float = Field(0.02, ge=0, le=1)
        max_time: float = Field(0.98, ge=0, le=1)
        """Range of the noise at which the two scores are compared."""

    config: Scored.Config

    def __init__(self, config: Scored.Config, setup: Setup) -> None:
        if config.min_time >= config.max_time:
            raise ValueError(f"min_time {config.min_time} is not below {config.max_time}")
        self.config = config
        self.teacher, self.student = setup.teacher, setup.student
        self.times, self.optim = setup.times, setup.optim
        self.rollout = Rollout(setup.student, setup.times, setup.sampler, config.rollout)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def loss(self, player: str, batch: Batch) -> Losses:
        if batch.step < self.config.regression:
            loss = self.regression(batch)
            return Losses(loss, {"regression": loss.detach()})
        sample = self.rollout(batch)
        losses = self.move(sample, batch)
        loss, logs = losses.total, dict(losses.logs)
        for name, (weight, term) in self.beside(sample, batch).items():
            loss = loss + weight * term
            logs[name] = term.detach()
        return Losses(loss, logs)

    @abstractmethod
    def move(self, sample: Sample, batch: Batch) -> Losses:
        """What moves the sample to the teacher's distribution."""

    def beside(self, sample: Sample, batch: Batch) -> dict[str, tuple[float, Tensor]]:
        """Further terms: name -> (weight, loss)."""
        weight = self.config.regression_weight
        return {"regression": (weight, self.regression(batch))} if weight > 0 else {}

    def levels(self, batch: Batch) -> Tensor:
        """Times at which scores are compared, (N,)."""
        config, count = self.config, len(batch.x0)
        return stratified(count, batch.generator, config.min_time, config.max_time)

    def noised(self, x0: Tensor, t: Tensor, batch: Batch) -> Noised:
        """x0 (N, ...) noised to times t (N,)."""
        t = self.student.schedule.snap(t).to(x0.device)
        eps = batch.noise()
        return Noised(self.student.noised(x0, t, eps), t, x0, eps)

    def regression(self, batch: Batch) -> Tensor:
        """Distance to where the teacher's ODE leads from one of the student's times.

        To its end; to the next of the student's times, if the student's steps are deterministic.
        """
        schedule, device = self.student.schedule, batch.x0.device
        t, s = self.span(batch)
        x_t = self.student.noised(batch.x0, t.to(device), batch.noise())
        fractions = torch.linspace(1, 0, self.config.regression_steps + 1, dtype=torch.float64)
        between = schedule.snap(s + (t - s) * fractions[:-1])
        # On the CPU, as solvers read these times' values.
        path = torch.unique_consecutive(torch.cat([between, s[None]]))
        with torch.no_grad():
            x_s = SOLVERS["dpm++2m"](self.teacher, x_t, path, batch.cond)
            target = one_step_x0(schedule, x_t, x_s, path[0], path[-1]) if s > 0 else x_s
        return F.mse_loss(self.student(x_t, t.to(device), batch.cond), target)

    def span(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Times between which the regression goes, scalars, the same on all ranks."""
        index = self.rollout.index(batch)
        t = self.times[index]
        return t, self.times[index + 1] if self.rollout.sampler == "ddim" else torch.zeros_like(t)


class FakeScored(Scored):
    """Scored against a fake score that trains on the student's samples, in turns with it."""

    class Config(Scored.Config):
        """Hyperparameters."""

        turns: int = Field(1, ge=1, le=1_000)
        """Updates of fake_score to one of the student (DMD2's two time-scale rule, Sec. 4.2)."""
        warmup: int = Field(0, ge=0)
        """Steps after the regression in which only fake_score trains."""
        gan_weight: float = Field(0, ge=0)
        """Weight of a GAN term in the student's loss, its discriminator a head on fake_score's
        features (DMD2, Sec. 4.3); 0 builds no head."""
        classify_weight: float = Field(1e-2, ge=0)
        """Weight of the discriminator term in fake_score's loss."""
        fake_score: Optim = Optim()

    config: FakeScored.Config

    def __init__(self, config: FakeScored.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.fake_score = setup.spawn()
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
        return self._fake_score(batch) if player == "fake_score" else super().loss(player, batch)

    # --- The student's turn ---------------------------------------------------------------------

    @torch.no_grad()
    def view(self, sample: Sample, batch: Batch) -> View:
        """The sample noised, as teacher and fake score see it."""
        noised = self.place(sample, self.levels(batch), batch)
        x_t, t = noised.x_t, noised.t
        real, fake = self.real(x_t, t, batch), self.fake(x_t, t, batch.cond)
        return View(sample.x0.detach(), x_t, t, real, fake)

    @torch.no_grad()
    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        return self.view(self.rollout(batch), batch).roles()

    def real(self, x_t: Tensor, t: Tensor, batch: Batch) -> Tensor:
        """The x0 that the distribution aimed at has at x_t, (N, ...)."""
        x0: Tensor = self.teacher(x_t, t, batch.cond)
        return x0

    def fake(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The x0 that the fake score sees at x_t, (N, ...)."""
        return self.fake_score.x0_of(self.fake_output(x_t, t, cond), x_t, t)

    def fake_output(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """What its network says, (N, ...)."""
        return self.fake_score.output(x_t, t, cond)

    def beside(self, sample: Sample, batch: Batch) -> dict[str, tuple[float, Tensor]]:
        terms = super().beside(sample, batch)
        if self.config.gan_weight > 0:
            levels = stratified(len(sample.x0), batch.generator)
            logits = self.logits(self.place(sample, levels, batch), batch.cond)
            terms["gan"] = (self.config.gan_weight, gan_generator(logits))
        return terms

    def logits(self, noised: Noised, cond: Condition) -> Tensor:
        """Discriminator logits on what is noised at any level (diffusion GAN, DMD2, Sec. 4.3)."""
        assert self.tap is not None
        self.fake_score.output(noised.x_t, noised.t, cond)
        logits: Tensor = self.head(self.tap.take())
        return logits

    # --- The fake score's turn ------------------------------------------------------------------

    def place(self, sample: Sample, t: Tensor, batch: Batch) -> Noised:
        """The sample at noise levels t (N,): what the fake score learns, and is asked about."""
        return self.noised(sample.x0, t, batch)

    def _fake_score(self, batch: Batch) -> Losses:
        config = self.config
        with torch.no_grad():
            sample = self.rollout(batch)
            noised = self.place(sample, stratified(len(batch.x0), batch.generator), batch)
        denoising = self.denoising(noised, batch.cond)
        if config.gan_weight == 0:
            return Losses(denoising, {"denoising": denoising.detach()})
        fake_logits = self.seen(noised, batch.cond)
        real_logits = self.logits(self.noised(batch.x0, noised.t, batch), batch.cond)
        gan = gan_discriminator(real_logits, fake_logits)
        accuracy = 0.5 * ((real_logits > 0).float().mean() + (fake_logits < 0).float().mean())
        logs = {"denoising": denoising.detach(), "gan": gan.detach(), "accuracy": accuracy}
        return Losses(denoising + config.classify_weight * gan, logs)

    def seen(self, noised: Noised, cond: Condition) -> Tensor:
        """The logits of what `denoising` has just seen: its features, one call fewer."""
        assert self.tap is not None
        logits: Tensor = self.head(self.tap.take())
        return logits

    def denoising(self, noised: Noised, cond: Condition) -> Tensor:
        """The fake score's loss at a noised sample, as its network was trained: a scalar."""
        output = self.fake_output(noised.x_t, noised.t, cond)
        target = self.fake_score.target(noised.x0, noised.t, noised.eps)
        if noised.weight is None:
            return F.mse_loss(output, target)
        return (noised.weight * (output - target).square()).mean()


class Matching(FakeScored):
    """Moves each sample along a direction that both scores give."""

    def move(self, sample: Sample, batch: Batch) -> Losses:
        view = self.view(sample, batch)
        with torch.no_grad():
            gradient = torch.nan_to_num(self.gradient(view, batch))
        return Losses(toward(sample.x0, gradient), health(view, gradient, batch.x0))

    @abstractmethod
    def gradient(self, view: View, batch: Batch) -> Tensor:
        """What the student's x0 descends, (N, ...)."""
