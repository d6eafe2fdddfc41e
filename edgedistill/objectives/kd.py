"""Knowledge distillation of the teacher's ODE on stored paths.

Luhman & Luhman 2021, "Knowledge Distillation in Iterative Generative Models for Improved Sampling
Speed" (arXiv 2101.02388): one step takes the noise to where the ODE ends, S(x_1) = ODE(x_1). With
several steps each takes the path from one of the student's times to the next.
"""

from __future__ import annotations

import torch

from edgedistill.distances import Distance, distance
from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Player,
    Settings,
    Setup,
    check_deterministic,
)
from edgedistill.sampling import ddim_step

__all__ = ["KD"]


class KD(Objective):
    """The student's step from a point of a path lands on the path's next point."""

    class Config(Settings):
        """Hyperparameters; the paper's distance is l2."""

        distance: Distance = Distance()

    name = "kd"
    needs_paths = True

    def __init__(self, config: KD.Config, setup: Setup) -> None:
        check_deterministic(self.name, setup)
        self.config, self.times, self.optim = config, setup.times, setup.optim
        self.student = setup.student

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.optim)]

    def loss(self, player: str, batch: Batch) -> Losses:
        path = batch.path
        assert path is not None
        rows = torch.arange(len(path))
        index = torch.randint(len(self.times) - 1, (len(path),), generator=batch.generator)
        t, s = (self.times[i].to(path.device) for i in (index, index + 1))
        x_t, x_s = path[rows, index], path[rows, index + 1]
        x0 = self.student(x_t, t, batch.cond)
        landing = ddim_step(self.student.schedule, x_t, x0, t, s)
        loss = distance(self.config.distance, landing, x_s).mean()
        return Losses(loss, {"landing": loss.detach()})
