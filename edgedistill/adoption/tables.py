"""Step tables of the samplers that published few-step students are made for.

A grid says at which times a student is called, a landing how one call ends on the next time:

    x_s = landing.x0 * x0 + landing.eps * eps + landing.noise * fresh noise

with x0 and eps linear in (x_t, output), so that every row of a table follows in float64. All is
written in the data the schedule describes, x_t = alpha x0 + sigma eps. diffusers' Euler classes
walk x_t / alpha in its place, which changes the first scale and nothing at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from edgedistill.diffusion.prediction import Linear2, Prediction, to_eps, to_x0
from edgedistill.diffusion.schedule import Discrete, Schedule
from edgedistill.diffusion.solvers import time_grid
from edgedistill.diffusion.step_table import Boundary, Step, StepTable

__all__ = [
    "Grid",
    "Landing",
    "Lands",
    "ancestral",
    "at_timesteps",
    "ddim",
    "flux_grid",
    "lcm_boundary",
    "lcm_grid",
    "renoise",
    "sd3_grid",
    "step_table",
    "tcd",
    "trailing_grid",
]

Grid = Callable[[Schedule, int, float], Tensor]
"""(schedule, steps, shift) -> decreasing times (steps,), float64. Only flows have a shift."""

ORIGINAL_STEPS = 50
"""Steps of the solver that LCM and TCD students were distilled from."""


SIGNAL = 1e-6
"""Least alpha at which x0 = (x_t - sigma eps) / alpha is more than rounding error."""


class Landing(NamedTuple):
    """Coefficients of x0, eps and fresh noise in x_s."""

    x0: Tensor
    eps: Tensor
    noise: Tensor


Lands = Callable[[Schedule, Tensor, Tensor, bool], Landing]
"""(schedule, t, s, whether this is the last step) -> Landing; s = 0 is clean data."""


# --- Grids --------------------------------------------------------------------------------------


def _steps_of(schedule: Schedule) -> int:
    assert isinstance(schedule, Discrete)
    return schedule.num_timesteps


def lcm_grid(schedule: Schedule, steps: int, shift: float) -> Tensor:
    """Evenly among the 50 original steps, floored: 999, 759, 499, 259 for four (LCM, TCD)."""
    n = _steps_of(schedule)
    index = torch.arange(steps) * ORIGINAL_STEPS // steps
    return (ORIGINAL_STEPS - index).double() * (n // ORIGINAL_STEPS) / n


def trailing_grid(schedule: Schedule, steps: int, shift: float) -> Tensor:
    """999, 749, 499, 249 for four."""
    return time_grid(schedule, steps)[:-1]


def at_timesteps(timesteps: Mapping[int, Sequence[int]]) -> Grid:
    """The trained timesteps 0 .. N-1 that a model card lists, by number of steps."""

    def grid(schedule: Schedule, steps: int, shift: float) -> Tensor:
        return (torch.tensor(timesteps[steps]).double() + 1) / _steps_of(schedule)

    return grid


def _shifted(t: Tensor, shift: float) -> Tensor:
    """Time shifted towards noise (SD3, Esser et al. 2024, arXiv 2403.03206, Eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def _time_at(schedule: Schedule, sigma: Tensor) -> Tensor:
    """Times at which a flow, itself shifted or not, has these noise levels in (0, 1]."""
    return schedule.time_of(2 * ((1 - sigma).log() - sigma.log()))


def flux_grid(schedule: Schedule, steps: int, shift: float) -> Tensor:
    """1 .. 1/steps, shifted, as diffusers' FluxPipeline asks for it."""
    even = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    return _time_at(schedule, _shifted(even, shift))


def sd3_grid(schedule: Schedule, steps: int, shift: float) -> Tensor:
    """FlowMatchEulerDiscreteScheduler's own: 1 .. the last trained time, shifted once more."""
    last = _shifted(torch.tensor(1e-3, dtype=torch.float64), shift).item()
    even = torch.linspace(1, last, steps, dtype=torch.float64)
    return _time_at(schedule, _shifted(even, shift))


# --- Landings -----------------------------------------------------------------------------------


def ddim(schedule: Schedule, t: Tensor, s: Tensor, last: bool) -> Landing:
    """alpha_s x0 + sigma_s eps: DDIM, Euler, flow Euler."""
    return Landing(schedule.alpha(s), schedule.sigma(s), torch.zeros_like(s))


def renoise(schedule: Schedule, t: Tensor, s: Tensor, last: bool) -> Landing:
    """alpha_s x0 + sigma_s noise: LCM (Luo et al. 2023, arXiv 2310.04378, Alg. 3), DMD2."""
    return Landing(schedule.alpha(s), torch.zeros_like(s), schedule.sigma(s))


def ancestral(schedule: Schedule, t: Tensor, s: Tensor, last: bool) -> Landing:
    """EulerAncestralDiscreteScheduler, whose sigma is our sigma / alpha: Turbo."""
    alpha = schedule.alpha(s)
    above, below = schedule.sigma(t) / schedule.alpha(t), schedule.sigma(s) / alpha
    down = below**2 / above
    return Landing(alpha, alpha * down, alpha * (below**2 - down**2).sqrt())


def tcd(gamma: float) -> Lands:
    """Strategic stochastic sampling (TCD, Zheng et al. 2024, arXiv 2402.19159, Alg. 4).

    Down to timestep floor((1 - gamma) s) by DDIM, up again to s with fresh noise. The last step
    ends on the first trained timestep, as TCDScheduler does.

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


def lcm_boundary(schedule: Schedule, scaling: float = 10.0, sigma_data: float = 0.5) -> Boundary:
    """(c_skip, c_out) of LCM at the network's time (Luo et al. 2023, App. C).

    Args:
        schedule: Of the student.
        scaling: Factor on the timestep.
        sigma_data: Standard deviation of the data.
    """

    def boundary(t: Tensor) -> tuple[Tensor, Tensor]:
        time = scaling * schedule.net_time(t).double()
        norm = time**2 + sigma_data**2
        return sigma_data**2 / norm, time / norm.sqrt()

    return boundary


# --- The table ----------------------------------------------------------------------------------


def step_table(
    schedule: Schedule,
    prediction: Prediction,
    times: Tensor,
    lands: Lands,
    *,
    end: float = 0.0,
    boundary: Boundary | None = None,
    scaled_start: bool = False,
) -> StepTable:
    """The table of a student called at `times`.

    Args:
        schedule: Of the student.
        prediction: What it predicts.
        times: (steps,), decreasing.
        lands: How a step ends on the next time.
        end: Where the last step ends: 0, or the first trained time where a scheduler stops there.
        boundary: The consistency boundary of LCM.
        scaled_start: Start from sigma noise in place of unit noise, as Euler's classes do.

    Raises:
        ValueError: If the noise alone is predicted at a time that holds nothing else.
    """
    if prediction is Prediction.EPS and schedule.alpha(times[0]) < SIGNAL:
        raise ValueError(
            "a student that predicts noise cannot start where there is no signal "
            "(zero terminal SNR); this schedule is not the one it was made for"
        )
    rows = []
    stops = torch.cat([times.double(), torch.tensor([end], dtype=torch.float64)])
    for index, (t, s) in enumerate(pairwise(stops)):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = to_x0(prediction, alpha, sigma)
        if boundary is not None:
            skip, out = boundary(t)
            x0 = Linear2(skip + out * x0.x, out * x0.y)
        eps = to_eps(prediction, alpha, sigma)
        landing = lands(schedule, t, s, index == len(times) - 1)
        a = landing.x0 * x0.x + landing.eps * eps.x
        b = landing.x0 * x0.y + landing.eps * eps.y
        numbers = [schedule.net_time(t), schedule.input_scale(t), a, b, landing.noise]
        rows.append(Step(*(float(number) for number in numbers)))
    return StepTable(tuple(rows), schedule.sigma(times[0]).item() if scaled_start else 1.0)
