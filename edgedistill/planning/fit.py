"""Compare a recipe's memory with a device, and find switches that make it fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgedistill import recipes
from edgedistill.planning.memory import Launch, holdings, memory
from edgedistill.planning.networks import PlannedNetworks, planned_networks
from edgedistill.recipes.schema import Recipe

__all__ = ["UNITS", "Need", "Switch", "Verdict", "fit", "parse_bytes", "switches"]

UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
"""Bytes of each unit; a card sold as 24 GB has a little more than 24 * 10^9."""


def parse_bytes(text: str) -> int:
    """Parse a size such as 24GB or 500MiB into bytes; ValueError names the units."""
    match = re.fullmatch(r"([0-9]+\.?[0-9]*)\s*([A-Za-z]+)", text.strip())
    if match is None or match[2].upper() not in UNITS or not float(match[1]):
        raise ValueError(f"--memory {text!r}: a size such as 24GB expected, in {', '.join(UNITS)}")
    return int(float(match[1]) * UNITS[match[2].upper()])


@dataclass(frozen=True)
class Switch:
    """Overrides that reduce the memory of a run, as a user types them.

    Attributes:
        words: Overrides of the recipe.
    """

    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join(self.words)

    def __add__(self, other: Switch) -> Switch:
        return Switch(self.words + other.words)


@dataclass(frozen=True)
class Need:
    """Memory that a run needs with a switch applied.

    Attributes:
        switch: The switch.
        bytes: Bytes on one device.
    """

    switch: Switch
    bytes: int


@dataclass(frozen=True)
class Verdict:
    """Result of comparing a run with a device.

    Attributes:
        limit: Bytes of a device.
        needs: Bytes of the run.
        ways: If it does not fit: single switches that make it fit, or else the first combination
            that does.
        least: If none do, the memory needed with all switches; None if the recipe leaves no
            switch.
    """

    limit: int
    needs: int
    ways: tuple[Need, ...] = ()
    least: Need | None = None

    @property
    def fits(self) -> bool:
        """Whether the run fits without any switch."""
        return self.needs <= self.limit

    def __str__(self) -> str:
        limit = f"{self.limit / 1e9:g} GB"
        if self.fits:
            return f"fits {limit} with {_gb(self.limit - self.needs)} GB to spare"
        begin = f"does not fit {limit} (needs {_gb(self.needs)})"
        if self.ways:
            ways = (f"{way.switch} would need {_gb(way.bytes)}" for way in self.ways)
            return f"{begin}: {'; '.join(ways)}"
        if self.least is None:
            return f"{begin}, and the recipe leaves no switch to throw"
        least = f"{self.least.switch} would need {_gb(self.least.bytes)}"
        return f"{begin}, nor with all switches: {least}"

    def to_json(self) -> dict[str, Any]:
        """Return {"memory_gb", "fits", "needs_gb", "switches", "all_switches"}."""
        return {
            "memory_gb": self.limit / 1e9,
            "fits": self.fits,
            "needs_gb": round(self.needs / 1e9, 3),
            "switches": _sizes(self.ways),
            "all_switches": _sizes([self.least] if self.least else []),
        }


def switches(recipe: Recipe) -> list[Switch]:
    """List the switches that the recipe does not use yet, the least costly first."""
    train, section = recipe.train, recipe.compress
    least, follows = 1, False
    if recipe.reward and not recipe.method().needs_reward:
        follows = recipe.reward.kind == "differentiable"
        least = 1 if follows else recipe.reward.group
    several = train.batch_size * train.accumulate // least
    single = Switch((f"train.batch_size={least}", f"train.accumulate={several}"))
    whole = not (section.active or section.elastic or section.token_stride or recipe.student.init)
    offered = {
        Switch(("train.precision=bf16",)): train.precision == "fp32",
        Switch(("train.base=bf16",)): train.precision == "bf16" and train.base == "fp32",
        single: train.batch_size > least,
        Switch(("train.checkpointing=true",)): not train.checkpointing,
        # A reward's gradient needs the decoder on the device.
        Switch(("train.offload=true",)): not train.offload and not follows,
        Switch(("train.moments=8bit",)): train.moments == "fp32" and train.optim.name == "adamw",
        Switch(("train.roles=adapters",)): train.roles == "copies" and whole,
    }
    return [switch for switch, left in offered.items() if left]


def fit(
    name: str,
    words: Sequence[str],
    launch: Launch,
    limit: int,
    needs: int,
    made: PlannedNetworks | None = None,
) -> Verdict:
    """Compare a recipe with a device; if it does not fit, plan it with each switch.

    Args:
        name: The recipe, as `recipe.load` takes it.
        words: Overrides of the recipe.
        launch: Processes and sharding of the run.
        limit: Bytes of one device.
        needs: Bytes that the recipe needs.
        made: The recipe's networks, if they were built.
    """
    if needs <= limit:
        return Verdict(limit, needs)
    planned: dict[str, PlannedNetworks] = {} if made is None else {made.recipe.train.roles: made}

    def thrown(switch: Switch) -> PlannedNetworks:
        recipe = recipes.load(name, [*words, *switch.words])
        roles = recipe.train.roles
        if roles not in planned:
            planned[roles] = planned_networks(recipe)
        # Of all settings that a switch changes, only the roles decide which networks are built.
        return planned[roles].chosen(recipe)

    def need(switch: Switch) -> Need | None:
        """Return the memory with a switch; None if weights and states alone exceed the limit."""
        run = thrown(switch)
        if holdings(run, launch).total > limit:
            return None
        return Need(switch, memory(run, launch).total)

    recipe = recipes.load(name, words)
    single = switches(recipe)
    # The last switches reduce weights and states, so combinations start there.
    sums = [sum(single[-n:], Switch()) for n in range(2, len(single) + 1)]
    if recipe.train.precision == "fp32":
        sums.append(sum(single, Switch(("train.base=bf16",))))  # needs train.precision=bf16
    for group in (single, *([one] for one in sums)):
        needed = [found for found in map(need, group) if found]
        ways = tuple(found for found in needed if found.bytes <= limit)
        if ways:
            return Verdict(limit, needs, ways)
    everything = [*single[:1], *sums][-1:]
    least = [Need(switch, memory(thrown(switch), launch).total) for switch in everything]
    return Verdict(limit, needs, (), *least)


def _sizes(needs: Sequence[Need]) -> dict[str, float]:
    """Return GB by switch."""
    return {str(need.switch): round(need.bytes / 1e9, 3) for need in needs}


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g}"
