"""Pictures as tensors, as bytes and as sheets of many."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image


def to_float(images: npt.NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in [-1, 1]."""
    pixels = torch.as_tensor(images)
    return pixels.permute(0, 3, 1, 2).contiguous().float().div(127.5).sub(1)


def to_uint8(pictures: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) in [-1, 1], clipped, to (N, H, W, 3) uint8."""
    pixels = pictures.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()


def save_grid(
    images: torch.Tensor, path: Path, columns: int = 8, scale: int = 1, gap: int = 2
) -> None:
    """Write (N, H, W, 3) uint8 pictures as one PNG, row by row."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 200, np.uint8)
    for index, image in enumerate(images.numpy()):
        row, column = divmod(index, columns)
        top, left = gap + row * (height + gap), gap + column * (width + gap)
        sheet[top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet)
    size = (picture.width * scale, picture.height * scale)
    picture.resize(size, Image.Resampling.NEAREST).save(path)
