"""Knowledge distillation of the teacher's ODE on stored paths.

Luhman & Luhman 2021, "Knowledge Distillation in Iterative Generative Models for Improved Sampling
Speed" (arXiv 2101.02388): one step takes the noise to the end of the ODE, S(x_1) = ODE(x_1). With
several steps, each follows the path from one of the student's times to the next.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.solvers import ddim_step
from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Player,
    Settings,
    Setup,
    check_deterministic,
)
from edgedistill.objectives.trajectory.progressive import TeacherStep

__all__ = ["KD", "stored_step"]


def stored_step(batch: Batch, times: Tensor) -> TeacherStep:
    """Draw a random step along each of the batch's paths, between neighbours of `times`.

    Args:
        batch: Batch whose paths are (N, len(times), ...).
        times: Times of the student, descending.
    """
    path = batch.path
    assert path is not None
    rows = torch.arange(len(path))
    index = torch.randint(len(times) - 1, (len(path),), generator=batch.generator)
    t, s = (times[i].to(path.device) for i in (index, index + 1))
    return TeacherStep(path[rows, index], t, path[rows, index + 1], s)


class KD(Objective):
    """Trains the student's step from a point of a path to land on the path's next point."""

    class Config(Settings):
        """Hyperparameters (the paper's distance is l2)."""

        distance: Distance = Distance()

    name = "kd"
    needs_paths = True

    def __init__(self, config: KD.Config, setup: Setup) -> None:
        check_deterministic(self.name, setup)
        self.config, self.times, self.optim = config, setup.times, setup.optim
        self.student = setup.student

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def landing(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return where random steps of the student land, and where the paths go."""
        step = stored_step(batch, self.times)
        x0 = self.student(step.x_t, step.t, batch.cond)
        return ddim_step(self.student.schedule, step.x_t, x0, step.t, step.s), step.x_s

    def loss(self, player: str, batch: Batch) -> Losses:
        loss = distance(self.config.distance, *self.landing(batch)).mean()
        return Losses(loss, {"landing": loss.detach()})
