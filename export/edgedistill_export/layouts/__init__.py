"""Bundles in the layouts that other programs open, written beside the bundles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgedistill.common.plugins import unknown
from edgedistill.students.folder import load_student_info
from edgedistill.students.group import group_of
from edgedistill_export.layouts.genai import GENAI
from edgedistill_export.layouts.optimum import OPTIMUM
from edgedistill_export.layouts.pipeline import Layout, check_layout, write_layout
from edgedistill_export.many import ExportRow

__all__ = ["LAYOUTS", "check_layouts", "write_layouts"]

LAYOUTS: Mapping[str, Layout] = {each.name: each for each in (OPTIMUM, GENAI)}
"""Layout by name."""


def check_layouts(student: Path, wanted: Sequence[tuple[str, str]], layout: str) -> None:
    """Raise a ValueError that says why exports cannot have a layout; "" is none."""
    if not layout:
        return
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    if group_of(student):
        raise ValueError(f"--layout {layout}: {student}: several students; name one")
    for target, _ in wanted:
        check_layout(LAYOUTS[layout], load_student_info(student), student, target)


def write_layouts(student: Path, rows: Sequence[ExportRow], layout: str) -> list[Path]:
    """Write the bundles that were built in a layout; return the folders."""
    if not layout:
        return []
    return [write_layout(LAYOUTS[layout], row.place, student) for row in rows if row.place]
