"""Prune a network as the `compress` section of a recipe says."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.compress.config import Compress
from edgedistill.compress.criteria import plan_for_budget, removal_costs
from edgedistill.compress.plan import Plan, build, count, source
from edgedistill.compress.presets import preset
from edgedistill.compress.units import drop_blocks
from edgedistill.compress.width import prune_width

__all__ = ["Pruned", "choose", "depths", "record"]


@dataclass(frozen=True)
class Pruned:
    """A network made smaller by one or more plans.

    Attributes:
        net: The smaller network.
        plans: The plans in the order in which they were applied.
    """

    net: nn.Module
    plans: tuple[Plan, ...]

    @classmethod
    def make(cls, plans: Sequence[Plan], net: nn.Module) -> Pruned:
        """Apply the plans to `net`, one after the other."""
        for plan in plans:
            net = build(plan, net)
        return cls(net, tuple(plans))

    def origin(self, path: str) -> str:
        """Return the path in the old network of the module at `path`."""
        for plan in reversed(self.plans):
            path = source(plan.sources, path)
        return path

    def channels(self, path: str) -> list[int] | None:
        """Return the channels of its origin that the module at `path` outputs; None if all."""
        kept: list[int] | None = None
        for plan in reversed(self.plans):
            index = _rows(plan, self.net, path)
            if index is not None:
                kept = index if kept is None else [index[i] for i in kept]
            path = source(plan.sources, path)
        return kept


def _rows(plan: Plan, net: nn.Module, path: str) -> list[int] | None:
    """Return the output channels that a module keeps: those of its last layer; None if all."""
    layers = [
        f"{path}.{name}"
        for name, weight in net.get_submodule(path).named_parameters()
        if weight.ndim > 1
    ]
    names = plan.cuts[layers[-1]][0] if layers and layers[-1] in plan.cuts else []
    index: list[int] = []
    offset = 0
    for name in names:
        index += [offset + i for i in plan.channels[name].keep]
        offset += plan.channels[name].size
    return index or None


def choose(
    section: Compress, net: nn.Module, calls: Callable[[], Sequence[Mapping[str, Any]]]
) -> Pruned:
    """Prune a diffusers network as a section says.

    Args:
        section: The `compress` section of the recipe.
        net: The network.
        calls: Returns keyword inputs of `net`; called only if the criterion is needed.

    Raises:
        ValueError: If the section does not fit the network.
    """
    plans = []
    if section.preset:
        plans.append(preset(section.preset, net))
        if count(plans[0], net) == sum(p.numel() for p in net.parameters()):
            raise ValueError(
                f"compress.preset={section.preset} takes nothing away: this network has no more "
                "layers than it leaves"
            )
    elif section.remove:
        plans.append(drop_blocks(net, section.remove))
    elif section.budget_share < 1:
        plans.append(
            _within("compress.budget", net, removal_costs(net, calls()), section.budget_share)
        )
    pruned = Pruned.make(plans, net)
    if section.width_share < 1:
        plans.append(prune_width(pruned.net, section.width_share))
        pruned = Pruned(build(plans[-1], pruned.net), tuple(plans))
    return pruned


def depths(
    section: Compress, net: nn.Module, calls: Callable[[], Sequence[Mapping[str, Any]]]
) -> dict[str, Plan]:
    """Plan the elastic depths of a section by name; arguments and errors are as in `choose`."""
    if not section.elastic:
        return {}
    costs = removal_costs(net, calls())
    return {
        name: _within(f"compress.elastic.{name}", net, costs, budget)
        for name, budget in section.elastic.items()
    }


def _within(key: str, net: nn.Module, costs: Mapping[str, float], budget: float) -> Plan:
    try:
        return plan_for_budget(net, costs, budget)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


@torch.no_grad()
def record(core: nn.Module, run: Callable[[], Any]) -> list[dict[str, Tensor]]:
    """Record the keyword inputs with which `run` calls `core`."""
    calls: list[dict[str, Tensor]] = []
    signature = inspect.signature(core.forward)

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(dict(signature.bind(*args, **kwargs).arguments))

    hook = core.register_forward_pre_hook(note, with_kwargs=True)
    try:
        run()
    finally:
        hook.remove()
    return calls
