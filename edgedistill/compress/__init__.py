"""Which blocks of a network stay, made into a real, smaller diffusers network."""

from __future__ import annotations

from edgedistill.compress.criteria import (
    cheapest,
    linear_probe,
    plan_for_budget,
    removal_costs,
)
from edgedistill.compress.plan import Channels, Plan, build, count, share
from edgedistill.compress.presets import PRESETS, Preset, preset
from edgedistill.compress.units import Unit, units, without
from edgedistill.compress.width import narrower

__all__ = [
    "PRESETS",
    "Channels",
    "Plan",
    "Preset",
    "Unit",
    "build",
    "cheapest",
    "count",
    "linear_probe",
    "narrower",
    "plan_for_budget",
    "preset",
    "removal_costs",
    "share",
    "units",
    "without",
]
