"""Recognise a checkpoint by its layout, keys and configs, without reading any weight."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from edgedistill.adoption.kinds import FOLDER, KINDS, LORA, WEIGHTS, Kind
from edgedistill.common.files import read_json
from edgedistill.common.pickles import PICKLES
from edgedistill.teachers.adapter_files import check_keys
from edgedistill.teachers.hub import checkpoint_at
from edgedistill.teachers.loading import FAMILIES
from edgedistill_runtime.hub import hub_name

__all__ = ["CheckpointInfo", "check_fits", "family_of", "look", "named_steps"]

_LORA_MARKS = (
    *(".lora_", "lora_down", "lora_up", ".lora.", "_lora.", "lora_unet_", "lora_te", "lycoris_"),
    *("hada_", "lokr_", "oft_", "ia3_", "dora_scale", ".diff_b"),
)
_CLASSES = {**FAMILIES, "LatentConsistencyModelPipeline": "stable_diffusion"}

_FAMILY_KEYS = {
    "single_transformer_blocks": "flux",
    "add_embedding.": "sdxl",
    "lora_te2_": "sdxl",
    "text_encoder_2.": "sdxl",
    "context_embedder.": "sd3",
    "conv_in.": "stable_diffusion",
}
"""A part of the weights' keys that identifies the family, provided no earlier entry matches."""

_WIDTHS = {768: "stable_diffusion", 1024: "stable_diffusion", 2048: "sdxl"}
"""Family by the width of the text that a U-Net's cross-attention reads."""

_BRANDS = {
    "lightning": ("lightning", "lightning-lora"),
    "hyper": ("hyper-sd", "hyper-sd-unified", "hyper-sd-1step", "hyper-sd-flux"),
    "dmd2": ("dmd2", "dmd2-lora"),
    "pcm": ("pcm",),
    "tcd": ("tcd",),
    "turbo": ("turbo", "sd-turbo", "sd3-turbo", "sd3-turbo-lora", "flux-turbo-lora"),
    "schnell": ("schnell",),
    "lcm": ("lcm", "lcm-lora"),
}
"""Kinds by a word in the file name; LoRAs of several kinds differ in nothing else."""


@dataclass(frozen=True)
class CheckpointInfo:
    """Facts about a checkpoint that can be read without its weights.

    Attributes:
        path: The checkpoint.
        file: The weights' file, for all forms but folders.
        form: FOLDER, WEIGHTS or LORA.
        family: Family where it can be recognised, else "".
        embedded: Whether its U-Net reads the guidance scale (an LCM).
        rank: Largest rank of a LoRA, 0 otherwise.
        scheduler: Class of a folder's scheduler, "" otherwise.
        settings: That scheduler's config.
        source: Name on the Hub, "" for a local checkpoint.
    """

    path: Path
    file: Path
    form: str
    family: str = ""
    embedded: bool = False
    rank: int = 0
    scheduler: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    source: str = ""

    @property
    def place(self) -> str:
        """Place of a folder, as the user named it."""
        return self.source or str(self.path)

    def __str__(self) -> str:
        words = [self.form]
        words += [f"of rank {self.rank}"] if self.rank else []
        words += [f"of family {self.family}"] if self.family else []
        words += ["with an embedded guidance scale, as LCMs have"] if self.embedded else []
        words += [f"with a {self.scheduler}"] if self.scheduler else []
        return " ".join(words)


def look(path: str) -> CheckpointInfo:
    """Look at the checkpoint at `path` and describe it.

    Raises:
        ValueError: If it cannot be adopted; says what it is.
    """
    name = hub_name(path)
    if name is not None:
        found = _look(Path(checkpoint_at(path)), path)
        return replace(found, path=Path(name.name), source=path)
    return _look(Path(path), path)


def _look(place: Path, path: str) -> CheckpointInfo:
    if (place / "model_index.json").is_file():
        return _look_folder(place)
    if place.is_dir():
        files = sorted(place.glob("*.safetensors"))
        if len(files) != 1:
            raise ValueError(
                f"{place}: no pipeline folder, and {len(files)} safetensors files in it; name one"
            )
        return _look_file(place, files[0])
    if not place.is_file():
        raise ValueError(f"no checkpoint at {path!r}; a folder or a .safetensors file expected")
    return _look_file(place, place)


def family_of(index: Mapping[str, object], path: str) -> str:
    """Family of a pipeline by its model_index.json; ValueError names a class without one."""
    name = str(index.get("_class_name", ""))
    if name not in _CLASSES:
        raise ValueError(f"{path}: a {name}, which no family reads; known: {', '.join(_CLASSES)}")
    return _CLASSES[name]


def _look_folder(folder: Path) -> CheckpointInfo:
    index = read_json(folder / "model_index.json")
    part = next((name for name in ("unet", "transformer") if name in index), "")
    config = folder / part / "config.json"
    core = read_json(config) if part and config.is_file() else {}
    scheduler = index.get("scheduler")
    settings = folder / "scheduler" / "scheduler_config.json"
    return CheckpointInfo(
        path=folder,
        file=folder,
        form=FOLDER,
        family=family_of(index, str(folder)),
        embedded=core.get("time_cond_proj_dim") is not None,
        scheduler=str(scheduler[-1]) if isinstance(scheduler, list) else "",
        settings=read_json(settings, infinite=True) if settings.is_file() else {},
    )


def _look_file(path: Path, file: Path) -> CheckpointInfo:
    if file.suffix in PICKLES:
        raise ValueError(f"{file}: a pickle, which is never opened; convert it to safetensors")
    try:
        with safe_open(file, "pt") as weights:
            keys = sorted(weights.keys())
            shapes = {key: tuple(weights.get_slice(key).get_shape()) for key in keys}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: not readable as safetensors: {error}") from None
    if any(key.startswith(("model.diffusion_model.", "first_stage_model.")) for key in shapes):
        raise ValueError(
            f"{file}: a checkpoint in the original layout; open it with diffusers' "
            "from_single_file, save_pretrained, and adopt the folder"
        )
    ranks = [min(shape[:2]) for key, shape in shapes.items() if _is_down(key)]
    embedded = "time_embedding.cond_proj.weight" in shapes
    if any(mark in key for key in shapes for mark in _LORA_MARKS):
        check_keys(file, shapes)
        return CheckpointInfo(path, file, LORA, _family(shapes), rank=max(ranks, default=0))
    if not _is_denoiser(shapes):
        raise ValueError(
            f"{file}: neither a LoRA nor a U-Net or transformer under diffusers' names"
        )
    return CheckpointInfo(path, file, WEIGHTS, _family(shapes), embedded=embedded)


def _is_down(key: str) -> bool:
    return any(mark in key for mark in ("lora_down", "lora_A", "lora.down"))


def _is_denoiser(keys: Iterable[str]) -> bool:
    heads = ("down_blocks.", "transformer_blocks.")
    return any(key.startswith(head) for key in keys for head in heads)


def _family(shapes: Mapping[str, tuple[int, ...]]) -> str:
    for part, family in _FAMILY_KEYS.items():
        if any(part in key for key in shapes):
            return family
    for key, shape in shapes.items():
        if "attn2" in key and "to_k" in key and (_is_down(key) or key.endswith("to_k.weight")):
            return _WIDTHS.get(shape[-1], "")
    return ""


def named_steps(path: Path) -> int | None:
    """The number of steps in a name like sdxl_lightning_4step_unet.safetensors."""
    found = re.search(r"(\d+)[-_ ]?steps?(?![a-z])", path.stem.lower())
    return int(found.group(1)) if found else None


def check_fits(name: str, kind: Kind, info: CheckpointInfo) -> None:
    """Raise a ValueError that says what it looks like if it cannot be of this kind."""
    reason = (
        _wrong_form(kind, info)
        or _wrong_inside(kind, info)
        or _wrong_family(kind, info.family)
        or _wrong_name(name, info.path.stem.lower())
    )
    if reason:
        raise ValueError(f"{info.path} is no {name}: {reason} (it looks like {info})")


def _wrong_form(kind: Kind, info: CheckpointInfo) -> str:
    if info.form in kind.forms:
        return ""
    near = [other for other, row in KINDS.items() if info.form in row.forms]
    return f"that is {' or '.join(kind.forms)}; choose from {', '.join(near)}"


def _wrong_inside(kind: Kind, info: CheckpointInfo) -> str:
    if kind.embedded and not info.embedded:
        return "its U-Net has no embedded guidance scale (time_cond_proj_dim), as LCMs have"
    if info.embedded and not kind.embedded:
        return "choose lcm"
    return _wrong_scheduler(kind, info) if info.form == FOLDER else ""


def _wrong_scheduler(kind: Kind, info: CheckpointInfo) -> str:
    if info.scheduler not in kind.owns:
        return f"folders of that kind have a {' or '.join(kind.owns)}"
    for key, value in kind.settings.items():
        found = info.settings.get(key, value)
        if found != value:
            return f"schedulers of that kind have {key} {value}, this one {found}"
    return ""


def _wrong_family(kind: Kind, family: str) -> str:
    if not family or family in kind.families:
        return ""
    return f"that is published for {' and '.join(kind.families)}"


def _wrong_name(name: str, stem: str) -> str:
    if re.search(r"normalcfg|steps?-cfg", stem):
        return "its name says that it keeps guidance, so two network calls a step: no step table"
    if "lcmlike" in stem:
        stem = "lcm"
    said = [brand for brand in _BRANDS if brand in stem]
    kinds = [other for brand in said for other in _BRANDS[brand]]
    if not said or name in kinds:
        return ""
    return f"its name says {' and '.join(said)}; choose from {', '.join(kinds)}, or rename it"
