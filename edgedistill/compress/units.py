"""Units: parts that can be removed so that a plain diffusers config still describes the rest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from diffusers import UNet2DConditionModel
from torch import nn

from edgedistill.common.plugins import unknown
from edgedistill.compress.plan import Plan, config_of
from edgedistill.compress.stack import stack_plan, stack_units
from edgedistill.compress.unet import unet_plan, unet_units

__all__ = ["Unit", "drop_blocks", "units"]


@dataclass(frozen=True)
class Unit:
    """Modules that are removed together: their paths, and the paths of their parameters."""

    modules: tuple[str, ...]
    parameters: frozenset[str]


def units(net: nn.Module) -> dict[str, Unit]:
    """Return the units of a network by name, from `unet_units` or `stack_units`. They may overlap.

    Raises:
        ValueError: If `net` is neither a U-Net of Stable Diffusion's blocks nor a diffusers
            transformer with a list of equal blocks.
    """
    config_of(net)
    found = unet_units(net) if isinstance(net, UNet2DConditionModel) else stack_units(net)
    inside: dict[str, list[str]] = {}
    for path, _ in net.named_parameters():
        prefix = path
        while prefix := prefix.rpartition(".")[0]:
            inside.setdefault(prefix, []).append(path)
    return {
        name: Unit(modules, frozenset(p for module in modules for p in inside.get(module, ())))
        for name, modules in found.items()
    }


def drop_blocks(net: nn.Module, names: Collection[str]) -> Plan:
    """Plan the network without the units called `names`.

    Raises:
        ValueError: If a unit is unknown, or nothing would remain of a part that must stay.
    """
    return _without(net, names, units(net))


def _without(net: nn.Module, names: Collection[str], known: Mapping[str, Unit]) -> Plan:
    for name in names:
        if name not in known:
            raise unknown("unit", name, known)
    removed = {module for name in names for module in known[name].modules}
    plan = unet_plan if isinstance(net, UNet2DConditionModel) else stack_plan
    return plan(net, removed)
