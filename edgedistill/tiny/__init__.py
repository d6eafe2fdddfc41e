"""Tiny teachers of every family with random weights in real classes: `teacher.tiny=true`.

A tiny teacher draws noise. It is for trying a recipe, an export or a change of the code in
seconds, without a download; a test runs every recipe with one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers.utils import logging as transformers_logging

from edgedistill.common.files import atomic_folder, write_json
from edgedistill.common.plugins import resolve
from edgedistill.teachers import load_teacher

__all__ = ["ENTRY_POINTS", "TINY", "make_tiny", "tiny_place"]

ENTRY_POINTS = "edgedistill.tiny"
"""Entry-point group by which families of other distributions are added."""

TINY = {
    "dit": "edgedistill.tiny.dit:pipeline",
    "flux": "edgedistill.tiny.flux:pipeline",
    "pixart": "edgedistill.tiny.pixart:pipeline",
    "sana": "edgedistill.tiny.sana:pipeline",
    "sd3": "edgedistill.tiny.sd3:pipeline",
    "sdxl": "edgedistill.tiny.sdxl:pipeline",
    "stable_diffusion": "edgedistill.tiny.stable_diffusion:pipeline",
    "unet2d": "edgedistill.tiny.unet2d:pipeline",
    "wan": "edgedistill.tiny.wan:pipeline",
}
"""Functions by family that take no arguments and return a diffusers pipeline."""


CAPTIONS = ("red", "a red one", "red red", "blue", "a blue one", "blue blue", "red blue", "")
"""Captions of a tiny teacher's data."""


def tiny_place(family: str, folder: Path) -> Path:
    """Return where a run or a folder of paths has its tiny teacher, whose name is the last part.

    Folders that were made before tiny teachers had names of their own keep it in `teacher`.
    """
    older = folder / "teacher"
    return older if older.is_dir() else folder / f"tiny-{family}"


def make_tiny(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny teacher to `folder`, with data, for `teachers.load_teacher` to read.

    Args:
        family: A key of `TINY`.
        folder: The folder to write.
        seed: Seed of the weights.

    Raises:
        ValueError: If the family has no tiny teacher.
    """
    build: Callable[[], Any] = resolve("family with a tiny teacher", TINY, family, ENTRY_POINTS)
    transformers_logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]), atomic_folder(folder) as work:
        torch.manual_seed(seed)
        build().save_pretrained(work, safe_serialization=True)
        teacher = load_teacher(family, work)
        captions = list(CAPTIONS) if teacher.prompts else [""] * len(CAPTIONS)
        write_json(work / "prompts.json", {"grid": captions, "train": captions})
        latents = torch.randn(len(CAPTIONS), *teacher.sample_shape)
        save_file({"latents": latents}, work / "data.safetensors")
        if teacher.autoencoder is not None and len(teacher.sample_shape) == 3:
            # No picture was encoded to these random latents; their decoded pictures are used
            # instead.
            pictures = ((teacher.decode(latents).clamp(-1, 1) + 1) * 127.5).round().byte()
            save_file({"pictures": pictures.contiguous()}, work / "originals.safetensors")
    return folder
