"""Compiles a student for a device, proves it equal, and measures it.

Names are imported when they are asked for, so that listing targets needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgedistill_export.bundle import export_student
    from edgedistill_export.parity import ParityError
    from edgedistill_export.targets import Target, find_target, target_names

__all__ = ["ParityError", "Target", "export_student", "find_target", "target_names"]

_PLACES = {
    "bundle": ("export_student",),
    "parity": ("ParityError",),
    "targets": ("Target", "find_target", "target_names"),
}


def __getattr__(name: str) -> Any:
    for module, names in _PLACES.items():
        if name in names:
            return getattr(import_module(f"edgedistill_export.{module}"), name)
    raise AttributeError(f"module 'edgedistill_export' has no attribute {name!r}")
