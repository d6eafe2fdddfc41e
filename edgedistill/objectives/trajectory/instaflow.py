"""InstaFlow: reflow, then one step that follows the straightened flow to its end.

Liu et al. 2023, "InstaFlow: One Step is Enough for High-Quality Diffusion-Based Text-to-Image
Generation" (arXiv 2309.06380), in one run: the first stage is `reflow` on the teacher's paths;
then the straightened flow is frozen, and the student, which starts from it, learns to take fresh
noise to the end of that flow's ODE in one step. The paper's distance is LPIPS; here it is of
latents.
"""

from __future__ import annotations

import copy

from pydantic import Field
from torch import Tensor, nn

from edgedistill.common.settings import renamed
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.solvers import init_scale, solve
from edgedistill.diffusion.times import refine
from edgedistill.networks.ema import follow
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup
from edgedistill.objectives.trajectory.reflow import flow_loss

__all__ = ["InstaFlow"]


class InstaFlow(Objective):
    """Straightens the teacher's flow, then learns its end points in one step."""

    class Config(Settings):
        """Hyperparameters of InstaFlow."""

        old_keys = renamed(reflow="reflow_share")

        reflow_share: float = Field(0.5, gt=0, lt=1)
        """Share of the run that straightens the flow."""
        reflow_distance: Distance = Distance()
        solver_steps: int = Field(25, ge=1, le=10_000)
        """Euler steps of the straightened flow to its end (the paper's pairs have 25)."""
        distance: Distance = Distance()
        """Distance of the one step from that end."""
        ema: float = Field(0.99, ge=0, lt=1)
        """Decay of the average of the student that is frozen as the straightened flow."""

    name = "instaflow"
    single_step = True
    restarts = True
    needs_paths = True

    def __init__(self, config: InstaFlow.Config, setup: Setup) -> None:
        self.config, self.times, self.optim = config, setup.times, setup.optim
        self.student = setup.student
        self.flow = copy.deepcopy(setup.student).requires_grad_(False)
        self.grid = refine(setup.student.schedule, setup.times, config.solver_steps)
        self.begin = max(1, round(config.reflow_share * setup.train_steps))
        self.straightening = True
        """Whether the flow is still being straightened; afterwards it is frozen."""

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def followers(self) -> dict[str, nn.Module]:
        return {"flow": self.flow}

    def updated(self, player: str) -> None:
        if self.straightening:
            follow(self.flow, self.student, self.config.ema)

    def started(self, step: int) -> None:
        self.straightening = step < self.begin
        if step == self.begin:
            follow(self.student, self.flow, 0.0)

    def loss(self, player: str, batch: Batch) -> Losses:
        if batch.step < self.begin:
            kind = self.config.reflow_distance
            loss = flow_loss(self.student, kind, self.pairs(batch), self.times[0], batch)
            return Losses(loss, {"velocity": loss.detach()})
        loss = self.distil(batch)
        return Losses(loss, {"end": loss.detach()})

    def pairs(self, batch: Batch) -> Tensor:
        """Return noise and data that straight lines join, the ends of (N, K + 1, ...)."""
        assert batch.path is not None
        return batch.path

    def distil(self, batch: Batch) -> Tensor:
        """Return the distance of the one step from the end of the straightened flow."""
        return self.apart(batch.noise(), batch, self.grid)

    def apart(self, noise: Tensor, batch: Batch, grid: Tensor) -> Tensor:
        """Return the mean distance of the one step from the flow's Euler steps along `grid`."""
        end = solve(self.flow, noise, grid, batch.cond, "euler")
        ours = self.one_step(noise * init_scale(self.student.schedule, self.times[0]), batch)
        return distance(self.config.distance, ours, end).mean()

    def one_step(self, x_1: Tensor, batch: Batch) -> Tensor:
        """Return the student's x0 from its first x_t."""
        x0: Tensor = self.student(x_1, self.times[0].to(x_1.device), batch.cond)
        return x0
