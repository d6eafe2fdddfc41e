"""Text files as editors on every system write them, and checks of what else may be at a path."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

from edgedistill.common import reading
from edgedistill.common.progress import visible

__all__ = ["check_file", "decode", "is_folder", "parse_json", "read_text", "shown", "split_lines"]

LARGEST = 256 * 2**20
"""Largest size of a text file that is read, in bytes."""

_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_BOM = "\ufeff"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def shown(name: object) -> str:
    """Write a name as a message can print it, whatever bytes a file system allowed in it."""
    return visible(str(name))


def is_folder(path: Path) -> bool:
    """Tell whether a path is a folder; ValueError for a name that no file system takes."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        said, name = getattr(error, "strerror", None) or error, shown(path)
        name = name if len(name) <= 200 else f"{name[:100]}...{name[-60:]}"
        raise ValueError(f"{name}: {said}") from None


def check_file(path: Path, largest: int = LARGEST) -> None:
    """Raise an error unless `path` is a file that can be read without waiting.

    Args:
        path: A file, or a link to one.
        largest: Largest size in bytes.

    Raises:
        ValueError: If `path` is a folder, fifo, socket or device, or too large; names it.
        OSError: If its status cannot be read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no file")
        raise ValueError(f"{shown(path)}: {kind}; a file expected")
    if found.st_size > largest:
        size, most = found.st_size / 2**20, largest / 2**20
        raise ValueError(f"{shown(path)}: {size:.0f} MiB; at most {most:.0f} are read")


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without its byte order mark.

    Raises:
        ValueError: If it is not such a file, or larger than `LARGEST`; names it.
        OSError: If it cannot be opened.
    """
    check_file(path)
    return decode(reading.read_bytes(path, LARGEST), f"{shown(path)}:")


def decode(data: bytes, what: str) -> str:
    """Turn UTF-8 bytes into text, without a byte order mark.

    Args:
        data: The bytes.
        what: Start of the error message.

    Raises:
        ValueError: If it is UTF-16 or UTF-32, or otherwise not UTF-8, or holds a NUL.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            raise ValueError(f"{what} {name} text; save it as UTF-8")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if "\0" in text:
        where = text.index("\0")
        raise ValueError(f"{what} not UTF-8 text (NUL at character {where}); save it as UTF-8")
    return text.removeprefix(_BOM)


def split_lines(text: str) -> list[str]:
    r"""Split text into lines that end in \n, \r\n or \r.

    `str.splitlines` would also cut at U+0085, U+2028 and other characters inside a line. A byte
    order mark at either end of a line, where files were joined, is left out.
    """
    return [line.strip(_BOM) for line in re.split(r"\r\n|\n|\r", text)]


def parse_json(text: str, what: str, *, strict: bool = False) -> Any:
    """Parse JSON within the bounds of `reading.parse_json`.

    Args:
        text: The JSON.
        what: Start of the error message.
        strict: Also refuse duplicate keys, and numbers that are not finite.

    Raises:
        ValueError: If it is not JSON, is nested too deeply, or has a lone surrogate in a string.
    """
    try:
        found = reading.parse_json(text, strict=strict)
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what} half a character (a lone surrogate) in a text") from None
    except ValueError as error:
        raise ValueError(f"{what} not JSON: {error}") from None
    return found
