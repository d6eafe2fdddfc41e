"""Every role of a recipe on the meta device: the method itself says which networks it needs."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgedistill.common.files import read_json
from edgedistill.compress.pruned import Smaller, choose
from edgedistill.diffusion.denoiser import Denoiser, Guided, expand
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Linear
from edgedistill.diffusion.solvers import student_times
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.adapters import adapt
from edgedistill.networks.bf16 import lower, raised
from edgedistill.objectives.base import Batch, Objective
from edgedistill.planning.architectures import architecture, decoder, place
from edgedistill.planning.inputs import Inputs, Net, inputs_of
from edgedistill.planning.reward import PlannedReward, judge
from edgedistill.planning.tracker.live import Live
from edgedistill.recipes.schema import Recipe
from edgedistill.recipes.setup import build_setup, compose
from edgedistill.teachers import find_family

__all__ = ["SCHEDULE", "Cast", "cast"]

SCHEDULE = Linear()
"""In place of the teacher's own, on which no cost depends."""


@dataclass(frozen=True)
class Cast:
    """The networks of a run, without weights.

    Attributes:
        recipe: What they were made for.
        networks: The teacher's pipeline by name.
        core: Which of them is the denoiser.
        inputs: What it is called with.
        student: The student.
        small: Its diffusers model.
        objective: The method with its further roles.
        judge: What the recipe's reward says of x0; None if it names none.
        measured: Bytes that turns were found to need, by the choices that decide it.
    """

    recipe: Recipe
    networks: Mapping[str, nn.Module]
    core: str
    inputs: Inputs
    student: Denoiser
    small: nn.Module
    objective: Objective
    judge: PlannedReward | None = None
    measured: dict[tuple[object, ...], int] = field(default_factory=dict)

    def chosen(self, recipe: Recipe) -> Cast:
        """The same networks for a recipe of the same roles, the frozen ones kept as it says."""
        core = self.networks[self.core]
        if recipe.train.base == "bf16":
            lower(core)
        else:
            raised(core)
        if self.judge is not None:
            self.judge.offload = recipe.train.offload
        return replace(self, recipe=recipe)

    def batch(self, step: int) -> Batch:
        """A batch of the recipe's size for the turn at `step`."""
        count, generator = self.recipe.train.batch_size, torch.Generator().manual_seed(step)
        x0 = torch.empty(count, *self.inputs.sample, device="meta")
        path = None
        if self.recipe.method().needs_paths:
            path = x0[:, None].expand(-1, self.recipe.student.steps + 1, *x0.shape[1:])
        prompted = self.recipe.reward and self.inputs.cond
        prompts = [str(i) for i in range(count)] if prompted else []  # all of them different
        cond = expand(self.inputs.cond, count)
        return Batch(x0, cond, generator, generator, step, path, prompts)


def cast(recipe: Recipe) -> Cast:
    """Assemble a recipe's roles from configs alone, as a run does from weights.

    Raises:
        ValueError: If the teacher is no diffusers pipeline that is known here, or a choice needs
            weights to be planned; names the key.
    """
    if recipe.teacher.family == "mixture":
        raise ValueError(
            f"teacher.path={recipe.teacher.path}: a mixture is a closed form and its student a "
            "few MB; nothing to plan"
        )
    networks = architecture(place(recipe.teacher))
    if recipe.student.decoder:
        networks["vae"] = decoder(Path(recipe.student.decoder))
    core, inputs = inputs_of(networks)
    reward = judge(recipe, networks, inputs)
    own = Denoiser(Net(core, networks[core], inputs), SCHEDULE, Prediction.EPS)
    student, table = _spawn(recipe, own), None
    role = student.net
    if recipe.student.init:
        student.net, table = _init(Path(recipe.student.init), core, inputs)
    smaller = _smaller(recipe, student, core)
    small = student.net.get_submodule(core)  # before a method wraps what is around it
    row = inputs.cond
    guidance = recipe.teacher.guidance
    kind = find_family(recipe.teacher.family)
    setup = build_setup(
        recipe,
        kind,
        teacher=own if guidance == 1 else Guided(own, row, guidance),
        student=student,
        spawn=lambda: _again(recipe, own, role),
        times=student_times(
            SCHEDULE, recipe.student.steps, recipe.student.spacing, recipe.student.sampler
        ),
        example=(torch.empty(2, *inputs.sample, device="meta"), expand(row, 2)),
        init=table,
        core=core,
        smaller=smaller,
        autoencoder=networks.get("vae"),
        train_steps=recipe.method_steps,
        reward=reward,
    )
    with Live():  # which spares operators that are known
        objective = compose(recipe, setup, {})
    made = Cast(recipe, networks, core, inputs, student, small, objective, reward)
    return made.chosen(recipe)


def _spawn(recipe: Recipe, own: Denoiser) -> Denoiser:
    """A role that starts as the teacher."""
    if recipe.train.roles == "copies":
        return own.with_net(copy.deepcopy(own.net).requires_grad_(True))
    with torch.device("meta"):
        return own.with_net(adapt(own.net, recipe.train.adapter, recipe.train.seed))


def _again(recipe: Recipe, own: Denoiser, role: nn.Module) -> Denoiser:
    """A further such role; without weights a copy of `role` is as good as an adapter put in."""
    if recipe.train.roles == "copies":
        return _spawn(recipe, own)
    return own.with_net(copy.deepcopy(role))


def _init(folder: Path, core: str, inputs: Inputs) -> tuple[Net, TorchStepTable]:
    """The student at `folder` without its weights, and its step table."""
    if (folder / "student").is_dir():
        folder = folder / "student"
    table = TorchStepTable.from_json(read_json(folder / "student.json")["step_table"])
    networks = architecture(str(folder))
    if core not in networks:
        raise ValueError(f"student.init={folder}: no {core}, which the teacher has")
    net = Net(core, networks[core], inputs)
    net.requires_grad_(True)
    return net, table


def _smaller(recipe: Recipe, student: Denoiser, core: str) -> Smaller | None:
    section = recipe.compress
    if not section.active:
        return None

    def calls() -> Sequence[Mapping[str, Any]]:
        raise ValueError(
            f"compress.budget={section.budget}: which blocks go is measured on the weights, so "
            "only distill can say; to plan, name compress.preset or compress.remove"
        )

    smaller = choose(section, student.net.get_submodule(core), calls)
    student.net.set_submodule(core, smaller.net.requires_grad_(True))
    return smaller
