"""Flash diffusion: regression on several steps of the teacher, with two other losses coming in.

Chadebec et al. 2024, "Flash Diffusion: Accelerating Any Conditional Diffusion Model for Few Steps
Image Generation" (arXiv 2406.02347): the student's x0 from x_t is where the teacher's solver gets
from there, it is as likely as data on the frozen teacher's features, and its distribution is moved
to the teacher's with the student itself as its fake score. The times of x_t are modes around the
student's own, whose shares change from stage to stage, towards pure noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from edgedistill.common.settings import renamed
from edgedistill.diffusion.boundary import consistency_function, lcm_boundary
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.few_step import Boundary
from edgedistill.diffusion.losses import matching_gradient, surrogate_loss
from edgedistill.diffusion.solvers import SOLVERS
from edgedistill.diffusion.times import refine, stratified
from edgedistill.networks.heads import Shown
from edgedistill.objectives.adversarial.parts import GAN, Round
from edgedistill.objectives.base import Batch, Setup
from edgedistill.objectives.stages import Stages

__all__ = ["Flash", "mode_masses", "stage_shares"]

Weights = tuple[Annotated[float, Field(ge=0)], ...]

STAGES = 4


def stage_shares(steps: int) -> tuple[Weights, ...]:
    """Shares of a student's times, noise first, in each of four stages; of 4 times the paper's.

    At first only the later half, then also pure noise, in the end mostly that.
    """
    rest = steps - steps // 2
    later = (0.0,) * (steps // 2) + (1 / rest,) * rest
    if steps == 1:
        return (later,) * STAGES
    first = (share / steps for share in (0.4, 1.0, 1.6))
    return (later, *((share, *((1 - share) / (steps - 1),) * (steps - 1)) for share in first))


def mode_masses(count: int, steps: int, shares: Weights, spread: float) -> Tensor:
    """Probability of each of `count` places in a grid, (count,): Gaussians in equal distances.

    Args:
        count: Number of places.
        steps: Number of Gaussians; the first is at place 0.
        shares: Share of each Gaussian.
        spread: Variance of the Gaussians, in places.
    """
    places = torch.arange(count, dtype=torch.float64)[:, None]
    centres = torch.arange(steps, dtype=torch.float64) * (count / steps)
    found = torch.exp(-0.5 * (places - centres).square() / spread)
    masses = (found * torch.tensor(shares, dtype=torch.float64)).sum(1)
    return masses / masses.sum()


@dataclass(frozen=True)
class Placed(Round):
    """A round that sets out at one place of the teacher's grid."""

    place: int


class Flash(GAN):
    """The student's x0 is the teacher's after many steps, and then as likely as data."""

    class Config(GAN.Config):
        """Hyperparameters (the paper's for SD1.5, but l2 for LPIPS of decoded pictures)."""

        old_keys = renamed(
            distillation="distillation_weight",
            adversarial="adversarial_weight",
            matching="matching_weight",
        )

        loss: Literal["hinge", "non-saturating", "lsgan", "relativistic"] = "lsgan"
        teacher_steps: int = Field(32, ge=1, le=10_000)
        """Number of the teacher's steps from pure noise; from x_t it takes fewer."""
        shares: tuple[Weights, ...] | None = None
        """Share of each of the student's times in each stage; None is `stage_shares`."""
        spread: float = Field(0.5, gt=0)
        """Variance of a mode, in teacher steps."""
        distance: Distance = Distance()
        distillation_weight: Weights = (1.0, 1.0, 1.0, 1.0)
        """Weight of the regression in each stage."""
        adversarial_weight: Weights = (0.0, 0.1, 0.2, 0.3)
        """Weight of the adversarial loss in each stage, times gan_weight."""
        matching_weight: Weights = (0.0, 0.3, 0.5, 0.7)
        """Weight of distribution matching in each stage."""
        judged: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.01, 0.25, 0.5, 0.75)
        """Times at which the discriminator judges, one at random: a few, so no `TimeSampling`."""

        @model_validator(mode="after")
        def _stages(self) -> Flash.Config:
            stages = STAGES if self.shares is None else len(self.shares)
            for name in ("distillation", "adversarial", "matching"):
                weights = getattr(self, f"{name}_weight")
                if len(weights) != stages:
                    raise ValueError(f"{name}={weights}: shares name {stages} stages")
            return self

    config: Flash.Config
    name = "flash"

    def __init__(self, config: Flash.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        steps = len(self.times) - 1
        stages = stage_shares(steps) if config.shares is None else config.shares
        for shares in stages:
            if len(shares) != steps or not sum(shares):
                raise ValueError(
                    f"objective.shares: {shares} are no shares of student.steps={steps} times"
                )
        self.stages = Stages(setup.train_steps, len(stages))
        parts = max(1, config.teacher_steps // steps)
        self.grid = refine(self.student.schedule, self.times.cpu(), parts)
        count = len(self.grid) - 1
        self.masses = [mode_masses(count, steps, row, config.spread) for row in stages]

    def boundary(self) -> Boundary:
        return lcm_boundary(10.0)

    def weight(self, step: int) -> float:
        return self.config.gan_weight * self.config.adversarial_weight[self.stages.at(step)]

    def round(self, batch: Batch) -> Placed:
        # One time a batch, so that the teacher takes no step in vain.
        masses = self.masses[self.stages.at(batch.step)]
        place = int(torch.multinomial(masses, 1, generator=batch.shared))
        t = self.grid[place].to(batch.x0.device).expand(len(batch.x0))
        x_t = self.student.noised(batch.x0, t, batch.noise())
        x0 = consistency_function(self.boundary(), x_t, self.student(x_t, t, batch.cond), t)
        return Placed(x_t, t, x0, *self.shown(x0, batch), place)

    def shown(self, x0: Tensor, batch: Batch) -> tuple[Shown, Shown]:
        """Sample and data with the same noise."""
        judged = torch.tensor(self.config.judged, dtype=torch.float64)
        index = torch.randint(len(judged), (len(x0),), generator=batch.generator)
        t, eps = self.seen(judged[index]).to(x0.device), batch.noise()
        fake, real = (self.student.noised(x, t, eps) for x in (x0, batch.x0))
        return [(fake, t)], [(real, t)]

    def others(self, made: Round, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(made, Placed)
        config, stage = self.config, self.stages.at(batch.step)
        terms = {}
        if config.distillation_weight[stage]:
            apart = distance(config.distance, made.x0, self._solved(made, batch)).mean()
            terms["distillation"] = config.distillation_weight[stage] * apart
        if config.matching_weight[stage]:
            terms["matching"] = config.matching_weight[stage] * self._matching(made.x0, batch)
        return terms

    @torch.no_grad()
    def _solved(self, made: Placed, batch: Batch) -> Tensor:
        """Follow the teacher's solver from x_t."""
        return SOLVERS["dpm++2m"](self.teacher, made.x_t, self.grid[made.place :], batch.cond)

    def _matching(self, x0: Tensor, batch: Batch) -> Tensor:
        """DMD's loss with the student as it is in the place of the fake score."""
        t = stratified(len(x0), batch.generator, 0.02, 0.98)
        t = self.student.schedule.snap(t).to(x0.device)
        with torch.no_grad():
            x_t = self.student.noised(x0, t, batch.noise())
            real, fake = (d(x_t, t, batch.cond) for d in (self.teacher, self.student))
            gradient = torch.nan_to_num(matching_gradient(x0, real, fake))
        return surrogate_loss(x0, gradient)
