"""Progress of long work: a bar with rate and time left on a terminal, plain lines otherwise."""

from __future__ import annotations

import logging
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TimeRemainingColumn,
)
from rich.progress import Progress as Live
from rich.text import Text

__all__ = [
    "Bar",
    "Handler",
    "Progress",
    "answers",
    "bar",
    "console",
    "remark",
    "say",
    "visible",
    "visible_lines",
]

Progress = Callable[[int, int, str], None]
"""Callback progress(done, total, what), called when `what` begins, and at the end with done ==
total."""

_HIDDEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, lone surrogates and line separators."""

_DIRECTIONS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
"""Code points that change the direction of the text after them."""


def visible(text: str) -> str:
    """Return `text` in one line, with an escape for each character that a terminal would act on.

    For example, the control character ESC becomes the four letters x1b after a backslash.
    """
    if text.isprintable():
        return text
    return "".join(_escape(char) if _acts(char) else char for char in text)


def visible_lines(value: Any) -> Any:
    """Return a text with its lines and tabs kept, and everything else as in `visible`.

    Values that are not text, or are HTML already, are returned unchanged.
    """
    if type(value) is not str or value.isprintable():
        return value
    return re.sub(r"[^\n\t]+", lambda found: visible(found[0]), value)


def _acts(char: str) -> bool:
    return unicodedata.category(char) in _HIDDEN or ord(char) in _DIRECTIONS


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode()


class _Plain(Console):
    """Console that prints every text as it is: no markup, emoji codes or control characters.

    This includes cells, titles and columns of tables.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


FILE_WIDTH = 160
"""Number of characters of a table's line in a file or a pipe, enough that no heading is cut."""

console = _Plain(stderr=True, width=None if sys.stderr.isatty() else FILE_WIDTH)
"""Console on stderr for running work: progress, paths of files, warnings."""
answers = _Plain(width=None if sys.stdout.isatty() else FILE_WIDTH)
"""Console on stdout for a command's result, which can be kept and piped, one row a line."""


def say(line: str) -> None:
    """Print a line of any text and length on the console."""
    console.print(line, soft_wrap=True)


_remarked: set[str] = set()


def remark(line: str) -> None:
    """Print a note about a file, once in each process."""
    if line not in _remarked:
        _remarked.add(line)
        say(line)


class Handler(logging.Handler):
    """Prints log messages on the console."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


PLAIN_SECONDS = 10.0
"""Seconds between plain lines where there is no terminal."""


class _Title(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(visible(task.description))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="progress.data.speed")


class Bar:
    """Progress of some work towards `total`."""

    def __init__(self, title: str, total: int, start: int, live: Live | None) -> None:
        self.title, self.total, self.start, self.live = title, total, start, live
        self._task = None if live is None else live.add_task(title, total=total, completed=start)
        self._begin = self._printed = time.perf_counter()
        self._note = ""

    def update(self, done: int, note: str = "") -> None:
        """Set how much of the work is done, and a note of a few figures."""
        if self.live is not None and self._task is not None:
            title = f"{self.title} {note}" if note else None
            self.live.update(self._task, completed=done, description=title)
            return
        now = time.perf_counter()
        if now - self._printed < PLAIN_SECONDS and done < self.total:
            return
        self._printed = now
        rate = (done - self.start) / max(now - self._begin, 1e-9)
        left = (self.total - done) / rate if rate else float("inf")
        say(f"{self.title} {done}/{self.total}  {rate:.1f}/s  {left:.0f} s left  {note}".rstrip())

    def retotal(self, total: int) -> None:
        """Set the total amount of work, once it is known."""
        self.total = total
        if self.live is not None and self._task is not None:
            self.live.update(self._task, total=total)

    def step(self, done: int, total: int, what: str) -> None:
        """Do as `update`, for work that gives its total amount each time."""
        self.retotal(total)
        self.update(done, what)

    def follow(self, step: int, figures: dict[str, float] | None) -> None:
        """Do as `update`, with the losses among training figures as the note."""
        if figures:
            losses = {k: v for k, v in figures.items() if k.endswith("/loss")}
            self._note = " ".join(f"{k} {v:.4g}" for k, v in losses.items())
        self.update(step, self._note)


@contextmanager
def bar(title: str, total: int, start: int = 0) -> Iterator[Bar]:
    """Show a progress bar during the block."""
    if not console.is_terminal:
        yield Bar(title, total, start, None)
        return
    columns = (
        _Title(),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Live(*columns, console=console) as live:
        yield Bar(title, total, start, live)
