"""The command line: one verb a function, no logic of its own."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from edgedistill.common.complaints import INTERRUPTED, complain, misused, settle
from edgedistill.common.progress import answers, bar, console, say

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
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

StudentArgument = Annotated[
    str | None, typer.Argument(help="Student folder; the newest run's when left out.")
]
JSON = Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")]
LATEST = Path("runs/latest")


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Options of every verb come before the verb."""


@app.command()
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
    from edgedistill.recipes.load import asked
    from edgedistill.runs.run_dir import open_run
    from edgedistill.training.trainer import Interrupted

    recipe, out, typed = asked("distill", words)
    opened = open_run(recipe, out, resume, say, typed=typed)
    for run in opened.runs():
        console.quiet = not run.trainer.accelerator.is_main_process
        begin = run.restore() if resume else 0
        if resume:
            say(f"resuming at step {begin}")
        try:
            with bar("distil", run.recipe.train.steps, begin) as meter:
                made = run.train(meter.follow)
        except Interrupted as stop:
            again = shlex.join(["edgedistill", "distill", *words, "--resume"])
            say(f"{stop}; a checkpoint is in {run.folder}/checkpoints. To go on:")
            say(f"  {again}")
            sys.exit(INTERRUPTED)
        say(f"{run.objective.product} {made}")
        del run  # before the next one is opened


@app.command()
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
    from edgedistill.recipes.load import asked
    from edgedistill.runs.synth import synth as make

    recipe, out, _ = asked("synth", words)
    with bar("paths", recipe.data.samples) as meter:
        made = make(recipe, out, say, meter.update)
    say(f"paths {made}")


@app.command()
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


@app.command()
def export(
    student: StudentArgument = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="Where it will run, several times for several; see edgedistill doctor."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            help="As the target offers, its first when left out; several times, or 'all'."
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the target, e.g. static=true."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="By default beside the student.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts of the parity check.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Prompts that quantization is calibrated on.")
    ] = None,
    min_psnr: Annotated[
        float | None,
        typer.Option(help="Keep costly layers in floating point until pictures are so near (dB)."),
    ] = None,
    max_size: Annotated[
        float | None,
        typer.Option(help="Keep as many costly layers in floating point as fit (MiB of weights)."),
    ] = None,
    fused: Annotated[
        bool, typer.Option("--fused", help="One graph from prompt and noise to the picture.")
    ] = False,
    depth: Annotated[str, typer.Option(help="Of an elastic student, a name of its recipe.")] = "",
    decoder: Annotated[Path | None, typer.Option(help="Its folder, in the VAE's place.")] = None,
    strict: Annotated[bool, typer.Option(help="Refuse a bundle below the parity floor.")] = True,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Also what is up to date.")] = False,
) -> None:
    """Compile a student for a device and prove that the bundle is still the student.

    Example: edgedistill export --target ort --target openvino --precision int8 --min-psnr 35
    """
    from edgedistill.data import read_prompts
    from edgedistill.students.group import group_of
    from edgedistill_export.bundle import ExportSettings
    from edgedistill_export.many import export_group, export_many, memory_lines, pairs, table
    from edgedistill_export.terms import notes_of

    folder = Path(student) if student else _newest()
    settings = ExportSettings(
        options=dict(_pair(word) for word in option or ()),
        prompts=read_prompts(prompts) if prompts else None,
        calibration=read_prompts(calibration) if calibration else None,
        min_psnr=min_psnr,
        max_size=max_size,
        fused=fused,
        depth=depth,
        decoder=decoder,
        strict=strict,
    )
    wanted = pairs(target or ["ort"], precision or [])
    if out and len(wanted) > 1:
        raise ValueError(f"--out names one bundle, but {len(wanted)} were asked for")
    group = group_of(folder)
    build = partial(export_group, group) if group else partial(export_many, folder)
    with bar("export", 1) as meter:
        rows = build(wanted, out, settings, rebuild=rebuild, progress=meter.step)
    console.print(table(rows))
    for line in notes_of(folder):
        say(line)
    for row in rows:
        for line in memory_lines(row):
            say(line)
        say(f"bundle {row.place}" if row.place else f"failed {row.name}: {row.error}")
    if any(row.error for row in rows):
        raise typer.Exit(1)


def _newest() -> Path:
    """The newest run's student, or its group of them."""
    group = LATEST / "students"
    return group if group.is_dir() else LATEST / "student"


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"--option {word!r} is not KEY=VALUE")
    return key, value


@app.command()
def adopt(
    checkpoint: Annotated[
        str,
        typer.Argument(help="A pipeline folder, a U-Net's or transformer's .safetensors, a LoRA."),
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="KIND",
            help="lcm, turbo, lightning, dmd2, ...: a wrong one lists all.",
        ),
    ],
    base: Annotated[
        str | None, typer.Option(help="Pipeline folder or Hub id that weights or a LoRA are for.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Network calls; by default as it is published.")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale that an LCM is fixed at (8).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The student dir; by default runs/CHECKPOINT/student.")
    ] = None,
) -> None:
    """Make a student dir of a student made elsewhere, with the steps it was made for.

    Example: edgedistill adopt lcm-lora.safetensors --as lcm-lora --base ./my-sd15 --steps 4
    """
    from edgedistill.adoption import adopt as take

    made = take(checkpoint, kind, base=base, steps=steps, guidance=guidance, out=out)
    say(f"student {made}")


@app.command()
def bench(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            help="Students and bundles; teacher, student and bundles of the newest run "
            "when left out."
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed calls a subject.")] = 20,
    json: JSON = None,
) -> None:
    """Time teacher, student and bundles: load, first call, percentiles by stage, memory."""
    from edgedistill.common.files import check_writable, write_json
    from edgedistill_export.bench import chart, find_subjects, home_of, run_bench, tables

    bundles = sorted(path.parent for path in LATEST.glob("bundles/*/manifest.json"))
    plan = find_subjects(subjects or [LATEST / "student", *bundles])
    home = (home_of(subjects) or Path()) if subjects else LATEST
    path = json or Path(os.path.relpath(home)) / "bench.json"
    check_writable(path, f"--json {path}")
    with bar("bench", len(plan)) as meter:
        results = run_bench(plan, runs, progress=meter.step)
    write_json(path, results)
    chart(results, path.with_suffix(".png"))
    for table in tables(results):
        console.print(table)
    say(f"{path}  {path.with_suffix('.png')}")


@app.command()
def generate(
    source: Annotated[str, typer.Argument(metavar="BUNDLE|STUDENT")],
    prompt: Annotated[str | None, typer.Argument(help="What to draw.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    count: Annotated[int, typer.Option(min=1, help="Samples to draw.")] = 1,
    out: Annotated[
        Path, typer.Option(help="A .png (a grid), or .npy for the raw samples (N, ...).")
    ] = Path("sample.png"),
    teacher_first: Annotated[
        int, typer.Option(min=0, help="Teacher's steps in place of a student's first.")
    ] = 0,
    teacher_share: Annotated[
        float, typer.Option(min=0, max=1, help="How far its x0 moves a student's at each step.")
    ] = 0.0,
    negative: Annotated[str | None, typer.Option(help="A prompt that a student avoids.")] = None,
    negative_scale: Annotated[float, typer.Option(min=0, help="How far.")] = 0.3,
) -> None:
    """Draw with a bundle or a student. Sample i depends on the seed and i alone."""
    from edgedistill.draw.generate import Negative
    from edgedistill.draw.generate import generate as draw
    from edgedistill.draw.teacher_help import Help

    given = Help(teacher_first, teacher_share)
    away = None if negative is None else Negative(negative, negative_scale)
    draw(source, prompt, seed=seed, count=count, out=out, given=given, negative=away)
    say(str(out))


@app.command()
def evaluate(
    subjects: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STUDENT|BUNDLE...",
            help="A student and its bundles; the newest run's student when left out.",
        ),
    ] = None,
    samples: Annotated[int | None, typer.Option(min=2, help="Pictures a subject draws.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Captions, a line each.")] = None,
    features: Annotated[
        str | None,
        typer.Option(help="Folder or Hub id of a vision model that judges, pixels or teacher."),
    ] = None,
    json: JSON = None,
) -> None:
    """Measure quality against teacher and data: FD, KID, distances, classes, memorization."""
    from edgedistill.evaluation.run import evaluate_subjects
    from edgedistill.evaluation.tables import notes, tables

    with bar("evaluate", 1) as meter:
        results, path = evaluate_subjects(
            subjects or [str(_newest())], samples, prompts, json, meter, features
        )
    for table in tables(results):
        console.print(table)
    for line in notes(results):
        say(line)
    say(str(path))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run dir, or a student.")] = LATEST,
    out: Annotated[Path | None, typer.Option(help="The page; by default RUN/report.html.")] = None,
) -> None:
    """One self-contained HTML page: pictures side by side, losses, latencies, figures, recipe."""
    from edgedistill.common.files import check_writable
    from edgedistill.reporting.page import write_report

    place = out or run / "report.html"
    check_writable(place, f"--out {place}")
    path = write_report(run, place, say)
    say(str(path))


recipes_app = typer.Typer(invoke_without_command=True, help="List the recipes, or show one.")
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the shipped recipes."""
    from edgedistill import recipes as recipes_

    if context.invoked_subcommand is None:
        table = Table("recipe", "what it makes", box=None)
        for name in recipes_.shipped():
            table.add_row(name, recipes_.load(name).description)
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
    """What is installed, and which targets work here and why not."""
    from edgedistill.doctor import report_lines

    for line in report_lines():
        answers.print(line)


# Of the click that typer stands on, whichever that is.
_UsageError: Any = typer.BadParameter.__base__


def main() -> None:
    """Run the command line; exit 0 done, 1 failed, 2 asked wrongly, 130 interrupted."""
    settle()
    # So that what is half written goes, as it does on Ctrl-C.
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
    if code == INTERRUPTED:  # what typer makes of Ctrl-C, without a word
        say("interrupted")
    sys.exit(code)


if __name__ == "__main__":
    main()
