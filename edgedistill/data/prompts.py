"""Prompts from a text file, a table's column, or the captions of webdataset shards."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from edgedistill.common.progress import remark
from edgedistill.common.reading import short
from edgedistill.common.text import (
    check_file,
    is_folder,
    parse_json,
    read_text,
    shown,
    split_lines,
)
from edgedistill.data.tables import CAPTION, TABLES, column, read_table
from edgedistill.data.tars import read_samples

__all__ = ["CAPTION", "read_prompts", "recipe_prompts", "tell_weights"]

_WEIGHT = re.compile(r"\([^()\n]+:\s*[-+]?\d*\.?\d+\s*\)|\(\([^()\n]+\)\)|<\w+:[^<>\n]+>")
"""Pattern of weights in prompts: (word:1.2), ((word)), <lora:name:0.8>."""

LARGEST = 2**29
"""Largest number of characters of all prompts together."""


def read_prompts(path: str | Path, caption: str = CAPTION) -> list[str]:
    """Read prompts in their order, without empty ones.

    Args:
        path: A table (.jsonl, .csv, .tsv, .parquet), a .json list, a .tar of webdataset, or a
            folder of tables and tars in the order of their names; any other file is UTF-8 text
            with one prompt a line.
        caption: Column of a table; key of a .json in a tar. "caption" also stands for "text" and
            "prompt" where a table has no such column.

    Raises:
        ValueError: If the file is missing, empty or not what its ending says; names it.
    """
    path = Path(path)
    files = [path]
    if is_folder(path):
        seen = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        files = [file for file in seen if file.suffix.lower() in READERS and file.is_file()]
    prompts: list[str] = []
    characters = 0
    for file in files:
        for text in _read(file, caption):
            if not text.strip():
                continue
            prompts.append(text.strip())
            characters += len(text)
            if characters > LARGEST:
                raise ValueError(
                    f"{shown(path)}: more than {LARGEST >> 20} Mi characters of prompts"
                )
    if not prompts:
        raise ValueError(f"{shown(path)}: no prompts in it")
    tell_weights(prompts, f"{shown(path)}: ")
    return prompts


def recipe_prompts(path: str | Path, caption: str = CAPTION) -> list[str]:
    """Read the prompts that a recipe names, as `read_prompts` does; errors name its key."""
    try:
        return read_prompts(path, caption)
    except ValueError as error:
        hint = "; pictures are named by data.pictures" if Path(path).is_dir() else ""
        raise ValueError(f"data.prompts: {error}{hint}") from None


def tell_weights(prompts: Sequence[str], what: str = "") -> None:
    """Report in one line that prompts have weights, as in other programs; here they are text."""
    found = [match[0] for match in map(_WEIGHT.search, prompts) if match]
    if found:
        have = "prompt has" if len(found) == 1 else "prompts have"
        remark(
            f"{what}{len(found)} {have} weights such as "
            f"{short(found[0])}: they are read as plain text"
        )


def _read(file: Path, caption: str) -> Iterable[str]:
    try:
        yield from READERS.get(file.suffix.lower(), _lines)(file, caption)
    except OSError as error:
        raise ValueError(f"{shown(file)}: {error.strerror or error}") from None


def _lines(path: Path, caption: str) -> Iterable[str]:
    return split_lines(read_text(path))


def _table(path: Path, caption: str) -> Iterable[str]:
    name = ""
    for number, row in read_table(path):
        if not name or name not in row:
            name = column(row, caption, path)
        text = "" if row[name] is None else row[name]
        if not isinstance(text, str):
            raise ValueError(f"{shown(path)}: row {number}: column {name!r} does not hold text")
        yield text


def _list(path: Path, caption: str) -> Iterable[str]:
    found = parse_json(read_text(path), f"{shown(path)}:")
    if not isinstance(found, list):
        raise ValueError(f"{shown(path)}: a list of prompts expected, or rows with one each")
    for number, value in enumerate(found, 1):
        text = value[column(value, caption, path)] if isinstance(value, dict) else value
        if not isinstance(text, str):
            raise ValueError(f"{shown(path)}: entry {number} is no text: {str(text)[:40]!r}")
        yield text


def _captions(path: Path, caption: str) -> Iterable[str]:
    check_file(path, largest=2**60)
    try:
        for sample in read_samples(path):
            yield sample.caption(caption)
    except (tarfile.TarError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{shown(path)}: {first}") from None


READERS: dict[str, Callable[[Path, str], Iterable[str]]] = {
    **dict.fromkeys(TABLES, _table),
    ".json": _list,
    ".tar": _captions,
}
"""Readers by file ending, (file, caption) -> prompts; other files are read as text."""
