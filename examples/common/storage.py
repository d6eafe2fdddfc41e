"""Nested training state and single tensors in safetensors files: nothing here is ever pickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

__all__ = ["load_state", "load_tensor", "save_state", "save_tensor"]


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write dicts and lists of tensors and numbers, whole or not at all."""
    tensors: dict[str, torch.Tensor] = {}
    layout = json.dumps(_pack(state, tensors))
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, metadata={"layout": layout})
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote."""
    with safe_open(path, "pt") as file:
        layout = json.loads(file.metadata()["layout"])
    state: dict[str, Any] = _unpack(layout, load_file(path))
    return state


def save_tensor(tensor: torch.Tensor, path: Path) -> None:
    """Write one tensor."""
    save_file({"tensor": tensor.contiguous()}, path)


def load_tensor(path: Path) -> torch.Tensor:
    """Read what `save_tensor` wrote."""
    return load_file(path)["tensor"]


def _pack(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The JSON layout of a value, its tensors moved to `tensors`; keys keep their type."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_pack(item, tensors) for item in value]}
    return value


def _unpack(layout: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(layout, dict):
        return layout
    if "tensor" in layout:
        return tensors[layout["tensor"]]
    if "dict" in layout:
        return {key: _unpack(item, tensors) for key, item in layout["dict"]}
    return [_unpack(item, tensors) for item in layout["list"]]
