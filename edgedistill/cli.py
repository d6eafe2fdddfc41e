"""The command line: one verb a function, no logic of its own."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer

import edgedistill
from edgedistill.commands import convert, init, measure, publish, recipes, ship, train
from edgedistill.commands.general import Commands, Json, Verb, tell, write_figures
from edgedistill.common.complaints import INTERRUPTED, complain, misused, settle
from edgedistill.common.progress import answer, put, say
from edgedistill.common.tables import paragraph

__all__ = ["app", "main"]

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Distil a diffusion teacher to a few steps, compile the student for a device, prove that
    it is still the student, and measure it.

    A first hour:

      edgedistill distill recipe=emoji-4step     train a 4-step student
      edgedistill export --target ort            compile it and prove it
      edgedistill bench                          time all of them by stage
      edgedistill evaluate                       measure their quality
      edgedistill report                         one page with all of it
    """,
)


def _version(asked: bool) -> None:
    if asked:
        answer(edgedistill.__version__)
        raise typer.Exit


@app.callback()
def _options(
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print only warnings and errors on standard error."),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print messages for debugging too.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_version
        ),
    ] = False,
) -> None:
    """Results go to standard output, progress and messages to standard error.

    The first three options may also stand behind the command.
    """
    tell(quiet, verbose)


for verb in (
    init.init,
    train.distill,
    train.synth,
    train.plan,
    ship.export,
    ship.adopt,
    publish.push,
    convert.convert,
    measure.bench,
    ship.generate,
    measure.evaluate,
    measure.report,
):
    app.command(cls=Verb)(verb)

app.add_typer(recipes.app, name="recipes")


@app.command(cls=Verb)
def doctor(
    everything: Annotated[
        bool, typer.Option("--all", help="List teachers, methods and recipes too.")
    ] = False,
    json: Json = None,
) -> None:
    """Say which targets work here and why not, and what is installed."""
    from edgedistill.doctor import examine, report_lines

    found = examine(everything)
    if not write_figures(found, json):
        for line in report_lines(found):
            paragraph(line)


# The exception class of the click version that typer uses.
_UsageError: Any = typer.BadParameter.__base__


class _Stopped(SystemExit):
    """Exit by a signal, with the shell's code for it."""


def _stop(number: int, frame: object) -> None:
    raise _Stopped(128 + number)


def main() -> None:
    """Run the command line; exit 0 done, 1 failed, 2 asked wrongly, 130 interrupted."""
    settle()
    # Exit through Python, as Ctrl-C does, so that half-written files are removed.
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _stop)
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False) or 0
        put("")  # a pipe without a reader shows itself here, not at exit
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except _Stopped as stop:
        say(f"stopped by {signal.Signals(int(str(stop.code)) - 128).name}")
        raise
    except _UsageError as error:
        sys.exit(misused(error))
    except Exception as error:
        if debug:
            raise
        wrong = isinstance(error, ValueError)
        complain(str(error) or type(error).__name__)
        if not wrong and not isinstance(error, FloatingPointError):
            say("run again with --debug for the traceback")
        sys.exit(2 if wrong else 1)
    if code == INTERRUPTED:  # typer's code for Ctrl-C, which it leaves without a word
        say("interrupted")
    sys.exit(code)


if __name__ == "__main__":
    main()
