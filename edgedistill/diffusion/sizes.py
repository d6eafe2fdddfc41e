"""Latents at a fraction of their height and width, for multi-resolution students."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

__all__ = ["check_sizes", "reduced", "resized", "shape_at"]


def check_sizes(sizes: Sequence[float]) -> None:
    """Raise a ValueError unless the sizes are above 0, do not decrease, and end at 1."""
    if not all(size > 0 for size in sizes) or list(sizes) != sorted(sizes) or sizes[-1] != 1:
        given = ", ".join(f"{size:g}" for size in sizes)
        raise ValueError(f"sizes {given}: each above 0, none below the one before, the last 1")


def shape_at(shape: Sequence[int], size: float) -> tuple[int, ...]:
    """Return `shape` (..., height, width) with both sides scaled by the fraction `size`.

    Raises:
        ValueError: If it has no height and width, or a scaled side is not a whole number.
    """
    if size == 1:
        return tuple(shape)
    if len(shape) < 3:
        raise ValueError(f"size {size:g}: data of shape {tuple(shape)} has no height and width")
    sides = [size * side for side in shape[-2:]]
    whole = [round(side) for side in sides]
    if any(abs(a - b) > 1e-6 * b for a, b in zip(sides, whole, strict=True)):
        height, width = shape[-2:]
        raise ValueError(
            f"size {size:g}: {height} x {width} do not come out whole; "
            f"choose a multiple of 1/{math.gcd(height, width)}"
        )
    return (*shape[:-2], *whole)


def resized(x: Tensor, height: int, width: int) -> Tensor:
    """Enlarge x (..., h, w) by bicubic interpolation to (..., height, width)."""
    planes = x.reshape(1, -1, *x.shape[-2:])
    grown = F.interpolate(planes, (height, width), mode="bicubic", align_corners=False)
    return grown.reshape(*x.shape[:-2], height, width)


def reduced(x: Tensor, size: float) -> Tensor:
    """Reduce x (..., h, w) to the fraction `size` of its height and width by area means."""
    shape = shape_at(x.shape, size)
    planes = x.reshape(1, -1, *x.shape[-2:])
    return F.interpolate(planes, shape[-2:], mode="area").reshape(shape)
