"""The real pictures that samples are compared with: the run's own, or those of the teacher."""

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
from edgedistill.recipes.schema import Judged
from edgedistill.teachers.base import Teacher
from edgedistill.teachers.latents import Latents

__all__ = ["MOST", "Data", "find_data"]

MOST = 5000
"""Pictures that are compared with; of a larger set as many, chosen at random."""


@dataclass(frozen=True)
class Data:
    """Real pictures.

    Attributes:
        pictures: (N, H, W, 3) bytes, at the size that the teacher draws.
        captions: One each; "" where there is none.
        name: Whose they are, for people.
        total: How many there are, of which these are some.
    """

    pictures: NDArray[np.uint8]
    captions: list[str]
    name: str
    total: int


def find_data(recipe: Judged, teacher: Teacher) -> tuple[Data | None, str]:
    """The pictures a run learned from, else those that come with its teacher.

    Returns:
        The pictures, or None; and why there are none where there should be some, else "".
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
            continue  # training has named it
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
    """uint8 (N, 1 or 3, H, W) as (N, H, W, 3)."""
    whole = pictures.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    return np.ascontiguousarray(whole.numpy())
