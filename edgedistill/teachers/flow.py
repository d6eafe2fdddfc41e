"""Conversion between diffusers' FlowMatchEulerDiscreteScheduler and our schedules and tables.

A shift as a function of the picture's tokens is that of Esser et al. 2024 (arXiv 2403.03206), Sec.
5.3.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler

from edgedistill.common.files import read_json
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import Rectified, schedule_from_json
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.teachers.schedulers import (
    FLOWS,
    check_flow_prediction,
    check_kind,
    setting,
)

__all__ = ["euler", "flow_schedule", "flow_schedulers", "shift_asked"]

SHIFTS: dict[str, Callable[[float], float]] = {"exponential": math.exp, "linear": float}
"""Functions from a pipeline's number mu of the picture's size to the shift, by diffusers'
names."""


def flow_schedule(scheduler: Any, tokens: int, path: str) -> Schedule:
    """Return a flow scheduler's schedule for pictures of `tokens` tokens; `path` is for messages.

    This is not used for students: their folders hold the schedule, and their scheduler is made for
    their steps only.

    DPM-Solver++ and UniPC with `use_flow_sigmas` also walk a flow, as released with SANA and Wan.

    Raises:
        ValueError: If the scheduler walks no flow.
    """
    student = Path(path) / "student.json"
    if student.is_file():
        return schedule_from_json(read_json(student)["schedule"])
    check_kind(scheduler, path, (FLOWS,))
    config, solves = scheduler.config, bool(setting(scheduler, "use_flow_sigmas"))
    if solves:
        check_flow_prediction(scheduler, path)
    if not setting(scheduler, "use_dynamic_shifting"):
        return Rectified(config.num_train_timesteps, config.flow_shift if solves else config.shift)
    (low, least), (high, most) = (
        (config.get(key, default), config.get(shift, value))
        for key, default, shift, value in SHIFTED_BY
    )
    mu = least + (most - least) / (high - low) * (tokens - low)
    return Rectified(config.num_train_timesteps, SHIFTS[config.time_shift_type](mu))


SHIFTED_BY = (
    ("base_image_seq_len", 256, "base_shift", 0.5),
    ("max_image_seq_len", 4096, "max_shift", 1.15),
)
"""Config keys and the pipelines' defaults of two token counts and the shifts there."""


def shift_asked(scheduler: Any, schedule: Schedule) -> dict[str, float]:
    """Return {"mu": ...} where pipelines shift a scheduler by the picture's size, else {}."""
    if not scheduler.config.get("use_dynamic_shifting"):
        return {}
    assert isinstance(schedule, Rectified)
    linear = scheduler.config.get("time_shift_type") == "linear"
    return {"mu": schedule.shift if linear else math.log(schedule.shift)}


def euler(num_timesteps: int, table: TorchStepTable, **choices: Any) -> Any:
    """Make the scheduler that lands as the table does, deterministic or renoising."""
    renoises = any(row.c for row in table.rows)
    return FlowMatchEulerDiscreteScheduler(num_timesteps, stochastic_sampling=renoises, **choices)


def flow_schedulers(num_timesteps: int, table: TorchStepTable) -> Iterator[Any]:
    """Yield schedulers that walk a table when given nothing but its number of steps.

    In this case diffusers' last step is at its least timestep, where the picture is nearly done. A
    student has other steps. They result from `shift_terminal`, which scales 1 - sigma so that the
    last sigma is right, and from the shift that makes the second sigma right. Any shifted trailing
    steps are met exactly, as a shift and this scaling are both Moebius maps.
    """
    sigmas = [row.t / num_timesteps for row in table.rows]
    if len(sigmas) == 1:
        yield euler(num_timesteps, table)
        return
    shift = _shift(sigmas, 1 / num_timesteps) if len(sigmas) > 2 else 1.0
    if shift is not None:
        yield euler(num_timesteps, table, shift=shift, shift_terminal=sigmas[-1])


def _shift(sigmas: list[float], least: float) -> float | None:
    """Return the shift p that puts the second sigma in its place; None if there is none.

    Equal steps from 1 to p least / (1 + (p - 1) least), which is diffusers' least sigma, are
    shifted by p and then scaled. With r = (1 - second) / (1 - last), p is a root of
    least (1 - r (n - 1)) p^2 - (1 - least) r (n - 2) p + (1 - least) (1 - r) = 0.
    """
    n, r = len(sigmas), (1 - sigmas[1]) / (1 - sigmas[-1])
    a, b, c = least * (1 - r * (n - 1)), (1 - least) * r * (n - 2), (1 - least) * (1 - r)
    discriminant = b * b - 4 * a * c
    # The root that stays finite as `least` vanishes.
    return 2 * c / (b + math.sqrt(discriminant)) if discriminant >= 0 and c > 0 else None
