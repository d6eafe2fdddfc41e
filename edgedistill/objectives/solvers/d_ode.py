"""A solver with a fitted coefficient for each step; no network is trained.

Kim et al. 2023, "Distilling ODE Solvers of Diffusion Models into Smaller Steps" (arXiv
2309.16421): to each step of a solver, here DDIM's, the change of its estimate d since the step
before is added,

    x_{i+1} = ddim(x_i, d_i) + lambda_i (d_i - d_{i-1}),

where d is x0, eps or another estimate that the network's output stands for. lambda_i is found by
least squares on one batch so that x_{i+1} is nearest to the teacher's point there after many
steps. The first step has no estimate before it, and is DDIM's. No diffusers scheduler has such
coefficients.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition, Denoiser
from edgedistill.diffusion.few_step import SIGNAL
from edgedistill.diffusion.multistep import solver_table, step_of
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import ddim_step
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.diffusion.times import refine
from edgedistill.objectives.base import Batch, Settings, Setup
from edgedistill.objectives.solvers.oss import Search

__all__ = ["DODE", "best_lambdas", "corrected"]


def corrected(schedule: Schedule, keeps: Prediction, times: Tensor, lambdas: Tensor) -> Tensor:
    """Return the pairs of DDIM's steps with `lambdas` (steps,), as `solver_table` takes them."""
    moves = torch.zeros(len(lambdas), 2, 2, dtype=torch.float64)
    for move, factor, (t, s) in zip(moves, lambdas, pairwise(times.double()), strict=True):
        p, q = step_of(schedule, keeps, t, s)
        move[0, 0], move[0, 1], move[1, 1] = p, q + factor, -factor
    return moves


def estimated(student: Denoiser, kind: Prediction, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Return the estimate of a kind that says the same as x0 at x_t."""
    if kind is Prediction.X0:
        return x0
    alpha, sigma = student.schedule.at(t, like=x_t)
    return kind.combine(x0, (x_t - alpha * x0) / sigma, alpha, sigma)


@torch.no_grad()
def best_lambdas(
    student: Denoiser, path: Tensor, times: Tensor, cond: Condition, keeps: Prediction
) -> Tensor:
    """Return lambda of each step, (steps,), float64; the first is 0.

    Each is fitted at the point that the steps before it reach.

    Args:
        student: Denoiser that takes the steps.
        path: Points of the teacher at `times`, (N, steps + 1, ...).
        times: Times that decrease to 0.
        cond: Condition of N rows.
        keeps: The estimate whose change is added.
    """
    x_t, before, found = path[:, 0], None, []
    for (t, s), wanted in zip(pairwise(times.to(path.device)), path[:, 1:].unbind(1), strict=True):
        x0 = student.x0_of(student.output(x_t, t, cond).to(x_t), x_t, t)
        now = estimated(student, keeps, x_t, x0, t)
        x_t = ddim_step(student.schedule, x_t, x0, t, s)
        change = now - (now if before is None else before)
        size = change.double().square().sum()
        factor = (change * (wanted - x_t)).double().sum() / size if size else size
        x_t = x_t + factor.to(x_t) * change
        before = now
        found.append(factor.cpu())
    return torch.stack(found)


class DODE(Search):
    """Fits the coefficients of DDIM's steps to the teacher's path."""

    class Config(Settings):
        """Hyperparameters of the fit."""

        scale: int = Field(10, ge=1, le=1_000)
        """Number of the teacher's DDIM steps for one of the student's."""
        estimate: Prediction | None = None
        """The estimate whose change is added; None is what the network predicts. eps needs a trace
        of signal in the first step's noise."""

    name = "d-ode"
    own_coefficients = True

    def __init__(self, config: DODE.Config, setup: Setup) -> None:
        super().__init__(setup)
        self.keeps = config.estimate or setup.student.prediction
        if setup.student.schedule.alpha(self.times[0]) < SIGNAL:
            if setup.student.prediction is Prediction.EPS:
                raise ValueError(
                    "d-ode: the network predicts eps, from which no x0 follows where there is no "
                    "signal (zero terminal SNR); choose student.spacing=leading, or a student of "
                    "another prediction in student.init"
                )
            if config.estimate is Prediction.EPS:
                raise ValueError(
                    "objective.estimate=eps: no x0 follows from noise where there is no signal "
                    "(zero terminal SNR); choose x0"
                )
        self.grid = refine(setup.student.schedule, setup.times, config.scale)
        self.lambdas = torch.zeros(len(setup.times) - 1, dtype=torch.float64)

    def search(self, batch: Batch) -> None:
        places = [int((self.grid - t).abs().argmin()) for t in self.times]
        path = self.path(batch)[:, places]
        self.lambdas = best_lambdas(self.student, path, self.times, batch.cond, self.keeps)

    def table(self) -> TorchStepTable:
        schedule, prediction = self.student.schedule, self.student.prediction
        times = self.times.cpu()
        moves = corrected(schedule, self.keeps, times, self.lambdas)
        return solver_table(schedule, prediction, times, moves, keeps=self.keeps)
