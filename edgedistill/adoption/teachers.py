"""Adopt a teacher as it is, with the steps of a multistep solver: the baseline of its students.

A step table calls the network once a step, so the teacher is unguided, or has its guidance in the
weights or as an input. Classifier-free guidance, which takes two calls, is `guidance`'s task.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from edgedistill.adoption.detect import CheckpointInfo
from edgedistill.adoption.kinds import FOLDER, SOLVERS
from edgedistill.adoption.schedulers import TOLERANCE, TimedProbe
from edgedistill.common.files import read_json
from edgedistill.common.progress import remark
from edgedistill.diffusion.multistep import multistep_table
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import Discrete, Rectified
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.students.folder import GuidanceInfo, StudentInfo, save_student
from edgedistill.teachers import load_teacher
from edgedistill.teachers.loading import BROKEN, reason
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.teachers.schedulers import level_grid, settings_of
from edgedistill.teachers.student_schedulers import walk

__all__ = ["adopt_teacher", "tell_dropped"]

STEPS = 8
"""Usual number of steps: two orders pay from about six on."""
MOST = 1000


def adopt_teacher(info: CheckpointInfo, solver: str, steps: int | None, target: Path) -> None:
    """Write a student dir of the teacher in a pipeline folder.

    Args:
        info: The folder.
        solver: A key of `SOLVERS`.
        steps: Network calls; `STEPS` if None.
        target: The student dir.

    Raises:
        ValueError: If it is no pipeline folder, or diffusers' scheduler does not walk the table.
    """
    if info.form != FOLDER:
        raise ValueError(f"{info.path} is {info.form}; {solver} samples {FOLDER} as it is")
    steps = STEPS if steps is None else steps
    if not 1 <= steps <= MOST:
        raise ValueError(f"--steps {steps}: 1 to {MOST} expected")
    teacher = load_teacher(info.family, str(info.path))
    assert isinstance(teacher, PipelineTeacher)
    table, scheduler = _steps(teacher, solver, steps)
    teacher.pipeline.register_modules(scheduler=scheduler)
    tell_dropped(info.path, solver, table)
    save_student(target, _info(info, solver, teacher, table), teacher, teacher.net)


def tell_dropped(folder: Path, name: str, table: TorchStepTable) -> None:
    """Say what the steps of a student of our own do, and those it is adopted with do not."""
    file = folder / "student.json"
    if not file.is_file():
        return
    for words in TorchStepTable.from_json(read_json(file)["step_table"]).beyond(table):
        remark(f"{folder}: its steps {words}, and those of {name} do not; only its weights stay")


def _steps(teacher: PipelineTeacher, solver: str, steps: int) -> tuple[TorchStepTable, Any]:
    """Return the solver's table and the scheduler of diffusers that walks it."""
    schedule, prediction = teacher.denoiser.schedule, teacher.denoiser.prediction
    scheduler = _scheduler(teacher, solver)
    try:
        teacher.set_steps(scheduler, steps)
        grid = level_grid(scheduler, schedule)
        table = multistep_table(schedule, prediction, grid, SOLVERS[solver].table)
        theirs = walk(scheduler, TimedProbe(), (4, 16), {})
    except BROKEN as error:
        kind = type(scheduler).__name__
        raise ValueError(f"{teacher.path}: {kind} in {steps} steps: {reason(error)}") from error
    noise = table.draw((4, 16), torch.Generator().manual_seed(0))
    ours = table.sample(TimedProbe(), noise, {})
    apart = float((ours - theirs).abs().max() / ours.abs().max())
    if not apart <= TOLERANCE:
        raise ValueError(
            f"{teacher.path}: {type(scheduler).__name__} takes other steps than {solver} with "
            f"this teacher's settings (latents {apart:.1e} apart)"
        )
    return table, scheduler


def _scheduler(teacher: PipelineTeacher, solver: str) -> Any:
    """Make diffusers' scheduler of the solver with the levels of the teacher's."""
    row, own, schedule = SOLVERS[solver], teacher.pipeline.scheduler, teacher.denoiser.schedule
    choices = dict(row.settings) | {"timestep_spacing": "trailing", "thresholding": False}
    choices |= {f"use_{name}_sigmas": False for name in ("karras", "exponential", "beta")}
    choices |= _levels(schedule, teacher.path)
    return getattr(diffusers, row.scheduler).from_config(settings_of(own), **choices)


def _levels(schedule: Schedule, path: str) -> dict[str, Any]:
    """Return the settings of the noise levels that another class may not have of its own."""
    if isinstance(schedule, Rectified):
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        return flow | {"flow_shift": schedule.shift, "use_dynamic_shifting": False}
    if isinstance(schedule, Discrete):
        return {}
    raise ValueError(f"{path}: a {schedule.name} schedule, which these solvers do not walk")


def _info(
    info: CheckpointInfo, solver: str, teacher: PipelineTeacher, table: TorchStepTable
) -> StudentInfo:
    student = info.path / "student.json"
    guidance = GuidanceInfo(mode="none")
    if student.is_file():  # a student of the method guidance, for instance
        guidance = GuidanceInfo(**read_json(student)["guidance"])
    return StudentInfo(
        method=solver,
        family=teacher.family,
        step_table=table.to_json(),
        prediction=teacher.denoiser.prediction,
        schedule=teacher.denoiser.schedule.to_json(),
        guidance=guidance,
        latent=teacher.describe(),
        teacher={
            "name": Path(teacher.path).name,
            "path": teacher.path,
            "family": teacher.family,
            "guidance": 1.0,
            **teacher.terms(),
        },
        recipe={
            "name": solver,
            "description": f"{info.path.name} as it is, by {SOLVERS[solver].source}",
            "teacher": {"family": teacher.family, "path": teacher.path},
            "adopt": {"checkpoint": info.path.name, "scheduler": SOLVERS[solver].scheduler},
        },
    )
