"""The methods: a name, and the class that holds its one file."""

from __future__ import annotations

from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Optim,
    Player,
    Settings,
    Setup,
)
from edgedistill.plugins import resolve

__all__ = [
    "OBJECTIVES",
    "Batch",
    "Losses",
    "Objective",
    "Optim",
    "Player",
    "Settings",
    "Setup",
    "find",
]

OBJECTIVES = {
    "decoder": "edgedistill.objectives.decoder:TinyDecoder",
    "dmd2": "edgedistill.objectives.dmd2:DMD2",
    "lcm": "edgedistill.objectives.lcm:LCM",
    "qat": "edgedistill.objectives.qat:QAT",
    "shrink": "edgedistill.objectives.shrink:Shrink",
}
"""Imported when asked for. Others join by the entry-point group `edgedistill.objectives`."""


def find(name: str) -> type[Objective]:
    """The method called `name`; ValueError names the choices."""
    kind: type[Objective] = resolve("method", OBJECTIVES, name, "edgedistill.objectives")
    return kind
