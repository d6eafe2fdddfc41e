"""Tensors on disk that runs share."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from edgedistill.files import atomic_file

__all__ = ["write_shard"]


def write_shard(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all, for all to read.

    Several runs may write the same one at once.
    """
    with atomic_file(path) as made:
        save_file(tensors, made, metadata=metadata)
