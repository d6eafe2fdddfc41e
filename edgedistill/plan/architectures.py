"""Networks without weights: the configs of a diffusers folder, built on the meta device.

`assets/architectures/OWNER--NAME` holds the published configs of public teachers, so that their
costs are known before a byte of them is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import ConfigMixin
from diffusers.utils import logging as diffusers_logging
from torch import nn

from edgedistill import assets
from edgedistill.files import read_json
from edgedistill.plugins import unknown
from edgedistill.recipe import TeacherSection
from edgedistill.teachers.decoders import decoder_class

__all__ = ["ALIASES", "architecture", "build", "decoder", "find", "place", "shipped"]

ROOT = assets.ROOT / "architectures"

ALIASES = {"runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
"""Names under which a model is known too."""

LIBRARIES: dict[str, Any] = {"diffusers": diffusers, "transformers": transformers}


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


def build(folder: Path, library: str, kind: str) -> nn.Module:
    """The network of class `kind` that folder/config.json describes, frozen, without weights.

    Raises:
        ValueError: If this version of the library has no such network, or the config is wrong.
    """
    found = getattr(LIBRARIES[library], kind, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        version = LIBRARIES[library].__version__
        raise ValueError(f"{folder / 'config.json'}: {library} {version} has no {kind}")
    return _build(folder, found)


def decoder(folder: Path) -> nn.Module:
    """The network of a decoder folder, frozen, without weights.

    Raises:
        ValueError: As `build`, or for a class that is no decoder.
    """
    return _build(folder, decoder_class(str(folder)))


def _build(folder: Path, found: Any) -> nn.Module:
    file, kind = folder / "config.json", found.__name__
    config = {key: value for key, value in read_json(file).items() if key != "_name_or_path"}
    diffusers_logging.set_verbosity_error()
    try:
        with torch.device("meta"):
            if issubclass(found, ConfigMixin):
                net: Any = found.from_config(config)
            else:
                net = found(found.config_class.from_dict(config))
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: no {kind} can be built from it: {error}") from None
    result: nn.Module = net.eval().requires_grad_(False)
    return result
