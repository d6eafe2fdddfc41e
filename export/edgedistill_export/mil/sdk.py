"""coremltools, without its remarks: off a Mac it logs each library it lacks, and it draws bars."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

__all__ = ["coremltools", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing below an error, of coremltools or what it imports."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


with quiet():
    import coremltools
