"""Consistency inside segments of time: `pcm` (phased), its stages (TSCD), and `tdd`.

Wang et al. 2024, "Phased Consistency Models" (arXiv 2405.18407); Ren et al. 2024, "Hyper-SD"
(arXiv 2404.13686), whose trajectory-segmented consistency distillation reduces the number of
segments from stage to stage; Wang et al. 2024, "Target-Driven Distillation" (arXiv 2409.01347),
which draws the segments at random. The adversarial loss of the first two is in `pcm-gan`. The
random shortening of Target-Driven Distillation's targets and its decoupled guidance are left out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.diffusion.boundary import flow_map
from edgedistill.diffusion.denoiser import Denoiser, Guided
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.solvers import ddim_step, time_grid
from edgedistill.diffusion.times import below, neighbours, with_edges
from edgedistill.networks.ema import follow
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup

__all__ = ["PCM", "TDD", "Phases", "agreement", "stage_of", "wanted"]


def stage_of(step: int, counts: tuple[int, ...], steps: int) -> int:
    """The count that `step` (0, 1, ...) of a run of `steps` uses; counts follow one another."""
    return min(step * len(counts) // steps, len(counts) - 1)


def _by_stage(counts: tuple[int, ...], batch: Batch, steps: int) -> int:
    return stage_of(batch.step, counts, steps)


def _at_random(counts: tuple[int, ...], batch: Batch, steps: int) -> int:
    return int(torch.randint(len(counts), (), generator=batch.shared))


CHOICES: dict[str, Callable[[tuple[int, ...], Batch, int], int]] = {
    "stages": _by_stage,
    "random": _at_random,
}
"""Function (counts, batch, steps of the run) -> index of the batch's count."""


@dataclass(frozen=True)
class Phases:
    """Times of a consistency step: of x_t, of its neighbour x_s, and of the edge; (N,) each."""

    t: Tensor
    s: Tensor
    edge: Tensor

    def to(self, device: torch.device) -> Phases:
        """Move the times to a device."""
        return Phases(self.t.to(device), self.s.to(device), self.edge.to(device))


@torch.no_grad()
def wanted(
    target: Denoiser, guide: Denoiser | Guided, batch: Batch, legs: Phases
) -> tuple[Tensor, Tensor]:
    """Return noised data x_t, and the target at the edge from x_s, one step of `guide` on."""
    schedule, t, s = target.schedule, legs.t, legs.s
    x_t = target.noised(batch.x0, t, batch.noise())
    x_s = ddim_step(schedule, x_t, guide(x_t, t, batch.cond), t, s)
    return x_t, flow_map(schedule, x_s, target(x_s, s, batch.cond), s, legs.edge)


def agreement(
    metric: Distance,
    student: Denoiser,
    target: Denoiser,
    guide: Denoiser | Guided,
    batch: Batch,
    legs: Phases,
) -> Tensor:
    """Return the mean distance at the edges between the student's result and the target's.

    The student lands from x_t; the target is that of `wanted`.
    """
    x_t, edge = wanted(target, guide, batch, legs)
    ours = flow_map(student.schedule, x_t, student(x_t, legs.t, batch.cond), legs.t, legs.edge)
    return distance(metric, ours, edge).mean()


class PCM(Objective):
    """Trains f(x_t, t) = sg f_ema(x_s, s), where f is the DDIM step to the edge of t's segment."""

    class Config(Settings):
        """Hyperparameters (PCM's and LCM's)."""

        segments: tuple[Annotated[int, Field(ge=1)], ...] = ()
        """Numbers of equal segments of time; empty is one for each of the student's steps."""
        choice: Literal["stages", "random"] = "stages"
        """Order of the numbers: one after the other, in equal parts of the run, or one at random
        each update."""
        solver_steps: int = Field(50, ge=2, le=10_000)
        """Number of teacher steps that the time axis is divided into, besides the edges."""
        ema: float = Field(0.95, ge=0, lt=1)
        """Decay of the target network; 0 makes the student itself the target."""
        distance: Distance = Distance(kind="pseudo-huber")

    name = "pcm"

    def __init__(self, config: PCM.Config, setup: Setup) -> None:
        self.config = config
        self.teacher, self.student = setup.teacher, setup.student
        self.target = setup.student
        if config.ema:
            self.target = copy.deepcopy(setup.student).requires_grad_(False)
        self.optim, self.times, self.steps = setup.optim, setup.times, setup.train_steps
        self.counts = config.segments or (len(self.times) - 1,)
        self._check(setup.sampler)
        self.edges = [self._edges(count) for count in self.counts]
        self.solver = time_grid(self.student.schedule, config.solver_steps)

    def _check(self, sampler: str) -> None:
        """Check the segments: as many as steps, or one for samplers that renoise."""
        needed = {"ddim": len(self.times) - 1, "renoise": 1}[sampler]
        trained = self.counts[-1:] if self.config.choice == "stages" else self.counts
        if needed not in trained:
            found = ", ".join(map(str, trained))
            raise ValueError(
                f"student.steps={len(self.times) - 1} with student.sampler={sampler} needs "
                f"{needed} segments in the end, not {found}"
            )

    def _edges(self, count: int) -> Tensor:
        own = count == len(self.times) - 1
        return self.times if own else time_grid(self.student.schedule, count)

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def followers(self) -> dict[str, nn.Module]:
        return {"target": self.target} if self.config.ema else {}

    def updated(self, player: str) -> None:
        if self.config.ema:
            follow(self.target, self.student, self.config.ema)

    def stage(self, batch: Batch) -> int:
        """Return the index of the batch's number of segments."""
        return CHOICES[self.config.choice](self.counts, batch, self.steps)

    def path(self, stage: int) -> tuple[Denoiser | Guided, Tensor]:
        """Return the teacher of the DDIM steps from x_t to x_s, and the times of these steps."""
        return self.teacher, with_edges(with_edges(self.solver, self.times), self.edges[stage])

    def legs(self, stage: int, grid: Tensor, batch: Batch) -> Phases:
        """Draw the times of a step for each of the batch's rows, on its device."""
        t, s = neighbours(grid, len(batch.x0), batch.generator)
        return Phases(t, s, below(self.edges[stage], t)).to(batch.x0.device)

    def loss(self, player: str, batch: Batch) -> Losses:
        stage = self.stage(batch)
        guide, grid = self.path(stage)
        loss = self.apart(guide, batch, self.legs(stage, grid, batch))
        return Losses(loss, {"consistency": loss.detach()})

    def apart(self, guide: Denoiser | Guided, batch: Batch, legs: Phases) -> Tensor:
        """Return the distance of the student from its target."""
        return agreement(self.config.distance, self.student, self.target, guide, batch, legs)


class TDD(PCM):
    """PCM with segments drawn at random: one student for any of these numbers of steps."""

    class Config(PCM.Config):
        """Hyperparameters (the paper's 4 to 8 steps of 250)."""

        segments: tuple[Annotated[int, Field(ge=1)], ...] = (4, 5, 6, 7, 8)
        solver_steps: int = Field(250, ge=2, le=10_000)
        choice: Literal["stages", "random"] = "random"

    name = "tdd"
