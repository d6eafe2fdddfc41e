"""Read and write the student dir: a diffusers pipeline folder with student.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from edgedistill.common.files import atomic_folder, read_json, recover, write_json, write_text
from edgedistill.common.finite import bad_tensor
from edgedistill.common.hashes import check_files, files_in, sha256_of, sha256_of_all
from edgedistill.common.plugins import names, unknown
from edgedistill.common.progress import remark
from edgedistill.compress.plan import Plan, build
from edgedistill.compress.token_stride import KEY as ATTENTION
from edgedistill.compress.token_stride import TokenStride, stride_of
from edgedistill.diffusion.denoiser import Condition
from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedules import schedule_from_json
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.networks.adapters import Role
from edgedistill.students.older import open_to_transformers_4
from edgedistill.teachers import ENTRY_POINTS, TEACHERS, Teacher, load_teacher
from edgedistill_runtime.hub import local_folder

__all__ = [
    "GuidanceInfo",
    "Student",
    "StudentInfo",
    "load_student",
    "load_student_info",
    "save_student",
    "student_sha256",
]

SCHEMA, WITH_PAST, WITH_REUSE, WITH_LAYERS, WITH_STRIDE = 2, 3, 4, 5, 6
"""Schemas of students, of those whose step tables use earlier rows, of those whose rows reuse
deep blocks, of those whose `reuse_layers` says how much of the last block runs in them, and of
those whose self-attention has a stride."""
READABLE = (1, SCHEMA, WITH_PAST, WITH_REUSE, WITH_LAYERS, WITH_STRIDE)

INFO, CARD = "student.json", "README.md"

MACHINE = ("_name_or_path", "name_or_path")
"""Config keys in which libraries store the path that something was loaded from."""


class GuidanceInfo(BaseModel):
    """Distillation of guidance: baked into the weights, an embedded input, or none."""

    model_config = ConfigDict(extra="forbid")
    mode: Literal["baked", "embedded", "none"]
    scale: float = 1.0


class StudentInfo(BaseModel):
    """Contents of student.json: everything needed to run the student correctly.

    Attributes:
        schema_version: 2; 3 where rows of the step table use earlier ones, 4 where rows reuse deep
            blocks, 5 where the table has `reuse_layers`, 6 where there is `attention`; 1 had no
            hashes.
        method: Distillation method.
        family: Family that reads the folder; a key of `teachers.TEACHERS`.
        step_table: `TorchStepTable.to_json`.
        prediction: Prediction type of the network.
        schedule: `Schedule.to_json`.
        guidance: Way in which guidance was distilled.
        lora_scale: Scale of a LoRA student's adapter, or None.
        latent: {"shape", "scaling_factor", "shift_factor"}.
        teacher: {"name", "path", "family", "guidance", "licences"}; `license_name` and
            `license_link` of a licence that the Hub has no name for, "notes" on what a student
            lacks, "config" for a single file and "lora" for LoRAs in its weights, where there are
            any.
        recipe: The resolved recipe.
        evaluation: Figures of eval.json, or None before evaluation.
        sha256: sha256 of every other file but the card, by name, and under "student.json" of all
            fields here except `evaluation`.
    """

    model_config = ConfigDict(extra="forbid")
    schema_version: Literal[1, 2, 3, 4, 5, 6] = 2
    method: str
    family: str
    step_table: dict[str, Any]
    prediction: Prediction
    schedule: dict[str, Any]
    guidance: GuidanceInfo
    lora_scale: float | None = None
    depths: dict[str, dict[str, Any]] = {}
    """Plans of the smaller students inside this one, by name."""
    attention: TokenStride | None = None
    """Stride of the network's self-attention; left out of the file where there is none."""
    latent: dict[str, Any]
    teacher: dict[str, Any]
    recipe: dict[str, Any]
    evaluation: dict[str, Any] | None = None
    sha256: dict[str, str] = {}


class Student:
    """A loaded student folder.

    Attributes:
        path: The folder.
        info: Contents of its student.json.
        table: The student's step table.
        teacher: The family's object for this folder: encode, decode, graphs.
        net: The few-step network.
    """

    def __init__(
        self, path: Path, info: StudentInfo, table: TorchStepTable, teacher: Teacher
    ) -> None:
        self.path, self.info, self.table, self.teacher = path, info, table, teacher
        self.net: nn.Module = teacher.net

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that decides the student's samples, not its figures or its card."""
        return student_sha256(self.path, self.info)

    def use_depth(self, name: str) -> None:
        """Switch to the smaller student called `name`; ValueError names the available ones."""
        if not self.info.depths:
            raise ValueError(f"--depth {name}: this student has one depth only")
        if name not in self.info.depths:
            raise unknown("depth", name, self.info.depths)
        core = self.teacher.core
        plan = Plan.from_json(self.info.depths[name])
        self.net.set_submodule(core, build(plan, self.net.get_submodule(core)))
        self.net.requires_grad_(False)

    @torch.no_grad()
    def sample(self, cond: Condition, noise: Sequence[Tensor]) -> Tensor:
        """Sample x0 (N, ...) from noise tensors (N, ...) of `table.shapes`."""
        return self.table.sample(self.net, noise, cond)


def student_sha256(folder: Path, info: StudentInfo) -> str:
    """Return `Student.sha256` of the student in a folder, whose weights need not be loaded."""
    # The names of the first schema are used, so that hashes of its students stay the same;
    # absent depths and strides are left out, so that hashes of students made before these
    # existed stay the same.
    absent = {name for name in ("depths", ATTENTION) if not getattr(info, name)}
    left_out = {"evaluation", "sha256"} | absent
    first = info.model_copy(update={"schema_version": 1})
    digest = hashlib.sha256(first.model_dump_json(exclude=left_out).encode())
    hashes = info.sha256 or sha256_of_all(folder, files_in(folder))
    for name, found in sorted(hashes.items(), key=lambda item: Path(item[0])):
        kept = name.endswith((".json", ".safetensors", ".txt"))
        if kept and Path(name).name != INFO:
            digest.update(name.encode())
            digest.update(bytes.fromhex(found))
    return digest.hexdigest()


def load_student(path: str | Path) -> Student:
    """Open a student folder, or the one in a run dir, here or on the Hub (OWNER/NAME).

    Raises:
        ValueError: If there is no student.json, or a file is wrong; names the file and the key.
    """
    folder = _student_folder(Path(path))
    info, table = _read_info(folder)
    return Student(folder, info, table, load_teacher(info.family, folder))


def load_student_info(path: str | Path) -> StudentInfo:
    """Read the student.json of a student folder or run dir, without its weights.

    Raises:
        ValueError: As in `load_student`.
    """
    return _read_info(_student_folder(Path(path)))[0]


def _student_folder(folder: Path) -> Path:
    """Return the folder of a student: `folder`, or the one in the run dir at `folder`."""
    folder = local_folder(folder)
    recover(folder)
    file = folder / INFO
    if not folder.is_dir():
        raise ValueError(f"no student or bundle folder at {str(folder)!r}")
    if not file.is_file():
        recover(folder / "student")
        if not (folder / "student" / INFO).is_file():
            raise _no_student(folder)
        return folder / "student"
    return folder


def _read_info(folder: Path) -> tuple[StudentInfo, TorchStepTable]:
    """Read the contents of student.json, and check the hashes of the folder's files."""
    file = folder / INFO
    data = read_json(file)
    if data.get("schema_version") not in READABLE:
        version, known = data.get("schema_version"), " or ".join(map(str, READABLE))
        raise ValueError(f"{file}: schema_version {version!r}, {known} expected")
    try:
        info = StudentInfo.model_validate(data)
        table = TorchStepTable.from_json(info.step_table)
        schedule_from_json(info.schedule)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{file}: {key}: {first['msg']}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    families = names(TEACHERS, ENTRY_POINTS)
    if info.family not in families:
        raise ValueError(f"{file}: family: {unknown('teacher family', info.family, families)}")
    _check_hashes(file, data)
    return info, table


def _check_hashes(file: Path, data: dict[str, Any]) -> None:
    """Raise a ValueError that names the first changed file of a student."""
    folder, listed = file.parent, dict(data.get("sha256") or {})
    if data["schema_version"] == 1 and not listed:
        remark(f"{file}: schema 1 has no hashes: damage to its files is not seen")
        return
    if listed.pop(INFO, None) != _own_hash(data):
        raise ValueError(f"{file}: damaged or changed: it is not what its sha256 says")
    check_files(folder, listed, INFO)


def _own_hash(data: dict[str, Any]) -> str:
    """Hash student.json except the figures, which are added later, and the hash itself."""
    files = {name: found for name, found in data["sha256"].items() if name != INFO}
    kept = {key: value for key, value in data.items() if key != "evaluation"}
    return sha256_of({**kept, "sha256": files})


def _no_student(folder: Path) -> ValueError:
    for group in (folder, folder / "students"):
        if (group / "students.json").is_file():
            return ValueError(f"{folder}: several students; name one, as {group / '0'}")
    if (folder / "decoder").is_dir():
        made = folder / "decoder"
        return ValueError(f"{folder}: a run that made a decoder; export STUDENT --decoder {made}")
    if (folder / "recipe.yaml").is_file():
        return ValueError(f"{folder}: a run without a student; finish it with --resume")
    return ValueError(f"{folder}: no student.json, so not a student folder")


def save_student(folder: Path, info: StudentInfo, teacher: Teacher, net: nn.Module) -> None:
    """Write a student dir whole or not at all.

    A role's adapter is fused into the weights. If the folder's diffusers pipeline has
    `load_lora_weights`, lora/ also holds the adapter alone, for the teacher's pipeline.

    Args:
        folder: The folder; an older student there is replaced.
        info: Contents of student.json.
        teacher: Teacher that supplies the other components.
        net: The student's network, or its role.
    """
    table = TorchStepTable.from_json(info.step_table)
    stride = stride_of(net.get_submodule(teacher.core))
    version = _schema(table) if stride is None else WITH_STRIDE
    info = info.model_copy(update={"schema_version": version, ATTENTION: stride})
    with atomic_folder(folder) as work:
        teacher.save(work, net.fused() if isinstance(net, Role) else net, table)
        open_to_transformers_4(work)
        usage = _usage(teacher, table, stride)
        index = work / "model_index.json"
        if isinstance(net, Role) and teacher.loads_lora:
            (work / "lora").mkdir()
            save_file(net.lora(), work / LORA, {"format": "pt"})
            info = info.model_copy(update={"lora_scale": 1.0})
            if not (table.grows or table.reuses or stride):
                usage += _LORA_USAGE.format(scheduler=read_json(index)["scheduler"][1])
        write_text(work / CARD, _card(info, table, usage))
        _forget_machine(work)
        _write_info(work, info)


def _schema(table: TorchStepTable) -> int:
    """Return the oldest schema that a table can be written in."""
    if table.reuses:
        return WITH_REUSE if table.reuse_layers is None else WITH_LAYERS
    return WITH_PAST if table.reach else SCHEMA


def _write_info(work: Path, info: StudentInfo) -> None:
    """Write student.json beside all other files; ValueError names a tensor that is not finite."""
    names = [name for name in files_in(work) if name != CARD]
    for name in names:
        bad = bad_tensor(work / name) if name.endswith(".safetensors") else ""
        if bad:
            raise ValueError(f"student not written: {bad} in {name} is not finite")
    absent = set() if info.attention else {ATTENTION}
    data = json.loads(info.model_dump_json(exclude=absent))
    data["sha256"] = sha256_of_all(work, names)
    data["sha256"][INFO] = _own_hash(data)
    write_json(work / INFO, data)


def _forget_machine(folder: Path) -> None:
    """Remove the paths that libraries keep in configs."""
    for name in files_in(folder):
        if not name.endswith(("config.json", "model_index.json")):
            continue
        old = json.loads((folder / name).read_text(encoding="utf-8"))
        new = _without(old, MACHINE)
        if new != old:
            text = json.dumps(new, indent=2, ensure_ascii=False)
            (folder / name).write_text(text + "\n", encoding="utf-8")


def _without(data: Any, keys: Sequence[str]) -> Any:
    """Return JSON without some keys, at any depth."""
    if isinstance(data, list):
        return [_without(value, keys) for value in data]
    if isinstance(data, dict):
        return {key: _without(value, keys) for key, value in data.items() if key not in keys}
    return data


def _usage(teacher: Teacher, table: TorchStepTable, stride: TokenStride | None) -> str:
    """Return the card's text on how to use a student."""
    if table.grows:
        return _GROWING_USAGE
    if table.reuses:
        return _REUSING_USAGE
    if stride:
        return _STRIDE_USAGE.format(stride=stride.stride)
    return teacher.usage_with(table)


_STRIDE_USAGE = f"""{Teacher.usage} Self-attention of its outermost stages
takes keys and values of one token in {{stride}} x {{stride}}, as `attention` in `student.json`
says. A diffusers pipeline opens the folder, but takes those of all tokens, which is slower and not
what the student learned: it draws other pictures."""

_REUSING_USAGE = f"""{Teacher.usage} Some of its steps reuse the state of
the deep blocks from the step before, as `step_table` in `student.json` says. A diffusers pipeline
opens the folder, but runs all blocks in every step, which is not what the student learned."""

_GROWING_USAGE = f"""{Teacher.usage} Its steps grow: the first run at a
fraction of the height and width, as `step_table` in `student.json` says. A diffusers pipeline
opens the folder, but runs every step at one size, which is not what the student learned."""

LORA = "lora/pytorch_lora_weights.safetensors"

_LORA_USAGE = """

`lora/` holds the same student as a LoRA for its teacher, with this folder's scheduler:

```python
import torch
from diffusers import DiffusionPipeline, {scheduler}

pipe = DiffusionPipeline.from_pretrained(TEACHER).to(torch.float32)
pipe.load_lora_weights(FOLDER + "/lora")
pipe.scheduler = {scheduler}.from_pretrained(FOLDER, subfolder="scheduler")
```"""


def _card(info: StudentInfo, table: TorchStepTable, usage: str) -> str:
    licences = info.teacher.get("licences") or ["other"]
    front = "\n".join(f"- {licence}" for licence in licences)
    for key in ("license_name", "license_link"):
        if key in info.teacher:
            front += f"\n{key}: {json.dumps(info.teacher[key])}"
    notes = "".join(f"\n- {note}" for note in info.teacher.get("notes") or ())
    loras = [Path(file).name for file, _ in info.teacher.get("lora") or ()]
    teacher = " with ".join([str(info.teacher.get("name")), *loras])
    usage += f"\n\nOf its teacher:\n{notes}" if notes else ""
    return f"""---
license:
{front}
tags:
- edgedistill
---
A {len(table.rows)}-step student of {teacher}, distilled with {info.method}.

{usage}
"""
