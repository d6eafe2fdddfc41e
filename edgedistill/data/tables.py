"""Read rows of a table on disk: jsonl, csv, tsv and parquet, the usual metadata of data sets."""

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
"""Default column of captions, and default key of a .json in a tar."""

_USUAL = (CAPTION, "text", "prompt")
"""Columns that are tried where none was named."""

LARGEST_PARQUET = 64 * 2**30
"""Largest size of a parquet file that is read, in bytes; it is read in pieces."""

Row = Mapping[str, Any]


def column(names: Collection[str], key: str, file: Path, others: Sequence[str] = _USUAL) -> str:
    """Return the column of captions among `names`.

    Args:
        names: Columns of the table.
        key: The requested column; `CAPTION` stands for the usual ones.
        file: The file, for the message.
        others: Usual columns, best first.

    Raises:
        ValueError: If there is no such column; names the columns.
    """
    for name in (key, *(others if key == CAPTION else ())):
        if name in names:
            return name
    some = ", ".join([shown(name) for name in names][:20])
    raise ValueError(f"{shown(file)}: no column {key!r}; choose data.caption from {some}")


def spoken(value: object) -> str:
    """Return a cell as a caption: stripped text, an integer in digits, "" for an empty cell.

    Raises:
        ValueError: If the cell holds anything else.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value != value:  # NaN, by which pandas marks empty cells
        return ""
    raise ValueError(f"text or a whole number expected, got {str(value)[:40]!r}")


def read_table(file: Path) -> Iterator[tuple[int, Row]]:
    """Yield line or row numbers from 1, and rows by column.

    Raises:
        ValueError: If the file's content does not match its ending; names file and line.
        OSError: If the file cannot be opened.
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
    # Spreadsheets write the separator of the user's country.
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
        # A short file may expand to much text, so a few rows are read at a time.
        for batch in found.iter_batches(batch_size=256, columns=names):
            for start in range(0, len(batch), 32):
                for row in batch.slice(start, 32).to_pylist():
                    number += 1
                    yield number, row


def _plain(kind: str) -> bool:
    """Whether a column holds text or whole numbers; other columns may hold pictures."""
    kind = kind.removeprefix("dictionary<values=").split(",")[0]
    return any(word in kind for word in ("string", "int", "double", "float")) and "<" not in kind


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a ParquetFile; pyarrow's errors inside the block become ValueErrors."""
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
"""Readers by file ending, file -> rows."""
