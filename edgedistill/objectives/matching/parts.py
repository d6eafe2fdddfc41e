"""The parts of methods that move a student by scores, and the turns in which such methods train.

Such a method takes a sample x0 of the student at one of its own steps (`Rollout`), noises it to
x_t (`Noising`, at `Levels` of noise), and moves it by what the teacher makes of x_t against what a
fake score (`FakeScore`), which learns the student's samples as they are now, makes of it. Both are
x0-predictions; the scores of the two distributions differ by alpha / sigma^2 times their
difference. A GAN head on the fake score's features and a regression on the teacher's ODE
(`TeacherRegression`) may help. `dmd2` spells one such method out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.common.settings import renamed
from edgedistill.diffusion.denoiser import Condition, Denoiser, Guided
from edgedistill.diffusion.distances import drift
from edgedistill.diffusion.losses import (
    gan_accuracy,
    gan_discriminator,
    gan_generator,
    surrogate_loss,
)
from edgedistill.diffusion.times import TimeSampling, stratified
from edgedistill.networks.heads import Tap, head_for
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Settings, Setup
from edgedistill.objectives.matching.rollout import (
    NOISINGS,
    Levels,
    Noised,
    Noising,
    Regression,
    Rollout,
    Sample,
    TeacherRegression,
    renoised,
)

__all__ = [
    "FakeScore",
    "Matching",
    "ScoreConfig",
    "Scored",
    "View",
    "health",
    "moved",
]

# --- What is logged -----------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """A noised sample of the student, and both scores' x0 predictions from it, (N, ...) each."""

    x0: Tensor
    x_t: Tensor
    t: Tensor
    real: Tensor
    fake: Tensor

    def roles(self) -> dict[str, Tensor]:
        """Return x0, x_t and both scores' x0, (N, ...) each, by the name of the role."""
        seen = {"teacher": self.real, "fake_score": self.fake}
        return {"student": self.x0, "x_t": self.x_t, **seen}


@torch.no_grad()
def moved(x0: Tensor, gradient: Tensor, data: Tensor) -> dict[str, Tensor]:
    """Return `drift`, and `matching`, the root mean square of the gradient in x0; scalars."""
    return {"matching": _size(gradient), "x0_std": x0.std(), **drift(x0, data)}


@torch.no_grad()
def health(view: View, gradient: Tensor, data: Tensor) -> dict[str, Tensor]:
    """Return `moved`, and figures on how well the fake score follows the student; scalars.

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


# --- Parts --------------------------------------------------------------------------------------


class FakeScore:
    """A denoiser that learns the student's samples as they are now, with a GAN head if asked.

    The head sees the features of the denoiser's own network (DMD2, Sec. 4.3), so that one call
    may serve both.

    Args:
        setup: The run's setup, which spawns the network and names the features.
        head: Whether there is a head.
    """

    def __init__(self, setup: Setup, head: bool) -> None:
        self.student = setup.student
        self.denoiser = setup.spawn()
        self.tap: Tap | None = None
        self.head: nn.Module = nn.Identity()
        if head:
            self.tap = Tap(self.denoiser.net, setup.tap)
            x0, cond = setup.example
            with torch.no_grad():
                self.denoiser(x0, torch.full((len(x0),), 0.5, device=x0.device), cond)
            self.head = head_for(self.tap.take()).to(x0.device)

    @property
    def net(self) -> nn.Module:
        """All networks that the fake score's player trains."""
        return nn.ModuleList([self.denoiser, self.head])

    # --- The denoiser ---------------------------------------------------------------------------

    def output(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Return the output of the network, (N, ...)."""
        return self.denoiser.output(x_t, t, cond)

    def x0(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Predict x0 (N, ...) from x_t at times t (N,)."""
        return self.denoiser.x0_of(self.output(x_t, t, cond), x_t, t)

    def denoising(self, noised: Noised, cond: Condition) -> Tensor:
        """Return the denoising loss on a noised sample, as the network was trained: a scalar."""
        output = self.output(noised.x_t, noised.t, cond)
        target = self.denoiser.target(noised.x0, noised.t, noised.eps)
        if noised.weight is None:
            return F.mse_loss(output, target)
        return (noised.weight * (output - target).square()).mean()

    def learning(self, x0: Tensor, batch: Batch) -> Losses:
        """Return the denoising loss on samples x0 (N, ...), at all levels of noise."""
        t = stratified(len(x0), batch.generator)
        loss = self.denoising(renoised(self.student, x0, t, batch), batch.cond)
        return Losses(loss, {"denoising": loss.detach()})

    @torch.no_grad()
    def view(self, teacher: Denoiser | Guided, x0: Tensor, t: Tensor, batch: Batch) -> View:
        """Return what the teacher and this score make of samples x0 noised anew to t (N,)."""
        noised = renoised(self.student, x0, t, batch)
        real = teacher(noised.x_t, noised.t, batch.cond)
        fake = self.x0(noised.x_t, noised.t, batch.cond)
        return View(x0.detach(), noised.x_t, noised.t, real, fake)

    # --- The head -------------------------------------------------------------------------------

    def logits(self, noised: Noised, cond: Condition) -> Tensor:
        """Return the head's logits (N, 1) on samples at any noise level (diffusion GAN)."""
        self.denoiser.output(noised.x_t, noised.t, cond)
        return self._judged()

    def x0_and_logits(self, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """Return `x0` and the logits from one call of the network."""
        return self.x0(x_t, t, cond), self._judged()

    def denoising_and_logits(self, noised: Noised, cond: Condition) -> tuple[Tensor, Tensor]:
        """Return `denoising` and `logits` from one call of the network."""
        return self.denoising(noised, cond), self._judged()

    def _judged(self) -> Tensor:
        """Return the logits on the features of the network's last call."""
        assert self.tap is not None
        logits: Tensor = self.head(self.tap.take())
        return logits

    def generator_loss(self, noised: Noised, cond: Condition) -> Tensor:
        """Return the student's GAN loss on its noised sample, a scalar."""
        return gan_generator(self.logits(noised, cond))

    # --- Its loss -------------------------------------------------------------------------------

    def loss(self, noised: Noised, batch: Batch, classify_weight: float) -> Losses:
        """Return the denoising loss on the student's noised sample, plus the head's loss.

        Args:
            noised: The sample.
            batch: Batch of data, to be noised to the same times.
            classify_weight: Weight of the head's loss.
        """
        if self.tap is None:
            denoising = self.denoising(noised, batch.cond)
            return Losses(denoising, {"denoising": denoising.detach()})
        denoising, fake = self.denoising_and_logits(noised, batch.cond)
        data = renoised(self.student, batch.x0, noised.t, batch)
        real = self.logits(data, batch.cond)
        losses = Losses(denoising, {"denoising": denoising.detach()})
        gan = gan_discriminator(real, fake)
        return losses.plus("gan", classify_weight, gan, accuracy=gan_accuracy(real, fake))


# --- Methods ------------------------------------------------------------------------------------


class ScoreConfig(Settings):
    """Hyperparameters of a student that moves by scores."""

    old_keys = renamed(regression="pretraining_steps", min_time="times.low", max_time="times.high")

    pretraining_steps: int = Field(0, ge=0)
    """First steps, in which the student learns the teacher's ODE map from each of its times,
    as before DMD2's one-step SDXL run (Sec. 5.2); it starts with every mode."""
    regression_steps: int = Field(8, ge=1, le=10_000)
    """Solver steps of that map."""
    regression_weight: float = Field(0, ge=0)
    """Weight of the same loss afterwards, added to the matching, as in DMD (Yin et al. 2023,
    arXiv 2311.18828, Eq. 9): it holds the share of every mode."""
    rollout: Literal["simulate", "data"] = "simulate"
    """Inputs of later steps: the student's own samples (DMD2, Sec. 4.5), or noised data."""
    times: TimeSampling = TimeSampling(low=0.02, high=0.98)
    """Distribution of the noise at which the two scores are compared. Keys of it that are not
    given are those of the default."""


class Scored(Objective):
    """A student alone, which moves by scores after a regression on the teacher's ODE."""

    class Config(ScoreConfig):
        """Hyperparameters."""

    config: ScoreConfig

    def __init__(self, config: ScoreConfig, setup: Setup) -> None:
        self.levels = Levels(config.times, setup.student.schedule)
        self.config, self.optim = config, setup.optim
        self.teacher, self.student, self.times = setup.teacher, setup.student, setup.times
        self.rollout = Rollout.of(setup, config.rollout)
        self.regression = TeacherRegression(setup.teacher, self.rollout, config.regression_steps)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def loss(self, player: str, batch: Batch) -> Losses:
        if batch.step < self.config.pretraining_steps:
            return _alone(self.regression(batch))
        return self.student_loss(batch)

    @abstractmethod
    def student_loss(self, batch: Batch) -> Losses:
        """Compute the student's loss after the steps of pretraining."""

    def regressed(self, losses: Losses, batch: Batch) -> Losses:
        """Return these losses with the weighted regression added."""
        weight = self.config.regression_weight
        return losses.plus("regression", weight, self.regression(batch)) if weight > 0 else losses


class Matching(Objective):
    """A student that moves by two scores, trained in alternation with the fake score.

    A method exchanges parts where its paper has others, and defines the student's loss in
    `student_loss`.

    Args:
        config: The method's configuration.
        setup: The run's setup.
        rollout: Sampler of the student's steps; by default along its own times.
        fake_score: Function that makes the fake score, from the setup and whether it has a head.

    Attributes:
        noising: Function that noises the student's sample to the times of comparison.
        levels: Function that draws these times.
        regression: Regression on the teacher's ODE, which keeps every mode.
    """

    class Config(ScoreConfig):
        """Hyperparameters."""

        old_keys = renamed(warmup="warmup_steps")

        turns: int = Field(1, ge=1, le=1_000)
        """Updates of fake_score to one of the student (DMD2's two time-scale rule, Sec. 4.2)."""
        warmup_steps: int = Field(0, ge=0)
        """Steps after the regression in which only fake_score trains."""
        gan_weight: float = Field(0, ge=0)
        """Weight of a GAN term in the student's loss, its discriminator a head on fake_score's
        features (DMD2, Sec. 4.3); 0 builds no head."""
        classify_weight: float = Field(1e-2, ge=0)
        """Weight of the discriminator term in fake_score's loss."""
        matched_levels: Literal["all", "interval"] = "all"
        """Noise levels at which a step's samples are compared and at which fake_score learns them:
        all, or those between the step's end and its start. `interval` keeps the samples of
        different steps apart, of which one fake score otherwise learns the average."""
        fake_score: Optim = Optim()

    config: Matching.Config
    chooses_levels: ClassVar[bool] = False
    """Whether the method has a rule of its own for the noise levels."""

    def __init__(
        self,
        config: Matching.Config,
        setup: Setup,
        *,
        rollout: Rollout | None = None,
        fake_score: Callable[[Setup, bool], FakeScore] = FakeScore,
    ) -> None:
        self.levels: Callable[[Batch], Tensor] = Levels(config.times, setup.student.schedule)
        self.config, self.optim = config, setup.optim
        self.teacher, self.student, self.times = setup.teacher, setup.student, setup.times
        self.rollout = rollout or Rollout.of(setup, config.rollout)
        if self.chooses_levels and config.matched_levels != "all":
            raise ValueError(f"objective.matched_levels: {self.name} chooses its levels itself")
        self.noising: Noising = NOISINGS[config.matched_levels](self.rollout)
        self.regression: Regression = TeacherRegression(
            setup.teacher, self.rollout, config.regression_steps
        )
        self.fake_score = fake_score(setup, config.gan_weight > 0)

    def players(self) -> list[Player]:
        config, first = self.config, self.config.pretraining_steps
        student = Player(
            "student",
            self.student,
            self.optim,
            every=config.turns,
            start=first + config.warmup_steps,
            prelude=first,
        )
        fake_score = Player("fake_score", self.fake_score.net, config.fake_score, start=first)
        return [fake_score, student]

    def loss(self, player: str, batch: Batch) -> Losses:
        if player == "fake_score":
            return self.fake_score_loss(batch)
        if batch.step < self.config.pretraining_steps:
            return _alone(self.regression(batch))
        return self.student_loss(batch)

    @abstractmethod
    def student_loss(self, batch: Batch) -> Losses:
        """Compute the student's loss after the steps of pretraining."""

    def fake_score_loss(self, batch: Batch) -> Losses:
        """Compute the fake score's loss on the student's samples at all levels of noise."""
        with torch.no_grad():
            sample = self.rollout(batch)
            noised = self.noising(sample, stratified(len(batch.x0), batch.generator), batch)
        return self.fake_score.loss(noised, batch, self.config.classify_weight)

    # --- Terms of most students' losses ---------------------------------------------------------

    @torch.no_grad()
    def view(self, sample: Sample, batch: Batch, target: nn.Module | None = None) -> View:
        """Noise the sample, and predict x0 by the teacher (or `target`) and the fake score."""
        noised = self.noising(sample, self.levels(batch), batch)
        x_t, t = noised.x_t, noised.t
        real = (target or self.teacher)(x_t, t, batch.cond)
        fake = self.fake_score.x0(x_t, t, batch.cond)
        return View(sample.x0.detach(), x_t, t, real, fake)

    @torch.no_grad()
    def predictions(self, batch: Batch) -> dict[str, Tensor]:
        return self.view(self.rollout(batch), batch).roles()

    def descent(self, sample: Sample, view: View, gradient: Tensor, batch: Batch) -> Losses:
        """Return the loss whose gradient in x0 is `gradient` (N, ...), plus auxiliary terms."""
        gradient = torch.nan_to_num(gradient)
        losses = Losses(surrogate_loss(sample.x0, gradient), health(view, gradient, batch.x0))
        return self.helped(losses, sample, batch)

    def helped(self, losses: Losses, sample: Sample, batch: Batch) -> Losses:
        """Return these losses with the weighted regression and GAN terms added."""
        config = self.config
        if config.regression_weight > 0:
            losses = losses.plus("regression", config.regression_weight, self.regression(batch))
        if config.gan_weight > 0:
            anywhere = stratified(len(sample.x0), batch.generator)
            noised = self.noising(sample, anywhere, batch)
            gan = self.fake_score.generator_loss(noised, batch.cond)
            losses = losses.plus("gan", config.gan_weight, gan)
        return losses


def _alone(regression: Tensor) -> Losses:
    return Losses(regression, {"regression": regression.detach()})
