"""Boundary conditions: functions that are the identity at their target time by construction.

A consistency function leads from x_t to time 0: c_skip(t) x_t + c_out(t) x0, c_skip(0) = 1 and
c_out(0) = 0. A flow map leads to any s: the DDIM step from t to s with the network's x0, which is
x_t itself at s = t (`sampling.ddim_step`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.few_step import Boundary
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import ddim_step
from edgedistill.diffusion.tensors import expand_like

__all__ = [
    "boundary_of",
    "consistency_function",
    "flow_map",
    "lcm_boundary",
    "noise_boundary",
    "plain",
]


def lcm_boundary(
    scaling: float, sigma_data: float = 0.5, schedule: Schedule | None = None
) -> Boundary:
    """Return LCM's c_skip = s^2 / (T^2 + s^2) and c_out = T / sqrt(T^2 + s^2), T = scaling k.

    Luo et al. 2023 (arXiv 2310.04378), Sec. 3. A few timesteps above 0 the result is almost x0.

    Args:
        scaling: Factor on the timestep k.
        sigma_data: Standard deviation s of the data.
        schedule: Schedule whose network time is k, as in diffusers' LCMScheduler; without one k =
            1000 t.
    """

    def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
        if schedule is None:
            scaled = scaling * 1000 * t.double()
        else:
            scaled = scaling * schedule.net_time(t).double()
        total = scaled.square() + sigma_data**2
        return sigma_data**2 / total, scaled / total.sqrt()

    return boundary


def noise_boundary(schedule: Schedule, sigma_data: float = 0.5) -> Boundary:
    """Return c_skip = s^2 / (r^2 + s^2) / alpha, c_out = r^2 / (r^2 + s^2), r = sigma / alpha.

    This is for a network that predicts x0: where there is no noise, x_t / alpha replaces its
    prediction, weighted by the c_skip of the consistency models' network (Song et al. 2023, arXiv
    2303.01469, Eq. 5).
    """

    def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        # Both are multiplied by alpha^2, for schedules whose signal ends at 0.
        total = sigma.square() + (sigma_data * alpha).square()
        return alpha * sigma_data**2 / total, sigma.square() / total

    return boundary


def plain(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return c_skip = 0 and c_out = 1: x0 from v, eps or flow equals x_t where sigma is 0."""
    return torch.zeros_like(t, dtype=torch.float64), torch.ones_like(t, dtype=torch.float64)


def boundary_of(denoiser: Denoiser, sigma_data: float) -> Boundary:
    """Return the boundary that makes a denoiser's x0 a consistency function.

    `sigma_data` is the standard deviation of the data.
    """
    if denoiser.prediction is not Prediction.X0:
        return plain
    return noise_boundary(denoiser.schedule, sigma_data)


def consistency_function(boundary: Boundary, x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """Return the consistency function's value from a network's x0, (N, ...)."""
    skip, out = (expand_like(factor, x_t).to(x_t) for factor in boundary(t))
    value: Tensor = skip * x_t + out * x0
    return torch.where(expand_like(t == 0, x_t), x_t, value)


def flow_map(schedule: Schedule, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the flow map's value from a network's x0: the DDIM step, or x_t where s == t."""
    stays = t == s
    # Where s == t, take the step from time 1: from time 0 its gradient would be NaN.
    moved = ddim_step(schedule, x_t, x0, torch.where(stays, 1.0, t), s)
    return torch.where(expand_like(stays, x_t), x_t, moved)
