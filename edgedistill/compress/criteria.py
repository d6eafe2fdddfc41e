"""What a network loses with each unit, and which units to remove for a budget of parameters.

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
from edgedistill.compress.units import Unit, units, without

__all__ = ["cheapest", "hidden_states", "linear_probe", "plan_for_budget", "removal_costs"]

Calls = Sequence[Mapping[str, Any]]
"""Keyword inputs of a network, one mapping a call."""


@torch.no_grad()
def removal_costs(
    net: nn.Module, calls: Calls, names: Collection[str] | None = None
) -> dict[str, float]:
    """Unit -> sum ||f_without - f||^2 / sum ||f||^2 over the calls, f the output of `net`.

    The criterion of LAPTOP-Diff: one unit removed at a time, from the network as it is. Runs in
    evaluation mode on `net`'s own weights; costs calls x units forward passes.

    Args:
        net: A diffusers network.
        calls: Its keyword inputs, as many noise levels and conditions as one can afford.
        names: The units to try; all by default.

    Raises:
        ValueError: If there are no calls, a unit is unknown or the output of `net` is zero.
    """
    if not calls:
        raise ValueError("removal_costs needs at least one call")
    whole = _outputs(share(without(net, ()), net), calls)
    size = sum(_energy(f) for f in whole)
    if size == 0:
        raise ValueError("the network's output is zero for every call; nothing to compare with")
    costs = {}
    for name in units(net) if names is None else names:
        rest = _outputs(share(without(net, [name]), net), calls)
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
    """What of a group of blocks the best affine map from its input to its output leaves over.

    1 - adjusted R^2, over all tokens of all calls: the variance of the residual by that of the
    output, each over its degrees of freedom. 0 means that the group is linear and that PPCL can
    replace it by one layer; about 1 that its output has nothing linear of its input.

    Args:
        net: A diffusers transformer with a list of blocks.
        calls: Its keyword inputs. There must be more tokens than channels.
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
    """(input, output) of a group of blocks for every call, each (tokens, channels).

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
        # Of two streams as long, a residual stream is the one nearer to where it came from.
        alike = [state for state in states if state.shape == seen[0].shape]
        seen.append(min(alike, key=lambda state: _energy(state - seen[0])))

    hooks = [blocks[first].register_forward_pre_hook(before, with_kwargs=True)]
    # Blocks that return two streams differ in which comes first; the next block names its own.
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
    """The network without its `cheapest` units.

    Raises:
        ValueError: As `cheapest`.
    """
    return without(net, cheapest(net, costs, budget))


def cheapest(net: nn.Module, costs: Mapping[str, float], budget: float) -> list[str]:
    """Units to remove so that at most the share `budget` of the parameters stays.

    LAPTOP-Diff's one-shot additive criterion: costs of units removed alone stand for their cost
    together. Units go by least cost per parameter until the budget is met; then those that still
    fit come back, dearest first. A unit whose removal would leave nothing of what must stay does
    not go.

    Args:
        net: A diffusers network.
        costs: Unit -> cost, as `removal_costs` gives; others stay.
        budget: In (0, 1].

    Raises:
        ValueError: If the budget is out of range or below what these units reach, with the
            smallest share that they do; or if a unit is unknown.
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
        without(net, names)
    except ValueError:
        return False
    return True
