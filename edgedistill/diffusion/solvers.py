"""Time grids, and solvers of the teacher's probability-flow ODE.

Solvers are functions of (denoise, x, times, cond), where `denoise(x_t, t, cond)` returns x0 and
`times` decreases from the noisiest time to 0. Coefficients are float64, data keeps its dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from edgedistill.diffusion.denoiser import Condition, Denoise
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import Discrete
from edgedistill.diffusion.tensors import expand_like

__all__ = [
    "SOLVERS",
    "SPACINGS",
    "Denoise",
    "TimeGrid",
    "ddim_step",
    "init_scale",
    "one_step_x0",
    "solve",
    "student_times",
    "time_grid",
]


# --- Time grids ---------------------------------------------------------------------------------


def _trailing(n: int, steps: int) -> Tensor:
    return n - torch.arange(steps, dtype=torch.float64) * (n / steps)


def _leading(n: int, steps: int) -> Tensor:
    return torch.arange(steps, dtype=torch.float64).flip(0) * (n // steps) + 1


def _linspace(n: int, steps: int) -> Tensor:
    return torch.linspace(n - 1, 0, steps, dtype=torch.float64).round() + 1


SPACINGS: dict[str, Callable[[int, int], Tensor]] = {
    "trailing": _trailing,
    "leading": _leading,
    "linspace": _linspace,
}
"""Spacings of N steps among the timesteps 1 .. n (Lin et al. 2023, arXiv 2305.08891, Table 2)."""


def time_grid(schedule: Schedule, steps: int, spacing: str = "trailing") -> Tensor:
    """Return decreasing times (steps + 1,), float64, from the noisiest step to 0.

    Raises:
        ValueError: If `steps` is below 1 or `spacing` is not in `SPACINGS`.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}; choose from {', '.join(SPACINGS)}")
    if isinstance(schedule, Discrete):
        n = schedule.num_timesteps
        # Round before the division, so that halves go to even, as in diffusers.
        times = SPACINGS[spacing](n, steps).round() / n
    else:
        times = SPACINGS[spacing](1000, steps) / 1000
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def student_times(schedule: Schedule, steps: int, spacing: str, sampler: str) -> Tensor:
    """Return the `time_grid` of a few-step student.

    With `renoise` and trailing spacing, discrete times round up as in diffusers' LCMScheduler, so
    that this scheduler walks the student's steps, whatever their number.
    """
    times = time_grid(schedule, steps, spacing)
    if sampler == "renoise" and spacing == "trailing" and isinstance(schedule, Discrete):
        n = schedule.num_timesteps
        times[:-1] = (n - torch.arange(steps) * n // steps).double() / n
    return times


@dataclass(frozen=True)
class TimeGrid:
    """The call and landing times of a teacher's sampler.

    A step usually lands where the next one starts. diffusers' DDIM does not when its number of
    timesteps is no multiple of the number of steps, or with linspace spacing.

    Attributes:
        starts: Decreasing times of the calls, (steps,), float64.
        ends: Times of the landings, (steps,), float64; 0 is clean data.
        init_scale: Standard deviation of x at the first start.
        net_times: Times that the network reads at the starts, (steps,), where they differ from the
            schedule's, as with timesteps that a scheduler rounds.
    """

    starts: Tensor
    ends: Tensor
    init_scale: float = 1.0
    net_times: Tensor | None = None

    @classmethod
    def of(cls, schedule: Schedule, times: Tensor) -> TimeGrid:
        """Make the grid of steps from each of `times` (steps + 1,) to the next."""
        return cls(times[:-1], times[1:], init_scale(schedule, times[0]))

    @property
    def times(self) -> Tensor:
        """The starts and the last end, (steps + 1,)."""
        return torch.cat([self.starts, self.ends[-1:]])


# --- Solvers of the probability-flow ODE --------------------------------------------------------


def ddim_step(schedule: Schedule, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Take the step x_s = alpha_s x0 + sigma_s eps, with eps from (x_t, x0).

    This is DDIM's step (Song et al. 2021, Eq. 12).

    Args:
        schedule: Gives alpha and sigma.
        x_t: Noisy data (N, ...).
        x0: Estimate of the clean data.
        t: Times of x_t, (N,) or a scalar, with sigma(t) > 0.
        s: Times to land on.
    """
    t, s = expand_like(t.double(), x_t), expand_like(s.double(), x_t)
    ratio = schedule.sigma(s) / schedule.sigma(t)
    keep = schedule.alpha(s) - ratio * schedule.alpha(t)
    return ratio.to(x_t) * x_t + keep.to(x_t) * x0


def one_step_x0(schedule: Schedule, x_t: Tensor, x_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return the x0 with which one DDIM step from x_t at t lands on x_s at s < t, (N, ...)."""
    t, s = expand_like(t.double(), x_t), expand_like(s.double(), x_t)
    ratio = schedule.sigma(s) / schedule.sigma(t)
    keep = schedule.alpha(s) - ratio * schedule.alpha(t)
    return (x_s - ratio.to(x_t) * x_t) / keep.to(x_t)


def _ddim(denoise: Denoise, x: Tensor, times: Tensor, cond: Condition) -> Tensor:
    for t, s in pairwise(times):
        x = _ddim_call(denoise, x, t, s, cond)
    return x


def _ddim_call(
    denoise: Denoise,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    cond: Condition,
    net_time: Tensor | None = None,
) -> Tensor:
    """Make one call and its DDIM step, which keeps the network's eps beside a bounded x0."""
    schedule, bound = denoise.schedule, denoise.bound
    if bound is None or not bound.keeps_eps:
        return ddim_step(schedule, x, denoise(x, t, cond, net_time), t, s)
    x0, eps = denoise.x0_and_eps(x, t, cond, net_time)
    return schedule.alpha(s).to(x) * x0 + schedule.sigma(s).to(x) * eps


MAX_HEUN_RATIO = 1e3
"""Ratio sigma / alpha above which Heun's correction is rounding error; a first-order step is taken
there."""


def _heun(denoise: Denoise, x: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """Solve by Heun's method, in x / alpha against sigma / alpha.

    This is Alg. 1 of Karras et al. 2022 (arXiv 2206.00364).
    """
    schedule = denoise.schedule
    for t, s in pairwise(times):
        alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
        alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
        x0 = denoise(x, t, cond)
        x_s = ddim_step(schedule, x, x0, t, s)
        if s > 0 and sigma_t < MAX_HEUN_RATIO * alpha_t:
            eps_t = (x - alpha_t.to(x) * x0) / sigma_t.to(x)
            eps_s = (x_s - alpha_s.to(x) * denoise(x_s, s, cond)) / sigma_s.to(x)
            slope = sigma_s - sigma_t * alpha_s / alpha_t
            x_s = x_s + (0.5 * slope).to(x) * (eps_s - eps_t)
        x = x_s
    return x


def _dpmpp_2m(denoise: Denoise, x: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """Solve by DPM-Solver++(2M), of first order at both ends.

    Lu et al. 2022 (arXiv 2211.01095), Alg. 2.
    """
    schedule = denoise.schedule
    previous: tuple[Tensor, float] | None = None
    for t, s in pairwise(times):
        x0 = denoise(x, t, cond)
        step = 0.5 * (schedule.log_snr(s) - schedule.log_snr(t)).item()
        estimate = x0
        if previous is not None and s > 0:
            last_x0, last_step = previous
            estimate = x0 + 0.5 * (step / last_step) * (x0 - last_x0)
        # alpha_s (1 - exp(-h)) and sigma_s / sigma_t are exactly the DDIM coefficients.
        x = ddim_step(schedule, x, estimate, t, s)
        previous = (x0, step)
    return x


SOLVERS: dict[str, Callable[[Denoise, Tensor, Tensor, Condition], Tensor]] = {
    "ddim": _ddim,
    # Euler in x / alpha against sigma / alpha is DDIM (Song et al. 2021, Eq. 14), and so is Euler
    # in t on a rectified flow.
    "euler": _ddim,
    "heun": _heun,
    "dpm++2m": _dpmpp_2m,
}


FIRST_ORDER = ("ddim", "euler")
"""Solvers whose steps need not start at the end of the previous one."""


@torch.no_grad()
def solve(
    denoise: Denoise,
    noise: Tensor,
    times: Tensor | TimeGrid,
    cond: Condition,
    solver: str = "ddim",
) -> Tensor:
    """Follow the teacher's ODE from standard normal noise to x0.

    Args:
        denoise: The teacher.
        noise: Standard normal, (N, ...).
        times: Decreasing times (steps + 1,) that end in 0, or a teacher's own grid, whose last
            step gives x0 itself where it lands on 0.
        cond: Condition of N rows.
        solver: A key of `SOLVERS`.

    Returns:
        x0 (N, ...).

    Raises:
        ValueError: If `solver` is not in `SOLVERS`.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; choose from {', '.join(SOLVERS)}")
    if isinstance(times, Tensor):
        x = noise * init_scale(denoise.schedule, times[0])
        return SOLVERS[solver](denoise, x, times.to(noise.device), cond)
    x, grid = noise * times.init_scale, times
    starts, ends = grid.starts.to(noise.device), grid.ends.to(noise.device)
    if solver not in FIRST_ORDER:
        return SOLVERS[solver](denoise, x, torch.cat([starts, ends[-1:]]), cond)
    net_times = [None] * len(starts) if grid.net_times is None else list(grid.net_times)
    for t, s, time in zip(starts, ends, net_times, strict=True):
        x = _ddim_call(denoise, x, t, s, cond, time) if s > 0 else denoise(x, t, cond, time)
    return x


def init_scale(schedule: Schedule, t: Tensor) -> float:
    """Return the standard deviation of x at the first time t: sigma(t), but at least 1."""
    return max(1.0, schedule.sigma(t).item())
