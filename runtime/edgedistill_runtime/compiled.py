"""Keep graphs as an engine compiled them for this machine, since compiling takes seconds.

The name of a kept file is the hash of all that it depends on. It begins with the hash of its
content, and one that was damaged is compiled again. The folder is `edgedistill/compiled` in the
user's cache folder, or what the environment variable EDGEDISTILL_CACHE names; an empty
EDGEDISTILL_CACHE turns this off. The oldest files go when the folder has grown over 2 GiB.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

__all__ = ["cache_folder", "find", "keep"]

LARGEST = 2**31
"""Bytes that the folder may hold."""

_DIGEST = hashlib.sha256().digest_size


def cache_folder() -> Path | None:
    """Return the folder of compiled graphs; None if it is turned off."""
    named = os.environ.get("EDGEDISTILL_CACHE")
    if named is not None:
        return Path(named) if named else None
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # there is no home
        return None
    return base / "edgedistill" / "compiled"


def find(key: Mapping[str, str]) -> bytes | None:
    """Return a compiled graph; None if there is none, or it is damaged.

    Args:
        key: All that the graph depends on, such as its hash and the engine's version.
    """
    path = _path(key)
    if path is None:
        return None
    try:
        data = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    digest, content = data[:_DIGEST], data[_DIGEST:]
    return content if hashlib.sha256(content).digest() == digest else None


def keep(key: Mapping[str, str], content: bytes) -> None:
    """Keep a compiled graph, as far as the folder can be written."""
    path = _path(key)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=path.parent, suffix=".new")
        new = Path(name)
        try:
            with os.fdopen(number, "wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
            new.replace(path)
        except BaseException:
            new.unlink()
            raise
        _shrink(path.parent)
    except OSError:
        return  # a full disk or a folder that cannot be written costs time, no more


def _path(key: Mapping[str, str]) -> Path | None:
    folder = cache_folder()
    name = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
    return None if folder is None else folder / name


def _shrink(folder: Path) -> None:
    """Remove the files that were read longest ago until the rest fits."""
    files = [(path.stat(), path) for path in folder.iterdir() if path.is_file()]
    total = sum(stat.st_size for stat, _ in files)
    for stat, path in sorted(files, key=lambda item: item[0].st_mtime):
        if total <= LARGEST:
            return
        path.unlink(missing_ok=True)
        total -= stat.st_size
