"""A solver with a fitted coefficient for each step; no network is trained.

Kim et al. 2023, "Distilling ODE Solvers of Diffusion Models into Smaller Steps" (arXiv
2309.16421): a coefficient is added to each step of a solver, and found by least squares on one
batch so that the solver's next point is nearest to the teacher's after many steps. The paper's
coefficient multiplies the change of the network's output since the last step, which a row of the
step table does not keep. Here it multiplies the move of the DDIM step itself:

    y_s = y_t - stretch (tau_t - tau_s) v,  y = x / (alpha + sigma), v = eps - x0.

There is one stretch for each step; 1 is DDIM. No diffusers scheduler has such coefficients.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition, Denoiser
from edgedistill.diffusion.multistep import solver_table
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import ddim_step
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.diffusion.times import refine
from edgedistill.objectives.base import Batch, Settings, Setup
from edgedistill.objectives.solvers.oss import Search

__all__ = ["DODE", "best_stretches", "stretched"]


def resting(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """Return x_s / x_t for constant y: (alpha_s + sigma_s) / (alpha_t + sigma_t), float64."""
    now, then = (schedule.alpha(time) + schedule.sigma(time) for time in (t.double(), s.double()))
    return then / now


def stretched(schedule: Schedule, times: Tensor, stretches: Tensor) -> Tensor:
    """Return `solver_table`'s moves of steps that go `stretches` (steps,) times as far."""
    t, s = times[:-1].double(), times[1:].double()
    rest, ratio = resting(schedule, t, s), schedule.sigma(s) * (s > 0) / schedule.sigma(t)
    keep = schedule.alpha(s) - ratio * schedule.alpha(t)
    return torch.stack([rest + stretches * (ratio - rest), stretches * keep], dim=1)


@torch.no_grad()
def best_stretches(student: Denoiser, path: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """Return the stretch of each step that is nearest to the path, (steps,), float64.

    Each is fitted at the point that the steps before it reach.

    Args:
        student: Denoiser that takes the steps.
        path: Points of the teacher at `times`, (N, steps + 1, ...).
        times: Times that decrease to 0.
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
    """Fits stretches of DDIM's steps to the teacher's path."""

    class Config(Settings):
        """Hyperparameters of the fit."""

        scale: int = Field(10, ge=1, le=1_000)
        """Number of the teacher's DDIM steps for one of the student's."""

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
