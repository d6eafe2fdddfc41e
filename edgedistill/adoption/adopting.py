"""`edgedistill adopt`: turn a checkpoint made elsewhere into a student dir."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from edgedistill import assets
from edgedistill.adoption.detect import CheckpointInfo, check_fits, family_of, look, named_steps
from edgedistill.adoption.kinds import FOLDER, LORA, SOLVERS, Kind, find_kind
from edgedistill.adoption.schedulers import TOLERANCE, distance, make_scheduler, make_table, plain
from edgedistill.adoption.teachers import adopt_teacher, tell_dropped
from edgedistill.common.files import read_json, write_text
from edgedistill.common.plugins import names, resolve, unknown
from edgedistill.common.tokenizer_errors import named_errors
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.students.folder import StudentInfo, save_student
from edgedistill.teachers import ENTRY_POINTS, TEACHERS
from edgedistill.teachers.adapter_weights import fuse_lora, plain_unet, put_weights
from edgedistill.teachers.hub import configs_at, pipeline_at
from edgedistill.teachers.loading import BROKEN, reason
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill_runtime.hub import HubError, hub_name

__all__ = ["adopt"]


def adopt(
    checkpoint: str,
    kind_name: str,
    *,
    base: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    out: Path | None = None,
) -> Path:
    """Write a student dir for a student made elsewhere.

    Args:
        checkpoint: A pipeline folder, a network's safetensors, or a LoRA's.
        kind_name: A key of `KINDS`, or one of `SOLVERS` for a teacher as it is.
        base: Pipeline folder or Hub id of the teacher that weights or a LoRA are for.
        steps: Network calls; by default the number in the checkpoint's name, or the kind's usual
            one, 8 for a teacher.
        guidance: Scale that an LCM is fixed at, as given to diffusers' pipelines.
        out: The student dir; by default runs/NAME/student.

    Returns:
        The student dir.

    Raises:
        ValueError: If the checkpoint cannot be of that kind, does not fit its base, or the table
            differs from the kind's scheduler. The message says what the checkpoint looks like.
    """
    if kind_name in SOLVERS:
        return _adopt_teacher(checkpoint, kind_name, base, steps, guidance, out)
    kind = find_kind(kind_name)
    info = look(checkpoint)
    check_fits(kind_name, kind, info)
    steps = _steps(kind_name, kind, info, steps)
    guidance = _guidance(kind_name, kind, guidance)
    target = _target(out, info)
    family, where = _family(kind_name, kind, info, base)
    teacher = _with_student(family, where, kind, info, guidance, steps)
    table = make_table(
        kind, teacher.pipeline.scheduler, teacher.denoiser.schedule, steps, teacher.sample_shape
    )
    apart = distance(kind, teacher.pipeline.scheduler, table, teacher.sample_shape)
    if apart > TOLERANCE:
        raise ValueError(
            f"{checkpoint}: with the settings of its base's scheduler, {kind.scheduler} does not "
            f"do what {kind_name} students are made for (latents {apart:.1e} apart)"
        )
    teacher.pipeline.register_modules(scheduler=plain(kind, teacher.pipeline.scheduler, table))
    entries = _info(kind_name, kind, info, teacher, table, guidance)
    tell_dropped(info.path, kind_name, table)
    save_student(target, entries, teacher, teacher.net)
    if kind.eta:
        _name_eta(target / "README.md", kind.eta)
    return target


def _adopt_teacher(
    checkpoint: str,
    solver: str,
    base: str | None,
    steps: int | None,
    guidance: float | None,
    out: Path | None,
) -> Path:
    for name, value in (("base", base), ("guidance", guidance)):
        if value is not None:
            raise ValueError(f"--{name} {value}: {solver} takes a whole teacher as it is")
    shipped = assets.ROOT / checkpoint
    info = look(str(shipped if "/" not in checkpoint and shipped.is_dir() else checkpoint))
    target = _target(out or Path("runs") / f"{info.path.stem}-{solver}" / "student", info)
    adopt_teacher(info, solver, steps, target)
    return target


def _name_eta(card: Path, eta: float) -> None:
    """Set eta in the model card's call, since no scheduler's config can hold it."""
    call = "guidance_scale=1.0"
    text = card.read_text(encoding="utf-8")
    write_text(card, text.replace(call, f"{call}, eta={eta:g}"))


def _info(
    name: str,
    kind: Kind,
    info: CheckpointInfo,
    teacher: PipelineTeacher,
    table: TorchStepTable,
    guidance: float,
) -> StudentInfo:
    family, where = teacher.family, teacher.path
    return StudentInfo(
        method=name,
        family=family,
        step_table=table.to_json(),
        prediction=teacher.denoiser.prediction,
        schedule=teacher.denoiser.schedule.to_json(),
        guidance=kind.guidance.model_copy(update={"scale": guidance}),
        lora_scale=kind.lora_scale if info.form == LORA else None,
        latent=teacher.describe(),
        teacher={
            "name": Path(where).name,
            "path": where,
            "family": family,
            "guidance": 1.0,
            **teacher.terms(),
        },
        recipe={
            "name": name,
            "description": f"adopted from {info.path.name}; published as {kind.source}",
            "teacher": {"family": family, "path": where},
            "adopt": {
                "checkpoint": info.path.name,
                "scheduler": kind.scheduler,
                "eta": kind.eta,
            },
        },
    )


def _steps(name: str, kind: Kind, info: CheckpointInfo, asked: int | None) -> int:
    said = named_steps(info.path)
    steps = asked or (said if said in kind.steps else None) or kind.steps[0]
    choices = ", ".join(str(count) for count in sorted(kind.steps))
    if asked is None and kind.tied and said is not None and said not in kind.steps:
        raise ValueError(f"{info.path} is made for {said} steps, {name} for {choices}")
    if steps not in kind.steps:
        raise ValueError(f"--steps {steps}: {name} students take {choices}")
    if kind.tied and said is not None and said != steps:
        raise ValueError(f"--steps {steps}: {info.path} is made for {said} steps by its name")
    return steps


def _guidance(name: str, kind: Kind, asked: float | None) -> float:
    if asked is None:
        return kind.guidance.scale
    if not kind.embedded:
        raise ValueError(f"--guidance {asked:g}: {name} students read no guidance scale")
    if not asked >= 1:
        raise ValueError(f"--guidance {asked:g}: a scale of at least 1 expected")
    return asked


def _target(out: Path | None, info: CheckpointInfo) -> Path:
    target = out or Path("runs") / info.path.stem / "student"
    if target.is_file():
        raise ValueError(f"--out {target}: a file is there")
    if not target.is_dir() or not any(target.iterdir()):
        return target
    made = target / "student.json"
    if not made.is_file():
        raise ValueError(f"--out {target}: a folder that is no student is there; name another")
    if "adopt" not in read_json(made).get("recipe", {}):
        raise ValueError(f"--out {target}: a student that was trained is there; name another")
    return target


def _family(name: str, kind: Kind, info: CheckpointInfo, base: str | None) -> tuple[str, str]:
    """Return the family and the location of the pipeline that surrounds the student."""
    if info.form == FOLDER:
        if base is not None:
            raise ValueError(f"--base {base}: {info.path} is a whole pipeline and needs none")
        family, where = info.family, info.place
    elif base is None:
        raise ValueError(f"{info.path} is {info.form}: name its teacher with --base")
    else:
        family, where = _family_at(base)
    if family not in kind.families:
        raise ValueError(
            f"{name} is published for {', '.join(kind.families)}; {where} is {family}"
        )
    if info.family and info.family != family:
        raise ValueError(f"{info.path} looks like {info.family}; --base {where} is {family}")
    known = names(TEACHERS, ENTRY_POINTS)
    if family not in known:
        raise unknown("teacher family", family, known)
    return family, where


def _family_at(base: str) -> tuple[str, str]:
    shipped = assets.ROOT / base
    where = str(shipped) if "/" not in base and shipped.is_dir() else base
    wrong = f"--base {base}: no pipeline folder, asset or Hub id there"
    if not Path(where).is_dir() and hub_name(base) is None:
        raise ValueError(wrong)
    try:
        index = DiffusionPipeline.load_config(configs_at(where))
    except HubError as error:
        raise ValueError(f"--base {base}: {error}") from None
    except (OSError, ValueError):
        raise ValueError(wrong) from None
    return family_of(index, where), where


def _with_student(
    family: str,
    where: str,
    kind: Kind,
    info: CheckpointInfo,
    guidance: float,
    steps: int,
) -> PipelineTeacher:
    """Load the family's pipeline with the student's weights and the recommended scheduler."""
    opener: type[PipelineTeacher] = resolve("teacher family", TEACHERS, family, ENTRY_POINTS)
    pipeline = _open(opener, where)
    _check_prediction(kind, pipeline.scheduler, where)
    core = getattr(pipeline, opener.core)
    if info.form == FOLDER and info.embedded:
        pipeline.register_modules(**{opener.core: plain_unet(core, guidance)})
    elif info.form == LORA:
        fuse_lora(pipeline, info.file, kind.lora_scale)
    elif info.form != FOLDER:
        put_weights(core, info.file, guidance)
    pipeline.register_modules(scheduler=make_scheduler(kind, pipeline.scheduler, steps))
    return opener(info.path.stem, where, pipeline)


def _open(opener: type[PipelineTeacher], where: str) -> Any:
    diffusers_logging.set_verbosity(diffusers_logging.CRITICAL)  # errors come as exceptions
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    # Load with the family's first pipeline class, whatever the folder names: LCMs have their own.
    folder = pipeline_at(where, opener.unused)
    try:
        index = DiffusionPipeline.load_config(folder)
        with named_errors():
            return opener.open(opener.pipelines[0], index, folder)
    except BROKEN as error:
        raise ValueError(f"cannot load {where!r}: {reason(error, folder)}") from error


def _check_prediction(kind: Kind, scheduler: Any, where: str) -> None:
    predicts = scheduler.config.get("prediction_type")
    if not kind.flow and predicts not in (None, "epsilon"):
        raise ValueError(
            f"{where} predicts {predicts}; these students are published for "
            f"{Prediction.EPS.value} teachers"
        )
