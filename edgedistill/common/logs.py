"""Log messages that are held back until a request is known to be right.

Modules log to `logging.getLogger(__name__)`; all of it reaches the logger "edgedistill", whose
handlers are exchanged here during a block.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

__all__ = ["PACKAGE", "WAITS", "dropped", "held"]

PACKAGE = logging.getLogger("edgedistill")
"""Logger that all of the package's messages reach."""

WAITS: Mapping[str, object] = {"waits": True}
"""`extra` of messages about long work, such as encoding pictures: never held back."""


@contextmanager
def held(logger: logging.Logger = PACKAGE) -> Iterator[None]:
    """Hold messages back until the first one with `WAITS`, or the end of the block.

    Later messages are held back again until the next one with `WAITS`. An exception that leaves
    the block drops what is still held back. In nested blocks, messages of the inner one go to the
    outer one.

    Args:
        logger: Logger whose handlers wait, with those of the loggers above it.
    """
    waiting = _Waiting(logger)
    with _handled(logger, [waiting], propagate=False):
        yield
    waiting.pass_on()


@contextmanager
def dropped(logger: logging.Logger = PACKAGE) -> Iterator[None]:
    """Drop messages of all levels during the block.

    Args:
        logger: Logger whose handlers, with those of the loggers above it, get no messages.
    """
    with _handled(logger, [logging.NullHandler()], propagate=False):
        yield


class _Waiting(logging.Handler):
    """Keeps messages for the handlers that its logger has now."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self._logger, self._records = logger, list[logging.LogRecord]()
        self._handlers, self._propagate = logger.handlers, logger.propagate

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)
        if getattr(record, "waits", False):
            self.pass_on()

    def pass_on(self) -> None:
        """Pass the messages on in order."""
        with _handled(self._logger, self._handlers, propagate=self._propagate):
            while self._records:
                self._logger.callHandlers(self._records.pop(0))


@contextmanager
def _handled(
    logger: logging.Logger, handlers: list[logging.Handler], *, propagate: bool
) -> Iterator[None]:
    """Exchange a logger's handlers during the block."""
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = handlers, propagate
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before
