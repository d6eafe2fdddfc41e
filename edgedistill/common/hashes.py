"""sha256 hashes of written files, to verify them when they are read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

__all__ = [
    "check_files",
    "files_in",
    "is_signed",
    "sha256",
    "sha256_of",
    "sha256_of_all",
    "signed",
]

PIECE = 2**20
"""Number of bytes read at once."""

LOADED = (
    *(".json", ".safetensors", ".txt", ".model", ".jinja", ".py", ".npy", ".npz", ".onnx"),
    *(".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".pickle", ".pkl", ".pt", ".pth", ".tiktoken"),
)
"""Endings of files that a library might open without being told to."""

ADDED = ("bench.json", "eval.json")
"""Names of files that later commands may add to a folder."""


def sha256(file: Path) -> str:
    """Hash a file, read in chunks."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(PIECE))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


def sha256_of(data: Mapping[str, Any]) -> str:
    """Hash JSON-ready data, independent of spacing and key order."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def signed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON-ready data with its own sha256 added."""
    return {**data, "sha256": _rest(data)}


def is_signed(data: Mapping[str, Any]) -> bool:
    """Whether the data still match the sha256 that `signed` added."""
    return data.get("sha256") == _rest(data)


def _rest(data: Mapping[str, Any]) -> str:
    return sha256_of({key: value for key, value in data.items() if key != "sha256"})


def sha256_of_all(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Hash files of a folder by their names, several at a time."""
    names = list(names)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(sha256, [folder / name for name in names])
        return dict(zip(names, found, strict=True))


def files_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder and its subfolders, without hidden ones."""
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            names.append(name.as_posix())
    return sorted(names)


def check_files(folder: Path, listed: Mapping[str, str], where: str) -> None:
    """Compare a folder with the sha256 of its files.

    Args:
        folder: The folder.
        listed: Expected sha256 by name.
        where: The file in the folder that lists the hashes.

    Raises:
        ValueError: If a file is missing, was changed, or is not listed although a library might
            read it; names it.
    """
    there = [name for name in files_in(folder) if name not in (where, *ADDED)]
    for name in listed:
        if name not in there:
            raise ValueError(f"{folder / name}: missing; {where} lists it")
    for name in there:
        if name not in listed and Path(name).suffix.lower() in LOADED:
            raise ValueError(f"{folder / name}: {where} does not list it; take it away")
    for name, found in sha256_of_all(folder, listed).items():
        if found != listed[name]:
            raise ValueError(
                f"{folder / name}: damaged or changed: its sha256 is not that in {where}"
            )
