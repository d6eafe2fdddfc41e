"""The commands `distill`, `synth` and `plan`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgedistill.commands.complete import GPUS, gpu_names, recipe_words
from edgedistill.commands.general import Json, write_figures
from edgedistill.common.complaints import INTERRUPTED
from edgedistill.common.progress import answer, answers, bar, console, say
from edgedistill.common.tables import show

if TYPE_CHECKING:
    from edgedistill.planning.costs import Costs
    from edgedistill.planning.time import Duration

__all__ = ["distill", "plan", "synth"]


def distill(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="recipe=NAME [key.sub=value ...]",
            autocompletion=recipe_words,
            help="The recipe (edgedistill recipes lists them) or its file, overrides of its keys, "
            "and out=DIR for the run dir.",
        ),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the newest run of this recipe.")
    ] = False,
) -> None:
    """Train a student. Writes runs/NAME with the student, samples, metrics and checkpoints.

    Example: edgedistill distill recipe=emoji-4step train.batch_size=32 teacher.guidance=4
    """
    from edgedistill.runs.claims import check_free

    outs = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    if outs and outs[0] and not resume:
        check_free(Path(outs[0]))  # before the libraries load, which takes seconds

    from edgedistill.recipes.loading import asked
    from edgedistill.runs.run import Run
    from edgedistill.training.trainer import Interrupted
    from edgedistill.verbs.training import distill as train

    place: list[Path] = []

    def opened(run: Run) -> None:
        place[:] = [run.folder]
        console.quiet = answers.quiet = not run.trainer.accelerator.is_main_process

    recipe, out, typed = asked("distill", words)
    try:
        made = train(recipe, out, resume=resume, typed=typed, opened=opened)
    except Interrupted as stop:
        again = shlex.join(["edgedistill", "distill", *words, "--resume"])
        say(f"{stop}; a checkpoint is in {place[0]}/checkpoints. To go on:")
        say(f"  {again}")
        sys.exit(INTERRUPTED)
    except (KeyboardInterrupt, SystemExit):
        if not place:
            say("stopped before training began; run the same command again")
        raise
    answer(f"{made.product.name} {made.product}")


def synth(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="recipe=NAME [key.sub=value ...]",
            autocompletion=recipe_words,
            help="The recipe or its file, overrides of its keys, and out=DIR for the paths.",
        ),
    ],
) -> None:
    """Write the teacher's ODE paths at the student's times, for runs with data.paths=DIR.

    Paths that are there already stay, so an interrupted command continues, and a larger
    data.samples adds to the folder.

    Example: edgedistill synth recipe=mixture-kd data.samples=20000 out=paths/ring
    """
    from edgedistill.recipes.loading import asked
    from edgedistill.runs.synth import synth as make

    recipe, out, _ = asked("synth", words)
    with bar("paths", recipe.data.samples) as meter:
        made = make(recipe, out, meter.update)
    answer(f"paths {made}")


def plan(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="recipe=NAME [key.sub=value ...]",
            autocompletion=recipe_words,
            help="The recipe or its file, and overrides of its keys.",
        ),
    ],
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Memory of a device, such as 24GB, to say whether the run fits."
        ),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of processes, one on each device.")
    ] = 1,
    shard: Annotated[
        bool, typer.Option("--shard", help="Cut trained networks over them, by FSDP or ZeRO.")
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="GPU",
            autocompletion=gpu_names,
            help=f"Estimate hours and energy on a GPU: {', '.join(GPUS)}.",
        ),
    ] = None,
    utilisation: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="The share of the GPU's peak that training is taken to reach."
        ),
    ] = 0.3,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Run some seconds of training here, and say how long all of it takes.",
        ),
    ] = False,
    json: Json = None,
) -> None:
    """Say what a recipe costs: parameters, memory by role, disk, compute, and time if asked.

    Nothing is downloaded, except by --measure, which opens the teacher.

    Example: edgedistill plan recipe=emoji-4step train.batch_size=64 --memory 8GB
    """
    from edgedistill.planning import uncollected

    with uncollected():
        from edgedistill.planning.memory import Launch
        from edgedistill.planning.report import as_json, tables, time_table
        from edgedistill.planning.report import plan as plan_
        from edgedistill.planning.time import check_utilisation

        check_utilisation(utilisation)
        found, verdict = plan_(words, memory, Launch(processes, shard))
        time = _time(found, gpu, utilisation, processes, measure)
    if write_figures(as_json(found, verdict, time), json):
        return
    for table in [*tables(found), *([time_table(time)] if time else [])]:
        show(table)
    if verdict:
        answer(str(verdict))


def _time(
    found: Costs, gpu: str | None, utilisation: float, processes: int, measure: bool
) -> Duration | None:
    """Estimate or measure the time of a run, as asked."""
    from edgedistill.planning.time import duration

    if measure and gpu:
        raise ValueError("--measure and --gpu: the one measures here, the other estimates")
    if measure:
        from edgedistill.verbs.speed import measure as measured

        return measured(found.planned.recipe)
    return duration(found, found.planned.recipe, gpu, utilisation, processes) if gpu else None
