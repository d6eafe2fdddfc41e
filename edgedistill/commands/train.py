"""The commands `distill`, `synth` and `plan`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgedistill.common.complaints import INTERRUPTED
from edgedistill.common.progress import answers, bar, console, say

__all__ = ["distill", "plan", "synth"]


def distill(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="recipe=NAME [key.sub=value ...]",
            help="The recipe, overrides of its keys, and out=DIR for the run dir.",
        ),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Take up the newest run of it.")
    ] = False,
) -> None:
    """Train a student. Writes runs/NAME with the student, samples, metrics and checkpoints.

    Example: edgedistill distill recipe=emoji-4step train.batch_size=32 teacher.guidance=4
    """
    from edgedistill.recipes.loading import asked
    from edgedistill.runs.run import Run
    from edgedistill.training.trainer import Interrupted
    from edgedistill.verbs.training import distill as train

    place: list[Path] = []

    def opened(run: Run) -> None:
        place[:] = [run.folder]
        console.quiet = not run.trainer.accelerator.is_main_process

    recipe, out, typed = asked("distill", words)
    try:
        train(recipe, out, resume=resume, typed=typed, opened=opened)
    except Interrupted as stop:
        again = shlex.join(["edgedistill", "distill", *words, "--resume"])
        say(f"{stop}; a checkpoint is in {place[0]}/checkpoints. To go on:")
        say(f"  {again}")
        sys.exit(INTERRUPTED)


def synth(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="recipe=NAME [key.sub=value ...]",
            help="The recipe, overrides of its keys, and out=DIR for the paths.",
        ),
    ],
) -> None:
    """Write the teacher's ODE paths at the student's times, for runs with data.paths=DIR.

    What is there already stays, so that a folder can be taken up again, and grow.

    Example: edgedistill synth recipe=mixture-kd data.samples=20000 out=paths/ring
    """
    from edgedistill.recipes.loading import asked
    from edgedistill.runs.synth import synth as make

    recipe, out, _ = asked("synth", words)
    with bar("paths", recipe.data.samples) as meter:
        made = make(recipe, out, meter.update)
    say(f"paths {made}")


def plan(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="recipe=NAME [key.sub=value ...]", help="The recipe and overrides of its keys."
        ),
    ],
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Of a device, such as 24GB: does it fit?")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes, one on each device.")] = 1,
    shard: Annotated[
        bool, typer.Option("--shard", help="Trained networks cut over them, by FSDP or ZeRO.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Say what a recipe costs: parameters, memory by role, disk, compute. Downloads nothing.

    Example: edgedistill plan recipe=emoji-4step train.batch_size=64 --memory 8GB
    """
    from json import dumps

    from edgedistill.planning import uncollected

    with uncollected():
        from edgedistill.planning.memory import Launch
        from edgedistill.planning.report import as_json, tables
        from edgedistill.planning.report import plan as plan_

        found, verdict = plan_(words, memory, Launch(processes, shard))
    if json:
        typer.echo(dumps(as_json(found, verdict), indent=2))
        return
    for table in tables(found):
        answers.print(table)
    if verdict:
        answers.print(str(verdict), soft_wrap=True)
