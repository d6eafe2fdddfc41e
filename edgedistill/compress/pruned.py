"""What becomes of a network by the `compress` section of a recipe."""

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
from edgedistill.compress.units import without
from edgedistill.compress.width import narrower

__all__ = ["Smaller", "choose", "depths", "record"]


@dataclass(frozen=True)
class Smaller:
    """A network made smaller in one or more steps.

    Attributes:
        net: The result.
        plans: The steps.
    """

    net: nn.Module
    plans: tuple[Plan, ...]

    @classmethod
    def make(cls, plans: Sequence[Plan], net: nn.Module) -> Smaller:
        """Take the steps from `net`."""
        for plan in plans:
            net = build(plan, net)
        return cls(net, tuple(plans))

    def origin(self, path: str) -> str:
        """Where the module at `path` comes from in the old network."""
        for plan in reversed(self.plans):
            path = source(plan.sources, path)
        return path

    def channels(self, path: str) -> list[int] | None:
        """Which channels of its origin the module at `path` puts out; None if all."""
        kept: list[int] | None = None
        for plan in reversed(self.plans):
            index = _rows(plan, self.net, path)
            if index is not None:
                kept = index if kept is None else [index[i] for i in kept]
            path = source(plan.sources, path)
        return kept


def _rows(plan: Plan, net: nn.Module, path: str) -> list[int] | None:
    """What the last layer of a module writes: in diffusers' blocks that is what they put out."""
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
) -> Smaller:
    """What a section makes of a diffusers network.

    Args:
        section: The choices.
        net: The network.
        calls: Gives keyword inputs of `net` for the criterion, where one is needed.

    Raises:
        ValueError: If it does not fit the network.
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
        plans.append(without(net, section.remove))
    elif section.budget < 1:
        plans.append(_within("compress.budget", net, removal_costs(net, calls()), section.budget))
    smaller = Smaller.make(plans, net)
    if section.width < 1:
        plans.append(narrower(smaller.net, section.width))
        smaller = Smaller(build(plans[-1], smaller.net), tuple(plans))
    return smaller


def depths(
    section: Compress, net: nn.Module, calls: Callable[[], Sequence[Mapping[str, Any]]]
) -> dict[str, Plan]:
    """The elastic depths of a section by name; arguments and errors as `choose`."""
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
    """The keyword inputs with which `run` calls `core`."""
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
