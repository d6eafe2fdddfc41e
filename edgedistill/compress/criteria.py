"""Cost of removing each unit of a network, and the choice of units for a parameter budget.

References:
    LAPTOP-Diff (Zhang et al., 2024) https://arxiv.org/abs/2404.11098, Sec. 3
    PPCL (Ma et al., 2025) https://arxiv.org/abs/2511.16156
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.common.plugins import unknown
from edgedistill.compress.plan import Plan, share
from edgedistill.compress.stack import stacks
from edgedistill.compress.units import Unit, drop_blocks, units

__all__ = ["cheapest", "hidden_states", "linear_probe", "plan_for_budget", "removal_costs"]

Calls = Sequence[Mapping[str, Any]]
"""Keyword inputs of a network, one mapping a call."""


@torch.no_grad()
def removal_costs(
    net: nn.Module, calls: Calls, names: Collection[str] | None = None
) -> dict[str, float]:
    """Return for each unit sum ||f_without - f||^2 / sum ||f||^2 over the calls, f `net`'s output.

    This is the criterion of LAPTOP-Diff: one unit is removed at a time from the full network. It
    runs in evaluation mode on `net`'s own weights and costs calls x units forward passes.

    Args:
        net: A diffusers network.
        calls: Keyword inputs of `net`; use as many noise levels and conditions as you can afford.
        names: The units to try; all by default.

    Raises:
        ValueError: If there are no calls, a unit is unknown or the output of `net` is zero.
    """
    if not calls:
        raise ValueError("removal_costs needs at least one call")
    whole = _outputs(share(drop_blocks(net, ()), net), calls)
    size = sum(_energy(f) for f in whole)
    if size == 0:
        raise ValueError("the network's output is zero for every call; nothing to compare with")
    costs = {}
    for name in units(net) if names is None else names:
        rest = _outputs(share(drop_blocks(net, [name]), net), calls)
        costs[name] = sum(_energy(g - f) for f, g in zip(whole, rest, strict=True)) / size
    return costs


def _outputs(net: nn.Module, calls: Calls) -> list[Tensor]:
    net.eval()
    outputs = [net(**call) for call in calls]
    return [(f if isinstance(f, Tensor) else f[0]).float() for f in outputs]


def _energy(x: Tensor) -> float:
    return x.square().sum().item()


@torch.no_grad()
def linear_probe(net: nn.Module, calls: Calls, group: tuple[int, int]) -> float:
    """Return the share of a block group's output that no affine map of its input explains.

    The result is 1 - adjusted R^2 of the best affine map, over all tokens of all calls: the
    variance of the residual divided by that of the output, each over its degrees of freedom. 0
    means that the group is linear and that PPCL can replace it by one layer; about 1 means that
    its output does not depend linearly on its input.

    Args:
        net: A diffusers transformer with a list of blocks.
        calls: Keyword inputs of `net`. There must be more tokens than channels.
        group: First and last block, both in the group, counted over all lists of blocks.

    Raises:
        ValueError: If there is no such group, or there are too few tokens.
    """
    taken = hidden_states(net, calls, group)
    x, y = (torch.cat(states).double().cpu() for states in zip(*taken, strict=True))
    if len(x) < x.shape[1] + 2:
        raise ValueError(f"{len(x)} tokens cannot fit {x.shape[1]} channels; give more calls")
    x, y = x - x.mean(0), y - y.mean(0)
    fit = torch.linalg.lstsq(x, y, driver="gelsd")
    free = (len(x) - 1) / (len(x) - 1 - int(fit.rank))
    return free * _energy(y - x @ fit.solution) / _energy(y)


def hidden_states(
    net: nn.Module, calls: Calls, group: tuple[int, int]
) -> list[tuple[Tensor, Tensor]]:
    """Return (input, output) of a group of blocks for every call, each (tokens, channels).

    Raises:
        ValueError: If there is no such group.
    """
    blocks = [block for row in stacks(net).values() for block in row]
    first, last = group
    if not 0 <= first <= last < len(blocks):
        raise ValueError(f"no group {group}; choose 0 <= first <= last <= {len(blocks) - 1}")
    seen: list[Tensor] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        states = [output] if isinstance(output, Tensor) else output
        # Of two streams of equal length, the residual stream is the one nearer to its input.
        alike = [state for state in states if state.shape == seen[0].shape]
        seen.append(min(alike, key=lambda state: _energy(state - seen[0])))

    hooks = [blocks[first].register_forward_pre_hook(before, with_kwargs=True)]
    # Blocks that return two streams differ in their order; the next block names its arguments.
    if last + 1 < len(blocks):
        hooks.append(blocks[last + 1].register_forward_pre_hook(before, with_kwargs=True))
    else:
        hooks.append(blocks[last].register_forward_hook(after, with_kwargs=True))
    training, pairs = net.training, []
    try:
        net.eval()
        for call in calls:
            seen.clear()
            net(**call)
            x, y = seen
            pairs.append((x.flatten(0, -2), y.flatten(0, -2)))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return pairs


def plan_for_budget(net: nn.Module, costs: Mapping[str, float], budget: float) -> Plan:
    """Plan the network without its `cheapest` units.

    Raises:
        ValueError: As `cheapest`.
    """
    return drop_blocks(net, cheapest(net, costs, budget))


def cheapest(net: nn.Module, costs: Mapping[str, float], budget: float) -> list[str]:
    """Choose units to remove so that at most the share `budget` of the parameters stays.

    This is LAPTOP-Diff's one-shot additive criterion: the cost of removing several units is the
    sum of their single costs. Units are removed by least cost per parameter until the budget is
    met; then units that still fit are put back, the costliest first. A unit is not removed if
    nothing would remain of a part that must stay.

    Args:
        net: A diffusers network.
        costs: Unit -> cost, as from `removal_costs`; other units stay.
        budget: Share of the parameters to keep, in (0, 1].

    Raises:
        ValueError: If the budget is out of range, or below the smallest share that these units
            allow, which the message gives; or if a unit is unknown.
    """
    if not 0 < budget <= 1:
        raise ValueError(f"budget is the share of parameters that stay, in (0, 1]; not {budget}")
    known = _known(net, costs)
    sizes = {path: parameter.numel() for path, parameter in net.named_parameters()}
    total = sum(sizes.values())

    def left(names: Collection[str]) -> int:
        gone = frozenset[str]().union(*(known[name].parameters for name in names))
        return total - sum(sizes[path] for path in gone)

    def price(name: str) -> float:
        return costs[name] / max(sum(sizes[path] for path in known[name].parameters), 1)

    removed: list[str] = []
    for name in sorted(costs, key=price):
        more = [*removed, name]
        if left(removed) > budget * total and left(more) < left(removed) and _allowed(net, more):
            removed = more
    if left(removed) > budget * total:
        raise ValueError(
            f"budget {budget} is below the smallest share that these units reach, "
            f"{left(removed) / total:.4f}"
        )
    for name in sorted(removed, key=lambda name: -costs[name]):
        rest = [other for other in removed if other != name]
        removed = rest if left(rest) <= budget * total else removed
    return removed


def _known(net: nn.Module, costs: Mapping[str, float]) -> dict[str, Unit]:
    known = units(net)
    for name in costs:
        if name not in known:
            raise unknown("unit", name, known)
    return known


def _allowed(net: nn.Module, names: Collection[str]) -> bool:
    try:
        drop_blocks(net, names)
    except ValueError:
        return False
    return True
