"""Training times: distributions of t, and the time s below it that a method aims at.

All times are float64 in [0, 1], larger is noisier; randomness comes from the caller's generator,
and tensors are on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from edgedistill.common.settings import Settings
from edgedistill.diffusion.schedule import Schedule

__all__ = [
    "TimeSampling",
    "above",
    "below",
    "neighbours",
    "refine",
    "sample_times",
    "segments",
    "stratified",
]


class TimeSampling(Settings):
    """A distribution of training times.

    `uniform`: stratified over [low, high). `logit-normal`: sigmoid(mean + std n), n standard
    normal, stretched to [low, high] (Esser et al. 2024, arXiv 2403.03206, Eq. 19). `log-normal`:
    sigma / alpha = exp(mean + std n), cut to [low, high] (Karras et al. 2022, arXiv 2206.00364,
    Table 1).
    """

    kind: Literal["uniform", "logit-normal", "log-normal"] = "uniform"
    low: float = Field(0.0, ge=0, le=1)
    """Least time."""
    high: float = Field(1.0, ge=0, le=1)
    """Largest time."""
    mean: float = 0.0
    """Mean of the normal number behind a time; unused if uniform."""
    std: float = Field(1.0, gt=0)
    """Standard deviation of that number; unused if uniform."""

    @model_validator(mode="after")
    def _ordered(self) -> TimeSampling:
        if self.low >= self.high:
            raise ValueError(f"low={self.low:g} must be below high={self.high:g}")
        return self


def _uniform(config: TimeSampling, schedule: Schedule, n: int, g: torch.Generator) -> Tensor:
    return stratified(n, g, config.low, config.high)


def _logit_normal(config: TimeSampling, schedule: Schedule, n: int, g: torch.Generator) -> Tensor:
    unit = (config.mean + config.std * _normal(n, g)).sigmoid()
    return config.low + (config.high - config.low) * unit


def _log_normal(config: TimeSampling, schedule: Schedule, n: int, g: torch.Generator) -> Tensor:
    log_ratio = config.mean + config.std * _normal(n, g)
    return schedule.time_of(-2 * log_ratio).clamp(config.low, config.high)


KINDS: dict[str, Callable[[TimeSampling, Schedule, int, torch.Generator], Tensor]] = {
    "uniform": _uniform,
    "logit-normal": _logit_normal,
    "log-normal": _log_normal,
}


def sample_times(
    config: TimeSampling, schedule: Schedule, count: int, generator: torch.Generator
) -> Tensor:
    """Draw `count` times as `config` says, (count,)."""
    return KINDS[config.kind](config, schedule, count, generator)


def stratified(
    count: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Draw uniform times in [low, high), one in each of `count` equal parts, in random order."""
    order = torch.randperm(count, generator=generator)
    jitter = torch.rand(count, generator=generator, dtype=torch.float64)
    return low + (high - low) * (order + jitter) / count


def _normal(count: int, generator: torch.Generator) -> Tensor:
    """Draw stratified standard normal numbers, in random order."""
    unit = stratified(count, generator).clamp(1e-6, 1 - 1e-6)
    return math.sqrt(2) * torch.erfinv(2 * unit - 1)


def _normal_cdf(config: TimeSampling, number: Tensor) -> Tensor:
    share: Tensor = torch.special.ndtr((number - config.mean) / config.std)
    return share


CDFS: dict[str, Callable[[TimeSampling, Schedule, Tensor], Tensor]] = {
    "uniform": lambda c, schedule, t: ((t - c.low) / (c.high - c.low)).clamp(0, 1),
    "logit-normal": lambda c, schedule, t: _normal_cdf(
        c, ((t - c.low) / (c.high - c.low)).clamp(0, 1).logit()
    ),
    "log-normal": lambda c, schedule, t: torch.where(
        t < c.high, _normal_cdf(c, -0.5 * schedule.log_snr(t)) * (t >= c.low), 1.0
    ),
}


def interval_masses(config: TimeSampling, schedule: Schedule, grid: Tensor) -> Tensor:
    """Return the probability of each interval of a decreasing grid of N + 1 times, (N,).

    For log-normal times this is the discrete distribution of Song & Dhariwal 2023 (arXiv
    2310.14189, Table 1).
    """
    return -CDFS[config.kind](config, schedule, grid).diff()


def neighbours(
    grid: Tensor,
    count: int,
    generator: torch.Generator,
    skip: int = 1,
    masses: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw random times of a decreasing grid, without its last, and the time `skip` places down.

    Args:
        grid: Decreasing times (N + 1,).
        count: Number of pairs to draw.
        generator: CPU randomness.
        skip: Number of places from t to s.
        masses: Unnormalised probability of each of the N times; uniform by default.

    Returns:
        (t, s), each (count,); s is the grid's last time where fewer places are left.
    """
    if masses is None:
        index = torch.randint(len(grid) - 1, (count,), generator=generator)
    else:
        index = torch.multinomial(masses, count, replacement=True, generator=generator)
    return grid[index], grid[(index + skip).clamp(max=len(grid) - 1)]


def segments(times: Tensor, count: int) -> Tensor:
    """Return decreasing edges (count + 1,): every (steps / count)-th of a student's times.

    Raises:
        ValueError: Unless `count` divides the steps.
    """
    steps = len(times) - 1
    if count < 1 or steps % count:
        choices = ", ".join(str(n) for n in range(1, steps + 1) if steps % n == 0)
        raise ValueError(f"{count} segments do not divide {steps} steps; choose from {choices}")
    return times[:: steps // count]


def refine(schedule: Schedule, times: Tensor, parts: int) -> Tensor:
    """Cut each interval of decreasing `times` into `parts` equal ones.

    The new times are the nearest ones that the network was trained at; where these lie too far
    apart, there are fewer parts.
    """
    fractions = torch.arange(parts, dtype=torch.float64) / parts
    inner = torch.lerp(times[:-1, None], times[1:, None], fractions)
    grid: Tensor = torch.unique_consecutive(
        torch.cat([schedule.snap(inner.flatten()), times[-1:]])
    )
    return grid


def with_edges(grid: Tensor, edges: Tensor) -> Tensor:
    """Merge the times of both, strictly decreasing; a time that rounds to an edge is the edge."""
    apart = (grid.reshape(-1, 1) - edges).abs().amin(1) > 1e-6
    both: Tensor = torch.unique(torch.cat([grid[apart], edges]))
    return both.flip(0)


def doubling(step: int, steps: int, first: int, last: int) -> int:
    """Return `first`, doubled at equal stages of a run of `steps` until it is `last`.

    This is N(k) - 1 of Song & Dhariwal 2023 (arXiv 2310.14189, Table 1) at k = step.
    """
    stages = math.ceil(math.log2(last / first)) + 1
    doublings = step // max(1, steps // stages)
    return min(first << doublings, last)


def below(edges: Tensor, t: Tensor) -> Tensor:
    """Return the largest of decreasing `edges` strictly below each t, (N,), or 0 without one."""
    lower = edges < t.reshape(-1, 1)
    return torch.where(lower, edges, torch.zeros_like(edges)).amax(1)


def above(edges: Tensor, t: Tensor) -> Tensor:
    """Return the smallest of `edges` strictly above each t, (N,), or 1 without one."""
    higher = edges > t.reshape(-1, 1)
    return torch.where(higher, edges, torch.ones_like(edges)).amin(1)
