"""InstaFlow: reflow, then one step that goes where the straightened flow goes.

Liu et al. 2023, "InstaFlow: One Step is Enough for High-Quality Diffusion-Based Text-to-Image
Generation" (arXiv 2309.06380), in one run: the first stage is `reflow` on the teacher's paths;
then the straightened flow is frozen, and the student, which starts as it, takes fresh noise in one
step to where that flow's ODE ends. The paper's distance is LPIPS; here it is of latents.
"""

from __future__ import annotations

import copy

from pydantic import Field
from torch import nn

from edgedistill.distances import Distance, distance
from edgedistill.ema import follow
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup
from edgedistill.objectives.reflow import flow_loss
from edgedistill.sampling import init_scale, solve
from edgedistill.times import refine

__all__ = ["InstaFlow"]


class InstaFlow(Objective):
    """Straightens the teacher's flow, then learns its end points in one step."""

    class Config(Settings):
        """Hyperparameters."""

        reflow: float = Field(0.5, gt=0, lt=1)
        """Share of the run that straightens the flow."""
        reflow_distance: Distance = Distance()
        solver_steps: int = Field(25, ge=1)
        """Euler steps of the straightened flow to its end (the paper's pairs have 25)."""
        distance: Distance = Distance()
        """Of the one step from that end."""
        ema: float = Field(0.99, ge=0, lt=1)
        """Decay of the average of the student that is frozen as the straightened flow."""

    name = "instaflow"
    needs_paths = True

    def __init__(self, config: InstaFlow.Config, setup: Setup) -> None:
        if len(setup.times) != 2:
            raise ValueError(
                f"student.steps={len(setup.times) - 1}: instaflow's students take one step; "
                "choose student.steps=1, or objective.name=reflow for several"
            )
        self.config, self.times, self.optim = config, setup.times, setup.optim
        self.student = setup.student
        self.flow = copy.deepcopy(setup.student).requires_grad_(False)
        self.grid = refine(setup.student.schedule, setup.times, config.solver_steps)
        self.begin = max(1, round(config.reflow * setup.train_steps))
        self.straightening = True

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def followers(self) -> dict[str, nn.Module]:
        return {"flow": self.flow}

    def updated(self, player: str) -> None:
        if self.straightening:
            follow(self.flow, self.student, self.config.ema)

    def loss(self, player: str, batch: Batch) -> Losses:
        config, first = self.config, self.times[0]
        self.straightening = batch.step < self.begin
        if self.straightening:
            assert batch.path is not None
            kind = config.reflow_distance
            loss = flow_loss(self.student, kind, batch.path, first, batch)
            return Losses(loss, {"velocity": loss.detach()})
        if batch.step == self.begin:
            follow(self.student, self.flow, 0.0)
        noise = batch.noise()
        end = solve(self.flow, noise, self.grid, batch.cond, "euler")
        x_1 = noise * init_scale(self.student.schedule, first)
        ours = self.student(x_1, first.to(noise.device), batch.cond)
        loss = distance(config.distance, ours, end).mean()
        return Losses(loss, {"end": loss.detach()})
