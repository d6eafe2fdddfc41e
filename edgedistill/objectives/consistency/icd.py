"""Invertible consistency distillation: an encoder from data to noise, trained with the student.

Starodubcev et al. 2024, "Invertible Consistency Distillation for Text-Guided Image Editing in
Around 7 Steps" (arXiv 2406.14539). The student is consistent inside segments of time, as in PCM;
the encoder works in the other direction, from each segment's data end to its noise end. The
preservation losses make each undo the other.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.common.settings import renamed
from edgedistill.diffusion.boundary import flow_map
from edgedistill.diffusion.denoiser import Condition, Guided
from edgedistill.diffusion.distances import distance
from edgedistill.diffusion.times import above, neighbours
from edgedistill.networks.ema import follow
from edgedistill.objectives.base import Batch, Losses, Optim, Player, Setup
from edgedistill.objectives.consistency.pcm import PCM, Phases, agreement

__all__ = ["ICD"]


class ICD(PCM):
    """Trains consistency in both directions, and preservation in round trips.

    The encoder cannot start at time 0, where the direction is undefined, so data is taken to be at
    the solver's first time above 0.
    """

    class Config(PCM.Config):
        """Hyperparameters (those of the official code, except the segments)."""

        old_keys = renamed(preserve="preserve_weight")

        ema: float = Field(0.0, ge=0, lt=1)
        preserve_weight: float = Field(1.5, ge=0)
        """Weight of the preservation losses."""
        encoder: Optim = Optim()

    name = "icd"

    def __init__(self, config: ICD.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        self.own = config
        if (
            isinstance(setup.teacher, Guided)
            and setup.teacher.scale != 1
            and config.preserve_weight
        ):
            raise ValueError(
                f"teacher.guidance={setup.teacher.scale:g}: the encoder follows the unguided "
                "teacher, so that the two cannot undo each other; choose teacher.guidance=1, or "
                "objective.preserve=0"
            )
        if len(self.counts) > 1:
            raise ValueError(f"segments={self.counts}: icd has one number of segments")
        self.encoder = setup.spawn()
        self.encoder_target = self.encoder
        if config.ema:
            self.encoder_target = copy.deepcopy(self.encoder).requires_grad_(False)

    def players(self) -> list[Player]:
        return [*super().players(), Player("encoder", self.encoder, self.own.encoder)]

    def followers(self) -> dict[str, nn.Module]:
        if not self.config.ema:
            return {}
        return {**super().followers(), "encoder_target": self.encoder_target}

    def updated(self, player: str) -> None:
        if player == "student":
            super().updated(player)
        elif self.config.ema:
            follow(self.encoder_target, self.encoder, self.config.ema)

    @property
    def stops(self) -> Tensor:
        """Return the edges of the encoder's steps, increasing, (segments + 1,)."""
        first = self.path(0)[1][-2:-1]
        return torch.cat([self.edges[0][:-1], first]).flip(0)

    def encode(self, x0: Tensor, cond: Condition) -> Tensor:
        """Return the noise (N, ...) that the student turns into x0 (N, ...)."""
        x = x0
        for t, s in pairwise(self.stops.to(x.device)):
            t, s = t.expand(len(x)), s.expand(len(x))
            x = flow_map(self.student.schedule, x, self.encoder(x, t, cond), t, s)
        return x

    def loss(self, player: str, batch: Batch) -> Losses:
        consistency = {"student": self._reverse, "encoder": self._forward}[player](batch)
        logs = {"consistency": consistency.detach()}
        if not self.own.preserve_weight:
            return Losses(consistency, logs)
        kept = self._preservation(player, batch)
        logs["preservation"] = kept.detach()
        return Losses(consistency + self.own.preserve_weight * kept, logs)

    def _reverse(self, batch: Batch) -> Tensor:
        return super().loss("student", batch).total

    def _forward(self, batch: Batch) -> Tensor:
        teacher = self.teacher.denoiser if isinstance(self.teacher, Guided) else self.teacher
        edges, upward = self.edges[0], self.path(0)[1][:-1].flip(0)
        t, s = neighbours(upward, len(batch.x0), batch.generator)
        legs = Phases(t, s, above(edges, t)).to(batch.x0.device)
        metric, target = self.config.distance, self.encoder_target
        return agreement(metric, self.encoder, target, teacher, batch, legs)

    def _preservation(self, player: str, batch: Batch) -> Tensor:
        """Return the distance between start and end of a round trip over a segment.

        The encoder's trips start at the noise end, the student's at the data end; each begins with
        the other's step, without gradient.
        """
        stops = self.stops
        index = torch.randint(len(stops) - 1, (len(batch.x0),), generator=batch.generator)
        low, high = stops[index].to(batch.x0.device), stops[index + 1].to(batch.x0.device)
        nets = {"student": (self.encoder, self.student), "encoder": (self.student, self.encoder)}
        there, back = nets[player]
        begin, turn = (low, high) if player == "student" else (high, low)
        schedule = self.student.schedule
        x = self.student.noised(batch.x0, begin, batch.noise())
        with torch.no_grad():
            away = flow_map(schedule, x, there(x, begin, batch.cond), begin, turn)
        home = flow_map(schedule, away, back(away, turn, batch.cond), turn, begin)
        return distance(self.config.distance, home, x).mean()
