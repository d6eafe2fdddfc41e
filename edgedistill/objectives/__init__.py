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
    "boot": "edgedistill.objectives.boot:BOOT",
    "cd": "edgedistill.objectives.consistency:CD",
    "ct": "edgedistill.objectives.consistency:CT",
    "decoder": "edgedistill.objectives.decoder:TinyDecoder",
    "dmd2": "edgedistill.objectives.dmd2:DMD2",
    "flow-map": "edgedistill.objectives.flow_map:FlowMap",
    "guidance": "edgedistill.objectives.guidance:Guidance",
    "instaflow": "edgedistill.objectives.instaflow:InstaFlow",
    "kd": "edgedistill.objectives.kd:KD",
    "lcm": "edgedistill.objectives.lcm:LCM",
    "meanflow": "edgedistill.objectives.flow_map:MeanFlow",
    "oss": "edgedistill.objectives.oss:OSS",
    "pcm": "edgedistill.objectives.pcm:PCM",
    "progressive": "edgedistill.objectives.progressive:Progressive",
    "qat": "edgedistill.objectives.qat:QAT",
    "reflow": "edgedistill.objectives.reflow:Reflow",
    "scm": "edgedistill.objectives.scm:SCM",
    "scott": "edgedistill.objectives.consistency:SCott",
    "sfd": "edgedistill.objectives.sfd:SFD",
    "shortcut": "edgedistill.objectives.flow_map:Shortcut",
    "shrink": "edgedistill.objectives.shrink:Shrink",
    "tbcm": "edgedistill.objectives.tbcm:TBCM",
    "tdd": "edgedistill.objectives.pcm:TDD",
    "tract": "edgedistill.objectives.tract:TRACT",
}
"""Imported when asked for. Others join by the entry-point group `edgedistill.objectives`."""


def find(name: str) -> type[Objective]:
    """The method called `name`; ValueError names the choices."""
    kind: type[Objective] = resolve("method", OBJECTIVES, name, "edgedistill.objectives")
    return kind
