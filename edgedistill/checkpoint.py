"""Resumable state of a run, in safetensors and JSON: nothing is ever unpickled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from edgedistill import optimizers
from edgedistill.files import atomic_folder, read_json, write_json

__all__ = ["latest", "load", "save"]

SCHEMA = 1


def save(
    folder: Path,
    nets: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write `folder`/step-NNNNNNNN, then drop all but the newest `keep` and what a kill left.

    Args:
        folder: The run's checkpoints.
        nets: Networks by role.
        optimizers: Optimizers by player.
        state: JSON-ready; must hold "step".
        keep: Checkpoints to leave.
    """
    target = folder / f"step-{state['step']:08d}"
    with atomic_folder(target) as work:
        for name, net in nets.items():
            save_model(net, str(work / f"{name}.safetensors"))
        for name, optimizer in optimizers.items():
            save_file(_flatten(optimizer), work / f"optim-{name}.safetensors")
        write_json(work / "state.json", {"schema_version": SCHEMA, **state})
    for old in (*sorted(folder.glob("step-*"))[:-keep], *folder.glob(".step-*")):
        shutil.rmtree(old)
    return target


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint, if there is one."""
    found = sorted(folder.glob("step-*/state.json"))
    return found[-1].parent if found else None


def load(
    checkpoint: Path,
    nets: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, Any]:
    """Read a checkpoint into networks and optimizers and return its state.

    Raises:
        ValueError: If it was written by another schema or does not fit; names the file.
    """
    state = read_json(checkpoint / "state.json")
    if state.get("schema_version") != SCHEMA:
        version = state.get("schema_version")
        raise ValueError(f"{checkpoint}/state.json: schema_version {version}, {SCHEMA} expected")
    for name, net in nets.items():
        with _naming(checkpoint / f"{name}.safetensors") as file:
            load_model(net, str(file))
    for name, optimizer in optimizers.items():
        with _naming(checkpoint / f"optim-{name}.safetensors") as file:
            _unflatten(optimizer, load_file(file))
    return state


@contextmanager
def _naming(file: Path) -> Iterator[Path]:
    """Turns what goes wrong with a file into one line that names it."""
    try:
        yield file
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{file}: does not fit this recipe: {first}") from None


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}{part}": tensor.clone().contiguous()
        for index, values in state.items()
        for name, value in values.items()
        for part, tensor in optimizers.split(torch.as_tensor(value)).items()
    }


def _unflatten(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    parts: dict[int, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        index, name, *part = key.split(".", 2)
        values = parts.setdefault(int(index), {}).setdefault(name, {})
        values["".join(f".{word}" for word in part)] = tensor
    state = {
        index: {name: optimizers.join(name, value) for name, value in values.items()}
        for index, values in parts.items()
    }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
