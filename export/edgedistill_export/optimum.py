"""Bundles for ONNX Runtime in the layout that optimum's `ORTDiffusionPipeline` opens.

It is a diffusers pipeline folder whose networks are `model.onnx` files: unet, text_encoder and
vae_decoder. Our decoder's graph scales latents itself, so the folder's VAE says a scale of 1.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onnx import ModelProto

from edgedistill.common.files import atomic_folder, read_json, recover, write_json
from edgedistill.common.plugins import unknown
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.students.folder import CARD, INFO, StudentInfo, load_student_info
from edgedistill.students.group import group_of
from edgedistill.teachers.licences import copy_texts
from edgedistill_export import onnx_files
from edgedistill_export.many import ExportRow
from edgedistill_runtime.manifest import FILE_NAME, Manifest

__all__ = ["FAMILIES", "check_layout", "check_layouts", "write_layouts", "write_optimum"]

FAMILIES = ("stable_diffusion",)
"""Families whose graphs are those of optimum; others split or join text encoders differently."""

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


def check_layout(info: StudentInfo, target: str) -> None:
    """Raise a ValueError that says why a student has no layout of optimum."""
    family = info.family
    if target != "ort":
        raise ValueError(f"--layout optimum is for the target ort, not {target}")
    if family not in FAMILIES:
        raise ValueError(
            f"--layout optimum: a {family} student; optimum's graphs of it are not those of a "
            f"bundle, only of {', '.join(FAMILIES)}"
        )
    if TorchStepTable.from_json(info.step_table).grows:
        raise ValueError("--layout optimum: the student's steps grow, and its pipeline's do not")


def write_optimum(bundle: Path, student: Path, out: Path | None = None) -> Path:
    """Write a proven bundle for ONNX Runtime as a folder that optimum opens.

    Args:
        bundle: The bundle.
        student: The student it was made of.
        out: The folder; beside the bundle, with "-optimum" behind its name, if None.

    Raises:
        ValueError: If the student has no such layout, the bundle is fused, or something else is at
            `out`.
    """
    manifest = Manifest.read(bundle)
    check_layout(load_student_info(student), manifest.target)
    home = student if (student / INFO).is_file() else student / "student"
    missing = [name for name in GRAPHS if name not in manifest.graphs]
    if missing:
        raise ValueError(f"{bundle}: no graph {missing[0]}; export without --fused")
    place = out or bundle.with_name(f"{bundle.name}-optimum")
    recover(place)
    if place.is_dir() and any(place.iterdir()) and not (place / "unet/model.onnx").is_file():
        raise ValueError(f"{place}: exists and is no pipeline of graphs; choose another place")
    with atomic_folder(place) as work:
        for folder in ("tokenizer", "scheduler"):
            shutil.copytree(home / folder, work / folder)
        shutil.copyfile(home / "model_index.json", work / "model_index.json")
        for name, (source, folder, names) in GRAPHS.items():
            (work / folder).mkdir()
            _write_config(home / source / "config.json", work / folder)
            model = onnx_files.read(bundle / manifest.graphs[name].file)
            onnx_files.write(renamed(model, names), work / folder / "model.onnx")
        copy_texts(str(home), work)
        shutil.copyfile(home / CARD, work / CARD)
        shutil.copyfile(bundle / FILE_NAME, work / "bundle.json")
    return place


def _write_config(file: Path, folder: Path) -> None:
    config = read_json(file)
    if folder.name == "vae_decoder":
        config |= {"scaling_factor": 1.0, "shift_factor": None}
    write_json(folder / "config.json", config)


def renamed(model: ModelProto, names: Mapping[str, str]) -> ModelProto:
    """Give inputs and outputs of a graph other names, in place.

    Raises:
        ValueError: If a name is not there, or a new one is already taken inside.
    """
    graph = model.graph
    ports = {port.name for port in (*graph.input, *graph.output)}
    inside = {name for node in graph.node for name in (*node.input, *node.output)}
    for old, new in names.items():
        if old not in ports:
            raise ValueError(f"the graph has no {old}")
        if new in inside | ports:
            raise ValueError(f"the graph has a {new} of its own")
    for port in (*graph.input, *graph.output):
        port.name = names.get(port.name, port.name)
    for node in graph.node:
        for kind in (node.input, node.output):
            for index, name in enumerate(kind):
                kind[index] = names.get(name, name)
    return model


def check_layouts(student: Path, wanted: Sequence[tuple[str, str]], layout: str) -> None:
    """Raise a ValueError that says why exports cannot have a layout; "" is none."""
    if not layout:
        return
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    if group_of(student):
        raise ValueError(f"--layout {layout}: {student}: several students; name one")
    for target, _ in wanted:
        check_layout(load_student_info(student), target)


def write_layouts(student: Path, rows: Sequence[ExportRow], layout: str) -> list[Path]:
    """Write the bundles that were built in a layout; return the folders."""
    if not layout:
        return []
    return [LAYOUTS[layout](row.place, student) for row in rows if row.place]


LAYOUTS: dict[str, Callable[[Path, Path], Path]] = {"optimum": write_optimum}
"""Function that writes a bundle beside itself, by layout."""
