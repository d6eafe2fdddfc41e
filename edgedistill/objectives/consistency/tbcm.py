"""Continuous-time consistency on the teacher's own trajectories: no data.

Trajectory-backward consistency models (arXiv 2511.20410).
"""

from __future__ import annotations

import torch
from pydantic import Field

from edgedistill.diffusion.denoiser import cat, take
from edgedistill.diffusion.solvers import ddim_step, init_scale
from edgedistill.diffusion.times import sample_times
from edgedistill.objectives.base import Batch, Setup
from edgedistill.objectives.consistency.scm import SCM, Points

__all__ = ["TBCM"]


class TBCM(SCM):
    """sCD where x_t is met on the teacher's way from noise, and not made of data."""

    class Config(SCM.Config):
        """Hyperparameters."""

        solver_steps: int = Field(32, ge=2, le=10_000)
        """Random times at which a trajectory stops; each stop is a training point, and the
        trajectories are as many as give about the batch size."""

    name = "tbcm"

    def __init__(self, config: TBCM.Config, setup: Setup) -> None:
        super().__init__(config, setup)
        if config.path != "teacher":
            raise ValueError(f"path={config.path}: tbcm has no data; choose path=teacher")
        self.steps, self.start = config.solver_steps, setup.times[0]

    def points(self, batch: Batch) -> Points:
        schedule = self.student.schedule
        count = max(1, len(batch.x0) // self.steps)
        times = sample_times(self.config.times, schedule, self.steps, batch.generator)
        times = times.clamp(1e-4, float(self.start) - 1e-4).sort(descending=True).values
        cond, device = take(batch.cond, slice(count)), batch.x0.device
        x_t = init_scale(schedule, self.start) * batch.noise()[:count]
        t = self.start.to(device)
        x0 = self.teacher(x_t, t, cond)
        stops, clean, noise = [], [], []
        for s in times.to(device):
            x_t, t = ddim_step(schedule, x_t, x0, t, s), s
            x0 = self.teacher(x_t, t, cond)
            stops.append(x_t)
            clean.append(x0)
            noise.append((x_t - schedule.alpha(t).to(x_t) * x0) / schedule.sigma(t).to(x_t))
        return Points(
            torch.cat(stops),
            times.to(device).repeat_interleave(count),
            cat(*[cond] * self.steps),
            torch.cat(clean),
            torch.cat(noise),
        )
