"""Trajectory distillation at the student's own few times, on the student's own trajectory.

Zhou et al. 2024, "Simple and Fast Distillation of Diffusion Models" (arXiv 2409.19681): only the
times that sampling visits are trained, each against the teacher's trajectory from the same noise,
along a whole trajectory at every update. Here the teacher's points are stored paths, a step starts
where the student's last step landed, and only the student's number of steps is trained.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.solvers import ddim_step
from edgedistill.objectives.base import Batch, Losses
from edgedistill.objectives.trajectory.kd import KD

__all__ = ["SFD"]


class SFD(KD):
    """`kd` with steps that start at the student's own points, not at the teacher's."""

    class Config(KD.Config):
        """Hyperparameters (the paper's distance)."""

        distance: Distance = Distance(kind="l1")

    config: SFD.Config
    name = "sfd"

    def loss(self, player: str, batch: Batch) -> Losses:
        path = batch.path
        assert path is not None
        x_t, apart = path[:, 0], []
        for (t, s), x_s in zip(
            pairwise(self.times.to(path.device)), path[:, 1:].unbind(1), strict=True
        ):
            x0 = self.student(x_t, t, batch.cond)
            landing = ddim_step(self.student.schedule, x_t, x0, t, s)
            apart.append(distance(self.config.distance, landing, x_s).mean())
            x_t = landing.detach()
        loss = torch.stack(apart).mean()
        return Losses(loss, {"first": apart[0].detach(), "last": apart[-1].detach()})
