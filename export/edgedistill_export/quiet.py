"""Silence messages of other libraries."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_stderr", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, log records below an error, and log handlers added during the block."""
    root = logging.getLogger()
    level, handlers = root.manager.disable, list(root.handlers)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        root.handlers[:] = handlers


@contextmanager
def no_stderr() -> Iterator[None]:
    """Silence the process's standard error, including that of libraries in C++."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
