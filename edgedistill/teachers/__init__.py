"""Families of teachers: their names, and the classes that load them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from edgedistill.common.plugins import resolve
from edgedistill.teachers.base import ExportGraph, Teacher

__all__ = ["ENTRY_POINTS", "TEACHERS", "ExportGraph", "Teacher", "find_family", "load_teacher"]

log = logging.getLogger(__name__)

ENTRY_POINTS = "edgedistill.teachers"
"""Entry-point group by which families of other distributions are added."""

TEACHERS = {
    "dit": "edgedistill.teachers.families.dit:DiT",
    "flux": "edgedistill.teachers.families.flux:Flux",
    "mixture": "edgedistill.teachers.families.mixture:Mixture",
    "pixart": "edgedistill.teachers.families.pixart:PixArt",
    "sana": "edgedistill.teachers.families.sana:Sana",
    "sd3": "edgedistill.teachers.families.sd3:StableDiffusion3",
    "sdxl": "edgedistill.teachers.families.sdxl:StableDiffusionXL",
    "stable_diffusion": "edgedistill.teachers.families.stable_diffusion:StableDiffusion",
    "unet2d": "edgedistill.teachers.families.unet2d:UNet2D",
    "wan": "edgedistill.teachers.families.wan:Wan",
}
"""Family classes by name, imported on demand. Others are added by `ENTRY_POINTS`."""


def find_family(name: str) -> type[Teacher]:
    """Return the class of a family, a key of `TEACHERS`; ValueError names the choices."""
    kind: type[Teacher] = resolve("teacher family", TEACHERS, name, ENTRY_POINTS)
    return kind


def load_teacher(
    family: str,
    path: str | Path,
    config: str | None = None,
    loras: Sequence[tuple[str, float]] = (),
) -> Teacher:
    """Load a teacher.

    Args:
        family: A key of `TEACHERS`.
        path: A shipped asset's name, a folder, a Hub id or a single .safetensors file.
        config: Folder or Hub id of the configurations for a single file.
        loras: Files of LoRAs to fuse into its weights, and a factor on each.

    Raises:
        ValueError: If the family is unknown or nothing loadable is at `path`.
    """
    kind = find_family(family)
    log.debug(f"teacher {path}: {kind.__name__}, {len(loras)} LoRAs")
    return kind.load_fused(str(path), config, loras) if loras else kind.load(str(path), config)
