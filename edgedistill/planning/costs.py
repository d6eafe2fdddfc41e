"""Costs of a recipe: parameters, memory, disk, arithmetic and samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from edgedistill.planning.architectures import find, place
from edgedistill.planning.flops import calls, decoder_flops, denoiser_flops, reusing_flops
from edgedistill.planning.memory import Launch, Memory, frozen, holdings, memory
from edgedistill.planning.networks import PlannedNetworks, planned_networks
from edgedistill.recipes.schema import Recipe

__all__ = ["CHECKPOINTS", "Costs", "costs"]

CHECKPOINTS = 2
"""Number of checkpoints that a run dir keeps."""


@dataclass(frozen=True)
class Costs:
    """Costs of a run.

    Attributes:
        parameters: Number of parameters by role and network.
        trained: Number of parameters that the student's optimizer updates.
        memory: Memory on each device.
        disk: Bytes on disk: teacher, student dir and checkpoints.
        flops: FLOPs of one call, one sample, and all samples that the teacher makes.
        samples: Number of samples that the teacher makes first, and that training draws.
        planned: The networks.
        students: Number of students that the run trains, one after the other. `disk` and `samples`
            count all of them, the other fields one.
    """

    parameters: dict[str, dict[str, int]]
    trained: int
    memory: Memory
    disk: dict[str, int]
    flops: dict[str, int]
    samples: dict[str, int]
    planned: PlannedNetworks
    students: int = 1

    def to_json(self) -> dict[str, Any]:
        """Return JSON by role, such as teacher.denoiser.parameters and memory_gb.student."""
        roles = {
            role: {name: {"parameters": count} for name, count in networks.items()}
            for role, networks in self.parameters.items()
        }
        roles["student"]["trained"] = {"parameters": self.trained}
        held = {
            name: {
                "weights": role.weights,
                "gradients": role.gradients,
                "optimizer": role.optimizer,
            }
            for name, role in self.memory.roles.items()
        }
        return {
            "schema_version": 1,
            **roles,
            "memory_gb": {name: round(n / 1e9, 3) for name, n in self.by_role().items()},
            "memory": held,
            "disk": self.disk,
            "flops": self.flops,
            "samples": self.samples,
            "students": self.students,
        }

    def by_role(self) -> dict[str, int]:
        """Return bytes of memory by role, of activations, and in total."""
        buckets = {"buckets": self.memory.buckets} if self.memory.buckets else {}
        return {
            **{name: role.total for name, role in self.memory.roles.items()},
            **buckets,
            "activations": self.memory.activations,
            "total": self.memory.total,
        }


def costs(recipe: Recipe, launch: Launch) -> Costs:
    """Plan a recipe: nothing is downloaded, and no weight is read, or made but a tiny teacher's.

    Raises:
        ValueError: If the recipe cannot be planned; names the key.
    """
    # Count FLOPs first: measuring memory leaves gradients and the like on the networks.
    made = planned_networks(recipe)
    flop, samples = _flops(made), _samples(made, launch)
    flop["teacher_samples"] = samples["made"] * flop["teacher_sample"]
    disk, parts = _disk(made), recipe.parts
    students = len(parts.trained)
    for name in ("student", "checkpoints"):
        disk[name] *= students
    samples["drawn"] *= students
    return Costs(
        _parameters(made),
        _count(_student(made), trained=True),
        memory(made, launch),
        disk,
        flop,
        samples,
        made,
        students,
    )


def _count(net: nn.Module, *, trained: bool = False) -> int:
    return sum(p.numel() for p in net.parameters() if p.requires_grad or not trained)


def _student(made: PlannedNetworks) -> nn.Module:
    return next(p.net for p in made.objective.players() if p.name == "student")


def _small(made: PlannedNetworks) -> nn.Module:
    """Return the student's denoiser as it is saved, with an adapter added to the weights."""
    adapters = made.recipe.train.roles == "adapters"
    return made.networks[made.core] if adapters else made.small


def _parameters(made: PlannedNetworks) -> dict[str, dict[str, int]]:
    teacher = {
        "denoiser" if name == made.core else name: _count(net)
        for name, net in made.networks.items()
    }
    makes = made.objective.product
    student = {"denoiser": _count(_small(made)) if makes == "student" else _count(_student(made))}
    if makes != "student":
        student = {makes: student["denoiser"]}
    others = {
        player.name: {"trained": _count(player.net, trained=True)}
        for player in made.objective.players()
        if player.name != "student"
    }
    for player in made.objective.players():
        if still := sum(map(_count, frozen(player.net))):
            others[player.name]["frozen"] = still
    if made.reward:
        nets = made.reward.model.networks()
        others["reward"] = {name: _count(net) for name, net in nets.items()}
    return {"teacher": teacher, "student": student, **others}


def _flops(made: PlannedNetworks) -> dict[str, int]:
    recipe = made.recipe
    guided = 2 if recipe.teacher.guidance != 1 and made.inputs.cond else 1
    call, decoder = denoiser_flops(made, made.networks[made.core]), decoder_flops(made)
    ours = call if _small(made) is made.networks[made.core] else denoiser_flops(made, made.small)
    asked = calls(recipe.teacher.solver, recipe.teacher.steps) * guided
    return {
        "teacher_call": call,
        "student_call": ours,
        "decoder": decoder,
        "teacher_sample": asked * call + decoder,
        "student_sample": _steps(made, ours) + decoder,
    }


def _steps(made: PlannedNetworks, call: int) -> int:
    """Sum the FLOPs of the student's calls for one sample; `call` is that of one at full size."""
    table = made.objective.table()
    if table is None or not (table.grows or table.reuses):
        return made.recipe.student.steps * call
    if table.reuses:
        outer = reusing_flops(made, made.small, table.reuse_layers)
        return sum(outer if row.reuse else call for row in table.rows)
    at = {row.size: denoiser_flops(made, made.small, row.size) for row in table.rows}
    return sum(at[row.size] for row in table.rows)


def _samples(made: PlannedNetworks, launch: Launch) -> dict[str, int]:
    recipe = made.recipe
    folder = find(place(recipe.teacher))
    ships = (folder / "data.safetensors").is_file() and (folder / "prompts.json").is_file()
    train = recipe.train
    given = recipe.data.pictures is not None
    players = made.objective.players()
    turns = sum(player.plays(step) for step in range(train.steps) for player in players)
    return {
        "made": 0 if given or (ships and recipe.data.prompts is None) else recipe.data.samples,
        "drawn": turns * train.batch_size * train.accumulate * launch.processes,
    }


def _disk(made: PlannedNetworks) -> dict[str, int]:
    """Return the bytes of what is written, which is all in float32."""
    held = holdings(made, Launch()).roles
    del held["teacher"]
    teacher = 4 * sum(_count(net) for net in made.networks.values())
    whole = made.networks[made.core]
    student = teacher - 4 * _count(whole) + 4 * _count(_small(made))
    if made.recipe.train.roles == "adapters":
        student += held["student"].weights
    one = sum(role.weights - role.frozen + role.optimizer for role in held.values())
    return {"teacher": teacher, "student": student, "checkpoints": CHECKPOINTS * one}
