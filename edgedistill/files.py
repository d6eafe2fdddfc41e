"""Atomic files and folders: written beside their place, then renamed into it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["atomic_folder", "check_writable", "read_json", "write_json", "write_text"]


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `target` when the block ends without an error.

    Then all may read its files. After an error nothing is left of it, nor of folders made on the
    way.
    """
    missing = _missing(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    work.chmod(0o755)
    try:
        yield work
        for file in work.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(file.stat().st_mode | 0o444)  # safetensors keeps files to their owner
        old = work.with_name(work.name + "-old")
        if target.exists():
            target.rename(old)
        work.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        _drop(missing)
        raise


def check_writable(path: Path, what: str) -> None:
    """Raise a ValueError that names `what` if a file could not be written at `path`.

    Nothing is left behind, nor folders on the way.
    """
    missing = _missing(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
        os.close(handle)
        Path(name).unlink()
    except FileExistsError:
        raise ValueError(
            f"{what}: cannot write there: a file is where a folder would be"
        ) from None
    except OSError as error:
        raise ValueError(f"{what}: cannot write there: {error.strerror}") from None
    finally:
        _drop(missing)
    if path.is_dir():
        raise ValueError(f"{what}: cannot write there: Is a directory")


def _missing(folder: Path) -> list[Path]:
    """Which of a folder and those around it are not there, innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def _drop(folders: list[Path]) -> None:
    """Remove those that are empty."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ValueError names the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a JSON object expected")
    return data
