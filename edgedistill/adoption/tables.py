"""Grids and landings of the samplers that published few-step students are made for.

A grid says at which times a student is called, a landing how one call ends on the next time
(`diffusion.few_step.Landing`). Everything is written in the schedule's own variables, x_t =
alpha x0 + sigma eps. diffusers' Euler classes walk x_t / alpha instead, which changes the first
scale but not the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from edgedistill.diffusion.few_step import Lander, Landing
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import Discrete
from edgedistill.diffusion.solvers import time_grid

__all__ = [
    "Grid",
    "ancestral",
    "at_timesteps",
    "flux_grid",
    "lcm_grid",
    "sd3_grid",
    "tcd",
    "trailing_grid",
]

Grid = Callable[[Schedule, int, float], Tensor]
"""(schedule, steps, shift) -> decreasing times (steps,), float64. Only flows have a shift."""

ORIGINAL_STEPS = 50
"""Steps of the solver that LCM and TCD students were distilled from."""


# --- Grids --------------------------------------------------------------------------------------


def _steps_of(schedule: Schedule) -> int:
    assert isinstance(schedule, Discrete)
    return schedule.num_timesteps


def lcm_grid(schedule: Schedule, steps: int, shift: float) -> Tensor:
    """Space times evenly among the 50 original steps, floored (LCM, TCD).

    Four steps are 999, 759, 499, 259.
    """
    n = _steps_of(schedule)
    index = torch.arange(steps) * ORIGINAL_STEPS // steps
    return (ORIGINAL_STEPS - index).double() * (n // ORIGINAL_STEPS) / n


def trailing_grid(schedule: Schedule, steps: int, shift: float) -> Tensor:
    """Take trailing timesteps: 999, 749, 499, 249 for four steps."""
    return time_grid(schedule, steps)[:-1]


def at_timesteps(timesteps: Mapping[int, Sequence[int]]) -> Grid:
    """Return a grid of the trained timesteps 0 .. N-1 that a model card lists by step count."""

    def grid(schedule: Schedule, steps: int, shift: float) -> Tensor:
        return (torch.tensor(timesteps[steps]).double() + 1) / _steps_of(schedule)

    return grid


def _shifted(t: Tensor, shift: float) -> Tensor:
    """Return time shifted towards noise (SD3, Esser et al. 2024, arXiv 2403.03206, Eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def _time_at(schedule: Schedule, sigma: Tensor) -> Tensor:
    """Return the times at which a flow, shifted or not, has these noise levels in (0, 1]."""
    return schedule.time_of(2 * ((1 - sigma).log() - sigma.log()))


def flux_grid(schedule: Schedule, steps: int, shift: float) -> Tensor:
    """Take the levels 1 .. 1/steps, shifted, as diffusers' FluxPipeline asks for them."""
    even = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    return _time_at(schedule, _shifted(even, shift))


def sd3_grid(schedule: Schedule, steps: int, shift: float) -> Tensor:
    """Take FlowMatchEulerDiscreteScheduler's times: 1 .. the last trained, shifted once more."""
    last = _shifted(torch.tensor(1e-3, dtype=torch.float64), shift).item()
    even = torch.linspace(1, last, steps, dtype=torch.float64)
    return _time_at(schedule, _shifted(even, shift))


# --- Landings -----------------------------------------------------------------------------------


def ancestral(schedule: Schedule, t: Tensor, s: Tensor, last: bool) -> Landing:
    """Land as EulerAncestralDiscreteScheduler does (Turbo); its sigma is our sigma / alpha."""
    alpha = schedule.alpha(s)
    above, below = schedule.sigma(t) / schedule.alpha(t), schedule.sigma(s) / alpha
    down = below**2 / above
    return Landing(alpha, alpha * down, alpha * (below**2 - down**2).sqrt())


def tcd(gamma: float) -> Lander:
    """Land by strategic stochastic sampling (TCD, Zheng et al. 2024, arXiv 2402.19159, Alg. 4).

    The step goes down to timestep floor((1 - gamma) s) by DDIM, then up again to s with fresh
    noise. The last step ends on the first trained timestep, as TCDScheduler does.

    Args:
        gamma: 0 is deterministic, 1 renoises fully; TCDScheduler calls it eta.
    """

    def lands(schedule: Schedule, t: Tensor, s: Tensor, last: bool) -> Landing:
        n = _steps_of(schedule)
        timestep = torch.floor((1 - gamma) * (s * n - 1).round())
        below = s if last else (timestep + 1) / n
        alpha, sigma = schedule.alpha(below), schedule.sigma(below)
        up = schedule.alpha(s) / alpha
        return Landing(up * alpha, up * sigma, (1 - up**2).clamp(min=0).sqrt())

    return lands
