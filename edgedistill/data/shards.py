"""Tensors on disk that runs share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

__all__ = ["write_shard"]


def write_shard(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all, for all to read.

    Several runs may write the same one at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    part = Path(name)
    try:
        save_file(tensors, part, metadata=metadata)
        part.chmod(0o644)  # safetensors keeps files to their owner
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
