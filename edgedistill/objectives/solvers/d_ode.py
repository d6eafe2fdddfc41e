"""A solver with a coefficient of its own for each step, fitted to many steps; nothing is trained.

Kim et al. 2023, "Distilling ODE Solvers of Diffusion Models into Smaller Steps"
(arXiv 2309.16421): a number a step is added to a solver, and found by least squares on one
batch so that the solver's next point is nearest to where the teacher is after many steps. Theirs
multiplies the change of the network's output since the step before, which a row of the step table
does not know. Here it multiplies what a row does know, the move of the DDIM step itself:

    y_s = y_t - stretch (tau_t - tau_s) v,  y = x / (alpha + sigma), v = eps - x0.

One for each step, 1 being DDIM. No diffusers scheduler has such coefficients.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition, Denoiser
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import ddim_step
from edgedistill.diffusion.step_table import TorchStepTable, solver_table
from edgedistill.diffusion.times import refine
from edgedistill.objectives.base import Batch, Settings, Setup
from edgedistill.objectives.solvers.oss import Search

__all__ = ["DODE", "best_stretches", "stretched"]


def resting(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """x_s / x_t where y stands still: (alpha_s + sigma_s) / (alpha_t + sigma_t), float64."""
    now, then = (schedule.alpha(time) + schedule.sigma(time) for time in (t.double(), s.double()))
    return then / now


def stretched(schedule: Schedule, times: Tensor, stretches: Tensor) -> Tensor:
    """`sampling.solver_table`'s moves of steps that go `stretches` (steps,) times as far."""
    t, s = times[:-1].double(), times[1:].double()
    rest, ratio = resting(schedule, t, s), schedule.sigma(s) * (s > 0) / schedule.sigma(t)
    keep = schedule.alpha(s) - ratio * schedule.alpha(t)
    return torch.stack([rest + stretches * (ratio - rest), stretches * keep], dim=1)


@torch.no_grad()
def best_stretches(student: Denoiser, path: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """The stretch of each step that takes the student nearest to the path, (steps,), float64.

    Each is fitted where the steps before it have led.

    Args:
        student: Takes the steps.
        path: Where the teacher is at each of `times`, (N, steps + 1, ...).
        times: Decreasing to 0.
        cond: Condition of N rows.
    """
    schedule, x_t, found = student.schedule, path[:, 0], []
    for (t, s), wanted in zip(pairwise(times.to(path.device)), path[:, 1:].unbind(1), strict=True):
        rest = resting(schedule, t, s).to(x_t) * x_t
        move = ddim_step(schedule, x_t, student(x_t, t, cond), t, s) - rest
        stretch = (move * (wanted - rest)).double().sum() / move.double().square().sum()
        x_t = rest + stretch.to(move) * move
        found.append(stretch.cpu())
    return torch.stack(found)


class DODE(Search):
    """The teacher's network with DDIM's steps stretched."""

    class Config(Settings):
        """Hyperparameters."""

        scale: int = Field(10, ge=1, le=1_000)
        """The teacher takes so many DDIM steps for one of the student's."""

    name = "d-ode"
    own_coefficients = True

    def __init__(self, config: DODE.Config, setup: Setup) -> None:
        super().__init__(setup)
        self.grid = refine(setup.student.schedule, setup.times, config.scale)
        self.stretches = torch.ones(len(setup.times) - 1, dtype=torch.float64)

    def search(self, batch: Batch) -> None:
        places = [int((self.grid - t).abs().argmin()) for t in self.times]
        path = self.path(batch)[:, places]
        self.stretches = best_stretches(self.student, path, self.times, batch.cond)

    def table(self) -> TorchStepTable:
        schedule = self.student.schedule
        moves = stretched(schedule, self.times, self.stretches)
        return solver_table(schedule, self.student.prediction, self.times, moves)
