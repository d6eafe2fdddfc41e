"""Fuse LoRAs into a teacher when it is loaded; the result is the teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgedistill.teachers.licences import Rights, rights_of
from edgedistill.teachers.markers import read_header

__all__ = ["fuse", "place_of", "rights_of_lora"]


def fuse(pipeline: Any, file: str, scale: float) -> None:
    """Fuse a LoRA into a pipeline's networks; every key of the file is used.

    Args:
        pipeline: Diffusers' pipeline, on the CPU in float32.
        file: A .safetensors file in kohya's, diffusers' or peft's naming, or the folder of one.
        scale: Factor on the whole LoRA.

    Raises:
        ValueError: If a part of it does not fit or is not finite; names the file.
    """
    from edgedistill.teachers.adapter_weights import fuse_lora

    place = place_of(file)
    try:
        fuse_lora(pipeline, place, scale)
    except ValueError as error:
        raise ValueError(f"teacher.lora={file}: {error}") from error


def place_of(file: str) -> Path:
    """Return the file of a LoRA that is named by it or by its folder.

    Raises:
        ValueError: If there is no file, or there are several.
    """
    place = Path(file)
    if place.is_dir():
        found = sorted(place.glob("*.safetensors"))
        if len(found) != 1:
            raise ValueError(
                f"teacher.lora={file}: {len(found)} .safetensors files in it; name one"
            )
        return found[0]
    if not place.is_file():
        raise ValueError(f"teacher.lora={file}: no such file")
    if place.suffix != ".safetensors":
        raise ValueError(f"teacher.lora={file}: a .safetensors file expected")
    return place


def rights_of_lora(file: str) -> Rights:
    """Return the terms that a LoRA's folder, or the header of its file, states."""
    place = place_of(file)
    metadata = read_header(str(place)).metadata
    return rights_of(str(place), metadata.get("modelspec.license", "").strip())
