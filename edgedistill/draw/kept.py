"""Cache of drawn pictures, so that the next evaluation need not draw them again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from edgedistill.data.shards import fault_of, write_shard
from edgedistill.teachers.base import Teacher

__all__ = ["Kept", "fingerprint"]

CODE = ("diffusion", "teachers")
"""Folders of code that decide a teacher's pictures: samples made by older code are drawn again."""
WEIGHTS = (".json", ".safetensors", ".txt", ".model")


class Kept:
    """A folder of pictures in safetensors, one file for each batch that was drawn.

    It can be removed at any time. A batch that is damaged, or of other settings, is drawn again.

    Args:
        folder: Path of the folder.
        words: Everything else that decides the pictures, besides the request itself.
    """

    def __init__(self, folder: Path, *words: object) -> None:
        self.folder, self.words = folder, words

    def __call__(self, asked: object, draw: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the pictures for the request `asked`: from the folder, or drawn and stored."""
        name = hashlib.sha256(repr((self.words, asked)).encode()).hexdigest()[:32]
        file = self.folder / f"{name}.safetensors"
        found = _read(file)
        if found is None:
            found = draw()
            write_shard(file, {"samples": torch.from_numpy(np.ascontiguousarray(found))})
        return found


def _read(file: Path) -> NDArray[Any] | None:
    """Read the samples of a file; None if it is missing or damaged."""
    if fault_of(file, "samples", hashed=True):
        return None
    with safe_open(file, "pt") as opened:
        samples: NDArray[Any] = opened.get_tensor("samples").numpy().copy()
    return samples


def fingerprint(teacher: Teacher) -> str:
    """Hash `CODE` and a teacher's files, or its weights where it came from no folder."""
    digest = hashlib.sha256()
    code = Path(__file__).parents[1]
    for file in sorted(file for name in CODE for file in _files(code / name, (".py",))):
        digest.update(file.read_bytes())
    place = Path(teacher.path)
    files = sorted(_files(place, WEIGHTS))
    for file in files:
        digest.update(file.relative_to(place.parent).as_posix().encode())
        with file.open("rb") as opened:
            while piece := opened.read(2**22):
                digest.update(piece)
    if not files:
        for name, value in teacher.net.state_dict().items():
            digest.update(name.encode())
            flat = value.detach().cpu().contiguous().flatten()
            digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def _files(place: Path, endings: tuple[str, ...]) -> Iterator[Path]:
    found = place.rglob("*") if place.is_dir() else [place]
    return (file for file in found if file.suffix in endings and file.is_file())
