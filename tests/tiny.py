"""Real classes at tiny sizes: a Stable Diffusion pipeline, and students saved from teachers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from edgedistill.diffusion.few_step import few_step_table
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.solvers import student_times
from edgedistill.students.folder import GuidanceInfo, StudentInfo, save_student
from edgedistill.teachers import Teacher
from edgedistill.tiny.stable_diffusion import pipeline as make_pipeline
from edgedistill.tiny.tokenizers import LENGTH
from edgedistill.tiny.tokenizers import clip as make_tokenizer

__all__ = ["LENGTH", "make_attentive", "make_pipeline", "make_tokenizer", "save"]


def make_attentive() -> Any:
    """The Stable Diffusion pipeline with 8x8 latents and self-attention in both of its stages."""
    made = make_pipeline()
    sides = {name: (f"CrossAttn{name}Block2D",) * 2 for name in ("Down", "Up")}
    blocks = {f"{name.lower()}_block_types": kinds for name, kinds in sides.items()}
    config = {**made.unet.config, **blocks, "sample_size": 8}
    made.register_modules(unet=UNet2DConditionModel.from_config(config))
    return made


def save(
    folder: Path,
    teacher: Teacher,
    net: nn.Module,
    prediction: Prediction,
    steps: int,
    *,
    sampler: str = "renoise",
    spacing: str = "trailing",
    sizes: Sequence[float] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Path:
    """A student folder of `net` as it is, with `changes` in its student.json."""
    schedule = teacher.denoiser.schedule
    times = student_times(schedule, steps, spacing, sampler)
    table = few_step_table(schedule, prediction, times, sampler, sizes=sizes)
    info = StudentInfo(
        method="lcm",
        family=teacher.family,
        step_table=table.to_json(),
        prediction=prediction,
        schedule=schedule.to_json(),
        guidance=GuidanceInfo(mode="baked", scale=3.0),
        latent=teacher.describe(),
        teacher={"name": "tiny", "path": teacher.path, "guidance": 3.0, "licences": ["mit"]},
        recipe={"teacher": {"steps": 2, "guidance": 3.0}},
    )
    save_student(folder, info.model_copy(update=dict(changes or {})), teacher, net)
    return folder
