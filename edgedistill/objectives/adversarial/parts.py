"""Base class of adversarial methods: the discriminator's loss and the student's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgedistill.common.settings import renamed
from edgedistill.diffusion.denoiser import Condition, cat
from edgedistill.diffusion.distances import drift
from edgedistill.diffusion.gan import GAN_LOSSES, accuracy, r1, r1_by_difference
from edgedistill.diffusion.solvers import init_scale
from edgedistill.diffusion.tensors import expand_like
from edgedistill.diffusion.times import neighbours
from edgedistill.networks.heads import Discriminator, Shown
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Settings, Setup

__all__ = ["GAN", "Round"]

CLEAN = 0.02
"""Time at which clean data is shown: a network has hardly seen an earlier one."""


@dataclass(frozen=True)
class Round:
    """The student's prediction, and the inputs of the discriminator.

    Attributes:
        x_t: Input of the student, (N, ...).
        t: Time of x_t, (N,).
        x0: The student's prediction, (N, ...).
        fake: Inputs of the discriminator that follow from x0.
        real: Inputs that follow from the data.
    """

    x_t: Tensor
    t: Tensor
    x0: Tensor
    fake: Shown
    real: Shown


class GAN(Objective):
    """A student whose samples a discriminator cannot tell from the truth.

    In a healthy run `accuracy` stays near 0.5 and `std_ratio` near 1: where the discriminator is
    always right the student learns little from it, and samples of less spread have lost modes.
    """

    class Config(Settings):
        """Hyperparameters of the discriminator."""

        old_keys = renamed(r1="r1_weight")

        loss: Literal["hinge", "non-saturating", "lsgan", "relativistic"] = "hinge"
        """Loss of the discriminator and of the student against it."""
        gan_weight: float = Field(1.0, gt=0)
        """Weight of the adversarial loss in the student's."""
        r1_weight: float = Field(0.0, ge=0)
        """Weight (gamma) of the gradient penalty on real samples."""
        r2_weight: float = Field(0.0, ge=0)
        """Weight of the same penalty on the student's samples. The relativistic loss needs both to
        converge (Huang et al. 2025, arXiv 2501.05441, Sec. 3.2)."""
        r1_step: float = Field(0.0, ge=0)
        """Deviation of the noise over which both penalties take a difference for the gradient; 0
        takes the gradient itself."""
        taps: tuple[str, ...] = ()
        """Module paths whose features have a head each; empty is the teacher's one."""
        heads_per_step: bool = False
        """Whether each step of the student has heads of its own. Shared heads see the samples of
        all steps at once, most of which start near the data."""
        turns: int = Field(1, ge=1, le=1_000)
        """Updates of the discriminator to one of the student."""
        discriminator: Optim = Optim()

    config: GAN.Config
    frozen: ClassVar[bool] = True
    """Whether the network under the heads stays the teacher's."""
    places: ClassVar[int] = 1
    """Number of (x, t) pairs that the discriminator gets at a time."""

    def __init__(self, config: GAN.Config, setup: Setup) -> None:
        self.config, self.setup = config, setup
        self.teacher, self.student, self.times = setup.teacher, setup.student, setup.times
        self.gan_loss = GAN_LOSSES[config.loss]
        self.discriminator = Discriminator(
            setup.spawn(),
            config.taps or (setup.tap,),
            setup.example,
            frozen=self.frozen,
            places=self.places,
            groups=len(self.times) - 1 if config.heads_per_step else 1,
        )

    def players(self) -> list[Player]:
        config = self.config
        return [
            Player("discriminator", self.discriminator, config.discriminator),
            Player("student", self.student, self.setup.optim, every=config.turns),
        ]

    @abstractmethod
    def round(self, batch: Batch) -> Round:
        """Run the student on this batch, with its gradient."""

    def others(self, made: Round, batch: Batch) -> dict[str, Tensor]:
        """Return the student's other losses by name, weighted."""
        return {}

    def weight(self, step: int) -> float:
        """Return the weight of the adversarial loss at a step of the run."""
        return self.config.gan_weight

    def start(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Noise data to random times of the student: (x_t, t, the next time)."""
        t, s, eps = self._steps(batch)
        return self.student.noised(batch.x0, t, eps), t, s

    def begin(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (x_t, t) as `start`, but pure noise at the first time, where sampling begins.

        There, many schedules leave a trace of the data, which ADD's Sec. 3.1 takes away as well.
        """
        t, _, eps = self._steps(batch)
        first = expand_like(t == self.times[0].to(t), eps)
        noise = init_scale(self.student.schedule, self.times[0]) * eps
        return torch.where(first, noise, self.student.noised(batch.x0, t, eps)), t

    def _steps(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Draw times of the student, and return them, the times after them, and noise."""
        t, s = neighbours(self.times.cpu(), len(batch.x0), batch.generator)
        return t.to(batch.x0.device), s.to(batch.x0.device), batch.noise()

    def seen(self, t: Tensor) -> Tensor:
        """Return the nearest times (N,) above 0 that a network was trained at."""
        return self.student.schedule.snap(t.clamp(min=CLEAN))

    def clean(self, x0: Tensor) -> tuple[Tensor, Tensor]:
        """Return clean data as a network reads it: alpha x0 at a time of hardly any noise."""
        t = self.seen(torch.zeros(len(x0), dtype=torch.float64, device=x0.device))
        return self.student.noised(x0, t, torch.zeros_like(x0)), t

    def loss(self, player: str, batch: Batch) -> Losses:
        return {"student": self._student, "discriminator": self._discriminator}[player](batch)

    def _student(self, batch: Batch) -> Losses:
        made = self.round(batch)
        x0 = made.x0.detach()
        logs = drift(x0, batch.x0)
        terms = self.others(made, batch)
        weight = self.weight(batch.step)
        if weight:
            group = self.group(made.t)
            fake = self.discriminator(made.fake, batch.cond, group)
            real = fake
            if self.gan_loss.relative:
                real = self.discriminator(made.real, batch.cond, group)
            terms["gan"] = weight * self.gan_loss.generator(real, fake)
        total = torch.stack(list(terms.values())).sum()
        return Losses(total, {**logs, **{name: term.detach() for name, term in terms.items()}})

    def _discriminator(self, batch: Batch) -> Losses:
        config = self.config
        with torch.no_grad():
            made = self.round(batch)
        penalties = {"r1": (config.r1_weight, made.real), "r2": (config.r2_weight, made.fake)}
        exact = config.r1_step == 0
        real_shown, fake_shown = (
            self._open(shown, exact and weight > 0) for weight, shown in penalties.values()
        )
        asked = [name for name, (weight, _) in penalties.items() if weight > 0]
        moved = [] if exact else [self._moved(penalties[name][1], batch) for name in asked]
        # Fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH) if exact and asked else nullcontext():
            real, fake, *beside = self.logits([real_shown, fake_shown, *moved], batch.cond, made.t)
        total = self.gan_loss.discriminator(real, fake)
        logs = {"gan": total.detach(), "accuracy": accuracy(real, fake)}
        seen = {"r1": (real, real_shown), "r2": (fake, fake_shown)}
        for index, name in enumerate(asked):
            logits, ((x, _), *_) = seen[name]
            if exact:
                penalty = r1(logits, x)
            else:
                penalty = r1_by_difference(logits, beside[index], config.r1_step)
            total = total + penalties[name][0] * penalty
            logs[name] = penalty.detach()
        return Losses(total, logs)

    @staticmethod
    def _open(shown: Shown, exact: bool) -> Shown:
        """Return inputs whose first sample has a gradient if a penalty takes it."""
        (x, t), *before = shown
        return [(x.detach().requires_grad_(exact), t), *before]

    def _moved(self, shown: Shown, batch: Batch) -> Shown:
        """Return inputs whose first sample has a little noise added."""
        (x, t), *before = shown
        return [(x + self.config.r1_step * batch.noise(), t), *before]

    def group(self, t: Tensor) -> Tensor:
        """Return the student's step (N,) at times t (N,)."""
        apart = (self.times[:-1].to(t)[None] - t[:, None]).abs()
        return apart.argmin(1)

    def logits(self, shown: Sequence[Shown], cond: Condition, t: Tensor) -> Sequence[Tensor]:
        """Return the logits of all inputs, from one call of the discriminator.

        Args:
            shown: Inputs of equal form.
            cond: Condition of each.
            t: Times of the student that they are judged for.
        """
        places = [
            (torch.cat([x for x, _ in alike]), torch.cat([t for _, t in alike]))
            for alike in zip(*shown, strict=True)
        ]
        count = len(shown)
        logits: Tensor = self.discriminator(
            places, cat(*[cond] * count), self.group(t).repeat(count)
        )
        return logits.chunk(len(shown))
