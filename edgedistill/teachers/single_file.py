"""Single-file checkpoints in the layouts their authors publish, read by diffusers' own converters.

Such a file holds weights alone, and not always all of them: FLUX's and many of SD3's are the
transformer by itself. Configurations, tokenizers and networks that the file lacks come from a
folder or Hub id in the layout of a diffusers pipeline.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from edgedistill.teachers.loading import PICKLES

__all__ = ["CORES", "PARTS", "check_file", "family_of", "open_file", "read_index"]

CORES = {
    "flux": "double_blocks.0.",
    "sd3": "joint_blocks.0.",
    "sdxl": "label_emb.0.",
    "stable_diffusion": "input_blocks.0.",
}
"""By family, the first one that fits: how names of its network's weights begin, behind
`model.diffusion_model.` or bare."""

_PREFIX = "model.diffusion_model."

_VAE = ("first_stage_model.", "vae.")

PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "flux": {
        "vae": _VAE,
        "text_encoder": ("text_encoders.clip_l.",),
        "text_encoder_2": ("text_encoders.t5xxl.",),
    },
    "sd3": {
        "vae": _VAE,
        "text_encoder": ("text_encoders.clip_l.",),
        "text_encoder_2": ("text_encoders.clip_g.",),
        "text_encoder_3": ("text_encoders.t5xxl.",),
    },
    "sdxl": {
        "vae": _VAE,
        "text_encoder": ("conditioner.embedders.0.",),
        "text_encoder_2": ("conditioner.embedders.1.",),
    },
    "stable_diffusion": {"vae": _VAE, "text_encoder": ("cond_stage_model.",)},
}
"""By family and component besides its network: how names of its weights begin."""

OPTIONAL = {"text_encoder_3": "tokenizer_3"}
"""Components a model may do without, and what goes with them."""


def check_file(path: str) -> bool:
    """Whether `path` is a single file.

    Raises:
        ValueError: If it is a pickle, or its name is a file's and there is none.
    """
    if path.endswith(PICKLES):
        raise ValueError(
            f"{path}: a pickle runs code when it is opened and is refused; "
            "convert it to .safetensors, or name a diffusers folder"
        )
    if not path.endswith(".safetensors"):
        return False
    if not Path(path).is_file():
        raise ValueError(f"no teacher at {path!r}: no such file")
    return True


def family_of(names: Collection[str]) -> str | None:
    """The family whose network is among weights of these names, if it is a known one."""
    for family, begin in CORES.items():
        if any(name.removeprefix(_PREFIX).startswith(begin) for name in names):
            return family
    return None


def read_index(family: str, path: str, config: str | None) -> tuple[str, dict[str, Any]]:
    """Where the configurations for a file are, and what their model_index.json says.

    Args:
        family: The teacher's.
        path: The file.
        config: Folder or Hub id; None is diffusers' guess from the weights' names and shapes.

    Raises:
        ValueError: If the file is of another family, or its configurations are not to be had.
    """
    _check_family(family, _names(path), path)
    where = config or str(fetch_diffusers_config(load_file(path))["pretrained_model_name_or_path"])
    try:
        return where, dict(DiffusionPipeline.load_config(where))
    except (OSError, ValueError) as error:
        if Path(where).is_dir():
            raise ValueError(
                f"teacher.config={where}: no model_index.json; not a diffusers pipeline folder"
            ) from error
        told = f"teacher.config={where}" if config else f"{path}: its configurations, {where},"
        raise ValueError(
            f"{told} could not be had from the Hub; name a local folder of the model's "
            "configurations and tokenizers in teacher.config"
        ) from error


def open_file(family: str, path: str, where: str, index: dict[str, Any], **options: Any) -> Any:
    """Diffusers' pipeline around the weights in a file, in float32.

    Args:
        family: The teacher's.
        path: The file.
        where: Folder or Hub id of its configurations.
        index: Their model_index.json.
        options: What the pipeline's class takes besides its components.

    Raises:
        ValueError: If weights are neither in the file nor with the configurations; names them.
    """
    names = _names(path)
    given: dict[str, Any] = {}
    for part, begins in PARTS[family].items():
        library, kind = index.get(part) or (None, None)
        if library and kind and not any(name.startswith(begins) for name in names):
            given[part] = _from_folder(library, kind, where, part)
    lacking = [part for part, found in given.items() if found is None]
    for part in OPTIONAL.keys() & lacking:
        lacking.remove(part)
        given[OPTIONAL[part]] = None
    if lacking:
        raise ValueError(
            f"{path} holds no {', '.join(lacking)}, nor does {where}; "
            "name a folder or Hub id with their weights in teacher.config"
        )
    kind = getattr(diffusers, index["_class_name"])
    try:
        return kind.from_single_file(path, config=where, dtype=torch.float32, **given, **options)
    except NotImplementedError as error:  # a weight that stayed on the meta device
        raise ValueError(
            f"{path} lacks weights that the configurations of {where} ask for; "
            "name its own in teacher.config"
        ) from error


def _names(path: str) -> list[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path}: no safetensors file: {error}") from None


def _check_family(family: str, names: Collection[str], path: str) -> None:
    if family not in CORES:
        raise ValueError(
            f"{path}: {family} teachers are read from a folder or Hub id; "
            f"single files are of {', '.join(CORES)}"
        )
    found = family_of(names)
    if found == family:
        return
    if found is None:
        raise ValueError(
            f"{path} is no {family} checkpoint: no weights of a network in the layout of "
            f"{', '.join(CORES)}"
        )
    raise ValueError(
        f"{path} is no {family} checkpoint; it looks like {found}: choose teacher.family={found}"
    )


def _from_folder(library: str, kind: str, where: str, part: str) -> Any:
    """A network with the weights beside the configurations; None if there are none."""
    found = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind)
    try:
        return found.from_pretrained(
            where, subfolder=part, dtype=torch.float32, use_safetensors=True
        )
    except OSError:
        return None
