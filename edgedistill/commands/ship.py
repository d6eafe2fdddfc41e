"""The commands `export`, `adopt` and `generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgedistill.common.progress import bar, console, say

__all__ = ["adopt", "export", "generate"]

StudentArgument = Annotated[
    str | None, typer.Argument(help="Student folder; the newest run's when left out.")
]


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
    from edgedistill.verbs.measuring import newest
    from edgedistill.verbs.students import export_all
    from edgedistill_export.many import memory_lines, pairs, table
    from edgedistill_export.settings import ExportSettings
    from edgedistill_export.terms import notes_of

    folder = Path(student) if student else newest()
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
    with bar("export", 1) as meter:
        rows = export_all(folder, wanted, out, settings, rebuild=rebuild, progress=meter.step)
    console.print(table(rows))
    for line in notes_of(folder):
        say(line)
    for row in rows:
        for line in memory_lines(row):
            say(line)
        say(f"bundle {row.place}" if row.place else f"failed {row.name}: {row.error}")
    if any(row.error for row in rows):
        raise typer.Exit(1)


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"--option {word!r} is not KEY=VALUE")
    return key, value


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
    from edgedistill.verbs.students import adopt as take

    made = take(checkpoint, kind, base=base, steps=steps, guidance=guidance, out=out)
    say(f"student {made.path}")


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
    from edgedistill.draw.teacher_help import TeacherAssistance

    given = TeacherAssistance(teacher_first, teacher_share)
    away = None if negative is None else Negative(negative, negative_scale)
    draw(source, prompt, seed=seed, count=count, out=out, given=given, negative=away)
    say(str(out))
