"""Marks of a single file about its use, besides its weights: extra keys, and its header.

These are keys that web interfaces read (`v_pred`, `ztsnr`, ComfyUI and forks), and the headers of
kohya's tools and of the Stability ModelSpec (github.com/Stability-AI/ModelSpec). They decide how
the weights are used; each is followed here or refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from edgedistill.teachers.loading import damaged

__all__ = ["Header", "Marks", "marks_of", "read_header"]

_V_KEYS = ("v_pred",)
_ZERO_SNR_KEYS = ("ztsnr",)
_EDM_KEYS = ("edm_vpred", "edm_mean", "edm_std")

_KNOWN = (
    *("model.", "model_ema.", "first_stage_model.", "cond_stage_model.", "conditioner."),
    *("vae.", "text_encoders.", "denoiser.", "double_blocks.", "single_blocks.", "joint_blocks."),
    *("betas", "alphas_cumprod", "sqrt_", "log_one_minus", "posterior_", "logvar", "lvlb_weights"),
    *("embedding_manager", "scale_factor", "model.diffusion_model"),
)
"""Prefixes of keys that are weights, or tables of the schedule that the configuration gives."""

_MARKER = 16
"""Largest number of values in a tensor that may be a mark about the others."""

_WHOLE = ("F16", "BF16", "F32", "F64", "I64", "I32", "BOOL")
"""Types of tensors that hold weights or tables unquantized."""

_ROUNDED = ("F8_E4M3", "F8_E5M2")
"""Types whose values are read directly, unless there are scales for them."""

_OTHER = ("inpaint", "refiner", "edit", "depth", "lora", "textual", "controlnet", "upscal")
"""Words in a header's architecture for files that are no text-to-image model by themselves."""

_QUANTIZED = ("scaled_fp8", "weight_scale", "scale_weight", "absmax", "quant_map", "quant_state")
_QUANTIZED_TOO = ("qweight", "qzeros", "comfy_quant", "bitsandbytes__")


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file, without its weights.

    Attributes:
        shapes: Shapes of its tensors, by name.
        dtypes: Types of its tensors, in safetensors' names.
        metadata: Metadata of the file.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Marks:
    """Marks of a file about its use.

    Attributes:
        prediction: diffusers' prediction_type; None if the file does not say.
        zero_snr: Whether its noise levels are rescaled to end at pure noise.
        resolution: Width and height in pixels; None if the file does not say.
        licence: Licence in the file; "" if it does not say.
        notes: Lines on other contents that are not read.
    """

    prediction: str | None = None
    zero_snr: bool = False
    resolution: tuple[int, int] | None = None
    licence: str = ""
    notes: tuple[str, ...] = ()


def read_header(path: str) -> Header:
    """Read a file's header; ValueError if it is no safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in list(file.keys())}
            return Header(
                {name: tuple(found.get_shape()) for name, found in slices.items()},
                {name: str(found.get_dtype()) for name, found in slices.items()},
                dict(file.metadata() or {}),
            )
    except (SafetensorError, OSError) as error:
        raise ValueError(damaged(Path(path)) or f"{path}: no safetensors file: {error}") from None


def marks_of(header: Header, path: str) -> Marks:
    """Read the marks of a single file.

    Args:
        header: The file's header.
        path: The file's path, for messages.

    Raises:
        ValueError: If it is quantized, or has a mark that is not supported; names the key.
    """
    _check_types(header, path)
    _check_architecture(header, path)
    _check_unknown(header, path)
    prediction, key = _prediction(header, path)
    if any(name in header.shapes for name in _V_KEYS):
        if prediction == "epsilon":
            raise ValueError(f"{path}: holds v_pred, and {key} in its header says epsilon")
        prediction = "v_prediction"
    notes = []
    if any(name.startswith("model_ema.") for name in header.shapes):
        notes.append("averaged weights (model_ema) stand beside those that are read")
    if rounded := sum(kind in _ROUNDED for kind in header.dtypes.values()):
        notes.append(f"{rounded} of its tensors are rounded to 8 bits")
    return Marks(
        prediction,
        any(name in header.shapes for name in _ZERO_SNR_KEYS),
        _resolution(header, path),
        header.metadata.get("modelspec.license", "").strip(),
        tuple(notes),
    )


def _check_types(header: Header, path: str) -> None:
    for name, kind in header.dtypes.items():
        if any(part in name for part in (*_QUANTIZED, *_QUANTIZED_TOO)):
            raise ValueError(
                f"{path}: quantized ({name}); name a file with its weights in 16 or 32 bits"
            )
        if kind not in (*_WHOLE, *_ROUNDED):
            raise ValueError(
                f"{path}: {name} is of type {kind}, which holds no weights as they are; name a "
                "file with them in 16 or 32 bits"
            )


def _check_architecture(header: Header, path: str) -> None:
    said = header.metadata.get("modelspec.architecture", "")
    if any(word in said.lower() for word in _OTHER):
        raise ValueError(
            f"{path}: its header says {said}; a text-to-image model by itself expected"
        )


def _check_unknown(header: Header, path: str) -> None:
    """Raise a ValueError for a small tensor that is an unknown mark."""
    for name, shape in header.shapes.items():
        if name.startswith(_EDM_KEYS):
            raise ValueError(
                f"{path}: holds {name}: a network in EDM's preconditioning, which the families "
                "of single files do not have"
            )
        if name in (*_V_KEYS, *_ZERO_SNR_KEYS) or name.startswith(_KNOWN):
            continue
        # A bare transformer's weights have any names, but more values, or dots in their names.
        if "." not in name and math.prod(shape) <= _MARKER:
            raise ValueError(
                f"{path}: holds {name!r} of {math.prod(shape)} numbers, which may say how its "
                "weights are used and is not known here; leave it out if it says nothing"
            )


def _prediction(header: Header, path: str) -> tuple[str | None, str]:
    """Return diffusers' name of the prediction in the header, and the key that gives it."""
    names = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "": None}
    names |= {"v_prediction": "v_prediction", "v-prediction": "v_prediction"}
    found: dict[str, str | None] = {}
    key = "modelspec.prediction_type"
    value = header.metadata.get(key, "").strip().lower()
    if value not in names:
        raise ValueError(f"{path}: its header's {key} is {value!r}; epsilon or v expected")
    found[key] = names[value]
    if header.metadata.get("modelspec.architecture", "").lower().endswith("-v"):  # SD 2's
        found["modelspec.architecture"] = "v_prediction"
    if header.metadata.get("ss_v_parameterization", "").lower() == "true":
        found["ss_v_parameterization"] = "v_prediction"
    said = {key: value for key, value in found.items() if value}
    if len(set(said.values())) > 1:
        raise ValueError(f"{path}: its header contradicts itself: {said}")
    key = next(iter(said), "")
    return said.get(key), key


def _resolution(header: Header, path: str) -> tuple[int, int] | None:
    value = header.metadata.get("modelspec.resolution", "").strip().lower()
    if not value:
        return None
    width, _, height = value.partition("x")
    if not (width.isdigit() and (height or width).isdigit()):
        raise ValueError(
            f"{path}: its header's modelspec.resolution is {value!r}; WIDTHxHEIGHT expected"
        )
    return int(width), int(height or width)
