"""Step tables of few-step students, from their times and the rule by which a step lands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from edgedistill.diffusion.prediction import Linear2, Prediction, to_eps, to_x0
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import init_scale
from edgedistill.diffusion.step_table import Step, TorchStepTable

__all__ = [
    "SAMPLERS",
    "SIGNAL",
    "Boundary",
    "Lander",
    "Landing",
    "ddim",
    "few_step_table",
    "landed_table",
    "renoise",
    "row_times",
]

Boundary = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Boundary condition t -> (c_skip, c_out); the consistency function is c_skip x_t + c_out x0."""


class Landing(NamedTuple):
    """End of a step: x_s = x0 * (estimated x0) + eps * (estimated eps) + noise * fresh noise.

    Each is a float64 scalar; `eps` is None where the estimate of eps is not used.
    """

    x0: Tensor
    eps: Tensor | None
    noise: Tensor


Lander = Callable[[Schedule, Tensor, Tensor, bool], Landing]
"""Function (schedule, t, s, whether this is the last step) -> Landing; s = 0 is clean data."""

SIGNAL = 1e-6
"""Smallest alpha at which x0 = (x_t - sigma eps) / alpha is more than rounding error."""


def renoise(schedule: Schedule, t: Tensor, s: Tensor, last: bool) -> Landing:
    """Land on x_s = alpha_s x0 + sigma_s noise: consistency models, LCM, DMD2, Turbo."""
    return Landing(schedule.alpha(s), None, schedule.sigma(s) * (s > 0))


def ddim(schedule: Schedule, t: Tensor, s: Tensor, last: bool) -> Landing:
    """Land on x_s = alpha_s x0 + sigma_s eps: DDIM, Euler, flow Euler."""
    sigma = schedule.sigma(s) * (s > 0)
    return Landing(schedule.alpha(s), sigma if sigma else None, torch.zeros_like(sigma))


SAMPLERS: dict[str, Lander] = {"renoise": renoise, "ddim": ddim}


def few_step_table(
    schedule: Schedule,
    prediction: Prediction,
    times: Tensor,
    sampler: str = "renoise",
    boundary: Boundary | None = None,
    sizes: Sequence[float] | None = None,
) -> TorchStepTable:
    """Make the step table of a student that visits `times` (decreasing, ending in 0).

    Args:
        schedule: Schedule of the student.
        prediction: Prediction of the student.
        times: Times (steps + 1,), as from `time_grid`.
        sampler: The rule by which a step lands on the next time; a key of `SAMPLERS`.
        boundary: The consistency boundary of students trained with one.
        sizes: Size of each step, where they are not all 1; only for the sampler renoise.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; choose from {', '.join(SAMPLERS)}")
    times = times.double().cpu()
    if times[-1] != 0 or not bool((times.diff() < 0).all()):
        raise ValueError(f"times must decrease and end in 0, got {times.tolist()}")
    rows = _rows(schedule, prediction, times, SAMPLERS[sampler], boundary)
    rows = [
        replace(row, size=size) for row, size in zip(rows, sizes or [1.0] * len(rows), strict=True)
    ]
    return TorchStepTable(tuple(rows), init_scale(schedule, times[0]))


def landed_table(
    schedule: Schedule,
    prediction: Prediction,
    times: Tensor,
    lander: Lander,
    *,
    end: float = 0.0,
    boundary: Boundary | None = None,
    scaled_start: bool = False,
) -> TorchStepTable:
    """Make the table of a student called at `times` whose steps end as a scheduler's do.

    Args:
        schedule: Schedule of the student.
        prediction: Prediction of the student.
        times: Decreasing times (steps,).
        lander: The rule by which a step lands on the next time.
        end: Time at which the last step ends: 0, or the first trained time where a scheduler stops
            there.
        boundary: The consistency boundary of LCM.
        scaled_start: Start from sigma noise in place of unit noise, as Euler's classes do.

    Raises:
        ValueError: If the network predicts eps at a time whose x_t is pure noise.
    """
    if prediction is Prediction.EPS and schedule.alpha(times[0]) < SIGNAL:
        raise ValueError(
            "a student that predicts noise cannot start where there is no signal "
            "(zero terminal SNR); this schedule is not the one it was made for"
        )
    stops = torch.cat([times.double(), torch.tensor([end], dtype=torch.float64)])
    rows = _rows(schedule, prediction, stops, lander, boundary)
    return TorchStepTable(tuple(rows), schedule.sigma(times[0]).item() if scaled_start else 1.0)


def row_times(table: TorchStepTable, schedule: Schedule) -> Tensor:
    """Return the start times of a table's rows, (rows,), from the times that the network reads."""
    net_times = torch.tensor([row.t for row in table.rows], dtype=torch.float64)
    return schedule.snap(schedule.time_of_net_time(net_times).clamp(0, 1))


def _rows(
    schedule: Schedule,
    prediction: Prediction,
    stops: Tensor,
    lander: Lander,
    boundary: Boundary | None,
) -> list[Step]:
    """Make a row from each stop (steps + 1,) to the next: x0 and eps are linear in (x_t, f)."""
    rows = []
    for index, (t, s) in enumerate(pairwise(stops)):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = to_x0(prediction, alpha, sigma)
        if boundary is not None:
            skip, out = boundary(t)
            x0 = Linear2(skip + out * x0.x, out * x0.y)
        landing = lander(schedule, t, s, index == len(stops) - 2)
        a, b = landing.x0 * x0.x, landing.x0 * x0.y
        if landing.eps is not None:
            eps = to_eps(prediction, alpha, sigma)
            a, b = a + landing.eps * eps.x, b + landing.eps * eps.y
        numbers = [schedule.net_time(t), schedule.input_scale(t), a, b, landing.noise]
        rows.append(Step(*(float(number) for number in numbers)))
    return rows
