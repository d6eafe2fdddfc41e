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
    """Nothing below an error from coremltools."""
    logger = logging.getLogger("coremltools")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


with quiet():
    import coremltools
