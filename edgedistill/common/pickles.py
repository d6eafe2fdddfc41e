"""Refuse pickles: weights that exist only in a pickle are never opened."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PICKLES", "check_pickles"]

PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
"""Endings of files that may run code when they are opened; none is ever opened."""


def check_pickles(folder: Path) -> None:
    """Raise a ValueError if a network below a folder has its weights in a pickle alone."""
    for file in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if file.suffix not in PICKLES or any(file.parent.glob("*.safetensors")):
            continue
        raise ValueError(
            f"{file}: a pickle, which is never opened; load it where you trust it, and save it "
            "with save_pretrained(..., safe_serialization=True)"
        )
