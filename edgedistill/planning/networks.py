"""Every role of a recipe on the meta device, built by the method itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgedistill.common.files import read_json
from edgedistill.compress.config import Compress
from edgedistill.compress.pruned import Pruned, choose
from edgedistill.compress.token_stride import stride_attention
from edgedistill.diffusion.denoiser import Denoiser, Guided, expand
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import Linear
from edgedistill.diffusion.solvers import student_times
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.adapters import adapt
from edgedistill.networks.bf16 import to_bf16, to_fp32
from edgedistill.objectives.base import Batch, Objective
from edgedistill.planning.architectures import architecture, decoder, find, place
from edgedistill.planning.inputs import Inputs, Net, inputs_of
from edgedistill.planning.reward import PlannedReward, planned_reward
from edgedistill.planning.tiny import tiny_inputs, with_tiny
from edgedistill.planning.tracker.live import Live
from edgedistill.recipes.checks import check_attention
from edgedistill.recipes.schema import Recipe
from edgedistill.recipes.setup import build_setup, compose
from edgedistill.teachers import find_family
from edgedistill.teachers.loading import check_weights
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.teachers.pipeline_files import check_class

__all__ = ["SCHEDULE", "PlannedNetworks", "planned_networks"]

SCHEDULE = Linear()
"""Schedule used in place of the teacher's own, since no cost depends on it."""


@dataclass(frozen=True)
class PlannedNetworks:
    """The networks of a run, without weights.

    Attributes:
        recipe: Recipe that the networks were made for.
        networks: Networks of the teacher's pipeline by name.
        core: Name of the denoiser among them.
        inputs: Inputs of the denoiser.
        student: The student.
        small: The student's diffusers model.
        objective: The method with its further roles.
        reward: The recipe's reward of x0; None if it names none.
        measured: Measured bytes of the turns, by the choices that decide them.
    """

    recipe: Recipe
    networks: Mapping[str, nn.Module]
    core: str
    inputs: Inputs
    student: Denoiser
    small: nn.Module
    objective: Objective
    reward: PlannedReward | None = None
    measured: dict[tuple[object, ...], int] = field(default_factory=dict)

    def chosen(self, recipe: Recipe) -> PlannedNetworks:
        """Return the networks for a recipe of the same roles; base weights as it asks."""
        core = self.networks[self.core]
        if recipe.train.base == "bf16":
            to_bf16(core)
        else:
            to_fp32(core)
        if self.reward is not None:
            self.reward.offload = recipe.train.offload
        return replace(self, recipe=recipe)

    def batch(self, step: int) -> Batch:
        """Make a batch of the recipe's size for the update at `step`."""
        count, generator = self.recipe.train.batch_size, torch.Generator().manual_seed(step)
        x0 = torch.empty(count, *self.inputs.sample, device="meta")
        path = None
        if self.recipe.method().needs_paths:
            path = x0[:, None].expand(-1, self.recipe.student.steps + 1, *x0.shape[1:])
        prompted = self.recipe.reward and self.inputs.cond
        prompts = [str(i) for i in range(count)] if prompted else []  # all of them different
        cond = expand(self.inputs.cond, count)
        return Batch(x0, cond, generator, generator, step, path, prompts)


def planned_networks(recipe: Recipe) -> PlannedNetworks:
    """Assemble a recipe's roles from configs alone, as a run does from weights.

    Raises:
        ValueError: If the teacher's diffusers pipeline is not known here, or a choice cannot be
            planned without weights; names the key.
    """
    if recipe.teacher.family == "mixture":
        raise ValueError(
            f"teacher.path={recipe.teacher.path}: a mixture is a closed form and its student a "
            "few MB; nothing to plan"
        )
    recipe = with_tiny(recipe)
    guidance, kind = recipe.teacher.guidance, find_family(recipe.teacher.family)
    kind.check_guidance(guidance, Path(recipe.teacher.path).name)
    where = place(recipe.teacher)
    if issubclass(kind, PipelineTeacher):
        folder = find(where)
        check_class(kind, str(read_json(folder / "model_index.json")["_class_name"]), where)
        check_weights(folder, kind.unused)
    networks = architecture(where)
    if recipe.student.decoder:
        networks["vae"] = decoder(Path(recipe.student.decoder))
    core, inputs = inputs_of(networks)
    inputs = tiny_inputs(recipe) or inputs
    reward = planned_reward(recipe, networks, inputs)
    own = Denoiser(Net(core, networks[core], inputs), SCHEDULE, Prediction.EPS)
    student, table = _spawn(recipe, own), None
    role = student.net
    if recipe.student.init:
        student.net, table = _student("student.init", Path(recipe.student.init), core, inputs)
    pruned = _pruned(recipe, student, core)
    small = student.net.get_submodule(core)  # before a method wraps the network
    row = inputs.cond
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
        pruned=pruned,
        autoencoder=networks.get("vae"),
        train_steps=recipe.method_steps,
        reward=reward,
        knowledge=_knowledge(recipe, own, core, inputs),
    )
    with Live():  # reuses results of known operators
        objective = compose(recipe, setup, {})
    made = PlannedNetworks(recipe, networks, core, inputs, student, small, objective, reward)
    return made.chosen(recipe)


def _spawn(recipe: Recipe, own: Denoiser) -> Denoiser:
    """Make a role that starts as the teacher."""
    if recipe.train.roles == "copies":
        return own.with_net(copy.deepcopy(own.net).requires_grad_(True))
    with torch.device("meta"):
        return own.with_net(adapt(own.net, recipe.train.adapter, recipe.train.seed))


def _again(recipe: Recipe, own: Denoiser, role: nn.Module) -> Denoiser:
    """Make a further such role; without weights a copy of `role` equals a new adapter."""
    if recipe.train.roles == "copies":
        return _spawn(recipe, own)
    return own.with_net(copy.deepcopy(role))


def _knowledge(recipe: Recipe, own: Denoiser, core: str, inputs: Inputs) -> Denoiser | None:
    """Build the distilled student that the method learns from; None if it names none."""
    folder = recipe.method().wants_knowledge(recipe.method_config())
    if folder is None:
        return None
    net, _ = _student("objective.knowledge", Path(folder), core, inputs)
    return own.with_net(net.requires_grad_(False))


def _student(key: str, folder: Path, core: str, inputs: Inputs) -> tuple[Net, TorchStepTable]:
    """Build the student at `folder` without its weights, and read its step table."""
    if (folder / "student").is_dir():
        folder = folder / "student"
    table = TorchStepTable.from_json(read_json(folder / "student.json")["step_table"])
    networks = architecture(str(folder))
    if core not in networks:
        raise ValueError(f"{key}={folder}: no {core}, which the teacher has")
    net = Net(core, networks[core], inputs)
    net.requires_grad_(True)
    return net, table


def _pruned(recipe: Recipe, student: Denoiser, core: str) -> Pruned | None:
    section = recipe.compress
    pruned = _chosen(section, student, core) if section.active else None
    if section.token_stride is not None:
        small = student.net.get_submodule(core)
        check_attention(recipe, small)
        stride_attention(small, section.token_stride)
    return pruned


def _chosen(section: Compress, student: Denoiser, core: str) -> Pruned:
    def calls() -> Sequence[Mapping[str, Any]]:
        raise ValueError(
            f"compress.budget={section.budget_share}: which blocks go is measured on the weights, "
            "so only distill can say; to plan, name compress.preset or compress.remove"
        )

    pruned = choose(section, student.net.get_submodule(core), calls)
    student.net.set_submodule(core, pruned.net.requires_grad_(True))
    return pruned
