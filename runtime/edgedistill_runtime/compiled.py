"""Keep graphs as an engine compiled them for this machine, since compiling takes seconds.

The name of a kept file is the hash of all that it depends on. Its checksum is kept with it, and
one that was damaged is compiled again. The folder is `edgedistill/compiled` in the user's cache
folder, or what the environment variable EDGEDISTILL_CACHE names; an empty EDGEDISTILL_CACHE turns
this off. The oldest files go when the folder has grown over 2 GiB.

An engine that reads and writes bytes uses `find` and `keep`, one that opens files `find_file` and
`new_file`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["cache_folder", "find", "find_file", "keep", "new_file"]

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


def find_file(key: Mapping[str, str]) -> Path | None:
    """Return the file of a compiled graph; None if there is none, or it is damaged.

    Args:
        key: As for `find`.
    """
    path = _path(key)
    if path is None:
        return None
    try:
        for file in path.parent.glob(f"{path.name}-*"):
            if file.name == f"{path.name}-{_checksum(file)}":
                os.utime(file)
                return file
    except OSError:
        pass  # removed by another process, or not readable
    return None


@contextmanager
def new_file(key: Mapping[str, str]) -> Iterator[Path | None]:
    """Yield a file for a compiled graph; None where no file can be kept.

    It is kept if it holds something when the block ends, and removed if the block raises.

    Args:
        key: As for `find`.
    """
    path = _path(key)
    new = None
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            number, name = tempfile.mkstemp(dir=path.parent, suffix=".new")
            os.close(number)
            new = Path(name)
    try:
        yield new
        if path is not None and new is not None:
            with suppress(OSError):
                _put(new, path)
    finally:
        if new is not None:
            with suppress(OSError):
                new.unlink(missing_ok=True)


def _put(new: Path, path: Path) -> None:
    """Rename a written file to its kept name, in place of damaged ones of the same key."""
    if not new.stat().st_size:
        return
    kept = path.with_name(f"{path.name}-{_checksum(new)}")
    new.replace(kept)
    for other in path.parent.glob(f"{path.name}-*"):
        if other != kept:
            other.unlink()
    _shrink(path.parent)


def _checksum(file: Path) -> str:
    """Return the CRC-32 of a file in hexadecimal digits.

    It finds damage as well as a longer hash does, in a third of its time.
    """
    value = 0
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


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
