"""Rules on combinations of a recipe's settings, independent of the teacher.

They are checked when a recipe is read, so `distill` and `plan` refuse the same recipes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgedistill.teachers import find_family

if TYPE_CHECKING:
    from edgedistill.recipes.schema import Recipe

__all__ = ["RULES"]


def check_single_step(recipe: Recipe) -> None:
    """Raise a ValueError for more steps than the method trains."""
    steps = recipe.student.steps
    if recipe.method().single_step and steps > 1:
        name = recipe.objective["name"]
        raise ValueError(
            f"student.steps={steps}: {name}'s students take one step; choose student.steps=1"
        )


def check_roles(recipe: Recipe) -> None:
    """Raise a ValueError if roles are the teacher's adapters but the student differs from it."""
    if recipe.train.roles != "adapters":
        return
    if recipe.student.init is not None:
        raise ValueError(
            f"student.init={recipe.student.init}: with train.roles=adapters every role starts as "
            "the teacher; choose train.roles=copies"
        )
    if recipe.compress.active or recipe.compress.elastic:
        raise ValueError(
            "compress: a smaller student has no base to share; choose train.roles=copies"
        )
    if recipe.compress.token_stride:
        raise ValueError(
            f"compress.attention_stride={recipe.compress.attention_stride}: a LoRA of the teacher "
            "cannot say it; choose train.roles=copies"
        )


def check_stride(recipe: Recipe) -> None:
    """Raise a ValueError for a stride of attention in a family whose networks can have none."""
    family, stride = recipe.teacher.family, recipe.compress.attention_stride
    if stride > 1 and not find_family(family).strides:
        raise ValueError(
            f"compress.attention_stride={stride}: self-attention of {family} networks can have no "
            "stride; that of stable_diffusion and sdxl can"
        )


def check_paths(recipe: Recipe) -> None:
    """Raise a ValueError for paths that no method needs, or data where paths are needed."""
    needed, name = recipe.method().needs_paths, recipe.objective["name"]
    if needed and recipe.data.pictures is not None:
        raise ValueError(
            f"data.pictures={recipe.data.pictures}: method {name!r} needs paths instead: paths "
            "begin with noise and take captions alone; name them with data.prompts"
        )
    if recipe.data.paths is None:
        return
    if not needed:
        raise ValueError(f"data.paths={recipe.data.paths}: method {name!r} needs no paths")
    if recipe.data.prompts is not None:
        raise ValueError("data.paths have their own prompts; leave data.prompts out")


def check_parts(recipe: Recipe) -> None:
    """Raise a ValueError if the recipe cannot train several students."""
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
    """Raise a ValueError if the method cannot train several depths in turns."""
    if recipe.compress.elastic and recipe.method().restarts:
        raise ValueError(
            f"compress.elastic: {recipe.objective['name']} sets the weights of the whole student "
            "between its stages, while its depths take turns; choose another method"
        )


def check_reward(recipe: Recipe) -> None:
    """Raise a ValueError if the recipe's reward does not fit its other settings."""
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


def check_coefficients(recipe: Recipe) -> None:
    """Raise a ValueError if a student with these steps could not be saved."""
    family = recipe.teacher.family
    if recipe.method().own_coefficients and not find_family(family).any_table:
        raise ValueError(
            f"method {recipe.objective['name']!r}: no diffusers scheduler has coefficients of its "
            f"own, and students of family {family} bring one; choose method oss"
        )


def check_compile(recipe: Recipe) -> None:
    """Raise a ValueError if the method calls no networks that train.compile could compile."""
    if recipe.train.compile and not recipe.method().compiles:
        raise ValueError(
            f"train.compile: method {recipe.objective['name']!r} calls networks in ways that "
            "torch.compile does not compile; choose train.compile=false"
        )


def check_reuse(recipe: Recipe) -> None:
    """Raise a ValueError if steps are to reuse deep blocks and cannot, or none is for a method."""
    reuse, name = recipe.student.reuse, recipe.objective["name"]
    said = f"student.reuse={list(reuse)}"
    if not recipe.method().reuses:
        if recipe.student.reuse_layers is not None:
            said = f"student.reuse_layers={recipe.student.reuse_layers}"
        if reuse or recipe.student.reuse_layers is not None:
            raise ValueError(
                f"{said}: method {name!r} runs all blocks in every step; choose objective.name="
                "step-cache, with student.init"
            )
        return
    if not find_family(recipe.teacher.family).reuses:
        raise ValueError(
            f"{said}: students of family {recipe.teacher.family} have no deep blocks to reuse; "
            "those of stable_diffusion, sdxl and unet2d have"
        )
    steps = recipe.student.steps
    if not reuse or min(reuse) < 1 or max(reuse) >= steps or len({*reuse}) < len(reuse):
        if steps == 1:
            raise ValueError(
                f"{said}: a student of one step has no step before to reuse; choose student.steps="
                "2 or more"
            )
        valid = "step 1" if steps == 2 else f"one or more of the steps 1 to {steps - 1}, each once"
        raise ValueError(
            f"{said}: with student.steps={steps}, method {name!r} needs {valid}; step 0 has none "
            "before it"
        )
    section = recipe.compress
    if section.active or section.elastic or section.token_stride:
        raise ValueError(
            f"{said}: compress changes the blocks; make the student smaller in a run before"
        )


def check_start(recipe: Recipe) -> None:
    """Raise a ValueError if the method would learn from a student made smaller just now."""
    if recipe.method().learns_from_start and recipe.compress.active:
        raise ValueError(
            f"compress: method {recipe.objective['name']!r} learns from the student that the run "
            "starts from, and a smaller one has learned nothing yet; make it smaller in a run "
            "before, and name that run in student.init"
        )


RULES: tuple[Callable[[Recipe], None], ...] = (
    check_single_step,
    check_stride,
    check_paths,
    check_roles,
    check_parts,
    check_depths,
    check_reward,
    check_coefficients,
    check_compile,
    check_reuse,
    check_start,
)
