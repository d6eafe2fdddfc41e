"""The best step times for a given teacher, by dynamic programming; no network is trained.

Pei et al. 2025, "Optimal Stepsize for Diffusion Sampling" (arXiv 2503.21774): among all choices of
a few times of a many-step path, it finds the one whose steps end nearest to the path. The best
choice of k steps to a time extends the best choice of k - 1 steps to an earlier time, so every
pair of step and time needs one call of the network.

The student is the teacher's network with that step table, or the network of the student it starts
from, which may have the guidance in its weights. With discrete timesteps, the times are among
these, and diffusers uses them if its pipeline gets `timesteps`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition, Denoiser, Guided
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.solvers import ddim_step, init_scale
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.diffusion.times import refine
from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Player,
    Settings,
    Setup,
    check_deterministic,
)

__all__ = ["OSS", "Search", "best_times"]


@torch.no_grad()
def best_times(
    student: Denoiser, path: Tensor, grid: Tensor, steps: int, cond: Condition, kind: Distance
) -> list[int]:
    """Return indices into `grid`, with first and last, that `steps` DDIM steps should visit.

    Args:
        student: Denoiser that takes the steps.
        path: Points of the teacher at each time, (N, len(grid), ...).
        grid: Times that decrease to 0.
        steps: Number of steps, at most len(grid) - 1.
        cond: Condition of N rows.
        kind: Distance from the path, whose mean over N is minimised.
    """
    last, device = len(grid) - 1, path.device
    reached: dict[int, tuple[Tensor, list[int]]] = {0: (path[:, 0], [0])}
    for left in reversed(range(steps)):
        nearest: dict[int, float] = {}
        after: dict[int, tuple[Tensor, list[int]]] = {}
        for i, (x_t, way) in reached.items():
            t = grid[i].to(device)
            x0 = student(x_t, t, cond)
            for j in range(i + 1, last - left + 1) if left else [last]:
                x_s = ddim_step(student.schedule, x_t, x0, t, grid[j].to(device))
                cost = float(distance(kind, x_s, path[:, j]).mean())
                if j not in nearest or cost < nearest[j]:
                    nearest[j], after[j] = cost, (x_s, [*way, j])
        reached = after
    return reached[last][1]


class Search(Objective):
    """Base class of methods that fit a step table to the teacher's path and train nothing.

    Attributes:
        grid: Times of the path, decreasing to 0.
    """

    grid: Tensor
    searches = True

    def __init__(self, setup: Setup) -> None:
        check_deterministic(self.name, setup)
        if isinstance(setup.teacher, Guided) and setup.teacher.scale != 1 and setup.init is None:
            raise ValueError(
                f"teacher.guidance={setup.teacher.scale:g}: {self.name} trains no network that "
                "could take it in; choose teacher.guidance=1, or student.init=FOLDER of a student "
                "of method guidance"
            )
        self.setup, self.teacher, self.student = setup, setup.teacher, setup.student
        self.times = setup.times

    def players(self) -> list[Player]:
        never = self.setup.train_steps
        return [Player("student", self.student, self.setup.optim, start=never)]

    def loss(self, player: str, batch: Batch) -> Losses:
        raise AssertionError("its one player begins after the run")

    @torch.no_grad()
    def path(self, batch: Batch) -> Tensor:
        """Return the points of the teacher's DDIM steps along `grid`, (N, len(grid), ...)."""
        schedule, grid = self.teacher.schedule, self.grid.to(batch.x0.device)
        path = [batch.noise() * init_scale(schedule, self.grid[0])]
        for t, s in pairwise(grid):
            x0 = self.teacher(path[-1], t, batch.cond)
            path.append(ddim_step(schedule, path[-1], x0, t, s))
        return torch.stack(path, 1)


class OSS(Search):
    """Finds the best times for the teacher's network."""

    class Config(Settings):
        """Hyperparameters of the search."""

        search_steps: int = Field(50, ge=2, le=10_000)
        """Number of DDIM steps of the path, whose times are the candidates."""
        distance: Distance = Distance()

    name = "oss"

    def __init__(self, config: OSS.Config, setup: Setup) -> None:
        super().__init__(setup)
        self.config = config
        ends = setup.times[[0, -1]]
        self.grid = refine(setup.student.schedule, ends, config.search_steps)
        self.steps = len(setup.times) - 1
        if self.steps >= len(self.grid):
            raise ValueError(
                f"objective.search_steps={config.search_steps}: fewer times than student.steps="
                f"{self.steps}"
            )

    @torch.no_grad()
    def search(self, batch: Batch) -> None:
        there, kind = self.path(batch), self.config.distance
        places = best_times(self.student, there, self.grid, self.steps, batch.cond, kind)
        self.times = self.grid[places]

    def table(self) -> TorchStepTable:
        student = self.student
        return few_step_table(student.schedule, student.prediction, self.times, "ddim")
