"""Measure a recipe's training speed on this machine by a few of its steps."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from edgedistill.common.logs import dropped
from edgedistill.common.progress import bar
from edgedistill.planning.time import Duration, find_gpu
from edgedistill.recipes.schema import Recipe
from edgedistill.runs.run import Run

__all__ = ["SECONDS", "measure"]

SECONDS = 20.0
"""Seconds after which no further step is measured."""

WARM = 2
"""Number of steps that are not counted, out of those of a run with more than twice as many."""


class _EnoughError(Exception):
    """Raised to leave a run whose speed is known."""


def measure(recipe: Recipe, seconds: float = SECONDS) -> Duration:
    """Run a recipe's first steps in a folder that is removed, and time them.

    The teacher is opened as for training, but it makes a batch of samples only, whose time is not
    counted.

    Args:
        recipe: The recipe.
        seconds: Seconds after which no further step begins.

    Raises:
        ValueError: If the recipe cannot be run.
    """
    times: list[float] = []

    def follow(step: int, figures: dict[str, float] | None) -> None:
        times.append(time.perf_counter())
        meter.update(step)
        if times[-1] - times[0] > seconds:
            raise _EnoughError

    steps = recipe.train.steps
    with TemporaryDirectory() as folder, bar("measure", steps, brief=True) as meter, dropped():
        run = Run(_short(recipe), Path(folder))
        times.append(time.perf_counter())
        with suppress(_EnoughError):
            run.train(follow)
        device = _device(run)
        del run
    rate = _rate(times)
    without = ", without train.compile" if recipe.train.compile else ""
    return Duration(
        device=device,
        source=f"{len(times) - 1} steps measured here{without}",
        steps_per_second=rate,
        training_hours=recipe.train.steps * len(recipe.parts.trained) / rate / 3600,
        samples_hours=0.0,
        watts=_watts(device),
    )


def _short(recipe: Recipe) -> Recipe:
    """Return the recipe with few samples, without checkpoints and pictures, and not compiled.

    Compiling alone may take longer than all steps that are measured.
    """
    rare = dict.fromkeys(("checkpoint_every", "log_every"), 10**9)
    train = recipe.train.model_copy(update={"sample_every": 0, "compile": False, **rare})
    least = min(recipe.data.samples, recipe.train.batch_size)
    data = recipe.data.model_copy(update={"samples": least})
    parts = type(recipe.parts)()
    return recipe.model_copy(update={"train": train, "data": data, "parts": parts})


def _rate(times: list[float]) -> float:
    """Return steps a second from the begin and the end of each step."""
    first = WARM if len(times) > 2 * WARM + 1 else 0
    return (len(times) - 1 - first) / max(times[-1] - times[first], 1e-9)


def _device(run: Run) -> str:
    device = run.trainer.accelerator.device
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else "mps"


def _watts(device: str) -> float | None:
    """Return the power limit of a known GPU; None of any other device."""
    try:
        return find_gpu(device)[1].watts
    except ValueError:
        return None
