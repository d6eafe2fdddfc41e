"""Hear what the package logs."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Ear(logging.Handler):
    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__()
        self.hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self.hear(record.getMessage())


@contextmanager
def hearing(hear: Callable[[str], None]) -> Iterator[None]:
    """Call `hear` with each message of the logger "edgedistill", from INFO on."""
    logger, ear = logging.getLogger("edgedistill"), _Ear(hear)
    level = logger.level
    logger.addHandler(ear)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(ear)
        logger.setLevel(level)
