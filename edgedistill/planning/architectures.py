"""Networks without weights: the configs of a diffusers folder, built on the meta device.

`assets/architectures/OWNER--NAME` holds the published configs of public teachers, so that their
costs are known before a byte of them is downloaded.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from edgedistill import assets
from edgedistill.common.files import read_json
from edgedistill.common.plugins import unknown
from edgedistill.networks.outline import LIBRARIES, build, build_class
from edgedistill.recipes.schema import TeacherSection
from edgedistill.teachers.decoders import decoder_class

__all__ = ["ALIASES", "architecture", "decoder", "find", "place", "shipped"]

ROOT = assets.ROOT / "architectures"

ALIASES = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
"""Names under which a model is known too."""


def shipped() -> dict[str, Path]:
    """Folders of the shipped architectures by Hub id."""
    return {file.name.replace("--", "/", 1): file for file in sorted(ROOT.iterdir())}


def place(section: TeacherSection) -> str:
    """Where a teacher's configs are: with its weights, or, of a single file, apart.

    Raises:
        ValueError: If it is a file and they are named nowhere.
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
    """The folder of a teacher: a shipped asset, a local folder, or a known Hub id.

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
    name = ALIASES.get(path, path)
    if name not in table:
        raise unknown("architecture", path, [*table, *ALIASES])
    return table[name]


def architecture(path: str) -> dict[str, nn.Module]:
    """The networks of a pipeline by name (unet, vae, ...), in eval mode on the meta device.

    Only model_index.json and the config.json beside each network's weights are read. What is no
    network of diffusers or transformers (tokenizers, schedulers) is left out.

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
    return networks


def decoder(folder: Path) -> nn.Module:
    """The network of a decoder folder, frozen, without weights.

    Raises:
        ValueError: As `build`, or for a class that is no decoder.
    """
    return build_class(folder, decoder_class(str(folder)))
