"""Single-file checkpoints in their authors' layouts, read by diffusers' own converters.

Such a file holds only weights, and not always all of them: FLUX's and many of SD3's hold only the
transformer. Configurations, tokenizers and networks that the file lacks come from a folder or Hub
id in the layout of a diffusers pipeline.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from safetensors.torch import load_file

from edgedistill.common.pickles import PICKLES
from edgedistill.teachers.markers import Header, Marks, marks_of, read_header
from edgedistill.teachers.network_inputs import EXTRA

__all__ = ["CORES", "PARTS", "check_file", "family_of", "open_file", "read_index"]

CORES = {
    "flux": "double_blocks.0.",
    "sd3": "joint_blocks.0.",
    "sdxl": "label_emb.0.",
    "stable_diffusion": "input_blocks.0.",
}
"""Prefix of the network's weight names by family, after `model.diffusion_model.` or bare; the
first match counts."""

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
"""Prefixes of weight names by family and component, besides its network."""

OPTIONAL = {"text_encoder_3": "tokenizer_3"}
"""Components that a model may lack, and the tokenizer that is left out with them."""


def check_file(path: str) -> bool:
    """Whether `path` is a single file.

    Raises:
        ValueError: If it is a pickle or GGUF, or names a .safetensors file that does not exist.
    """
    if path.endswith(PICKLES):
        raise ValueError(
            f"{path}: a pickle runs code when it is opened and is refused; "
            "convert it to .safetensors, or name a diffusers folder"
        )
    if path.lower().endswith(".gguf"):
        raise ValueError(
            f"{path}: GGUF holds quantized weights; name a .safetensors file with its weights in "
            "16 or 32 bits, or a diffusers folder"
        )
    if not path.endswith(".safetensors"):
        return False
    if not Path(path).is_file():
        raise ValueError(f"no teacher at {path!r}: no such file")
    return True


def family_of(names: Collection[str]) -> str | None:
    """Return the family whose network is among weights of these names, if it is a known one."""
    for family, begin in CORES.items():
        if any(name.removeprefix(_PREFIX).startswith(begin) for name in names):
            return family
    return None


def read_index(family: str, path: str, config: str | None) -> tuple[str, dict[str, Any]]:
    """Return the place of a file's configurations, and their model_index.json.

    Args:
        family: The teacher's family.
        path: The file.
        config: Folder or Hub id; None takes diffusers' guess from the weights' names and shapes.

    Raises:
        ValueError: If the file is of another family, or its configurations cannot be found.
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
        source = f"teacher.config={where}" if config else f"{path}: its configurations, {where},"
        raise ValueError(
            f"{source} could not be had from the Hub; name a local folder of the model's "
            "configurations and tokenizers in teacher.config"
        ) from error


def open_file(family: str, path: str, where: str, index: dict[str, Any], **options: Any) -> Any:
    """Open diffusers' pipeline around the weights in a file, in float32.

    Args:
        family: The teacher's family.
        path: The file.
        where: Folder or Hub id of its configurations.
        index: The configurations' model_index.json.
        options: Arguments of the pipeline's class besides its components.

    Raises:
        ValueError: If weights are neither in the file nor with the configurations; names them.
    """
    header = read_header(path)
    marks, names = marks_of(header, path), list(header.shapes)
    _check_channels(family, header, path)
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
    if scheduler := _scheduler(index, where, marks, path):
        given["scheduler"] = scheduler
    kind = getattr(diffusers, index["_class_name"])
    try:
        pipeline = kind.from_single_file(
            path, config=where, dtype=torch.float32, **given, **options
        )
    except NotImplementedError as error:  # a weight that stayed on the meta device
        raise ValueError(
            f"{path} lacks weights that the configurations of {where} ask for; "
            "name its own in teacher.config"
        ) from error
    if marks.resolution:
        _resize(pipeline, marks.resolution, where, path)
    return pipeline


def _scheduler(index: dict[str, Any], where: str, marks: Marks, path: str) -> Any:
    """Make the configurations' scheduler with the file's marks; None if the file has none."""
    if marks.prediction is None and not marks.zero_snr:
        return None
    kind = getattr(diffusers, index["scheduler"][1])
    config = dict(kind.load_config(where, subfolder="scheduler"))
    if "prediction_type" not in config:  # a flow's scheduler has none
        raise ValueError(
            f"{path}: says how its network predicts, and {where}'s {kind.__name__} is of a flow"
        )
    if marks.prediction == "epsilon" and config["prediction_type"] != "epsilon":
        raise ValueError(
            f"{path}: its header says epsilon, {where}/scheduler {config['prediction_type']}; "
            "name the model's own configurations in teacher.config"
        )
    changes: dict[str, Any] = {"prediction_type": marks.prediction or config["prediction_type"]}
    if marks.zero_snr:
        changes["rescale_betas_zero_snr"] = True
        if "rescale_betas_zero_snr" not in inspect.signature(kind.__init__).parameters:
            kind = DDIMScheduler
    return kind.from_config({**config, **changes})


def _resize(pipeline: Any, size: tuple[int, int], where: str, path: str) -> None:
    """Set a U-Net's picture size to that of its file; ValueError for other networks."""
    unet: Any = getattr(pipeline, "unet", None)
    network = unet if unet is not None else pipeline.transformer
    factor, width = pipeline.vae_scale_factor, size[0]
    own = network.config.get("sample_size")
    if own is None or size == (own * factor, own * factor):
        return
    if size[0] != size[1] or width % factor or unet is None:
        raise ValueError(
            f"{path}: its header says {size[0]}x{size[1]} pixels, the configurations of {where} "
            f"{own * factor}x{own * factor}; name its own in teacher.config"
        )
    unet.register_to_config(sample_size=width // factor)
    if hasattr(pipeline, "default_sample_size"):
        pipeline.default_sample_size = width // factor


def _check_channels(family: str, header: Header, path: str) -> None:
    """Raise a ValueError if a U-Net reads more than latents."""
    for prefix in (_PREFIX, ""):
        shape = header.shapes.get(f"{prefix}input_blocks.0.0.weight")
        if shape and (family, shape[1]) in EXTRA:
            raise ValueError(
                f"{path}: its network reads {shape[1]} channels: {EXTRA[family, shape[1]]}, "
                "which is not fed here; name a text-to-image teacher"
            )


def _names(path: str) -> list[str]:
    return list(read_header(path).shapes)


def _check_family(family: str, names: Collection[str], path: str) -> None:
    if family not in CORES:
        raise ValueError(
            f"{path}: {family} teachers are read from a folder or Hub id; "
            f"single files are of {', '.join(CORES)}"
        )
    found = family_of(names)
    if found == family:
        return
    if found is None and any(name.startswith("model_ema.") for name in names):
        raise ValueError(
            f"{path}: holds averaged weights alone (model_ema), under names that are not "
            "read; convert it, or name the whole checkpoint"
        )
    if found is None:
        raise ValueError(
            f"{path} is no {family} checkpoint: no weights of a network in the layout of "
            f"{', '.join(CORES)}"
        )
    raise ValueError(
        f"{path} is no {family} checkpoint; it looks like {found}: choose teacher.family={found}"
    )


def _from_folder(library: str, kind: str, where: str, part: str) -> Any:
    """Load a network with the weights beside the configurations; None if there are none."""
    found = getattr({"diffusers": diffusers, "transformers": transformers}[library], kind)
    try:
        return found.from_pretrained(
            where, subfolder=part, dtype=torch.float32, use_safetensors=True
        )
    except OSError:
        return None
