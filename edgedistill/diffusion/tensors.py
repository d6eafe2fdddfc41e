"""Shapes of per-sample numbers."""

from __future__ import annotations

from torch import Tensor

__all__ = ["expand_like"]


def expand_like(values: Tensor, like: Tensor) -> Tensor:
    """Reshape one number a sample, (N,) or a scalar, to (N, 1, ...), as `like` (N, ...) needs."""
    return values.reshape((-1,) + (1,) * (like.ndim - 1))
