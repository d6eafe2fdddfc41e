"""What an adapter file holds, key by key: each is read as part of a LoRA, or named and refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgedistill.common.finite import check_finite

__all__ = ["CONFIG", "Layer", "check_keys", "energy", "magnify", "read_layers", "write_plain"]

CONFIG = "lora_adapter_metadata"
"""Of a file's metadata: peft's settings, which then hold the alphas."""

_ROLES = {
    "down": (
        *(".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight"),
        *(".lora.down.weight", "_lora.down.weight", ".lora_linear_layer.down.weight"),
    ),
    "up": (
        *(".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight"),
        *(".lora.up.weight", "_lora.up.weight", ".lora_linear_layer.up.weight"),
    ),
    "alpha": (".alpha",),
    "magnitude": (
        *(".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.weight"),
        ".lora_magnitude_vector.default.weight",
    ),
}
"""By what it is to a layer: ends of keys, of kohya's, peft's and diffusers' names."""

_PEFT = {".lora.down.weight": ".lora_A.weight", ".lora.up.weight": ".lora_B.weight"}
"""Ends of keys: diffusers' own names of attention, and peft's."""

_OTHERS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "boft_": "BOFT",
    "oft_": "OFT",
    "ia3_": "IA3",
    ".on_input": "IA3",
    "vera_": "VeRA",
    "lora_mid": "the core of a Tucker decomposition",
    "norms.": "GLoRA",
    ".diff": "a difference of whole weights",
    ".bias": "a bias",
    "emb": "an embedding",
    "clip_l": "an embedding",
    "clip_g": "an embedding",
}
"""What else people publish, by part of a key."""


@dataclass(frozen=True)
class Layer:
    """One layer of a LoRA: W becomes W + scale up down, then m V / |V| where it has magnitudes.

    Attributes:
        down: (rank, inputs, ...).
        up: (outputs, rank, ...).
        scale: alpha / rank, 1 without an alpha.
        magnitude: DoRA's, of rows or columns; None in a plain LoRA.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None


def check_keys(file: Path, keys: Collection[str]) -> dict[str, dict[str, str]]:
    """Sort the keys of an adapter file: by layer, then by role, the key.

    Args:
        file: For messages.
        keys: Of its tensors.

    Raises:
        ValueError: If a key is none of a LoRA's; names it.
    """
    layers: dict[str, dict[str, str]] = {}
    odd = []
    for key in keys:
        role, end = _role(key)
        if not role:
            odd.append(key)
            continue
        # The magnitudes of diffusers' own names stand beside "lora".
        layers.setdefault(key.removesuffix(end), {})[role] = key
    if odd:
        kinds = ", ".join(dict.fromkeys(_kind(key) for key in odd))
        raise ValueError(
            f"{file}: {len(odd)} of its {len(keys)} keys would not be used: {odd[0]}"
            f"{', ...' if odd[1:] else ''} ({kinds}); only factors, alphas and magnitudes of LoRA "
            "and DoRA are read"
        )
    return layers


def _check_pairs(
    file: Path, layers: Mapping[str, Mapping[str, str]], state: Mapping[str, Tensor]
) -> None:
    for name, roles in layers.items():
        for role in ("down", "up"):
            if role not in roles:
                raise ValueError(
                    f"{file}: {next(iter(roles.values()))} has no {role} factor beside it"
                )
        down, up = state[roles["down"]].shape, state[roles["up"]].shape
        if len(down) < 2 or len(up) < 2 or down[0] != up[1]:
            raise ValueError(
                f"{file}: factors of {name} do not fit each other: {list(up)} and {list(down)}"
            )


def _role(key: str) -> tuple[str, str]:
    for role, ends in _ROLES.items():
        for end in sorted(ends, key=len, reverse=True):
            if key.endswith(end):
                return role, end
    return "", ""


def _kind(key: str) -> str:
    return next((name for part, name in _OTHERS.items() if part in key), "unknown")


def read_layers(file: Path) -> dict[str, Layer]:
    """The layers of an adapter file by the beginning of their keys.

    Raises:
        ValueError: As `check_keys`, or if a number is not finite, a layer lacks one of its two
            factors, they do not fit each other, or an alpha is no number.
    """
    state = load_file(file)
    check_finite(str(file), state)
    layers = {}
    found = check_keys(file, state)
    _check_pairs(file, found, state)
    for name, roles in found.items():
        down, up = state[roles["down"]].double(), state[roles["up"]].double()
        scale = 1.0
        if "alpha" in roles:
            alpha = state[roles["alpha"]]
            if alpha.numel() != 1:
                raise ValueError(f"{file}: {roles['alpha']} holds {alpha.numel()} numbers, not 1")
            scale = float(alpha) / len(down)
        magnitude = state[roles["magnitude"]] if "magnitude" in roles else None
        layers[name] = Layer(down, up, scale, magnitude)
    return layers


def energy(down: Tensor, up: Tensor, scale: float) -> float:
    """|scale up down|^2, the sum of squares of what a layer adds; splitting rows keeps the sum."""
    a, b = down.detach().double().flatten(1), up.detach().double().flatten(1)
    return scale**2 * float(((b.T @ b) * (a @ a.T)).sum())


def write_plain(file: Path, layers: Mapping[str, Layer], target: Path) -> None:
    """Write the layers of a file as a LoRA without alphas and magnitudes, in float32.

    The scales are in the factors: diffusers mixes up alphas where layers have several. Where a
    file calls some layers as peft does all are called so: diffusers writes attention under names
    of its own beside them, and then reads one kind alone.
    """
    with safe_open(file, "pt") as opened:
        metadata, keys = opened.metadata() or {}, list(opened.keys())
    if CONFIG in metadata:
        config = {k: v for k, v in json.loads(metadata[CONFIG]).items() if "use_dora" not in k}
        metadata[CONFIG] = json.dumps(config)
    mixed = any(key.endswith(tuple(_PEFT.values())) for key in keys)
    state = {}
    for name, roles in check_keys(file, keys).items():
        layer = layers[name]
        down, up = (_as_peft(roles[role]) if mixed else roles[role] for role in ("down", "up"))
        state[down] = layer.down.float().contiguous()
        state[up] = (layer.scale * layer.up).float().contiguous()
    save_file(state, target, metadata)


def _as_peft(key: str) -> str:
    for end, other in _PEFT.items():
        key = key.removesuffix(end) + other if key.endswith(end) else key
    return key


def magnify(weight: Tensor, magnitude: Tensor) -> Tensor:
    """Return m V / |V| (Liu et al. 2024, arXiv 2402.09353, Eq. 5), in the shape and dtype of V.

    Args:
        weight: V = W + scale up down, (outputs, inputs, ...).
        magnitude: One number a row, as (outputs,) or (outputs, 1, ...), or one a column, as
            (1, inputs, ...).

    Raises:
        ValueError: If it has another shape.
    """
    shape, values = tuple(magnitude.shape), weight.double()
    rows = (len(weight), *(1 for _ in shape[1:]))
    if shape == rows:
        dims, given = tuple(range(1, weight.ndim)), (len(weight), *[1] * (weight.ndim - 1))
    elif shape[:2] == (1, weight.shape[1]) and magnitude.numel() == weight.shape[1]:
        dims, given = (0, *range(2, weight.ndim)), (1, weight.shape[1], *[1] * (weight.ndim - 2))
    else:
        raise ValueError(f"magnitudes of shape {list(shape)} for a weight {list(weight.shape)}")
    norm = torch.linalg.vector_norm(values, dim=dims, keepdim=True)
    result: Tensor = magnitude.double().reshape(given) * values / norm
    return result.to(weight.dtype)
