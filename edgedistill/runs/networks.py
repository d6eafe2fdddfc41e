"""A run's student and the further networks that start as its teacher."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from edgedistill.common.files import read_json, write_json
from edgedistill.compress.plan import Plan, count
from edgedistill.compress.pruned import Pruned, choose, depths, record
from edgedistill.compress.token_stride import check_stride, stride_attention
from edgedistill.compress.variance import keep_variance
from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.networks.adapters import adapt
from edgedistill.networks.bf16 import to_bf16
from edgedistill.recipes.checks import has_weights, parameters
from edgedistill.recipes.schema import Recipe
from edgedistill.teachers.base import DataSource, Teacher

__all__ = ["PrunedStudent", "first_of"]

log = logging.getLogger(__name__)

PLANS = "compress.json"
"""Name of the file in a run dir that says how the student was pruned."""


def first_of(recipe: Recipe, teacher: Teacher, device: torch.device) -> Denoiser:
    """Return the denoiser that every role starts from; finalises the teacher's own weights."""
    train, own = recipe.train, teacher.denoiser
    own.compiled = train.compile and has_weights(own)
    shares, low = train.roles == "adapters", train.base == "bf16"
    if shares and has_weights(own):
        if low:
            to_bf16(own.net)
        return own.with_net(adapt(own.net, train.adapter, train.seed))
    first = teacher.spawn(torch.Generator().manual_seed(train.seed)).to(device)
    first.compiled = train.compile
    if low:
        to_bf16(first.net if shares else own.net)
    return first.with_net(adapt(first.net, train.adapter, train.seed)) if shares else first


class PrunedStudent:
    """Makes a student's network smaller as a recipe says, and identically when resumed.

    Args:
        recipe: The recipe.
        teacher: Teacher whose core is pruned.
        source: Data to rate blocks and channels with.
        times: Times of the student, (steps + 1,).
        folder: The run dir, which keeps the plans.
    """

    def __init__(
        self,
        recipe: Recipe,
        teacher: Teacher,
        source: DataSource,
        times: Tensor,
        folder: Path,
    ) -> None:
        self.recipe, self.teacher, self.source = recipe, teacher, source
        self.times, self.folder = times, folder

    def pruned(self, student: Denoiser) -> Pruned | None:
        """Prune the student's network in place; None where the recipe keeps all of its blocks.

        Self-attention gets the recipe's stride either way.
        """
        pruned = self._pruned(student) if self.recipe.compress.active else None
        if (given := self.recipe.compress.token_stride) is not None:
            core = self._core(student)
            check_stride(core, given)
            stride_attention(core, given)
            log.info(
                f"self-attention in {given.places} takes keys and values of one token in "
                f"{given.stride} x {given.stride}"
            )
        return pruned

    def _pruned(self, student: Denoiser) -> Pruned:
        section, teacher = self.recipe.compress, self.teacher
        core, kept = self._core(student), self._kept_plans()
        if kept:
            pruned = Pruned.make(list(kept.values()), core)
        else:
            pruned = choose(section, core, lambda: self._calls(student, core))
            self._keep_plans({str(i): plan for i, plan in enumerate(pruned.plans)})
        if section.variance:
            keep_variance(core, pruned, self._calls(student, core))
        student.net.set_submodule(teacher.core, pruned.net.requires_grad_(True))
        left = parameters(student.net)
        log.info(f"compressed to {left:,} parameters, {left / parameters(teacher.net):.0%}")
        return pruned

    def depths(self, student: Denoiser) -> dict[str, Plan]:
        """Plan the smaller students inside this one, by name."""
        section = self.recipe.compress
        if not section.elastic:
            return {}
        core, plans = self._core(student), self._kept_plans()
        if not plans:
            plans = depths(section, core, lambda: self._calls(student, core))
            self._keep_plans(plans)
        for name, plan in plans.items():
            left = count(plan, core)
            log.info(f"depth {name}: {left:,} parameters, {left / parameters(core):.0%}")
        return plans

    def _core(self, student: Denoiser) -> nn.Module:
        """Return the module of the student that can be pruned."""
        if not self.teacher.core:
            raise ValueError(f"compress: {self.teacher.family} teachers have no blocks to remove")
        return student.net.get_submodule(self.teacher.core)

    def _kept_plans(self) -> dict[str, Plan]:
        file = self.folder / PLANS
        if not file.is_file():
            return {}
        return {name: Plan.from_json(plan) for name, plan in read_json(file)["plans"].items()}

    def _keep_plans(self, plans: Mapping[str, Plan]) -> None:
        data = {name: plan.to_json() for name, plan in plans.items()}
        write_json(self.folder / PLANS, {"schema_version": 1, "plans": data})

    def _calls(self, student: Denoiser, core: nn.Module) -> list[dict[str, Tensor]]:
        """Record the network's inputs at the student's times."""
        generator = torch.Generator().manual_seed(self.recipe.train.seed)
        x0, cond = self.source.draw(8, generator)
        noise, device = torch.randn(x0.shape, generator=generator), self.times.device

        def run() -> None:
            for t in self.times[:-1]:
                student(student.noised(x0, t, noise).to(device), t, cond)

        return record(core, run)
