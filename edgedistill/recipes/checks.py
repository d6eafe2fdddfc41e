"""Checks of a recipe against its teacher, before anything is trained."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from edgedistill.common.settings import Settings
from edgedistill.compress.token_stride import check_stride, stride_of
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.distances import Distance
from edgedistill.diffusion.few_step import SIGNAL
from edgedistill.diffusion.perceptual import trained
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import Discrete
from edgedistill.networks.adapters import find_layers
from edgedistill.objectives.base import Objective
from edgedistill.objectives.conversion import student_prediction
from edgedistill.recipes.schema import INCEPTION, Recipe
from edgedistill.teachers import Teacher
from edgedistill_runtime.hub import hub_name

__all__ = [
    "check_adapters",
    "check_attention",
    "check_features",
    "check_steps",
    "choose_prediction",
    "has_weights",
    "parameters",
    "unplayed",
]


log = logging.getLogger(__name__)


def parameters(net: nn.Module) -> int:
    """Count the parameters of a network (or the numbers of a closed form)."""
    return sum(p.numel() for p in net.parameters()) or sum(b.numel() for b in net.buffers())


def unplayed(objective: Objective, recipe: Recipe) -> list[str]:
    """Return a line for each player whose turns begin after the run's end.

    Such players never train: short runs of long recipes end before the method's own part. Methods
    that only search have no such lines.
    """
    if objective.searches:
        return []
    steps, first = recipe.train.steps, recipe.compress.first_steps
    if first >= steps:
        name = recipe.objective["name"]
        return [f"compress.first={first} leaves none of train.steps={steps} to {name}"]
    starts = {p.name: p.start + -(p.start + 1) % p.every for p in objective.players()}
    return [
        f"the turns of {name} begin at step {step}, and the run ends at {steps}"
        for name, step in starts.items()
        if step >= steps
    ]


def check_steps(recipe: Recipe, schedule: Schedule) -> None:
    """Raise a ValueError for more steps than the teacher has timesteps."""
    steps = recipe.student.steps
    if isinstance(schedule, Discrete) and steps > schedule.num_timesteps:
        raise ValueError(
            f"student.steps={steps}: the teacher has {schedule.num_timesteps} timesteps"
        )


def choose_prediction(recipe: Recipe, teacher: Denoiser, first: Tensor) -> Prediction:
    """Choose the student's prediction type.

    Args:
        recipe: The recipe.
        teacher: The unguided teacher.
        first: The student's first time, a scalar.

    Raises:
        ValueError: If the recipe asks for another prediction than the teacher's, and the student
            cannot learn it, or if a teacher of noise says nothing of x0 at the student's first
            time.
    """
    if teacher.prediction is Prediction.EPS and teacher.schedule.alpha(first.double()) < SIGNAL:
        raise ValueError(
            f"{recipe.teacher.path}: its network predicts noise, and the student's first step has "
            "no signal (zero terminal SNR), from which no x0 follows; choose student.spacing="
            "leading, or set rescale_betas_zero_snr=false in scheduler_config.json"
        )
    method, asked, section = recipe.method(), recipe.student.prediction, recipe.compress
    reasons = {
        "student.init names a student with a prediction of its own": recipe.student.init,
        "adapters share the teacher's network": recipe.train.roles == "adapters",
        "a smaller student learns the teacher's own outputs": section.active
        or section.elastic
        or section.first_steps
        or section.joint_weight,
        f"method {recipe.objective['name']!r} trains no weights of a student": method.searches
        or method.own_coefficients
        or method.product != "student",
        f"the teacher is a {teacher.prediction.value}-predictor, which says enough everywhere": (
            teacher.prediction in (Prediction.V, Prediction.FLOW)
        ),
    }
    kept = next((reason for reason, holds in reasons.items() if holds), None)
    if asked is None:
        return teacher.prediction if kept else student_prediction(teacher, first)
    if Prediction(asked) is not teacher.prediction and kept:
        raise ValueError(f"student.prediction={asked}: {kept}; leave it out")
    return Prediction(asked)


def has_weights(denoiser: Denoiser) -> bool:
    """Whether the denoiser is a network, not a closed form."""
    return any(True for _ in denoiser.parameters())


def check_adapters(recipe: Recipe, teacher: Teacher) -> None:
    """Raise a ValueError if the teacher's roles cannot be adapters although the recipe asks so."""
    if has_weights(teacher.denoiser):
        find_layers(teacher.denoiser.net, recipe.train.adapter.layers)
        return
    try:
        find_layers(teacher.spawn().net, recipe.train.adapter.layers)
    except ValueError as error:
        raise ValueError(
            f"train.roles=adapters: teacher {teacher.name!r} is a closed form, which has no "
            "network to share; for adapters on the network fitted to it, name its layers in "
            f"train.adapter.layers: {error}"
        ) from None


def check_attention(recipe: Recipe, core: nn.Module) -> None:
    """Raise a ValueError if the recipe's stride does not fit the network that it is for.

    Args:
        recipe: The recipe.
        core: The diffusers network of the teacher, or of the student in `student.init`.
    """
    given = recipe.compress.token_stride
    if given is None:
        return
    if recipe.method().learns_from_start and recipe.student.init and stride_of(core) is None:
        raise ValueError(
            f"compress.attention_stride={given.stride}: method {recipe.objective['name']!r} "
            "learns from the student in student.init, which has not learned this stride; distil "
            "it with the stride first, then name that student in student.init and leave the key "
            "out"
        )
    check_stride(core, given)


def check_features(recipe: Recipe, shape: Sequence[int]) -> None:
    """Look for the files of features that the recipe names.

    Training cannot do without those of its distances. A line tells of those of evaluation, which
    may lie on another machine.

    Args:
        recipe: The recipe.
        shape: Shape of one x0.

    Raises:
        ValueError: If the trained features of a distance are missing, are no such file, or are of
            other latents than x0.
    """
    for key, found in _distances(recipe.method_config(), "objective"):
        if found.kind == "latent-lpips":
            _check_trained(key, found.network, shape)
    named = recipe.evaluate.features
    if named is None or named in ("pixels", "teacher"):
        return
    file = Path(named.removeprefix(INCEPTION))
    if not file.exists() and (named.startswith(INCEPTION) or hub_name(named) is None):
        log.info(f"evaluate.features={named}: {file} is not there, and evaluate will need it")


def _check_trained(key: str, network: str, shape: Sequence[int]) -> None:
    x0 = torch.zeros(1, *shape)
    try:
        features = trained(network, x0)
    except ValueError as error:
        raise ValueError(f"{key}.network: {error}") from None
    if x0.ndim == 4:
        features(x0)


def _distances(section: Settings, key: str) -> Iterator[tuple[str, Distance]]:
    """Yield the distances among a method's settings with their keys."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Distance):
            yield f"{key}.{name}", value
        elif isinstance(value, Settings):
            yield from _distances(value, f"{key}.{name}")
