"""Files and folders that appear whole or not at all.

They are made in a hidden folder beside their final place, `.NAME-XXXXXXXX.part`, flushed to the
disk, and renamed. The writing process holds a lock on the hidden folder. A hidden folder without a
lock was left by a killed process; the next process that writes there, or opens NAME, removes it.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edgedistill.common.disk import WriteError, linked, lock, naming, put, sync, sync_all, unlock
from edgedistill.common.reading import parse_json, read_bytes

__all__ = [
    "WriteError",
    "atomic_file",
    "atomic_folder",
    "atomic_link",
    "check_writable",
    "from_here",
    "read_json",
    "read_link",
    "recover",
    "write_json",
    "write_text",
]

ASIDE = "-old"
"""Name inside a hidden folder for the old target, where two folders cannot be swapped."""

LONGEST = 200
"""Largest number of bytes of a target's name that a hidden folder repeats."""


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder to fill, which becomes `target` when the block ends without an error.

    All users may then read its files. A kill at any moment leaves either the old or the new folder
    at `target`; where the file system cannot swap two, `recover` may have to bring the old one
    back. After an error the old one is still there, and nothing is left of the new one.

    Args:
        target: The folder's final path.

    Raises:
        WriteError: If `target` cannot be written; says why.
    """
    with _beside(target) as work:
        made = work / target.name
        made.mkdir()
        yield made
        sync_all(made)
        put(made, target, work / ASIDE)
        sync(target.parent)


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes `target` when the block ends without an error.

    The path has the name of `target`. Several processes may write the same file at once. After an
    error the old file is still there.

    Args:
        target: The file's final path.

    Raises:
        WriteError: If `target` cannot be written; says why.
    """
    with _beside(target) as work:
        made = work / target.name
        yield made
        made.chmod(0o644)  # safetensors makes its files readable for their owner alone
        sync(made)
        made.replace(target)
        sync(target.parent)


def atomic_link(target: Path, to: str) -> None:
    """Make or replace the link `target`, which says `to`; `read_link` reads it.

    It is a symbolic link, or a text file with the same words where the system has none or, as
    Windows by default, allows none.

    Raises:
        WriteError: If it cannot be made; says why.
    """
    with _beside(target) as work:
        made = work / target.name
        if not linked(made, to):
            made.write_text(f"{to}\n", encoding="utf-8", newline="\n")
        made.replace(target)


def read_link(path: Path) -> str | None:
    """Return what a link of `atomic_link` says; None if there is none at `path`."""
    if path.is_symlink():
        return os.fspath(path.readlink())
    try:
        lines = read_bytes(path, 2**16).decode().splitlines() if path.is_file() else []
    except (OSError, ValueError):
        return None
    return lines[0] if len(lines) == 1 else None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_file(path) as made:
        made.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all; ValueError names a number that is not finite."""
    where = _not_finite(data, "")
    if where:
        raise ValueError(f"{path}: {where}; JSON holds finite numbers")
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, limit: int | None = None, *, infinite: bool = False) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes, by default 16 MiB; errors name the file.

    Numbers that are not finite are refused unless `infinite`: diffusers writes `-Infinity` into
    the settings of DPM-Solver's schedulers.
    """
    try:
        data = parse_json(read_bytes(path, limit))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a JSON object expected")
    where = "" if infinite else _not_finite(data, "")
    if where:
        raise ValueError(f"{path}: {where}; JSON holds finite numbers")
    return data


def check_writable(path: Path, what: str) -> None:
    """Raise a ValueError that names `what` if a file could not be written at `path`.

    Nothing is left behind, nor folders on the way.
    """
    missing = _missing(path.parent)
    try:
        with _beside(path, what) as work:
            (work / path.name).touch()
        if path.is_dir():
            raise WriteError(f"{what}: cannot write there: Is a directory")
    finally:
        _drop(missing)


def from_here(path: Path) -> Path:
    """Return a path inside the working directory relative to it, and any other as it is."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def recover(target: Path) -> None:
    """Remove what killed processes left beside `target`, and bring back what one was replacing.

    It is called before a folder is opened and before every write. Files that another process is
    writing now stay.
    """
    prefix = re.escape(_prefix(target))
    with suppress(OSError):
        names = sorted(os.listdir(target.parent))  # noqa: PTH208  names are enough
        for name in names:
            if re.fullmatch(r"\..*-[a-z0-9_]{8}\.part", name):
                with suppress(OSError):  # another process is at work there
                    ours = re.fullmatch(prefix + r"[a-z0-9_]{8}\.part", name)
                    _collect(target.parent / name, target if ours else None)
            # The first versions left old folders under this name.
            elif re.fullmatch(prefix + r"[a-z0-9_]{8}-old", name) and not os.path.lexists(target):
                (target.parent / name).replace(target)


# --- The hidden folder --------------------------------------------------------------------------


@contextmanager
def _beside(target: Path, what: str = "") -> Iterator[Path]:
    """Yield a hidden folder beside `target` for the block, and remove it afterwards.

    After an error, folders made on the way to it are removed too. `what` is as in `naming`.
    """
    missing = _missing(target.parent)
    try:
        with naming(target, what):
            target.parent.mkdir(parents=True, exist_ok=True)
            recover(target)
            work, held = _hidden(target)
            try:
                with naming(target, what):
                    yield work
            finally:
                _clear(work, target)
                unlock(held)
    except BaseException:
        _drop(missing)
        raise


def _hidden(target: Path) -> tuple[Path, int | None]:
    """Make the hidden folder and lock it."""
    while True:
        work = Path(tempfile.mkdtemp(".part", _prefix(target), target.parent))
        try:
            held = lock(work)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process has taken it for a leftover
        work.chmod(0o755)
        return work, held


def _prefix(target: Path) -> str:
    short = os.fsencode(target.name)[:LONGEST].decode(errors="ignore")
    return f".{short}-"


def _collect(work: Path, target: Path | None) -> None:
    """Clear a hidden folder nobody works in; another target's only if it replaces nothing."""
    held = lock(work)
    if held is None:
        return  # locks are missing, so nobody can know
    try:
        if target is not None or not os.path.lexists(work / ASIDE):
            _clear(work, target)
    finally:
        unlock(held)


def _clear(work: Path, target: Path | None) -> None:
    """Remove a hidden folder, after moving the old `target` back if nothing stands there."""
    aside = work / ASIDE
    if target is not None and os.path.lexists(aside) and not os.path.lexists(target):
        aside.replace(target)
    shutil.rmtree(work, ignore_errors=True)


def _missing(folder: Path) -> list[Path]:
    """Return the folder and the folders around it that do not exist, innermost first."""
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def _drop(folders: list[Path]) -> None:
    """Remove the folders that are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


# --- Numbers ------------------------------------------------------------------------------------


def _not_finite(data: Any, key: str) -> str:
    """Return the first number in JSON-ready data that is not finite, with its key; "" if none."""
    if isinstance(data, float):
        return "" if math.isfinite(data) else f"{key or 'the number'} is {data}"
    pairs: Any = ()
    if isinstance(data, dict):
        pairs = data.items()
    elif isinstance(data, list | tuple):
        pairs = enumerate(data)
    found = (_not_finite(value, f"{key}.{name}" if key else str(name)) for name, value in pairs)
    return next(filter(None, found), "")
