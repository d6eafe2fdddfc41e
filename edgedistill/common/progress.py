"""Progress of long work: a bar with rate and time left on a terminal, plain lines otherwise."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NoReturn

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
    "BROKEN_PIPE",
    "Bar",
    "Handler",
    "PlainConsole",
    "Progress",
    "answer",
    "answers",
    "bar",
    "console",
    "hush",
    "late_bar",
    "put",
    "rate",
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


BROKEN_PIPE = 141
"""Exit code where a pipe's reader has gone, as in `edgedistill recipes | head` (128 + SIGPIPE)."""


class PlainConsole(Console):
    """Console that prints every text as it is: no markup, emoji codes or control characters.

    This includes cells, titles and columns of tables.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible(text), **options)

    def on_broken_pipe(self) -> NoReturn:
        """End the program quietly, since nobody reads what it prints."""
        self.quiet = True
        with suppress(OSError, ValueError):
            # Otherwise Python fails once more when it flushes the stream at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
        raise SystemExit(BROKEN_PIPE)


FILE_WIDTH = 160
"""Number of characters of a table's line in a file or a pipe, enough that no heading is cut."""

console = PlainConsole(stderr=True, width=None if sys.stderr.isatty() else FILE_WIDTH)
"""Console on stderr for running work: progress, paths of files, warnings."""
answers = PlainConsole(width=None if sys.stdout.isatty() else FILE_WIDTH)
"""Console on stdout for a command's result, which can be kept and piped, one row a line."""


def say(line: str) -> None:
    """Print a line of any text and length on the console."""
    console.print(line, soft_wrap=True)


def answer(line: str) -> None:
    """Print a line of a command's result on standard output."""
    answers.print(line, soft_wrap=True)


def put(text: str) -> None:
    """Write a text of many lines to standard output as it is."""
    if answers.quiet:
        return
    try:
        answers.file.write(text)
        answers.file.flush()
    except BrokenPipeError:
        answers.on_broken_pipe()


_hushed = [False]


def hush(on: bool) -> None:
    """Turn progress bars and their lines off, or on again; warnings and errors stay."""
    _hushed[0] = on


_remarked: set[str] = set()


def remark(line: str) -> None:
    """Print a note about a file, once in each process."""
    if line not in _remarked:
        _remarked.add(line)
        say(line)


class Handler(logging.Handler):
    """Prints log messages on the console, those for debugging behind their module's name."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.name}: " if record.levelno < logging.INFO else ""
        say(f"{prefix}{record.getMessage()}")


PLAIN_SECONDS = 10.0
"""Seconds between plain lines where there is no terminal."""


class _Title(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(visible(task.description))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(rate(task.finished_speed or task.speed or 0.0), style="progress.data.speed")


def rate(speed: float) -> str:
    """Format a speed in iterations a second; below one, as seconds for each; "" for 0."""
    if speed <= 0:
        return ""
    return f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s/it"


class Bar:
    """Progress of some work towards `total`."""

    def __init__(
        self,
        title: str,
        total: int,
        start: int,
        live: Live | None,
        *,
        silent: bool = False,
        brief: bool = False,
        parts: bool = False,
    ) -> None:
        self.title, self.total, self.start, self.live = title, total, start, live
        self.silent, self.brief, self.parts = silent, brief, parts
        self._task = None if live is None else live.add_task(title, total=total, completed=start)
        self._begin = self._printed = time.perf_counter()
        self._note = self._part = ""

    def update(self, done: int, note: str = "", *, begins: bool = False) -> None:
        """Set how much of the work is done, and a note of a few figures.

        Where there is no terminal, work that `begins` has a line at once.
        """
        if self.live is not None and self._task is not None:
            title = f"{self.title} {note}" if note else None
            self.live.update(self._task, completed=done, description=title)
            return
        now = time.perf_counter()
        early = now - self._printed < PLAIN_SECONDS and not begins
        if self.silent or (early and (self.brief or done < self.total)):
            return
        self._printed = now
        speed = (done - self.start) / max(now - self._begin, 1e-9)
        left = f"{(self.total - done) / speed:.0f} s left" if speed > 0 else ""
        parts = (f"{self.title} {done}/{self.total}", rate(speed), left, note)
        say("  ".join(filter(None, parts)))

    def retotal(self, total: int) -> None:
        """Set the total amount of work, once it is known."""
        self.total = total
        if self.live is not None and self._task is not None:
            self.live.update(self._task, total=total)

    def step(self, done: int, total: int, what: str) -> None:
        """Do as `update`, for work that gives its total amount and its part each time."""
        self.retotal(total)
        begins = self.parts and what != self._part
        self._part = what
        self.update(done, what, begins=begins)

    def follow(self, step: int, figures: dict[str, float] | None) -> None:
        """Do as `update`, with the losses among training figures as the note."""
        if figures:
            losses = {k: v for k, v in figures.items() if k.endswith("/loss")}
            self._note = " ".join(f"{k} {v:.4g}" for k, v in losses.items())
        self.update(step, self._note)


_live: list[Live] = []


@contextmanager
def bar(
    title: str, total: int, start: int = 0, *, brief: bool = False, parts: bool = False
) -> Iterator[Bar]:
    """Show a progress bar during the block; of several processes only the first one does.

    Args:
        title: Name of the work.
        total: Amount of work.
        start: Amount that was done before.
        brief: Whether, where there is no terminal, short work has no line at its end.
        parts: Whether, where there is no terminal, each part of `Bar.step` has a line when it
            begins, since it may take minutes.
    """
    # rich shows one bar at a time, and an outer one already tells of this work.
    silent = _hushed[0] or bool(_live) or os.environ.get("RANK", "0") != "0"
    if silent or not console.is_terminal:
        yield Bar(title, total, start, None, silent=silent, brief=brief, parts=parts)
        return
    columns = (
        _Title(),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Live(*columns, console=console) as live:
        _live.append(live)
        try:
            yield Bar(title, total, start, live)
        finally:
            _live.remove(live)


@contextmanager
def late_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes how much is done, and shows a bar from its first call on."""
    with ExitStack() as stack:
        shown: list[Bar] = []

        def update(done: int) -> None:
            if not shown:
                shown.append(stack.enter_context(bar(title, total, brief=True)))
            shown[0].update(done)

        yield update
