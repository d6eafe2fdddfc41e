"""Consistency inside segments of time, with the adversarial loss of PCM and TSCD.

Wang et al. 2024, "Phased Consistency Models" (arXiv 2405.18407). In `pcm` the student lands at the
edge of its segment, and its target lands there from one solver step further on. Here both are also
noised from the edge to one time inside the segment, and heads on the frozen teacher's features
tell them apart. Where the student is consistent, the two are alike and the game asks for nothing.
Ren et al. 2024, "Hyper-SD" (arXiv 2404.13686) adds such a loss to TSCD, in which the number of
segments falls from stage to stage (`objective.segments=[8,4,2,1]`).

The following are choices of this project. Heads are on one tap unless `taps` names more, while
PCM's are on every block. They judge no noise below time 0.02, which networks hardly know. Hyper-SD
moves weight from the regression to the adversarial loss from stage to stage; here it stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.diffusion.boundary import flow_map
from edgedistill.diffusion.distances import distance
from edgedistill.diffusion.times import above, stratified
from edgedistill.networks.heads import Shown
from edgedistill.objectives.adversarial.parts import GAN, Round
from edgedistill.objectives.base import Batch, Player, Setup
from edgedistill.objectives.consistency.pcm import PCM, Phases, wanted
from edgedistill.objectives.matching.rollout import onward

__all__ = ["PCMGAN"]


@dataclass(frozen=True)
class Landed(Round):
    """A round with the two points at the edge.

    Attributes:
        ours: Points (N, ...) where the student lands.
        target: Points (N, ...) where the target lands.
    """

    ours: Tensor
    target: Tensor


class PCMGAN(GAN):
    """The student lands near its target, and as likely as it."""

    class Config(PCM.Config, GAN.Config):
        """Hyperparameters of `pcm` and of the discriminator (those of PCM's code)."""

        loss: Literal["hinge", "non-saturating", "lsgan", "relativistic"] = "hinge"
        gan_weight: float = Field(0.1, ge=0)
        """Weight of the adversarial loss in the student's; 0 is `pcm`, and no discriminator
        trains."""
        heads_per_step: bool = False
        """Whether the segment of each of the student's steps has heads of its own."""

    name = "pcm-gan"
    config: PCMGAN.Config

    def __init__(self, config: PCMGAN.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.pcm = PCM(config, setup)

    def players(self) -> list[Player]:
        return super().players() if self.config.gan_weight else self.pcm.players()

    def followers(self) -> dict[str, nn.Module]:
        return self.pcm.followers()

    def updated(self, player: str) -> None:
        if player == "student":
            self.pcm.updated(player)

    def round(self, batch: Batch) -> Landed:
        # pcm: the student lands at the edge from x_t, its target from x_s.
        pcm, stage = self.pcm, self.pcm.stage(batch)
        guide, grid = pcm.path(stage)
        legs = pcm.legs(stage, grid, batch)
        x_t, target = wanted(pcm.target, guide, batch, legs)
        x0 = self.student(x_t, legs.t, batch.cond)
        ours = flow_map(self.student.schedule, x_t, x0, legs.t, legs.edge)

        # Both go on to the same time inside the segment, with noise of their own.
        t = self.judged(legs, pcm.edges[stage], batch)
        fake, real = (self.shown(x, legs.edge, t, batch) for x in (ours, target))
        return Landed(x_t, legs.t, x0, fake, real, ours, target)

    def others(self, made: Round, batch: Batch) -> dict[str, Tensor]:
        assert isinstance(made, Landed)
        return {"consistency": distance(self.config.distance, made.ours, made.target).mean()}

    def judged(self, legs: Phases, edges: Tensor, batch: Batch) -> Tensor:
        """Draw times (N,) inside the segments of `legs`, above their lower edges."""
        edge = legs.edge
        top = above(edges.to(edge), edge)
        share = stratified(len(edge), batch.generator).to(edge)
        t = self.seen(edge + (top - edge) * share)
        return torch.where(t > edge, t, top)

    def shown(self, x: Tensor, edge: Tensor, t: Tensor, batch: Batch) -> Shown:
        """Return points (N, ...) at the edge, noised further to t."""
        return [(onward(self.student.schedule, x, edge, t, batch.noise()).x_t, t)]

    def group(self, t: Tensor) -> Tensor:
        """Return the student's step (N,) whose segment holds t (N,)."""
        return (self.times[:-1].to(t)[None] >= t[:, None]).sum(1).clamp(min=1) - 1
