"""Shards of tensors that runs share, with the sha256 of the file in its metadata."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from edgedistill.common.files import atomic_file
from edgedistill.common.finite import bad_row
from edgedistill.common.hashes import PIECE

__all__ = ["fault_of", "write_shard"]

HASH = "sha256"
"""Key of the hash in the metadata; it covers the whole file with zeros in place of the hash."""

ZEROS = "0" * 64


def write_shard(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all, and make it readable for all.

    Several runs may write the same file at once.
    """
    with atomic_file(path) as made:
        save_file(tensors, made, metadata={**(metadata or {}), HASH: ZEROS})
        _sort(made)
        place, found = _place(made, ZEROS), _sha256(made, ZEROS)
        with made.open("r+b") as file:
            file.seek(place)
            file.write(found.encode())


def fault_of(path: Path, rows: str, *, hashed: bool) -> str:
    """Describe the fault of a shard, whoever it is for; "" if there is none.

    Args:
        path: The file.
        rows: Name of the tensor whose rows must be finite.
        hashed: Whether it must have a hash, which the first versions did not write.
    """
    if not path.is_file():
        return "missing"
    try:
        with safe_open(path, "pt") as file:
            found = (file.metadata() or {}).get(HASH, "")
            if (hashed and not found) or (found and _sha256(path, found) != found):
                return "damaged or changed: it is not what its sha256 says"
            row = bad_row(file.get_tensor(rows))
    except (SafetensorError, OSError) as error:
        return str(error).strip().splitlines()[0]
    return "" if row is None else f"{rows}: row {row} is not finite"


def _sort(path: Path) -> None:
    """Write the metadata in sorted order; safetensors' own order varies."""
    with path.open("r+b") as file:
        old = file.read(int.from_bytes(file.read(8), "little"))
        header = json.loads(old)
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        new = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(new) <= len(old)
        file.seek(8)
        file.write(new.ljust(len(old)))


def _sha256(path: Path, own: str) -> str:
    """Hash a file with zeros in place of its hash `own`; "" if `own` is not there just once."""
    place = _place(path, own)
    if not place:
        return ""
    digest, piece = hashlib.sha256(), memoryview(bytearray(PIECE))
    with path.open("rb") as file:
        digest.update(file.read(place) + ZEROS.encode())
        file.seek(len(ZEROS), os.SEEK_CUR)
        while count := file.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


def _place(path: Path, own: str) -> int:
    """Return the position of the hash in a safetensors file; 0 if it is not there just once."""
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    before = f'"{HASH}":"'.encode()
    if len(own) != len(ZEROS) or header.count(before) != 1:
        return 0
    return 8 + header.index(before) + len(before)
