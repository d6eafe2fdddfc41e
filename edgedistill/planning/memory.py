"""Peak memory of a run on its device within a step.

Weights, gradients and optimizer states are counted role by role, each storage once, with the
trainer's own choices: float32 weights in any precision (except frozen ones if requested), the
optimizer's moments, an average of the student. Temporary tensors are not estimated but measured:
the method's loss and its gradient run on the meta device, where nothing is computed, and every
tensor is counted as long as it lives. The allocator's slack, cuDNN's workspaces, the CUDA context
and the blocks that sharding gathers for a call are not included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from edgedistill.networks.adapters import Role
from edgedistill.objectives.base import Objective, Player
from edgedistill.planning.networks import PlannedNetworks
from edgedistill.planning.tracker.accelerator import LOW_PRECISION, Accelerator
from edgedistill.planning.tracker.live import Live, modules
from edgedistill.planning.tracker.repeated import Known, repeated
from edgedistill.training import optimizers

__all__ = ["Holding", "Launch", "Memory", "frozen", "holdings", "memory", "peak"]


@dataclass(frozen=True)
class Launch:
    """Launch settings of a run, which accelerate's configuration decides, not the recipe.

    Attributes:
        processes: Number of processes, one on each device.
        shard: Whether trained networks are sharded over the processes (FSDP's FULL_SHARD, ZeRO 3).
    """

    processes: int = 1
    shard: bool = False

    def __post_init__(self) -> None:
        if self.shard and self.processes < 2:
            raise ValueError("--shard needs --processes 2 or more to cut networks over")


@dataclass(frozen=True)
class Holding:
    """Bytes that a role holds permanently on one device.

    Attributes:
        weights: Bytes of all weights.
        gradients: Bytes of gradients of the trained weights.
        optimizer: Bytes of optimizer states.
        frozen: Bytes of those weights that are in no checkpoint.
    """

    weights: int
    gradients: int = 0
    optimizer: int = 0
    frozen: int = 0

    @property
    def total(self) -> int:
        """Sum of weights, gradients and optimizer states."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        roles: Bytes that each role holds permanently.
        buckets: DDP's copies of the gradients.
        activations: Additional bytes of the worst update.
    """

    roles: dict[str, Holding]
    buckets: int = 0
    activations: int = 0

    @property
    def total(self) -> int:
        """Peak memory."""
        held = sum(role.total for role in self.roles.values())
        return held + self.buckets + self.activations


def holdings(planned: PlannedNetworks, launch: Launch) -> Memory:
    """Count what the roles of `planned` hold permanently on each device; no activations yet."""
    seen: set[int] = set()
    offload = planned.recipe.train.offload
    # Offloaded networks wait in main memory.
    present = [planned.networks[planned.core]] if offload else list(planned.networks.values())
    roles = {"teacher": Holding(sum(_take(net, seen) for net in present))}
    players = planned.objective.players()
    parts = launch.processes if launch.shard else 1
    for player in players:
        trained = _trained(player)
        moved = sum(p.nbytes for p in trained) // parts
        kept, matrices = planned.recipe.train.moments, set[int]()
        if player.optim.name == "muon":
            matrices = optimizers.matrices(player.net)
        moments = sum(optimizers.moment_bytes(p, kept, muon=id(p) in matrices) for p in trained)
        weights = _take(player.net, seen) // parts
        still = sum(_take(net, seen) for net in frozen(player.net))
        roles[player.name] = Holding(weights + still, moved, moments // parts, still)
    for name, net in planned.objective.followers().items():
        if weights := _take(net, seen):
            roles[name] = Holding(weights)
    for name, net in _others(planned.objective):
        if weights := _take(net, seen):
            roles[name] = Holding(weights, frozen=weights)
    if planned.reward:
        weights = sum(_take(net, seen) for net in planned.reward.model.networks().values())
        roles["reward"] = Holding(weights, frozen=weights)
    student = next(player for player in players if player.name == "student")
    roles["ema"] = Holding(_take(student.net, set()))
    gradients = sum(role.gradients for role in roles.values())
    return Memory(roles, gradients if launch.processes > 1 and parts == 1 else 0)


def memory(planned: PlannedNetworks, launch: Launch) -> Memory:
    """Count what the roles of `planned` hold, and what the worst update of the recipe adds."""
    held, train = holdings(planned, launch), planned.recipe.train
    # An update of one batch begins without its player's gradients; one of several batches, or of
    # shards, is counted with all gradients in place.
    fresh = train.accumulate == 1 and not launch.shard
    away = planned.reward is not None and train.offload
    decides = (train.precision, train.base, train.batch_size, train.checkpointing, fresh, away)
    if decides not in planned.measured:
        turns, known = [0], Known()
        for player in planned.objective.players():
            if player.start >= train.steps and not player.prelude:
                continue  # never plays: a method that searches
            turns.append(peak(planned, player, known, fresh=fresh))
            if fresh:
                turns[-1] -= _gradients(player)
        planned.measured[decides] = max(turns)
    return replace(held, activations=planned.measured[decides])


def _gradients(player: Player) -> int:
    return sum(p.nbytes for p in _trained(player))


def _trained(player: Player) -> list[nn.Parameter]:
    found = dict.fromkeys(_tensors(player.net))
    return [p for p in found if isinstance(p, nn.Parameter) and p.requires_grad]


def peak(planned: PlannedNetworks, player: Player, known: Known, *, fresh: bool) -> int:
    """Return the bytes that an update of `player` allocates at its worst moment.

    Args:
        planned: The networks.
        player: Player that trains.
        known: Needs of calls measured before; new ones are added.
        fresh: Whether the update allocates the gradients, or they exist before.
    """
    players = planned.objective.players()
    params = {p.name: _trained(p) for p in players}
    trained = params[player.name]
    for param in chain(*params.values()):
        param.requires_grad_(False)
    for param in trained:
        param.requires_grad_(True)
        param.grad = None if fresh else torch.empty_like(param)
    accelerator = Accelerator(LOW_PRECISION[planned.recipe.train.precision])
    nets = [p.net for p in players]
    nets += [net for p in players for net in frozen(p.net)]
    nets += [planned.networks[planned.core], *planned.objective.followers().values()]
    for net in nets:
        _checkpoint(net, accelerator, planned.recipe.train.checkpointing)
    worst = 0
    last = planned.recipe.train.steps - 1
    for step in {0, last} if player.prelude else {last}:
        batch = planned.batch(step)
        with Live() as live, accelerator, repeated(nets, live, accelerator, known):
            planned.objective.loss(player.name, batch).total.backward()
        accelerator.forget()
        worst = max(worst, live.peak)
        for param in trained:
            param.grad = None if fresh else param.grad
    for param in chain(*params.values()):
        param.grad = None
        param.requires_grad_(True)
    return worst


def _checkpoint(net: nn.Module, accelerator: Accelerator, on: bool) -> None:
    """Turn gradient checkpointing of the diffusers models in `net` on or off."""

    def again(block: nn.Module, *args: Any) -> Any:
        # A backward pass leaves function modes, so the recomputation enters this one again.
        contexts = partial(_contexts, accelerator)
        return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)

    for module in modules(net):
        if isinstance(module, ModelMixin) and module._supports_gradient_checkpointing:
            if on:
                module.enable_gradient_checkpointing(again)
            else:
                module.disable_gradient_checkpointing()


def _contexts(accelerator: Accelerator) -> tuple[AbstractContextManager[Any], Accelerator]:
    return nullcontext(), accelerator


def frozen(net: nn.Module) -> list[nn.Module]:
    """Return networks that modules of `net` hold outside nn.Module, neither trained nor saved.

    An adapter's base is not included, since it is the teacher's own.
    """
    own = set(map(id, _tensors(net)))
    used = [value for part in modules(net) if not isinstance(part, Role) for value in _past(part)]
    return [value for value in used if not own.issuperset(map(id, _tensors(value)))]


def _past(part: nn.Module) -> Iterator[nn.Module]:
    return (value for value in vars(part).values() if isinstance(value, nn.Module))


def _take(net: nn.Module, seen: set[int]) -> int:
    """Count bytes of the storages in `net` that are not in `seen`, and add them to `seen`."""
    total = 0
    for tensor in _tensors(net):
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            total += storage.nbytes()
    return total


def _tensors(net: nn.Module) -> Iterator[Tensor]:
    for module in modules(net):
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                yield tensor


def _others(objective: Objective) -> Iterator[tuple[str, nn.Module]]:
    """Yield further networks that an objective keeps, including those of objectives inside it."""
    for name, value in vars(objective).items():
        if isinstance(value, Objective):
            yield from _others(value)
        elif isinstance(value, nn.Module):
            yield name, value
