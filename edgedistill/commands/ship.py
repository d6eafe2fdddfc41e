"""The commands `export`, `adopt` and `generate`."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgedistill.commands.complete import (
    KINDS,
    SOLVERS,
    purposes,
    student_kinds,
    target_names,
    target_precisions,
)
from edgedistill.commands.general import Json, write_figures
from edgedistill.common.progress import answer, bar, say
from edgedistill.common.tables import paragraph, show
from edgedistill_runtime.manifest import Manifest

if TYPE_CHECKING:
    from edgedistill_export.settings import ExportSettings

__all__ = ["adopt", "export", "generate"]

log = logging.getLogger(__name__)

StudentArgument = Annotated[
    str | None,
    typer.Argument(metavar="STUDENT", help="A student dir; the newest run's when left out."),
]


def export(
    student: StudentArgument = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET",
            autocompletion=target_names,
            help="Where the bundle will run: ort, openvino, trt, coreml, executorch, web, or all "
            "that build here. Can be given several times. With auto, the bundles that run on this "
            "device are built and measured, and the best is named.",
        ),
    ] = None,
    purpose: Annotated[
        str,
        typer.Option(
            "--for",
            metavar="PURPOSE",
            autocompletion=purposes,
            help="What target auto chooses for: latency, throughput, memory, size or start.",
        ),
    ] = "latency",
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PRECISION",
            autocompletion=target_precisions,
            help="The numbers that it computes with, by default the target's first: "
            "ort fp32, fp16, int8, int8-dynamic, int8-weights, int4-weights; "
            "openvino fp32, fp16, bf16, int8, int8-hybrid, int8-weights, int4-weights; "
            "trt fp16, fp32, bf16, int8, int8-weights, int4-weights, fp8; "
            "coreml fp16, fp32, pal8, pal6, pal4, pal3, pal2, pal1, int8, int4, joint; "
            "executorch fp32, int8; web fp32, fp16, int8; or all. Can be given several times.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the target, e.g. static=true."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The bundle dir, by default beside the student."),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts of the parity check.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts that quantization is calibrated on."),
    ] = None,
    min_psnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="Keep the layers that cost most in floating point, until pictures reach this "
            "PSNR.",
        ),
    ] = None,
    max_size: Annotated[
        float | None,
        typer.Option(
            metavar="MIB",
            help="Keep as many costly layers in floating point as fit (MiB of weights).",
        ),
    ] = None,
    fused: Annotated[
        bool, typer.Option("--fused", help="Make one graph from prompt and noise to the picture.")
    ] = False,
    depth: Annotated[
        str,
        typer.Option(metavar="NAME", help="A depth of an elastic student, by its name."),
    ] = "",
    decoder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The folder of a decoder that replaces the VAE's."),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Also write each bundle as another program opens it: optimum (target ort) or "
            "genai (target openvino).",
        ),
    ] = "",
    strict: Annotated[bool, typer.Option(help="Refuse a bundle below the parity floor.")] = True,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build again even what is up to date.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Build nothing; say what would be built, its size, and what would prove it.",
        ),
    ] = False,
    json: Json = None,
) -> None:
    """Compile a student for a device and prove that the bundle is still the student.

    Example: edgedistill export --target ort --target openvino --precision int8 --min-psnr 35
    """
    from edgedistill.verbs.places import newest, student_at
    from edgedistill_export.auto.kept import AUTO, check_alone

    folder = student_at(student) if student else newest()
    given: dict[str, Any] = {
        "options": dict(_pair(word) for word in option or ()),
        "prompts": prompts,
        "calibration": calibration,
        "min_psnr": min_psnr,
        "max_size": max_size,
        "fused": fused,
        "depth": depth,
        "decoder": decoder,
        "strict": strict,
    }
    if target and AUTO in target:
        check_alone(target, precision or [], out, dry_run=dry_run, layout=layout)
        _choose(folder, purpose, given, rebuild, json)
        return

    from edgedistill_export.layouts import check_layouts
    from edgedistill_export.many import pairs

    settings = _settings(given)
    wanted = pairs(target or ["ort"], precision or [])
    check_layouts(folder, wanted, layout)
    if out and len(wanted) > 1:
        raise ValueError(f"--out names one bundle, but {len(wanted)} were asked for")
    if dry_run:
        _plan(folder, wanted, out, settings, json)
    else:
        _build(folder, wanted, out, settings, layout, rebuild, json)


def _settings(given: dict[str, Any]) -> ExportSettings:
    """Make settings, with the contents of the files that were named."""
    from edgedistill.data import read_prompts
    from edgedistill_export.settings import ExportSettings

    files = {name: given[name] for name in ("prompts", "calibration") if given[name]}
    return ExportSettings(**{**given, **{name: read_prompts(f) for name, f in files.items()}})


def _build(
    student: Path,
    wanted: list[tuple[str, str]],
    out: Path | None,
    settings: ExportSettings,
    layout: str,
    rebuild: bool,
    json: str | None,
) -> None:
    """Build bundles and tell how near each is to the student."""
    from edgedistill.verbs.students import export_all
    from edgedistill_export.layouts import write_layouts
    from edgedistill_export.many import as_json, memory_lines, table
    from edgedistill_export.terms import notes_of

    with bar("export", 1) as meter:
        rows = export_all(student, wanted, out, settings, rebuild=rebuild, progress=meter.step)
    shown = write_figures([as_json(row) for row in rows], json)
    if not shown:
        show(table(rows))
    for line in notes_of(student):
        log.info(line)
    for line in (line for row in rows for line in memory_lines(row)):
        log.debug(line)
    for row in rows:
        if row.error:
            say(f"failed {row.name}: {row.error}")
        elif not shown:
            answer(f"bundle {row.place}")
    for place in write_layouts(student, rows, layout):
        (log.info if shown else answer)(f"{layout} {place}")
    if any(row.error for row in rows):
        raise typer.Exit(1)


def _choose(
    student: Path, purpose: str, given: dict[str, Any], rebuild: bool, json: str | None
) -> None:
    """Name the best bundle for this device, and all that were measured."""
    from edgedistill_export.auto.kept import find_choice, key_of, table

    place = None if rebuild else find_choice(student, purpose, key_of(given, _PLAIN))
    if place is None:
        from edgedistill.verbs.students import export_best

        settings = _settings(given)
        with bar("export", 1) as meter:
            place = export_best(
                student, purpose, settings=settings, rebuild=rebuild, progress=meter.step
            )
    choices = Manifest.read(place).choices
    choice = next(each for each in choices if each.purpose == purpose)
    if not write_figures({"bundle": str(place), **asdict(choice)}, json):
        show(table(choice, place.name))
        answer(f"bundle {place}")


_PLAIN: dict[str, Any] = {
    **dict.fromkeys(("prompts", "calibration", "min_psnr", "max_size", "decoder")),
    "options": {},
    "fused": False,
    "depth": "",
    "strict": True,
}
"""Settings of an export without options."""


def _plan(
    student: Path,
    wanted: list[tuple[str, str]],
    out: Path | None,
    settings: ExportSettings,
    json: str | None,
) -> None:
    """Say what an export would build."""
    from edgedistill_export import dry_run

    rows = dry_run.plan_exports(student, wanted, out, settings)
    if write_figures([dry_run.as_json(row) for row in rows], json):
        return
    show(dry_run.table(rows))
    for line in dry_run.lines(rows):
        paragraph(line)


def _pair(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not equals:
        raise ValueError(f"--option {word!r} is not KEY=VALUE")
    return key, value


def adopt(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A pipeline folder, a U-Net's or transformer's .safetensors, a LoRA.",
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="KIND",
            autocompletion=student_kinds,
            help=f"The kind of student: {', '.join(KINDS)}; or a solver, for a teacher as it is: "
            f"{', '.join(SOLVERS)}.",
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="PIPELINE", help="Pipeline folder or Hub id that weights or a LoRA are for."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Network calls; by default as it is published."),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(metavar="SCALE", help="Guidance scale that an LCM is fixed at (8)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The student dir; by default runs/CHECKPOINT/student."),
    ] = None,
) -> None:
    """Make a student dir of a student made elsewhere, with the steps it was made for.

    Example: edgedistill adopt lcm-lora.safetensors --as lcm-lora --base ./my-sd15 --steps 4
    """
    from edgedistill.verbs.students import adopt as take

    made = take(checkpoint, kind, base=base, steps=steps, guidance=guidance, out=out)
    answer(f"student {made.path}")


def generate(
    source: Annotated[
        str, typer.Argument(metavar="BUNDLE|STUDENT", help="The folder that draws.")
    ],
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="What to draw.")] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The seed of the noise.")] = 0,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Number of samples.")] = 1,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="A .png (a grid), or .npy for the raw samples (N, ...)."
        ),
    ] = Path("sample.png"),
    teacher_first: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Number of the teacher's steps in place of a student's first."
        ),
    ] = 0,
    teacher_share: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="How far the teacher's x0 moves a student's at each step.",
        ),
    ] = 0.0,
    negative: Annotated[
        str | None, typer.Option(metavar="PROMPT", help="A prompt that a student avoids.")
    ] = None,
    negative_scale: Annotated[
        float,
        typer.Option(min=0, metavar="SCALE", help="How far a student moves away from --negative."),
    ] = 0.3,
    guidance: Annotated[
        float | None,
        typer.Option(hidden=True, metavar="SCALE", help="A student has its guidance inside."),
    ] = None,
) -> None:
    """Draw with a bundle or a student. Sample i depends on the seed and i alone."""
    if guidance is not None:
        raise ValueError(
            "--guidance: a student's guidance is that of its teacher while it trained, "
            "teacher.guidance in its recipe; --negative moves away from a prompt"
        )
    from edgedistill.draw.generate import Negative
    from edgedistill.draw.generate import generate as draw
    from edgedistill.draw.teacher_help import TeacherAssistance
    from edgedistill.verbs.places import settled

    given = TeacherAssistance(teacher_first, teacher_share)
    away = None if negative is None else Negative(negative, negative_scale)
    place = str(settled(source))
    draw(place, prompt, seed=seed, count=count, out=out, given=given, negative=away)
    answer(str(out))
