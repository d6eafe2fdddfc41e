"""Time and energy of a run, from its arithmetic and a device's speed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from edgedistill.common.plugins import unknown
from edgedistill.objectives.base import Player
from edgedistill.planning.costs import Costs
from edgedistill.planning.flops import counted
from edgedistill.planning.networks import PlannedNetworks, planned_networks
from edgedistill.planning.tracker.accelerator import LOW_PRECISION
from edgedistill.recipes.schema import Recipe

__all__ = [
    "GPUS",
    "LAUNCH",
    "UTILISATION",
    "Duration",
    "Gpu",
    "StepCost",
    "check_utilisation",
    "duration",
    "find_gpu",
    "step_cost",
]

UTILISATION = 0.3
"""Share of a GPU's peak that training reaches where nothing is known; large networks reach more,
small ones are bound by `LAUNCH`."""

LAUNCH = 10e-6
"""Seconds that PyTorch takes to start an operator; a step takes at least so long for each."""


@dataclass(frozen=True)
class Gpu:
    """Figures of a GPU as its vendor states them, without sparsity.

    Attributes:
        half: Peak of bf16 and fp16 matrix products with fp32 sums, TFLOP/s; of fp16 alone on
            GPUs that have no bf16 (T4, V100).
        single: Peak of fp32, TFLOP/s.
        watts: Power limit of the board, W.
    """

    half: float
    single: float
    watts: float


GPUS = {
    "B200": Gpu(2250, 75, 1000),
    "H200": Gpu(989, 67, 700),
    "H100": Gpu(989, 67, 700),
    "H100-PCIe": Gpu(756, 51, 350),
    "A100": Gpu(312, 19.5, 400),
    "L40S": Gpu(362, 91.6, 350),
    "L4": Gpu(121, 30.3, 72),
    "A10": Gpu(125, 31.2, 150),
    "V100": Gpu(125, 15.7, 300),
    "T4": Gpu(65, 8.1, 70),
    "RTX-5090": Gpu(209.5, 104.8, 575),
    "RTX-4090": Gpu(165.2, 82.6, 450),
    "RTX-3090": Gpu(71, 35.6, 350),
    "RTX-3060": Gpu(25.5, 12.7, 170),
}
"""GPUs by the names that --gpu takes."""


def find_gpu(name: str) -> tuple[str, Gpu]:
    """Return a GPU by its name in any case, or by the name that its driver gives.

    Raises:
        ValueError: If it is not in `GPUS`; names the choices.
    """
    words = _words(name)
    for key in sorted(GPUS, key=lambda key: -len(key)):
        if set(_words(key)) <= set(words):
            return key, GPUS[key]
    raise unknown("GPU", name, GPUS)


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", name.lower())


@dataclass(frozen=True)
class Duration:
    """Estimate of a run's time.

    Attributes:
        device: The device.
        source: Origin of the speed, for people.
        steps_per_second: Training steps a second.
        training_hours: Hours of all steps.
        samples_hours: Hours in which the teacher makes its samples.
        watts: Power of all devices, W; None if unknown.
    """

    device: str
    source: str
    steps_per_second: float
    training_hours: float
    samples_hours: float
    watts: float | None = None

    @property
    def hours(self) -> float:
        """Hours of the whole run."""
        return self.training_hours + self.samples_hours

    @property
    def kwh(self) -> float | None:
        """Energy if the devices take all their power the whole time, kWh; None if unknown."""
        return None if self.watts is None else self.watts * self.hours / 1000

    def to_json(self) -> dict[str, Any]:
        """Return the fields, "hours" and "kwh"."""
        return {**vars(self), "hours": self.hours, "kwh": self.kwh}


def check_utilisation(share: float) -> None:
    """Raise a ValueError if a share of a GPU's peak is not in (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"--utilisation {share:g}: a share above 0, at most 1, expected")


def duration(
    found: Costs, recipe: Recipe, name: str, utilisation: float = UTILISATION, processes: int = 1
) -> Duration:
    """Estimate the time of a run on a GPU.

    Args:
        found: Costs of the recipe.
        recipe: The recipe.
        name: A key of `GPUS`.
        utilisation: Share of the GPU's peak that is reached, in (0, 1].
        processes: Number of processes, one on each GPU, each with a batch of its own.

    Raises:
        ValueError: If the GPU is not in the table or the share is out of range.
    """
    check_utilisation(utilisation)
    key, gpu = find_gpu(name)
    half = recipe.train.precision != "fp32"
    peak = (gpu.half if half else gpu.single) * 1e12
    step = step_cost(recipe)
    computing, starting = step.flops / (utilisation * peak), step.operators * LAUNCH
    per_second = 1 / max(computing, starting)
    numbers = recipe.train.precision if half else "fp32"
    source = f"{utilisation:.0%} of {peak / 1e12:g} TFLOP/s ({numbers})"
    if starting > computing:
        source = f"{step.operators:,.0f} operators, {LAUNCH * 1e6:.0f} us each to start"
    return Duration(
        device=f"{processes} x {key}" if processes > 1 else key,
        source=f"{source}, an estimate",
        steps_per_second=per_second,
        training_hours=recipe.train.steps * found.students / per_second / 3600,
        samples_hours=found.flops["teacher_samples"] / (utilisation * peak) / 3600,
        watts=gpu.watts * processes,
    )


@dataclass(frozen=True)
class StepCost:
    """Work of a training step on one device, the mean over the players' turns.

    Attributes:
        flops: Floating-point operations of its passes.
        operators: Number of operators that are started.
    """

    flops: float
    operators: float


def step_cost(recipe: Recipe) -> StepCost:
    """Count the work of a training step on one device, the mean over the players' turns.

    A step is the forward and backward passes of every player that plays in it, on all its
    batches. Recomputed activations are a further forward pass.

    Raises:
        ValueError: If the recipe cannot be planned.
    """
    made, train = planned_networks(recipe), recipe.train
    flops = operators = 0.0
    for player in made.objective.players():
        turns = sum(player.plays(step) for step in range(train.steps))
        if turns:
            found = _turn(made, player)
            flops += turns / train.steps * found[0]
            operators += turns / train.steps * found[1]
    again = train.accumulate * (4 / 3 if train.checkpointing else 1)
    return StepCost(flops * again, operators * again)


def _turn(made: PlannedNetworks, player: Player) -> tuple[int, int]:
    """Count operations and operators of a player's update on one batch."""
    own = {id(p) for p in _trainable(player.net)}
    everything = [p for each in made.objective.players() for p in _trainable(each.net)]
    for parameter in everything:
        parameter.requires_grad_(id(parameter) in own)
    batch = made.batch(made.recipe.train.steps - 1)

    def run() -> None:
        made.objective.loss(player.name, batch).total.backward()

    try:
        return counted(run, LOW_PRECISION[made.recipe.train.precision])
    finally:
        for parameter in everything:
            parameter.grad = None
            parameter.requires_grad_(True)


def _trainable(net: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in net.parameters() if parameter.requires_grad)
