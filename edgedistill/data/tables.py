"""Rows of a table on disk: jsonl, csv, tsv and parquet, as data sets' metadata is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgedistill.common.text import check_file, parse_json, read_text, shown, split_lines

__all__ = ["CAPTION", "TABLES", "column", "read_table", "spoken"]

CAPTION = "caption"
"""Column of captions, and key of a .json in a tar, unless told otherwise."""

_USUAL = (CAPTION, "text", "prompt")
"""Columns that are looked for where none was named."""

LARGEST_PARQUET = 64 * 2**30
"""Bytes of the largest parquet file that is read, a piece at a time."""

Row = Mapping[str, Any]


def column(names: Collection[str], key: str, file: Path, others: Sequence[str] = _USUAL) -> str:
    """The column of captions among `names`.

    Args:
        names: Columns of the table.
        key: The one asked for; `CAPTION` stands for the usual ones.
        file: For the message.
        others: What is usual, best first.

    Raises:
        ValueError: If there is none; names the columns.
    """
    for name in (key, *(others if key == CAPTION else ())):
        if name in names:
            return name
    some = ", ".join([shown(name) for name in names][:20])
    raise ValueError(f"{shown(file)}: no column {key!r}; choose data.caption from {some}")


def spoken(value: object) -> str:
    """A cell as a caption: text without its ends, a whole number in digits, "" for nothing.

    Raises:
        ValueError: If it is neither.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value != value:  # what pandas makes of nothing
        return ""
    raise ValueError(f"text or a whole number expected, got {str(value)[:40]!r}")


def read_table(file: Path) -> Iterator[tuple[int, Row]]:
    """Line or row numbers from 1, and rows by column.

    Raises:
        ValueError: If it is not what its ending says; names file and line.
        OSError: If it cannot be opened.
    """
    return TABLES[file.suffix.lower()](file)


def _jsonl(file: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(split_lines(read_text(file)), 1):
        if not line.strip():
            continue
        row = parse_json(line, f"{shown(file)}: line {number}:")
        if not isinstance(row, dict):
            raise ValueError(f"{shown(file)}: line {number} is no JSON object: {line[:60]!r}")
        yield number, row


def _separated(file: Path) -> Iterator[tuple[int, Row]]:
    text = read_text(file)
    head = (split_lines(text) or [""])[0]
    # Spreadsheets write what the country writes between numbers.
    separator = max("\t;," if file.suffix.lower() == ".tsv" else ",;\t", key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = [name.strip() for name in next(rows, [])]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{shown(file)}: line 1 has the name {twice!r} twice")
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                cells = f"{len(row)} cells under {len(names)} names"
                raise ValueError(f"{shown(file)}: line {rows.line_num}: {cells}")
            yield rows.line_num, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{shown(file)}: line {rows.line_num}: {error}") from None


def _parquet(file: Path) -> Iterator[tuple[int, Row]]:
    with _opened(file) as found:
        fields = {field.name: str(field.type) for field in found.schema_arrow}
        names = [name for name, kind in fields.items() if _plain(kind)]
        if not names:
            raise ValueError(f"{shown(file)}: no column of text or numbers, but {fields}"[:300])
        number = 0
        # A short file may stand for much text, row by row: few at a time.
        for batch in found.iter_batches(batch_size=256, columns=names):
            for start in range(0, len(batch), 32):
                for row in batch.slice(start, 32).to_pylist():
                    number += 1
                    yield number, row


def _plain(kind: str) -> bool:
    """Whether a column holds text or whole numbers: pictures may stand beside them."""
    kind = kind.removeprefix("dictionary<values=").split(",")[0]
    return any(word in kind for word in ("string", "int", "double", "float")) and "<" not in kind


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A ParquetFile; what pyarrow finds wrong inside the block is a ValueError."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            f"{shown(file)}: parquet needs pyarrow: pip install 'edgedistill[data]'"
        ) from None
    check_file(file, LARGEST_PARQUET)
    try:
        with parquet.ParquetFile(file) as found:
            yield found
    except pyarrow.ArrowException as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{shown(file)}: not readable as parquet: {first}") from None


TABLES: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _jsonl,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
}
"""By ending, file -> rows."""
