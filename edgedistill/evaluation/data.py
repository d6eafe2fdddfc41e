"""The real pictures that samples are compared with: the run's own, or the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from edgedistill.common.pictures import to_uint8
from edgedistill.data.latents import words_of
from edgedistill.data.pictures import FAULTS, Codec, list_pictures, read_picture, some_of
from edgedistill.recipes.schema import EvaluationRecipe
from edgedistill.teachers.base import Teacher
from edgedistill.teachers.latents import Latents

__all__ = ["MOST", "Data", "find_data"]

MOST = 5000
"""Largest number of pictures to compare with; from a larger set as many are chosen at random."""


@dataclass(frozen=True)
class Data:
    """Real pictures.

    Attributes:
        pictures: Pictures (N, H, W, 3), bytes, at the size that the teacher draws.
        captions: Caption of each picture; "" where there is none.
        name: Readable name of the data set.
        total: Number of pictures in the whole set.
    """

    pictures: NDArray[np.uint8]
    captions: list[str]
    name: str
    total: int


def find_data(recipe: EvaluationRecipe, teacher: Teacher) -> tuple[Data | None, str]:
    """Find the pictures a run learned from, else those that come with its teacher.

    Returns:
        The pictures or None, and the reason if expected pictures are missing, else "".
    """
    named = recipe.data.pictures
    if named is not None:
        if not Path(named).exists():
            return None, f"data.pictures={named} is no longer there"
        try:
            return _of_user(named, recipe.data.caption, teacher), ""
        except ValueError as error:
            return None, str(error)
    return _of_teacher(teacher), ""


def _of_user(path: str, key: str, teacher: Teacher) -> Data:
    shape = Codec(teacher).shape
    pictures: list[torch.Tensor] = []
    captions = list[str]()
    records, total = list_pictures(path, key, words_of(teacher)).some(MOST)
    for record in records:
        try:
            data, caption = record.read()
            pictures.append(read_picture(data, *shape))
        except FAULTS:
            continue  # training has reported it
        captions.append(caption)
    if len(pictures) < 2:
        raise ValueError(f"data.pictures={path}: fewer than 2 pictures can be read")
    return Data(_grey_too(torch.stack(pictures)), captions, f"data.pictures={path}", total)


@torch.no_grad()
def _of_teacher(teacher: Teacher) -> Data | None:
    source = teacher.source()
    if not isinstance(source, Latents) or len(source.latents) < 2:
        return None
    count, name = len(source.captions), f"the pictures that come with {teacher.name}"
    rows = some_of(count, MOST)
    captions = [source.captions[row] for row in rows]
    originals = Path(teacher.path) / "originals.safetensors"
    if originals.is_file():
        with safe_open(originals, "pt") as file:
            return Data(_grey_too(file.get_tensor("pictures")[rows]), captions, name, count)
    pieces = [
        to_uint8(teacher.decode(source.latents[piece].float()))
        for piece in torch.split(torch.tensor(rows), 32)
    ]
    return Data(np.concatenate(pieces), captions, name, count)


def _grey_too(pictures: torch.Tensor) -> NDArray[np.uint8]:
    """Convert uint8 (N, 1 or 3, H, W) to (N, H, W, 3)."""
    whole = pictures.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return np.ascontiguousarray(whole.numpy())
