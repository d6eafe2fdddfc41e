"""Networks without weights, built on the meta device from the configs of a diffusers folder.

`assets/architectures/OWNER--NAME` holds the published configs of public teachers, so that their
costs are known before a byte of them is downloaded.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from edgedistill import assets
from edgedistill.common.files import read_json
from edgedistill.common.plugins import unknown
from edgedistill.compress.token_stride import restore_stride
from edgedistill.networks.outline import LIBRARIES, build, build_class
from edgedistill.recipes.schema import TeacherSection
from edgedistill.teachers.decoders import decoder_class
from edgedistill.teachers.hub import STUDENT

__all__ = ["ALIASES", "architecture", "decoder", "find", "place", "shipped"]

ROOT = assets.ROOT / "architectures"

ALIASES = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
"""Other names of known models."""


def shipped() -> dict[str, Path]:
    """Return the folders of the shipped architectures by Hub id."""
    return {file.name.replace("--", "/", 1): file for file in sorted(ROOT.iterdir())}


def place(section: TeacherSection) -> str:
    """Return the location of a teacher's configs: its path, or `config` for a single file.

    Raises:
        ValueError: If the teacher is a file and the recipe names no configs.
    """
    if not section.path.endswith(".safetensors"):
        return section.path
    if section.config is None:
        raise ValueError(
            f"teacher.path={section.path}: costs are read from configurations; "
            "name their folder or Hub id in teacher.config"
        )
    return section.config


def find(path: str) -> Path:
    """Return the folder of a teacher: a shipped asset, a local folder, or a known Hub id.

    Raises:
        ValueError: If it is none of these; names the shipped architectures.
    """
    asset = assets.ROOT / path
    for folder in ((asset,) if "/" not in path else ()) + (Path(path),):
        if (folder / "model_index.json").is_file():
            return folder
    if Path(path).is_dir():
        raise ValueError(f"{path}: no model_index.json; not a diffusers pipeline folder")
    table = shipped()
    bare = path.partition("@")[0]  # without a revision of the Hub
    name = ALIASES.get(bare, bare)
    if name not in table:
        raise unknown("architecture", path, [*table, *ALIASES])
    return table[name]


def architecture(path: str) -> dict[str, nn.Module]:
    """Build the networks of a pipeline by name (unet, vae, ...), in eval mode on the meta device.

    Only model_index.json and the config.json beside each network's weights are read, and a
    student's student.json for the stride of its attention. Components that are not networks of
    diffusers or transformers (tokenizers, schedulers) are left out.

    Args:
        path: A shipped asset's name, a folder in diffusers' layout, or a shipped Hub id.

    Raises:
        ValueError: If there is no such folder or a config cannot be built; names the file.
    """
    folder = find(path)
    networks = {}
    for name, entry in read_json(folder / "model_index.json").items():
        if not (isinstance(entry, list) and len(entry) == 2 and entry[0] in LIBRARIES):
            continue
        if (folder / name / "config.json").is_file():
            networks[name] = build(folder / name, *entry)
    if "unet" in networks and (folder / STUDENT).is_file():
        restore_stride(networks["unet"], folder / STUDENT)
    return networks


def decoder(folder: Path) -> nn.Module:
    """Build the network of a decoder folder, frozen, without weights.

    Raises:
        ValueError: As in `build`, or if its class is no decoder.
    """
    return build_class(folder, decoder_class(str(folder)))
