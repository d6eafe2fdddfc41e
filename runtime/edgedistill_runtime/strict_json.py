"""Read JSON from anywhere within bounds: not too large or deep, finite, each key once."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["MAX_BYTES", "MAX_DEPTH", "check_depth", "parse", "read_bytes", "short"]

MAX_BYTES = 16 * 2**20
"""Default of the largest size of a file that is read, in bytes."""

MAX_DEPTH = 64
"""Largest depth to which objects and arrays may be nested."""

_MAX_INTEGER = 2**64
"""Bound of integers; seeds are the largest integers of any format."""


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Raises:
        FileNotFoundError: If nothing is at `path`.
        OSError: If it cannot be read.
        ValueError: If it is larger, or a folder, pipe or device.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is no regular file")
    if found.st_size > limit:
        raise ValueError(f"has {found.st_size} bytes; at most {limit} expected")
    with path.open("rb") as file:
        return file.read(limit)


def parse(data: bytes | str, *, strict: bool = True) -> Any:
    """Parse UTF-8 JSON, which may begin with a byte order mark.

    Args:
        data: The text.
        strict: Also refuse what Python's parser accepts but other languages do not, or read
            differently: duplicate keys, NaN, infinities, numbers beyond float64 and integers of
            2^64 and above. Otherwise the last of equal keys counts, as in most parsers.

    Raises:
        ValueError: In one line, if the text is not JSON, or nested deeper than `MAX_DEPTH`.
    """
    rules: dict[str, Any] = {}
    if strict:
        rules = {
            "object_pairs_hook": _object,
            "parse_constant": _constant,
            "parse_float": _float,
            "parse_int": _integer,
        }
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        found = json.loads(text.removeprefix("\ufeff"), **rules)
    except RecursionError:
        raise _too_deep() from None
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    check_depth(found)
    return found


def check_depth(data: Any, limit: int = MAX_DEPTH) -> None:
    """Raise a ValueError if dicts and lists in `data` are nested deeper than `limit`."""
    level = _nested([data])
    for _ in range(limit):
        level = _nested(child for node in level for child in _items(node))
        if not level:
            return
    raise _too_deep(limit)


def _nested(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, (dict, list))]


def _items(node: Any) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


def short(value: Any, limit: int = 60) -> str:
    """Return the `repr` of a value for a message, its middle left out where it is long."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"a number of {value.bit_length()} bits"
    if len(text) <= limit:
        return text
    tail = limit // 3
    return f"{text[: limit - tail]}...{text[-tail:]}"


def _too_deep(limit: int = MAX_DEPTH) -> ValueError:
    return ValueError(f"nested deeper than {limit} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"key {short(twice)} twice")
    return found


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:60]} is no finite number")
    return number


def _integer(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= _MAX_INTEGER:
        raise ValueError(f"{text[:60]} is no integer below 2^64")
    return int(text)
