"""Progress of long work: a bar with rate and time left on a terminal, plain lines otherwise."""

from __future__ import annotations

import logging
import re
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = [
    "Bar",
    "Handler",
    "answers",
    "bar",
    "console",
    "remark",
    "say",
    "visible",
    "visible_lines",
]

_HIDDEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode categories of control characters, lone surrogates and separators of lines."""

_DIRECTIONS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
"""Characters that turn the direction in which those after them are shown."""


def visible(text: str) -> str:
    """`text` in one line, with an escape for each character that a terminal would act on.

    So the control character ESC becomes the four letters x1b after a backslash.
    """
    if text.isprintable():
        return text
    return "".join(_escape(char) if _acts(char) else char for char in text)


def visible_lines(value: Any) -> Any:
    """A text with its lines and tabs kept, and all else as `visible` has it.

    What is no text, or is HTML already, stays.
    """
    if type(value) is not str or value.isprintable():
        return value
    return re.sub(r"[^\n\t]+", lambda found: visible(found[0]), value)


def _acts(char: str) -> bool:
    return unicodedata.category(char) in _HIDDEN or ord(char) in _DIRECTIONS


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode()


class _Plain(Console):
    """A console that prints every text as it is: no markup, no emoji codes, no control characters.

    Cells, titles and columns of tables are texts too.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)


FILE_WIDTH = 160
"""Characters of a line of a table in a file or a pipe: wide enough that no heading is cut."""

console = _Plain(stderr=True, width=None if sys.stderr.isatty() else FILE_WIDTH)
"""Of work that goes on: how far it is, where its files are, what is wrong."""
answers = _Plain(width=None if sys.stdout.isatty() else FILE_WIDTH)
"""Of a verb whose result is what it prints: stdout, to be kept and piped, a row a line."""


def say(line: str) -> None:
    """Print a line of any text on the console, however long."""
    console.print(line, soft_wrap=True)


_remarked: set[str] = set()


def remark(line: str) -> None:
    """Say what is good to know of a file, once a process."""
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
    """Progress towards `total`."""

    def __init__(self, title: str, total: int, start: int, live: Progress | None) -> None:
        self.title, self.total, self.start, self.live = title, total, start, live
        self._task = None if live is None else live.add_task(title, total=total, completed=start)
        self._begin = self._printed = time.perf_counter()
        self._note = ""

    def update(self, done: int, note: str = "") -> None:
        """Say how far the work is, and a few figures."""
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
        """Set how much work there is, once it is known."""
        self.total = total
        if self.live is not None and self._task is not None:
            self.live.update(self._task, total=total)

    def step(self, done: int, total: int, what: str) -> None:
        """`update`, for work that says each time how much there is."""
        self.retotal(total)
        self.update(done, what)

    def follow(self, step: int, figures: dict[str, float] | None) -> None:
        """`update`, with the losses among training figures as the note."""
        if figures:
            losses = {k: v for k, v in figures.items() if k.endswith("/loss")}
            self._note = " ".join(f"{k} {v:.4g}" for k, v in losses.items())
        self.update(step, self._note)


@contextmanager
def bar(title: str, total: int, start: int = 0) -> Iterator[Bar]:
    """A progress bar for the block."""
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
    with Progress(*columns, console=console) as live:
        yield Bar(title, total, start, live)
