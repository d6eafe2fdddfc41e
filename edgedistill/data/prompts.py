"""Prompts: a text file, a column of parquet, or the captions of webdataset shards."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

from edgedistill.data.tars import read_samples

__all__ = ["CAPTION", "read_prompts"]

CAPTION = "caption"
"""Column of parquet, and key of a .json in a tar, unless told otherwise."""


def read_prompts(path: str | Path, caption: str = CAPTION) -> list[str]:
    """Prompts in their order, without empty ones.

    Args:
        path: A .parquet file, a .tar of webdataset or a folder of either, in the order of names;
            any other file is UTF-8 text, a prompt a line.
        caption: Column of parquet; key of a .json in a tar.

    Raises:
        ValueError: If the file is missing, empty or not what its ending says; names it.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        seen = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        files = [file for file in seen if file.suffix.lower() in READERS]
    prompts = []
    for file in files:
        try:
            found = READERS.get(file.suffix.lower(), _lines)(file, caption)
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not UTF-8 text (byte {error.start})") from None
        except OSError as error:
            raise ValueError(f"{file}: {error.strerror or error}") from None
        prompts += [text.strip() for text in found if text.strip()]
    if not prompts:
        raise ValueError(f"{path}: no prompts in it")
    return prompts


def _lines(path: Path, caption: str) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _parquet(path: Path, caption: str) -> list[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            f"{path}: parquet needs pyarrow: pip install 'edgedistill[data]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if caption not in names:
                raise ValueError(
                    f"{path}: no column {caption!r}; choose data.caption from {', '.join(names)}"
                )
            column = [
                value
                for batch in file.iter_batches(columns=[caption])
                for value in batch.column(0).to_pylist()
                if value is not None
            ]
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path}: not readable as parquet: {_first(error)}") from None
    if not all(isinstance(value, str) for value in column):
        raise ValueError(f"{path}: column {caption!r} does not hold text")
    return column


def _captions(path: Path, caption: str) -> list[str]:
    try:
        return [sample.caption(caption) for sample in read_samples(path)]
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"{path}: {_first(error)}") from None


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


READERS: dict[str, Callable[[Path, str], list[str]]] = {".parquet": _parquet, ".tar": _captions}
"""By ending, (file, caption) -> prompts; other files are text."""
