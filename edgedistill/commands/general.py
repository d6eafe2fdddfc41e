"""Options that every command has, and the commands' classes, which add them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from json import dumps
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from edgedistill.common.complaints import listen
from edgedistill.common.files import write_json
from edgedistill.common.progress import put

__all__ = ["STDOUT", "Commands", "GroupVerb", "Json", "Verb", "tell", "write_figures"]

STDOUT = "-"
"""Value of --json that stands for standard output."""

Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="PATH|-",
        help="A file to write the result to as JSON, or - to print it instead of tables.",
    ),
]


def write_figures(data: Any, json: str | None) -> bool:
    """Write a result as --json asks; return whether it went to standard output."""
    if json == STDOUT:
        put(dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        return True
    if json is not None:
        from pathlib import Path

        write_json(Path(json), data)
    return False


def tell(quiet: bool, verbose: bool) -> None:
    """Set what is logged, by the options --quiet and --verbose.

    Raises:
        ValueError: If both are given.
    """
    if quiet and verbose:
        raise ValueError("--quiet and --verbose: give one of them")
    listen(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


def _hear(level: int) -> Callable[[bool], bool]:
    """Return a callback of a flag that sets the level of what is logged."""

    def callback(given: bool) -> bool:
        if given:
            listen(level)
        return given

    return callback


_PANEL = "General options"


def _general(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Print only warnings and errors on standard error.",
            callback=_hear(logging.WARNING),
            expose_value=False,
            rich_help_panel=_PANEL,
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            help="Print messages for debugging too.",
            callback=_hear(logging.DEBUG),
            expose_value=False,
            rich_help_panel=_PANEL,
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show tracebacks.", expose_value=False, rich_help_panel=_PANEL
        ),
    ] = False,
) -> None:
    """Declare the general options, which stand before the command or after it."""


def _general_params() -> list[Any]:
    """Make the general options as typer makes those of a command."""
    app = typer.Typer(add_completion=False)
    app.command()(_general)
    return list(get_command(app).params)


def _without_types(params: Sequence[Any]) -> list[Any]:
    """Return parameters whose flags and arguments show no type in the help."""
    for param in params:
        if getattr(param, "is_flag", False):
            param.metavar = ""
        elif param.param_type_name == "argument":
            param.display_type_rich = lambda ctx: None
    return list(params)


class Verb(TyperCommand):
    """A command with the general options, whose --json without a value is `--json -`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params += _general_params()

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters and --help."""
        return _without_types(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the command's name."""
        return super().parse_args(ctx, with_value(args, "--json", STDOUT))


class Commands(TyperGroup):
    """A group of commands whose flags and arguments show no type."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters and --help."""
        return _without_types(super().get_params(ctx))


class GroupVerb(Commands):
    """A group of commands that is a command too."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params += _general_params()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words after the group's name."""
        return super().parse_args(ctx, with_value(args, "--json", STDOUT))


def with_value(words: Sequence[str], option: str, value: str) -> list[str]:
    """Add `value` after an option that nothing follows, another option or a key=value."""
    found: list[str] = []
    for index, word in enumerate(words):
        found.append(word)
        following = words[index + 1] if index + 1 < len(words) else option
        bare = (following.startswith("-") and following != value) or "=" in following
        if word == option and bare and "--" not in words[:index]:
            found.append(value)
    return found
