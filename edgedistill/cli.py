"""The command line: one verb a function, no logic of its own."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer
from rich.table import Table

import edgedistill
from edgedistill.commands import measure, ship, train
from edgedistill.common.complaints import INTERRUPTED, complain, listen, misused, settle
from edgedistill.common.progress import answers, say

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Distil a diffusion teacher to a few steps, compile the student for a device, prove that
    it is still the student, and measure it.

    A first hour:

      edgedistill distill recipe=emoji-4step     train a 4-step student (minutes on a CPU)
      edgedistill export --target ort            compile it; fails unless it is still the student
      edgedistill bench                          teacher, student and bundle, timed by stage
      edgedistill evaluate                       Frechet distance and text-image score
      edgedistill report                         one HTML page with all of it
    """,
)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """Options of every verb come before the verb."""
    listen()
    if version:
        typer.echo(edgedistill.__version__)
        raise typer.Exit


for verb in (
    train.distill,
    train.synth,
    train.plan,
    ship.export,
    ship.adopt,
    measure.bench,
    ship.generate,
    measure.evaluate,
    measure.report,
):
    app.command()(verb)

recipes_app = typer.Typer(invoke_without_command=True, help="List the recipes, or show one.")
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the shipped recipes."""
    from edgedistill.recipes.files import layered, shipped

    if context.invoked_subcommand is None:
        table = Table("recipe", "what it makes", box=None)
        for name, file in shipped().items():
            table.add_row(name, layered(file, ()).get("description", ""))
        answers.print(table)


@recipes_app.command()
def show(
    name: str,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]")] = None,
) -> None:
    """Print a recipe resolved: every key with its value, ready to be saved and changed."""
    from edgedistill import recipes as recipes_

    found = recipes_.load(name, overrides or ())
    typer.echo(recipes_.header(name) + recipes_.dump(found), nl=False)


@app.command()
def doctor() -> None:
    """Say what is installed, and which targets work here and why not."""
    from edgedistill.doctor import report_lines

    for line in report_lines():
        answers.print(line)


# The exception class of the click version that typer uses.
_UsageError: Any = typer.BadParameter.__base__


def main() -> None:
    """Run the command line; exit 0 done, 1 failed, 2 asked wrongly, 130 interrupted."""
    settle()
    # Exit through Python, as Ctrl-C does, so that half-written files are removed.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except _UsageError as error:
        sys.exit(misused(error))
    except Exception as error:
        if debug:
            raise
        wrong = isinstance(error, ValueError)
        complain(str(error) or type(error).__name__)
        if not wrong and not isinstance(error, FloatingPointError):
            say("run again with --debug before the verb for the traceback")
        sys.exit(2 if wrong else 1)
    if code == INTERRUPTED:  # typer's code for Ctrl-C, which it leaves without a word
        say("interrupted")
    sys.exit(code)


if __name__ == "__main__":
    main()
