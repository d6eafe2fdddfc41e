"""The command `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgedistill.commands.general import Json, write_figures
from edgedistill.common.progress import answer, say

__all__ = ["convert"]


def convert(
    student: Annotated[
        str, typer.Argument(metavar="STUDENT", help="A student dir, or OWNER/NAME on the Hub.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The .safetensors file to write.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="What to write: single-file (ComfyUI, A1111, stable-diffusion.cpp) or lora.",
        ),
    ] = "single-file",
    precision: Annotated[
        str, typer.Option(metavar="TYPE", help="Type of the weights: fp32, fp16 or bf16.")
    ] = "fp32",
    keys: Annotated[
        str, typer.Option(metavar="NAMING", help="Names of a LoRA's weights: kohya or diffusers.")
    ] = "kohya",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT if it exists.")
    ] = False,
    json: Json = None,
) -> None:
    """Convert a student to a file that other programs open, and read it back.

    Example: edgedistill convert runs/latest/student mine.safetensors --precision fp16
    """
    from edgedistill.students.converting import convert as write
    from edgedistill.verbs.places import settled

    made = write(settled(student), to, out, precision=precision, keys=keys, overwrite=overwrite)
    for line in made.notes:
        say(line)
    if not write_figures({"file": str(made.file), "notes": list(made.notes)}, json):
        answer(str(made.file))
