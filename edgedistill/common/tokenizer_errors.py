"""Errors of the tokenizers library, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["named_errors"]


@contextmanager
def named_errors() -> Iterator[None]:
    """Turn the tokenizers library's errors, of class Exception itself, into ValueErrors."""
    try:
        yield
    except Exception as error:
        if type(error) is Exception:
            raise ValueError(f"a tokenizer.json cannot be read: {error}") from error
        raise
