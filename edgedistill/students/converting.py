"""Convert students to the formats of other programs: single files and LoRAs."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from edgedistill.common.files import atomic_file, check_writable, read_json
from edgedistill.common.plugins import unknown
from edgedistill.compress.config import Compress
from edgedistill.diffusion.prediction import Prediction
from edgedistill.students.folder import LORA, Student, load_student
from edgedistill.students.group import group_of
from edgedistill.students.layouts import COMPONENTS, single_file_state, unet_namer
from edgedistill.teachers.adapter_weights import fuse_lora
from edgedistill.teachers.single_file import open_file

__all__ = ["FORMATS", "KEYS", "PRECISIONS", "Converted", "convert"]

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Types of the weights in a file, by name."""

KEYS = ("kohya", "diffusers")
"""Namings of a LoRA's keys."""

ARCHITECTURES = {"stable_diffusion": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base"}
"""Names of the Stability ModelSpec by family."""

SAMPLERS = {
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "UniPCMultistepScheduler": "uni_pc",
    "DEISMultistepScheduler": "deis",
}
"""Names of multistep samplers in other programs, by the student's scheduler."""

CLOSE = 1e-5
"""Largest distance, relative to the largest weight, of a LoRA read back."""


@dataclass(frozen=True)
class Converted:
    """A converted student.

    Attributes:
        file: The file.
        notes: Lines that say how the other program must sample.
    """

    file: Path
    notes: tuple[str, ...]


def convert(
    path: str | os.PathLike[str],
    to: str,
    out: str | os.PathLike[str],
    *,
    precision: str = "fp32",
    keys: str = "kohya",
    overwrite: bool = False,
) -> Converted:
    """Write a student as another program reads it, and read it back.

    Args:
        path: The student folder.
        to: A key of `FORMATS`.
        out: The file, which ends in .safetensors.
        precision: A key of `PRECISIONS`.
        keys: One of `KEYS`, for a LoRA.
        overwrite: Whether to replace the file if it exists.

    Raises:
        ValueError: If the format cannot hold the student, what was read back differs, or the file
            exists; nothing is written.
    """
    file = Path(out)
    for kind, name, known in (
        ("format", to, FORMATS),
        ("precision", precision, PRECISIONS),
        ("naming of keys", keys, KEYS),
    ):
        if name not in known:
            raise unknown(kind, name, known)
    if file.suffix != ".safetensors":
        raise ValueError(f"{file}: a .safetensors file expected")
    if file.exists() and not overwrite:
        raise ValueError(f"{file}: exists; choose another name, or add --overwrite")
    if group_of(Path(path)):
        raise ValueError(f"{path}: several students; name one, as {Path(path) / '0'}")
    check_writable(file, str(file))
    student = load_student(Path(path))
    _check(student, to)
    FORMATS[to](student, file, PRECISIONS[precision], keys)
    return Converted(file, (_advice(student),))


def _check(student: Student, to: str) -> None:
    """Raise a ValueError that says what of a student the format cannot hold."""
    family, info = student.info.family, student.info
    if family not in COMPONENTS:
        raise ValueError(
            f"{student.path}: a {family} student; {to} is written of {', '.join(COMPONENTS)}"
        )
    if student.table.grows:
        raise ValueError(
            f"{student.path}: its steps grow, and no other program draws a picture that grows"
        )
    if student.table.reuses:
        raise ValueError(
            f"{student.path}: its steps reuse deep blocks, and no other program draws so; convert "
            "the student that it started from"
        )
    if info.attention:
        raise ValueError(
            f"{student.path}: its self-attention has a stride of {info.attention.stride}; {to} "
            "cannot say so, and other programs would take keys and values of all tokens"
        )
    compress = info.recipe.get("compress")
    if compress and Compress.model_validate(compress).active:
        raise ValueError(
            f"{student.path}: a pruned student; {to} holds no architecture, and other programs "
            "would take it for the whole one"
        )
    unet: Any = student.net.get_submodule(student.teacher.core)
    if type(unet) is not UNet2DConditionModel or unet.config.time_cond_proj_dim is not None:
        raise ValueError(f"{student.path}: its network has inputs that other programs do not feed")


# --- A single file ------------------------------------------------------------------------------


def _single_file(student: Student, file: Path, dtype: torch.dtype, keys: str) -> None:
    teacher: Any = student.teacher
    pipeline = teacher.pipeline
    if type(pipeline.vae) is not AutoencoderKL:
        raise ValueError(
            f"{student.path}: its decoder is a {type(pipeline.vae).__name__}; a single file holds "
            "an AutoencoderKL"
        )
    state = single_file_state(pipeline, student.info.family, dtype)
    if student.info.family == "sdxl" and student.info.prediction is Prediction.V:
        state["v_pred"] = torch.zeros(0)  # what ComfyUI and forks look for
        if pipeline.scheduler.config.get("rescale_betas_zero_snr"):
            state["ztsnr"] = torch.zeros(0)
    with atomic_file(file) as made:
        save_file(state, made, _header(student))
        _check_same(student, made, dtype)


def _header(student: Student) -> dict[str, str]:
    """Return metadata as the Stability ModelSpec has it."""
    info = student.info
    prediction = {Prediction.EPS: "epsilon", Prediction.V: "v"}.get(info.prediction)
    licences = info.teacher.get("licences") or []
    told = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": ARCHITECTURES[info.family],
        "modelspec.implementation": "sgm" if info.family == "sdxl" else "ldm",
        "modelspec.title": f"{len(student.table.rows)}-step student of {info.teacher.get('name')}",
        "modelspec.usage_hint": _advice(student),
    }
    if prediction is None:
        raise ValueError(f"{student.path}: no other program reads a network that gives x0")
    told["modelspec.prediction_type"] = prediction
    if licences:
        told["modelspec.license"] = ", ".join(map(str, licences))
    return told


def _check_same(student: Student, file: Path, dtype: torch.dtype) -> None:
    """Read a single file by diffusers' converters; ValueError names the first other weight."""
    teacher: Any = student.teacher
    index = read_json(student.path / "model_index.json")
    family = student.info.family
    read = open_file(family, str(file), str(student.path), index, **teacher.options)
    for part in COMPONENTS[family]:
        ours, theirs = _weights(teacher.pipeline, part), _weights(read, part)
        if ours.keys() != theirs.keys():
            name = min(ours.keys() ^ theirs.keys())
            raise ValueError(f"not written: {part}'s {name} is lost in a single file")
        for name, value in ours.items():
            if not torch.equal(value.to(dtype).float(), theirs[name].float()):
                raise ValueError(f"not written: {part}'s {name} is another in a single file")


def _weights(pipeline: Any, part: str) -> dict[str, torch.Tensor]:
    return dict(getattr(pipeline, part).state_dict())


# --- A LoRA -------------------------------------------------------------------------------------


def _lora(student: Student, file: Path, dtype: torch.dtype, keys: str) -> None:
    source = student.path / LORA
    if not source.is_file():
        raise ValueError(
            f"{student.path}: was not trained as a LoRA (train.roles=adapters); "
            "convert it to a single file"
        )
    given = load_file(source)
    state = {name: value.to(dtype) for name, value in given.items()}
    if keys == "kohya":
        state = _kohya(state, _module_namer(student))
    header = {"format": "pt", "modelspec.usage_hint": _advice(student)}
    with atomic_file(file) as made:
        save_file(state, made, header)
        _check_lora(student, made, dtype)


def _module_namer(student: Student) -> Callable[[str], str]:
    """Return the function from module paths to kohya's: SDXL's are those of the original code."""
    unet: Any = student.net.get_submodule(student.teacher.core)
    if student.info.family != "sdxl":
        return lambda path: path
    return unet_namer(unet)


def _kohya(state: dict[str, torch.Tensor], rename: Callable[[str], str]) -> dict[str, Any]:
    """Rename a LoRA's factors; alpha is the rank, since the factors hold the scale."""
    made = {}
    for name, value in state.items():
        path, _, end = name.removeprefix("unet.").partition(".lora_")
        # A resnet's inner names are told apart by the dot behind them.
        place = "lora_unet_" + rename(f"{path}.")[:-1].replace(".", "_")
        part = {"A.weight": "down", "B.weight": "up"}[end]
        made[f"{place}.lora_{part}.weight"] = value
        if part == "down":
            made[f"{place}.alpha"] = torch.tensor(float(len(value)), dtype=value.dtype)
    return made


def _check_lora(student: Student, file: Path, dtype: torch.dtype) -> None:
    """Fuse a written LoRA, take the student's own off, and compare with the network before."""
    teacher: Any = student.teacher
    pipeline = teacher.pipeline
    before = copy.deepcopy(pipeline.unet)
    fuse_lora(pipeline, student.path / LORA, -1.0)
    fuse_lora(pipeline, file, 1.0)
    rounding = torch.finfo(dtype).eps if dtype != torch.float32 else CLOSE
    far, name = _distance(before, pipeline.unet)
    pipeline.register_modules(unet=before)
    if far > rounding:
        raise ValueError(f"not written: {name} of the LoRA read back is {far:.1e} apart")


def _distance(ours: nn.Module, theirs: nn.Module) -> tuple[float, str]:
    """Return the largest distance of two weights, relative to the largest value, and its name."""
    pairs = zip(ours.named_parameters(), theirs.parameters(), strict=True)
    return max(
        (float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)), name)
        for (name, a), b in pairs
    )


FORMATS: dict[str, Callable[[Student, Path, torch.dtype, str], None]] = {
    "single-file": _single_file,
    "lora": _lora,
}
"""Function that writes a file, by format."""


# --- What other programs must be told -----------------------------------------------------------


def _advice(student: Student) -> str:
    """Say how another program samples the student, in one line."""
    rows = student.table.rows
    times = ", ".join(f"{row.t:g}" for row in rows)
    fresh = any(row.c for row in rows)
    scheduler = str(read_json(student.path / "model_index.json")["scheduler"][1])
    plain = "lcm" if fresh else "ddim or euler"
    sampler = SAMPLERS.get(scheduler, scheduler) if any(row.past for row in rows) else plain
    steps = f"{len(rows)} step" + ("s" if len(rows) > 1 else "")
    words = [f"{steps} at timesteps {times}", "CFG 1", f"sampler {sampler}"]
    if _trailing(student):
        words.append("scheduler sgm_uniform")
    if student.info.prediction is Prediction.V:
        words.append("v-prediction (in ComfyUI by ModelSamplingDiscrete)")
    return "tell the other program: " + "; ".join(words)


def _trailing(student: Student) -> bool:
    """Whether the timesteps are even and begin with the noisiest, as sgm_uniform has them."""
    rows = student.table.rows
    wanted = [1000 * (1 - i / len(rows)) - 1 for i in range(len(rows))]
    return all(abs(row.t - t) <= 1.5 for row, t in zip(rows, wanted, strict=True))
