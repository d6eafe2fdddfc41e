"""What a recipe asks of its teacher, checked before anything is trained."""

from __future__ import annotations

from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Discrete, Schedule
from edgedistill.networks.adapters import find_layers
from edgedistill.objectives.base import Objective
from edgedistill.objectives.conversion import student_prediction
from edgedistill.recipes.schema import Recipe
from edgedistill.teachers import Teacher

__all__ = [
    "check_adapters",
    "check_coefficients",
    "check_depths",
    "check_parts",
    "check_paths",
    "check_reward",
    "check_steps",
    "choose_prediction",
    "has_weights",
    "parameters",
    "unplayed",
]


def parameters(net: nn.Module) -> int:
    """Number of parameters (or of a closed form's numbers)."""
    return sum(p.numel() for p in net.parameters()) or sum(b.numel() for b in net.buffers())


def unplayed(objective: Objective, recipe: Recipe) -> list[str]:
    """A line for each player whose turns begin after the run; methods that only search have none.

    Short runs of long recipes end within what a method does before its own part.
    """
    if objective.searches:
        return []
    steps, first = recipe.train.steps, recipe.compress.first
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
    """Raise a ValueError for more steps than the method trains, or the teacher has timesteps."""
    steps = recipe.student.steps
    if recipe.method().single_step and steps > 1:
        name = recipe.objective["name"]
        raise ValueError(
            f"student.steps={steps}: {name}'s students take one step; choose student.steps=1"
        )
    if isinstance(schedule, Discrete) and steps > schedule.num_timesteps:
        raise ValueError(
            f"student.steps={steps}: the teacher has {schedule.num_timesteps} timesteps"
        )


def choose_prediction(recipe: Recipe, teacher: Denoiser, first: Tensor) -> Prediction:
    """What the student predicts.

    Args:
        recipe: Its choices.
        teacher: The unguided teacher.
        first: The student's first time, a scalar.

    Raises:
        ValueError: If the recipe asks for another prediction than the teacher's, and the student
            cannot learn it.
    """
    method, asked = recipe.method(), recipe.student.prediction
    reasons = {
        "student.init names a student with a prediction of its own": recipe.student.init,
        "adapters share the teacher's network": recipe.train.roles == "adapters",
        "a smaller student learns the teacher's own outputs": recipe.compress.active
        or recipe.compress.elastic,
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
    """Whether it is a network, not a closed form."""
    return any(True for _ in denoiser.parameters())


def check_paths(recipe: Recipe) -> None:
    """Raise a ValueError if stored paths are named that the run has no use for."""
    if recipe.data.paths is None:
        return
    if not recipe.method().needs_paths:
        name = recipe.objective["name"]
        raise ValueError(f"data.paths={recipe.data.paths}: method {name!r} needs no paths")
    if recipe.data.prompts is not None:
        raise ValueError("data.paths have their own prompts; leave data.prompts out")


def check_parts(recipe: Recipe) -> None:
    """Raise a ValueError if the recipe's students cannot be several."""
    if recipe.parts.count == 1:
        return
    count = f"parts.count={recipe.parts.count}"
    if recipe.compress.elastic:
        raise ValueError(
            f"{count}: compress.elastic makes one student of several depths; not both"
        )
    if recipe.data.paths is not None:
        raise ValueError(
            f"{count}: data.paths={recipe.data.paths} are of all conditions; leave them out, and "
            "each student's are made"
        )
    product = recipe.method().product
    if product != "student":
        name = recipe.objective["name"]
        raise ValueError(f"{count}: method {name!r} makes a {product}, which needs no conditions")


def check_depths(recipe: Recipe) -> None:
    """Raise a ValueError if the method has no place for several depths that take turns."""
    if recipe.compress.elastic and recipe.method().restarts:
        raise ValueError(
            f"compress.elastic: {recipe.objective['name']} sets the weights of the whole student "
            "between its stages, while its depths take turns; choose another method"
        )


def check_reward(recipe: Recipe) -> None:
    """Raise a ValueError if the recipe's reward and its other choices do not go together."""
    reward, train = recipe.reward, recipe.train
    if reward is None:
        return
    if recipe.method().needs_reward:
        for key in ("weight", "kind", "group", "start"):
            if getattr(reward, key) != type(reward).model_fields[key].default:
                raise ValueError(
                    f"reward.{key}: method {recipe.objective['name']!r} learns from the reward in "
                    "its own way; leave it out"
                )
    elif reward.kind == "black-box" and train.batch_size % reward.group:
        raise ValueError(
            f"train.batch_size={train.batch_size} is no multiple of reward.group={reward.group}"
        )
    elif reward.kind == "differentiable" and train.offload:
        raise ValueError(
            "train.offload takes the decoder away before the reward's gradient is known; choose "
            "reward.kind=black-box, or train.offload=false"
        )


def check_coefficients(recipe: Recipe, teacher: Teacher) -> None:
    """Raise a ValueError if the student's steps will be such that it could not be saved."""
    if recipe.method().own_coefficients and not teacher.any_table:
        raise ValueError(
            f"method {recipe.objective['name']!r}: no diffusers scheduler has coefficients of its "
            f"own, and students of family {teacher.family} bring one; choose method oss"
        )


def check_adapters(recipe: Recipe, teacher: Teacher) -> None:
    """Raise a ValueError if this teacher's roles cannot be adapters as the recipe asks."""
    if recipe.student.init is not None:
        raise ValueError(
            f"student.init={recipe.student.init}: with train.roles=adapters every role starts as "
            "the teacher; choose train.roles=copies"
        )
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
