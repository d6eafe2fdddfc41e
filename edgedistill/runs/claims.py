"""Claims: a run dir belongs to one process at a time; a refused run deletes nothing of others."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

from edgedistill.common.disk import WriteError, lock, naming, unlock
from edgedistill.common.files import check_writable, write_text

__all__ = ["RECIPE", "Claim", "check_free", "claim_new", "claim_old"]

RECIPE = "recipe.yaml"

WORK = ("data", "parts", "students", "checkpoints")
"""Entries of a run dir that took time to make."""

TRIES = 100
"""Number of attempts at a folder that other processes create and remove."""


class _Held:
    """A locked folder, released with its last holder or with the process."""

    def __init__(self, folder: Path) -> None:
        handle = lock(folder)
        self.stat = folder.stat()
        weakref.finalize(self, unlock, handle)


_held: weakref.WeakValueDictionary[Path, _Held] = weakref.WeakValueDictionary()


def _hold(folder: Path) -> _Held:
    """Lock a folder; a process that holds it already holds it once more.

    Raises:
        ValueError: If another process holds it.
        FileNotFoundError: If the folder is gone.
    """
    place = folder.resolve()
    found = _held.get(place)
    if found is None or not os.path.samestat(found.stat, place.stat()):
        try:
            found = _held[place] = _Held(place)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: another process is at work there; wait until it ends, or stop it"
            ) from None
    return found


class Claim:
    """A run dir that belongs to this process.

    Args:
        folder: The run dir, which must exist.
        made: The run dir and folders around it, as far as they were made for this run, innermost
            first.

    Raises:
        ValueError: If another process holds it.
    """

    def __init__(self, folder: Path, made: list[Path]) -> None:
        self.folder = folder
        self._made, self._held = made, _hold(folder)
        self._before = {path.name for path in folder.iterdir()}
        self.taken = RECIPE in self._before
        """Whether the folder already held a run."""
        file = folder / RECIPE
        self._recipe = file.read_text(encoding="utf-8") if file.is_file() else None

    def keep(self, owner: object) -> None:
        """Hold the claim as long as `owner` lives."""
        weakref.finalize(owner, lambda held: None, self._held)

    def give_up(self, *, all_of_it: bool) -> None:
        """Restore the folder as it was; a new one is removed, with empty folders around it.

        Args:
            all_of_it: Whether data made by the run is removed too; otherwise a run that has any
                stays, to be resumed.
        """
        new = [path for path in self.folder.iterdir() if path.name not in self._before]
        if not all_of_it and any(path.name in WORK for path in new):
            return
        for path in new:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if self._recipe is not None:
            write_text(self.folder / RECIPE, self._recipe)
        for path in self._made:
            try:
                path.rmdir()
            except OSError:
                break  # another process has put something there


def check_free(place: Path) -> None:
    """Raise the ValueError of `claim_new` for a folder that holds a run already."""
    if (place / RECIPE).is_file():
        _claimed(place, numbered=False)


def claim_new(place: Path, *, numbered: bool) -> Claim:
    """Claim a folder for a new run.

    Args:
        place: The folder.
        numbered: Whether to take PLACE-2, PLACE-3, ... if the folder exists. Otherwise it may
            exist, but without a run in it.

    Raises:
        ValueError: If the folder cannot be written, holds a run, or belongs to another process.
    """
    for left in reversed(range(TRIES)):
        folder = next(path for path in _names(place) if not numbered or not os.path.lexists(path))
        try:
            with naming(folder, f"out={folder}"):
                return _claimed(folder, numbered=numbered)
        except WriteError as error:
            # Another process made it first, or was refused and removed a folder.
            passing = isinstance(error.__cause__, FileExistsError | FileNotFoundError)
            if not passing or not left:
                raise
    raise AssertionError("the last try returns or raises")


def _claimed(folder: Path, *, numbered: bool) -> Claim:
    claim = Claim(folder, _make(folder, exist_ok=not numbered))
    if claim.taken:
        raise ValueError(
            f"{folder} holds a run already; add --resume (resume=True in Python) or choose "
            "another out="
        )
    try:
        check_writable(folder / RECIPE, f"out={folder}")
    except ValueError:
        claim.give_up(all_of_it=True)
        raise
    return claim


def claim_old(folder: Path) -> Claim:
    """Claim the run dir of a run to be resumed.

    Raises:
        ValueError: If there is no run, or it belongs to another process or cannot be written.
    """
    if not (folder / RECIPE).is_file():
        raise ValueError(f"{folder}: no run to resume there")
    claim = Claim(folder, [])
    check_writable(folder / RECIPE, f"out={folder}")
    return claim


def _names(place: Path) -> Iterator[Path]:
    return chain([place], (place.with_name(f"{place.name}-{number}") for number in count(2)))


def _make(folder: Path, *, exist_ok: bool) -> list[Path]:
    """Make a folder and those around it; return the ones that were missing, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    for path in reversed(missing[1:]):
        path.mkdir(exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        if not exist_ok:
            raise
        missing = missing[1:]
    return missing
