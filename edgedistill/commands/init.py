"""The command `init`."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgedistill.commands.complete import teacher_families
from edgedistill.common.progress import answer, console

if TYPE_CHECKING:
    from edgedistill.verbs.init import Wishes

__all__ = ["init"]

log = logging.getLogger(__name__)


def init(
    teacher: Annotated[
        str | None,
        typer.Argument(
            metavar="TEACHER", help="A pipeline folder, a Hub id or a .safetensors file."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The recipe's file, by default TEACHER.yaml."),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            metavar="FAMILY",
            autocompletion=teacher_families,
            help="The teacher's family where its folder does not say it: stable_diffusion, sdxl, "
            "sd3, flux, pixart, sana, dit, unet2d or wan.",
        ),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            metavar="PIPELINE",
            help="Folder or Hub id with the configurations of a teacher in one file.",
        ),
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="A file of prompts, a line each.")
    ] = None,
    pictures: Annotated[
        str | None, typer.Option(metavar="DIR", help="A folder of pictures with captions.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(metavar="SCALE", help="The guidance scale that the student learns."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="The student's steps, by default its family's."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="METHOD", help="The method, by default its family's.")
    ] = None,
    train_steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The number of training steps.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The batch size of a process.")
    ] = None,
) -> None:
    """Write a recipe for your own teacher; asks for what is missing on a terminal.

    Example: edgedistill init ./my-sd15 --prompts prompts.txt --steps 4
    """
    from edgedistill.verbs.init import Wishes
    from edgedistill.verbs.init import init as write

    asks = sys.stdin.isatty()
    teacher = teacher or (_ask("Teacher: a folder, a Hub id or a file") if asks else None)
    if not teacher:
        raise ValueError("name a teacher: edgedistill init TEACHER")
    wishes = Wishes(
        family, config, prompts, pictures, guidance, steps, method, train_steps, batch_size
    )
    place = out or Path(f"{Path(teacher).name.removesuffix('.safetensors')}.yaml")
    recipe = write(teacher, place, _completed(teacher, wishes) if asks else wishes)
    answer(str(place))
    log.info(f"{recipe.description}, by {recipe.objective['name']}.")
    if recipe.data.pictures is None and "samples" in recipe.data.model_fields_set:
        log.info(
            f"It trains on {recipe.data.samples} samples that the teacher makes (data.samples)."
        )
    log.info("What to do next:")
    if recipe.teacher.path.endswith(".safetensors") and recipe.teacher.config is None:
        log.info(
            "  name a folder of its configurations in teacher.config (init --config), to plan"
        )
    else:
        log.info(f"  edgedistill plan recipe={place} --memory 24GB")
    log.info(f"  edgedistill distill recipe={place}")


def _completed(teacher: str, wishes: Wishes) -> Wishes:
    """Ask for what the options leave open."""
    from edgedistill.verbs.init import FAMILIES_HERE, defaults, detect_family, needs_data

    family = wishes.family or detect_family(teacher)
    family = family or _ask(f"Family, one of {', '.join(FAMILIES_HERE)}")
    if family not in FAMILIES_HERE:
        return replace(wishes, family=family)  # which is refused
    prompts, pictures = wishes.prompts, wishes.pictures
    if needs_data(teacher, family) and not (prompts or pictures):
        prompts = _ask("File of prompts, a line each; empty for pictures", "") or None
        pictures = None if prompts else _ask("Folder of pictures with captions")
    usual_steps, usual_method = defaults(family)
    return replace(
        wishes,
        family=family,
        prompts=prompts,
        pictures=pictures,
        steps=wishes.steps or _whole(_ask("Steps of the student", str(usual_steps))),
        method=wishes.method or _ask("Method", usual_method),
    )


def _ask(question: str, default: str | None = None) -> str:
    """Ask until there is an answer, on standard error, since standard output holds the result.

    Raises:
        typer.Abort: If the input ends.
    """
    hint = f" [{default}]" if default else ""
    while True:
        console.print(f"{question}{hint}: ", end="", soft_wrap=True)
        line = sys.stdin.readline()
        if not line:
            raise typer.Abort
        word = line.strip() or default
        if word is not None:
            return word


def _whole(word: str) -> int:
    """Read a number of steps."""
    if not word.isdecimal() or not int(word):
        raise ValueError(f"steps {word!r}: a whole number above 0 expected")
    return int(word)
