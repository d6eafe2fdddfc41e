"""Compiles a student for a device, proves it equal, and measures it."""

from edgedistill_export.bundle import export_student
from edgedistill_export.parity import ParityError
from edgedistill_export.targets import Target, find_target, target_names

__all__ = ["ParityError", "Target", "export_student", "find_target", "target_names"]
