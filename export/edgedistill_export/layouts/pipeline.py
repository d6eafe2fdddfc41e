"""A diffusers pipeline folder whose networks are graphs of a bundle.

Its parts are unet, text_encoder and vae_decoder. Our decoder's graph scales latents itself, so the
folder's VAE says a scale of 1.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgedistill.common.files import atomic_folder, read_json, recover, write_json
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.students.folder import CARD, INFO, StudentInfo, load_student_info
from edgedistill.teachers.licences import copy_texts
from edgedistill_runtime.manifest import FILE_NAME, Manifest

__all__ = ["FAMILIES", "Layout", "check_layout", "student_folder", "write_layout"]

FAMILIES = ("stable_diffusion",)
"""Families whose graphs other programs split alike; others join or split text encoders."""

GRAPHS: dict[str, tuple[str, str, dict[str, str]]] = {
    "text_encoder": (
        "text_encoder",
        "text_encoder",
        {"encoder_hidden_states": "last_hidden_state"},
    ),
    "denoiser": ("unet", "unet", {"x": "sample", "t": "timestep", "f": "out_sample"}),
    "decoder": ("vae", "vae_decoder", {"x0": "latent_sample", "image": "sample"}),
}
"""Folder of a graph's config in the student, folder in the layout, and names there, by graph."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout.

    Attributes:
        name: Value of `--layout`, and end of the folder's name.
        target: The target whose bundles have it.
        model: File of a graph in its folder.
        write: Function (graph of the bundle, file to write, names there by ours).
        check: Function of a student's folder that raises a ValueError where the program cannot
            draw the student.
        finish: Function (student's folder, folder to complete) that writes what else is needed.
    """

    name: str
    target: str
    model: str
    write: Callable[[Path, Path, Mapping[str, str]], None]
    check: Callable[[Path], None] = lambda student: None
    finish: Callable[[Path, Path], None] = lambda student, place: None


def student_folder(student: Path) -> Path:
    """Return the folder of a student that may be named by its run."""
    return student if (student / INFO).is_file() else student / "student"


def check_layout(layout: Layout, info: StudentInfo, student: Path, target: str) -> None:
    """Raise a ValueError that says why a student has no such layout."""
    said = f"--layout {layout.name}"
    if target != layout.target:
        raise ValueError(f"{said} is for the target {layout.target}, not {target}")
    if info.family not in FAMILIES:
        raise ValueError(
            f"{said}: a {info.family} student; {layout.name}'s graphs of it are not those of a "
            f"bundle, only of {', '.join(FAMILIES)}"
        )
    table = TorchStepTable.from_json(info.step_table)
    if table.grows:
        raise ValueError(f"{said}: the student's steps grow, and its pipeline's do not")
    if table.reuses:
        raise ValueError(
            f"{said}: the student's steps reuse deep blocks, and its pipeline's do not"
        )
    layout.check(student_folder(student))


def write_layout(layout: Layout, bundle: Path, student: Path, out: Path | None = None) -> Path:
    """Write a proven bundle as a folder that another program opens.

    Args:
        layout: The layout.
        bundle: The bundle.
        student: The student it was made of.
        out: The folder; beside the bundle, with the layout behind its name, if None.

    Raises:
        ValueError: If the student has no such layout, the bundle is fused, or something else is at
            `out`.
    """
    manifest = Manifest.read(bundle)
    check_layout(layout, load_student_info(student), student, manifest.target)
    home = student_folder(student)
    missing = [name for name in GRAPHS if name not in manifest.graphs]
    if missing:
        raise ValueError(f"{bundle}: no graph {missing[0]}; export without --fused")
    place = out or bundle.with_name(f"{bundle.name}-{layout.name}")
    recover(place)
    if place.is_dir() and any(place.iterdir()) and not (place / "unet" / layout.model).is_file():
        raise ValueError(f"{place}: exists and is no pipeline of graphs; choose another place")
    with atomic_folder(place) as work:
        for folder in ("tokenizer", "scheduler"):
            shutil.copytree(home / folder, work / folder)
        shutil.copyfile(home / "model_index.json", work / "model_index.json")
        for name, (source, folder, names) in GRAPHS.items():
            (work / folder).mkdir()
            _write_config(home / source / "config.json", work / folder)
            layout.write(bundle / manifest.graphs[name].file, work / folder / layout.model, names)
        layout.finish(home, work)
        copy_texts(str(home), work)
        shutil.copyfile(home / CARD, work / CARD)
        shutil.copyfile(bundle / FILE_NAME, work / "bundle.json")
    return place


def _write_config(file: Path, folder: Path) -> None:
    config = read_json(file)
    if folder.name == "vae_decoder":
        config |= {"scaling_factor": 1.0, "shift_factor": None}
    write_json(folder / "config.json", config)
