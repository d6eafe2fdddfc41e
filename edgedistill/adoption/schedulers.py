"""The diffusers scheduler that a kind's authors recommend, checked against our step table."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from edgedistill.adoption.kinds import Kind
from edgedistill.diffusion.boundary import lcm_boundary
from edgedistill.diffusion.few_step import landed_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.teachers.schedulers import settings_of
from edgedistill.teachers.student_schedulers import walk

__all__ = [
    "TOLERANCE",
    "TimedProbe",
    "distance",
    "make_scheduler",
    "make_table",
    "plain",
    "prediction_of",
    "shift_of",
]

TOLERANCE = 1e-3
"""Largest distance between the table's latents and the scheduler's, relative to the largest."""

_NAMES = {Prediction.EPS: "epsilon", Prediction.X0: "sample"}


class TimedProbe(nn.Module):
    """A network that is nonlinear in x and depends on t in 0 .. 1000."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return f(x, t), shaped as x."""
        time = t.double().reshape(-1, *([1] * (x.ndim - 1))).to(x) / 1000
        return (x * (1 + time)).tanh() + 0.3 * time


def prediction_of(kind: Kind, steps: int) -> Prediction:
    """Return the prediction type of a student of this kind and number of steps."""
    if kind.flow:
        return Prediction.FLOW
    return kind.one_step if steps == 1 and kind.one_step else Prediction.EPS


def make_scheduler(kind: Kind, base: Any, steps: int) -> Any:
    """Make the recommended scheduler from the base's, as the model cards do."""
    choices = {"clip_sample": False, "thresholding": False, **kind.settings}
    prediction = prediction_of(kind, steps)
    if prediction in _NAMES:
        choices["prediction_type"] = _NAMES[prediction]
    return getattr(diffusers, kind.scheduler).from_config(settings_of(base), **choices)


def shift_of(config: Any, shape: tuple[int, ...]) -> float:
    """Return a flow scheduler's shift for latents (C, H, W); FLUX's grows with the picture."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", 1.0))
    tokens = shape[-2] * shape[-1] / 4  # FLUX packs 2 x 2 latents into a token.
    low, high = config.base_image_seq_len, config.max_image_seq_len
    slope = (config.max_shift - config.base_shift) / (high - low)
    return math.exp(config.base_shift + slope * (tokens - low))


def make_table(
    kind: Kind, scheduler: Any, schedule: Schedule, steps: int, shape: tuple[int, ...]
) -> TorchStepTable:
    """Build the kind's step table over a schedule; `scheduler` comes from `make_scheduler`."""
    config = scheduler.config
    first = 1 / config.num_train_timesteps
    ends = {
        "clean": 0.0,
        "first": first,
        "config": 0.0 if config.get("set_alpha_to_one", True) else first,
    }
    return landed_table(
        schedule,
        prediction_of(kind, steps),
        kind.grid(schedule, steps, shift_of(config, shape)),
        kind.lands,
        end=ends[kind.end],
        boundary=lcm_boundary(10.0, schedule=schedule) if kind.boundary else None,
        scaled_start=kind.scaled_start,
    )


def distance(kind: Kind, scheduler: Any, table: TorchStepTable, shape: tuple[int, ...]) -> float:
    """Sample the same noise by scheduler and table, and return the largest difference.

    It is relative to the largest latent.
    """
    noise = table.draw((4, 16), torch.Generator().manual_seed(0))
    ours = table.sample(TimedProbe(), noise, {})
    scheduler.set_timesteps(**_asked(kind, scheduler, table, shape))
    extra = {} if kind.eta is None else {"eta": kind.eta}
    x = walk(scheduler, TimedProbe(), (4, 16), extra)
    return float((x - ours).abs().max() / ours.abs().max())


def _asked(
    kind: Kind, scheduler: Any, table: TorchStepTable, shape: tuple[int, ...]
) -> dict[str, Any]:
    """Return the keyword arguments that the model card, or the pipeline, gives set_timesteps."""
    steps = len(table.rows)
    if kind.listed:
        return {"timesteps": [round(row.t) for row in table.rows]}
    if "flux" not in kind.families:
        return {"num_inference_steps": steps}
    sigmas = torch.linspace(1, 1 / steps, steps).tolist()
    return {"sigmas": sigmas, "mu": math.log(shift_of(scheduler.config, shape))}


def plain(kind: Kind, scheduler: Any, table: TorchStepTable) -> Any:
    """Return a scheduler that walks the table when given nothing but its number of steps.

    This is the recommended scheduler, except where its timesteps come with the call: then it is
    one that has them in its config. One step from any timestep is a DDIM step with leading
    spacing.
    """
    if not kind.listed:
        return scheduler
    if len(table.rows) > 1:
        every = scheduler.config.num_train_timesteps
        return type(scheduler).from_config(scheduler.config, original_inference_steps=every)
    choices = {"timestep_spacing": "leading", "steps_offset": round(table.rows[0].t)}
    return diffusers.DDIMScheduler.from_config(
        settings_of(scheduler), set_alpha_to_one=True, clip_sample=False, **choices
    )
