"""Self-corrected flow distillation: consistency, straightness and a GAN together.

Dao et al. 2024, "Self-Corrected Flow Distillation for Consistent One-Step and Few-Step
Text-to-Image Generation" (arXiv 2412.16906): the x0 of x_t is that of its neighbours on the
teacher's path, to both sides, near the data the data itself; on the straight line from noise to
the student's one-step sample it is that sample; and the sample is as likely as data.

That x0 is the end of a path, so several steps take it with `student.sampler=renoise`; the paper's
deterministic steps (`ddim`) move along straight lines towards it, whose samples do not have the
data's distribution (`benchmarks/exact_limits.py`).
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.common.settings import renamed
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.solvers import ddim_step, init_scale
from edgedistill.diffusion.tensors import expand_like
from edgedistill.diffusion.times import stratified
from edgedistill.networks.ema import follow
from edgedistill.objectives.adversarial.parts import CLEAN, GAN, Round
from edgedistill.objectives.base import Batch, Setup

__all__ = ["SelfCorrected"]


class SelfCorrected(GAN):
    """One x0 along the teacher's paths and the student's own lines, as likely as data."""

    class Config(GAN.Config):
        """Hyperparameters (the authors' for CelebA-HQ)."""

        old_keys = renamed(backward="backward_weight", straight="straight_weight")

        loss: Literal["hinge", "non-saturating", "lsgan", "relativistic"] = "non-saturating"
        gan_weight: float = Field(0.1, gt=0)
        r1_weight: float = Field(0.05, ge=0)
        reach: float = Field(0.1, gt=0, le=1)
        """Largest distance of a neighbour from t."""
        truncation: float = Field(0.4, ge=0, lt=1)
        """Below this time the target is the data."""
        backward_weight: float = Field(0.1, ge=0)
        """Weight of consistency with the noisier neighbour."""
        straight_weight: float = Field(0.1, ge=0)
        """Weight of straightness (reflow)."""
        ema: float = Field(0.9, ge=0, lt=1)
        """Decay of the target network."""
        distance: Distance = Distance(kind="pseudo-huber")

    config: SelfCorrected.Config
    name = "self-corrected"
    frozen = False

    def __init__(self, config: SelfCorrected.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.target = copy.deepcopy(setup.student).requires_grad_(False)

    def followers(self) -> dict[str, nn.Module]:
        return {"target": self.target}

    def updated(self, player: str) -> None:
        if player == "student":
            follow(self.target, self.student, self.config.ema)

    def round(self, batch: Batch) -> Round:
        t = self.times[0].to(batch.x0.device).expand(len(batch.x0))
        x_t = batch.noise() * init_scale(self.student.schedule, self.times[0])
        x0 = self.student(x_t, t, batch.cond)
        return Round(x_t, t, x0, [self.clean(x0)], [self.clean(batch.x0)])

    def others(self, made: Round, batch: Batch) -> dict[str, Tensor]:
        config, count = self.config, len(batch.x0)
        t = self._time(stratified(count, batch.generator, CLEAN, 1.0), batch)
        terms = self._consistency(t, batch)
        if config.straight_weight:
            # x_1 is the noise alone, or so nearly that it may be taken for it.
            sigma = self.student.schedule.sigma(self.times[0])
            x_s = self.student.noised(made.x0.detach(), t, made.x_t / float(sigma))
            ours = self.student(x_s, t, batch.cond)
            apart = (ours - made.x0.detach()).square().mean()
            terms["straight"] = config.straight_weight * apart
        return terms

    def _time(self, t: Tensor, batch: Batch) -> Tensor:
        return self.student.schedule.snap(t).to(batch.x0.device)

    def _consistency(self, t: Tensor, batch: Batch) -> dict[str, Tensor]:
        config, schedule, count = self.config, self.student.schedule, len(batch.x0)
        far = torch.rand(2, count, generator=batch.generator, dtype=torch.float64).to(t.device)
        lower = self._time(t - far[0] * t.clamp(max=config.reach), batch)
        upper = self._time(t + far[1] * (1 - t).clamp(max=config.reach), batch)
        x_t = self.student.noised(batch.x0, t, batch.noise())
        with torch.no_grad():
            x0 = self.teacher(x_t, t, batch.cond)
            below, above = (ddim_step(schedule, x_t, x0, t, s) for s in (lower, upper))
            near = expand_like(lower < config.truncation, x0)
            after = self.target(below, self.seen(lower), batch.cond)
            after = torch.where(near, batch.x0, after)
            before = self.target(above, upper, batch.cond)
        ours = self.student(x_t, t, batch.cond)
        terms = {"consistency": distance(config.distance, ours, after).mean()}
        if config.backward_weight:
            apart = distance(config.distance, ours, before).mean()
            terms["backward"] = config.backward_weight * apart
        return terms
