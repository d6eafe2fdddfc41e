"""System calls behind `files.py`: locks, atomic swaps, durable writes, reasons of failures."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

__all__ = ["WriteError", "linked", "lock", "naming", "put", "sync", "sync_all", "unlock"]

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Constants of Linux's renameat2(2)."""

WRITES = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
"""Error codes that only a write can have, so they are known without a file name."""

ROOM = 2**16
"""Free bytes below which a disk counts as full."""


class WriteError(ValueError):
    """A path that cannot be written for reasons outside this program; says which and why."""


# --- Locks --------------------------------------------------------------------------------------


def lock(path: Path) -> int | None:
    """Lock the file or folder at `path` until `unlock` is called or this process ends.

    Returns:
        The handle for `unlock`; None where the system or the file system has no locks (flock(2)).

    Raises:
        BlockingIOError: If it is locked already, by this process or another.
        FileNotFoundError: If nothing is there.
    """
    if sys.platform == "win32":
        return None
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The previous holder of the lock may have moved or removed what was there.
        if os.path.samestat(os.fstat(handle), path.stat()):
            return handle
        raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(path))
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError | FileNotFoundError):
            raise
        return None


def unlock(handle: int | None) -> None:
    """Release a lock; None is ignored."""
    if handle is not None:
        os.close(handle)


# --- Links and renames that last ----------------------------------------------------------------


NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.ENOTSUP)
"""Error codes of systems and file systems that have no symbolic links."""

NOT_ALLOWED = 1314
"""Windows' error code for a user who may make none."""


def linked(path: Path, to: str) -> bool:
    """Make the symbolic link `path`, which says `to`; return False if the system makes none."""
    try:
        path.symlink_to(to)
    except OSError as error:
        if error.errno in NO_LINKS or getattr(error, "winerror", None) == NOT_ALLOWED:
            return False
        raise
    return True


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems without fsync
            raise
    finally:
        os.close(handle)


def sync_all(folder: Path) -> None:
    """Flush a folder with all that is in it to the disk, and make it readable for all."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_symlink():
            continue
        if path.is_file():
            path.chmod(path.stat().st_mode | 0o444)  # safetensors makes files owner-only
        sync(path)


def put(new: Path, target: Path, aside: Path) -> None:
    """Rename the folder `new` to `target`, whatever is there.

    The old content of `target` is then at `new`, swapped with it at one instant. Where the file
    system cannot swap, it is at `aside`, and for a moment nothing is at `target`.
    """
    try:
        new.replace(target)
        return
    except OSError as error:
        # Windows refuses any folder that is there, with EACCES.
        there = (errno.EACCES,) if sys.platform == "win32" and os.path.lexists(target) else ()
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, *there):
            raise
    if not os.path.lexists(target):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(target))
    if _swapped(new, target):
        return
    target.replace(aside)
    try:
        new.replace(target)
    except BaseException:
        aside.replace(target)
        raise


def _swapped(one: Path, other: Path) -> bool:
    """Swap two paths; return False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    if call(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


# --- Reasons ------------------------------------------------------------------------------------


@contextmanager
def naming(target: Path, what: str = "") -> Iterator[None]:
    """Turn system errors inside the block into a `WriteError` that names `target`.

    Libraries lose the file's name, and some lose the reason too, so the free space is checked
    here.

    Args:
        target: The file or folder being written.
        what: Name of the target in the message; by default its path.
    """
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        reason = _reason(error, target)
        if not reason:
            raise
        raise WriteError(f"{what or target}: cannot write there: {reason}") from error


def _reason(error: Exception, target: Path) -> str:
    """Say why `target` could not be written; "" if the error is about something else."""
    if isinstance(error, FileExistsError | NotADirectoryError) and _ours(error, target):
        return "a file is where a folder would be"
    if isinstance(error, OSError) and error.errno and _ours(error, target):
        return os.strerror(error.errno)
    said = re.search(r"os error (\d+)|requested and \d+ written", str(error))
    if said:  # errors of a library in Rust, or of NumPy
        return os.strerror(int(said[1])) if said[1] else said[0]
    return os.strerror(errno.ENOSPC) if _full(target) else ""


def _ours(error: OSError, target: Path) -> bool:
    """Whether an error is about `target`, a folder around it or its temporary files."""
    if error.filename is None:
        return error.errno in WRITES
    place, absolute = Path(os.fsdecode(error.filename)).absolute(), target.absolute()
    if place == absolute or place in absolute.parents:
        return True
    return place.parent.is_relative_to(absolute.parent) and ".part" in str(place)


def _home(target: Path) -> Path:
    """Return the innermost existing folder around `target`."""
    absolute = target.absolute()
    return next((path for path in absolute.parents if path.is_dir()), absolute)


def _full(target: Path) -> bool:
    if sys.platform == "win32":
        return False
    try:
        space = os.statvfs(_home(target))
    except OSError:
        return False
    left = space.f_bfree if os.geteuid() == 0 else space.f_bavail
    return left * space.f_frsize < ROOM or (space.f_files > 0 and space.f_favail == 0)
