"""Rectified flow on the teacher's pairs of noise and sample.

Liu et al. 2022, "Flow Straight and Fast" (arXiv 2209.03003): the velocity eps - x0 is regressed
along the straight line between the two ends of a path, whose flow then is straighter than the
teacher's; one reflow. Euler's method on it is the step table's DDIM.

A line is straight in x_t / (alpha + sigma) against u = sigma / (alpha + sigma), under any
schedule: it goes from x0 at u = 0 to eps at u = 1. So the student keeps the teacher's schedule,
prediction and time input, and learns the velocity in that straight time u. A teacher starts from
noise at its last time, where there may be signal left or the noise may be large; eps is chosen so
that the line passes through that start.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition, Denoiser
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.times import stratified
from edgedistill.objectives.base import Batch, Losses
from edgedistill.objectives.trajectory.kd import KD

__all__ = ["Reflow", "flow_loss", "straight_time", "velocity"]


def straight_time(schedule: Schedule, u: Tensor) -> Tensor:
    """Return the t at which sigma / (alpha + sigma) is u in (0, 1)."""
    return schedule.snap(schedule.time_of(2 * torch.log((1 - u) / u)).clamp(0, 1))


def velocity(student: Denoiser, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
    """Return the student's eps - x0 at x_t, (x_t - (alpha + sigma) x0) / sigma, (N, ...)."""
    alpha, sigma = student.schedule.at(t, like=x_t)
    x0 = student(x_t, t, cond)
    value: Tensor = (x_t - (alpha + sigma) * x0) / sigma
    return value


def flow_loss(
    student: Denoiser, kind: Distance, path: Tensor, first: Tensor, batch: Batch
) -> Tensor:
    """Return the mean distance of the student's velocities from those of straight lines.

    Args:
        student: Student with the velocities.
        kind: Distance of two velocities.
        path: Paths whose ends are the pairs, (N, K + 1, ...).
        first: Time of the paths' start.
        batch: Batch of the condition and randomness.
    """
    x_1, x0 = path[:, 0], path[:, -1]
    schedule = student.schedule
    alpha, sigma = (float(value) for value in (schedule.alpha(first), schedule.sigma(first)))
    eps = (x_1 - alpha * x0) / sigma
    u = stratified(len(x0), batch.generator, MARGIN, sigma / (alpha + sigma))
    t = straight_time(schedule, u).to(x0.device)
    x_t = student.noised(x0, t, eps)
    return distance(kind, velocity(student, x_t, t, batch.cond), eps - x0).mean()


MARGIN = 1e-3
"""Smallest u, since an x0-prediction has no velocity at 0."""


class Reflow(KD):
    """Trains the student's flow to follow straight lines between the ends of the teacher's paths.

    The paper's distance is l2, its times are uniform in u.
    """

    name = "reflow"

    def loss(self, player: str, batch: Batch) -> Losses:
        assert batch.path is not None
        first, kind = self.times[0], self.config.distance
        loss = flow_loss(self.student, kind, batch.path, first, batch)
        return Losses(loss, {"velocity": loss.detach()})
