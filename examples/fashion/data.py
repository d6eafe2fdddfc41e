"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), as Debian's dataset-fashion-mnist has it."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

FOLDER = Path("/usr/share/datasets/fashion-mnist")
SIZE = 32
"""The photographs' 28 pixels and a black margin of 2, so that they can be halved."""
CLASSES = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def load(
    part: Literal["train", "t10k"], folder: Path = FOLDER
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures (N, 1, 32, 32) in [-1, 1] and their classes (N,).

    Raises:
        SystemExit: The package is not installed.
    """
    if not folder.exists():
        raise SystemExit(f"{folder} is missing: apt-get install dataset-fashion-mnist")
    pixels = _read(folder / f"{part}-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
    classes = _read(folder / f"{part}-labels-idx1-ubyte.gz", header=8)
    margin = (SIZE - 28) // 2
    pictures = F.pad(torch.from_numpy(pixels).float(), (margin,) * 4)
    return pictures.div(127.5).sub(1), torch.from_numpy(classes).long()


def _read(file: Path, header: int) -> np.ndarray:
    return np.frombuffer(bytearray(gzip.decompress(file.read_bytes())), np.uint8, offset=header)
