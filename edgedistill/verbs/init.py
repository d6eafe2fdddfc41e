"""Write a recipe for a teacher of one's own, from the shipped recipe of its family."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgedistill import recipes
from edgedistill.assets import ROOT
from edgedistill.common.files import check_writable, read_json, write_text
from edgedistill.common.plugins import unknown
from edgedistill.planning.architectures import find
from edgedistill.recipes.files import layered
from edgedistill.recipes.schema import DataSection, Recipe, TeacherSection
from edgedistill.teachers import find_family
from edgedistill.teachers.loading import FAMILIES, check_weights
from edgedistill.teachers.markers import read_header
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.teachers.pipeline_files import scheduler_at
from edgedistill.teachers.single_file import family_of
from edgedistill_runtime.hub import hub_name

__all__ = ["FAMILIES_HERE", "Wishes", "defaults", "detect_family", "init", "needs_data"]

PIXELS: Mapping[str, Any] = {
    "teacher": {"guidance": 1.0, "steps": 25},
    "student": {"steps": 4, "sampler": "renoise"},
    "objective": {"name": "lcm", "solver_steps": 25, "ema": 0.95},
    "train": {
        "steps": 3000,
        "batch_size": 32,
        "optim": {"name": "muon", "lr": 1.0e-3, "betas": [0.9, 0.98]},
        "lr_schedule": "cosine",
        "lr_warmup": 30,
        "ema": 0.99,
        "checkpoint_every": 500,
    },
}
"""Sections for pixel U-Nets of any size, as in the tutorial on pixel DDPMs."""

BASES = {
    "dit": "dit-imagenet-1step",
    "flux": "flux-4step-lora",
    "pixart": "pixart-4step",
    "sana": "sana-1step",
    "sd3": "sd3-4step",
    "sdxl": "sdxl-4step-lora",
    "stable_diffusion": "sd15-4step",
    "wan": "wan-4step",
}
"""Shipped recipe by family whose settings the new one takes."""

SAMPLES: int = DataSection.model_fields["samples"].default
"""Samples that a teacher makes by default."""

FAMILIES_HERE = tuple(sorted([*BASES, "unet2d"]))
"""Families that a recipe can be written for."""

WITHOUT_TEXT = ("dit", "unet2d")
"""Families whose teachers take no prompts, or classes, and so need no data."""


@dataclass(frozen=True)
class Wishes:
    """Choices for a new recipe; None is decided by its family.

    Attributes:
        family: The teacher's family.
        config: Folder or Hub id of the configurations for a teacher in one file.
        prompts: File of prompts.
        pictures: Folder of pictures with captions.
        guidance: Guidance scale that the student learns.
        steps: The student's steps.
        method: A method's name.
        train_steps: Number of training steps.
        batch_size: Batch size.
    """

    family: str | None = None
    config: str | None = None
    prompts: str | None = None
    pictures: str | None = None
    guidance: float | None = None
    steps: int | None = None
    method: str | None = None
    train_steps: int | None = None
    batch_size: int | None = None


def detect_family(teacher: str) -> str | None:
    """Return the family of a pipeline folder, a file, a shipped asset or a known Hub id, or None.

    Raises:
        ValueError: If the folder's pipeline is one that no family reads; names it.
    """
    try:
        folder = find(teacher)
    except ValueError:
        if Path(teacher).is_dir():
            raise
        return family_of(read_header(teacher).shapes) if Path(teacher).is_file() else None
    name = str(read_json(folder / "model_index.json").get("_class_name"))
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise ValueError(f"{teacher}: a {name}, which no family reads; known: {known}")
    kind = find_family(FAMILIES[name])
    if issubclass(kind, PipelineTeacher):
        check_weights(folder, kind.unused)
    return FAMILIES[name]


def needs_data(teacher: str, family: str) -> bool:
    """Whether a recipe for the teacher has to name prompts or pictures."""
    if family in WITHOUT_TEXT:
        return False
    folder = ROOT / teacher if "/" not in teacher and (ROOT / teacher).is_dir() else Path(teacher)
    return not (folder / "data.safetensors").is_file()


def makes_samples(teacher: str, family: str, wishes: Wishes) -> bool:
    """Whether the teacher will make the samples that its student is trained on."""
    own = family not in WITHOUT_TEXT and not needs_data(teacher, family) and not wishes.prompts
    return wishes.pictures is None and not own


def init(teacher: str, out: Path, wishes: Wishes) -> Recipe:
    """Write a recipe file for a teacher, and return the recipe as it loads.

    Args:
        teacher: A pipeline folder, a Hub id, or a single .safetensors file.
        out: The new .yaml file.
        wishes: Choices for the recipe.

    Raises:
        ValueError: If the request is wrong, `out` exists, or no such recipe can be made.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise ValueError(f"--out {out}: a name that ends in .yaml expected")
    if out.exists():
        raise ValueError(f"--out {out}: exists; choose another name")
    check_writable(out, f"--out {out}")
    if teacher.startswith((".", "/", "~")) and not Path(teacher).expanduser().exists():
        raise ValueError(f"no teacher at {teacher!r}: no such file or folder")
    family = wishes.family or detect_family(teacher)
    if family is None:
        here = Path(teacher).expanduser().exists()
        if not here and hub_name(teacher) is None:
            raise ValueError(f"no teacher at {teacher!r}: no such file, folder, asset or Hub id")
        raise ValueError(f"{teacher}: name its --family, one of {', '.join(FAMILIES_HERE)}")
    if family not in FAMILIES_HERE:
        raise unknown("family", family, FAMILIES_HERE)
    _check_data(teacher, family, wishes)
    data = _sections(teacher, family, wishes)
    recipe = recipes.resolve({"name": out.stem, **copy.deepcopy(data)})
    _check_teacher(recipe.teacher)
    write_text(out, _header(family, teacher) + yaml.safe_dump(data, sort_keys=False, width=88))
    return recipe


def _check_teacher(section: TeacherSection) -> None:
    """Raise the ValueError of `distill` if the configs alone show that a teacher is not read."""
    kind = find_family(section.family)
    kind.check_guidance(section.guidance, Path(section.path).name)
    if not issubclass(kind, PipelineTeacher):
        return
    try:
        folder = find(section.path)
    except ValueError:  # a single file, or on the Hub
        return
    scheduler = scheduler_at(folder)
    if scheduler is not None:
        kind.check_scheduler(scheduler, str(folder))


def _check_data(teacher: str, family: str, wishes: Wishes) -> None:
    for option, given in (("--prompts", wishes.prompts), ("--pictures", wishes.pictures)):
        if given is not None and not Path(given).exists():
            raise ValueError(f"{option} {given}: no such file or folder")
    if wishes.prompts and wishes.pictures:
        raise ValueError("--prompts and --pictures: pictures have their own captions; give one")
    if family == "unet2d" and wishes.prompts:
        raise ValueError(f"--prompts {wishes.prompts}: a pixel U-Net takes no prompts")
    if needs_data(teacher, family) and not (wishes.prompts or wishes.pictures):
        raise ValueError(f"a teacher of family {family!r} needs --prompts FILE or --pictures DIR")


def _sections(teacher: str, family: str, wishes: Wishes) -> dict[str, Any]:
    found = {key: value for key, value in _base(family).items() if key != "description"}
    found["teacher"] |= {"family": family, "path": teacher}
    _set(found["teacher"], config=wishes.config, guidance=wishes.guidance)
    _set(found["student"], steps=wishes.steps)
    _set(found["train"], steps=wishes.train_steps, batch_size=wishes.batch_size)
    if wishes.method and wishes.method != found["objective"]["name"]:
        found["objective"] = _objective(family, wishes.method)
    named = {"prompts": wishes.prompts, "pictures": wishes.pictures}
    given = {key: value for key, value in named.items() if value}
    if given:
        found["data"] = found.get("data", {}) | given
    if makes_samples(teacher, family, wishes):
        found["data"] = {"samples": SAMPLES} | found.get("data", {})
    steps = found["student"]["steps"]
    description = f"{Path(teacher).name}, {steps} step{'s' if steps > 1 else ''}"
    ordered = ("teacher", "student", "objective", "data")
    rest = {key: value for key, value in found.items() if key not in ordered}
    return {"description": description, **{k: found[k] for k in ordered if k in found}, **rest}


def _base(family: str) -> dict[str, Any]:
    """Return the sections that a recipe for a family starts from."""
    if family == "unet2d":
        return copy.deepcopy(dict(PIXELS))
    return layered(recipes.find(BASES[family]), ())


def defaults(family: str) -> tuple[int, str]:
    """Return steps and method of the recipes that are written for a family."""
    base = _base(family)
    return int(base["student"]["steps"]), str(base["objective"]["name"])


def _set(section: dict[str, Any], **values: Any) -> None:
    section |= {key: value for key, value in values.items() if value is not None}


def _objective(family: str, method: str) -> dict[str, Any]:
    """Return the settings of a method in a recipe of the same family; else its defaults."""
    recipes_ = recipes.chosen(family)
    for name in recipes_:
        objective: dict[str, Any] = layered(recipes.find(name), ())["objective"]
        if objective["name"] == method and not name.startswith("emoji"):
            return objective
    return {"name": method}


def _header(family: str, teacher: str) -> str:
    base = "the tutorial on pixel DDPMs" if family == "unet2d" else f"recipe {BASES[family]}"
    name = " ".join(teacher.split())
    return (
        f"# A student of {name}. Its settings are those of {base}.\n"
        "# `edgedistill recipes show FILE --explain` says what each key means.\n"
    )
