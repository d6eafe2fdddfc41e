"""coremltools without its messages: off a Mac it logs each missing library and draws bars."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

__all__ = ["coremltools", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence messages below an error, of coremltools and what it imports."""
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
