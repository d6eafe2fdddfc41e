"""Checkpoints: the resumable state of a run, in safetensors and JSON, without pickles."""

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

from edgedistill.common.files import atomic_folder, read_json, recover, write_json
from edgedistill.common.finite import all_finite, bad_weight
from edgedistill.common.hashes import check_files, files_in, sha256_of, sha256_of_all
from edgedistill.common.progress import remark
from edgedistill.training import optimizers

__all__ = ["all_of", "check", "latest", "load", "save"]

SCHEMA = 2

STATE = "state.json"


def save(
    folder: Path,
    nets: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write `folder`/step-NNNNNNNN with the sha256 of its files, then drop all but `keep`.

    Args:
        folder: Folder of the run's checkpoints.
        nets: Networks by role.
        optimizers: Optimizers by player.
        state: JSON-ready state, which must hold "step".
        keep: Number of newest checkpoints to keep.
    """
    target = folder / f"step-{state['step']:08d}"
    with atomic_folder(target) as work:
        for name, net in nets.items():
            save_model(net, str(work / f"{name}.safetensors"))
        for name, optimizer in optimizers.items():
            save_file(_flatten(optimizer), work / f"optim-{name}.safetensors")
        data = {"schema_version": SCHEMA, **state}
        data["sha256"] = sha256_of_all(work, files_in(work))
        data["sha256"][STATE] = _own_hash(data)
        write_json(work / STATE, data)
    # Later checkpoints belong to a future that the run left when it resumed from an earlier one.
    kept = [path for path in all_of(folder) if path.name <= target.name][:keep]
    # The first versions also left hidden folders under another name.
    torn = [path for path in folder.glob(".step-*") if path.suffix != ".part"]
    for path in (*all_of(folder), *torn):
        if path not in kept:
            shutil.rmtree(path)
    return target


def check(
    nets: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], step: int
) -> None:
    """Raise a FloatingPointError that names the first weight or moment that is not finite."""
    for name, net in nets.items():
        if bad := bad_weight(net):
            raise FloatingPointError(f"{name}: {bad} is not finite after step {step}")
    for name, optimizer in optimizers.items():
        for key, tensor in _tensors(optimizer):
            if not all_finite(tensor):
                raise FloatingPointError(
                    f"{name}: {key} of its optimizer is not finite after step {step}"
                )


def all_of(folder: Path) -> list[Path]:
    """List the checkpoints of a run, newest first."""
    return sorted((path for path in folder.glob("step-*") if path.is_dir()), reverse=True)


def latest(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, if there is one."""
    return next((path for path in all_of(folder) if (path / STATE).is_file()), None)


def load(
    checkpoint: Path,
    nets: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, Any]:
    """Read a checkpoint into networks and optimizers and return its state.

    What a killed process left beside it is removed.

    Raises:
        ValueError: If the checkpoint has another schema, is damaged or does not fit; names the
            file. Networks and optimizers are then undefined.
    """
    recover(checkpoint)
    state = _read_state(checkpoint)
    for name, net in nets.items():
        with _naming(checkpoint / f"{name}.safetensors") as file:
            load_model(net, str(file))
    for name, optimizer in optimizers.items():
        with _naming(checkpoint / f"optim-{name}.safetensors") as file:
            _unflatten(optimizer, load_file(file))
    return state


def _read_state(checkpoint: Path) -> dict[str, Any]:
    """Read the state of a checkpoint whose files match their hashes."""
    file = checkpoint / STATE
    state = read_json(file)
    version, listed = state.get("schema_version"), state.get("sha256")
    if version == 1 and listed is None:
        remark(f"{file}: schema 1 has no hashes: damage to its files is not seen")
        _check_state(file, state)
        return state
    if version != SCHEMA:
        raise ValueError(f"{file}: schema_version {version!r}, {SCHEMA} expected")
    if not isinstance(listed, dict) or listed.get(STATE) != _own_hash(state):
        raise ValueError(f"{file}: damaged or changed: it is not what its sha256 says")
    check_files(checkpoint, {name: listed[name] for name in listed if name != STATE}, STATE)
    return state


def _check_state(file: Path, state: Mapping[str, Any]) -> None:
    """Raise a ValueError for a missing or mistyped key of a state without hashes; names it."""
    kinds: dict[str, Any] = {"step": int, "ema_updates": int, "bad": list}
    for key, kind in kinds.items():
        if not isinstance(state.get(key), kind):
            raise ValueError(f"{file}: {key}: {kind.__name__} expected, got {state.get(key)!r}")
    if state["step"] < 0 or file.parent.name != f"step-{state['step']:08d}":
        raise ValueError(f"{file}: step: {state['step']} is not that of {file.parent.name}")


def _own_hash(state: Mapping[str, Any]) -> str:
    """Hash state.json except the hash itself."""
    files = {name: found for name, found in state["sha256"].items() if name != STATE}
    return sha256_of({**state, "sha256": files})


@contextmanager
def _naming(file: Path) -> Iterator[Path]:
    """Turn errors with a file into one line that names it."""
    try:
        yield file
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{file}: does not fit this recipe: {first}") from None


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {key: tensor.clone().contiguous() for key, tensor in _tensors(optimizer)}


def _tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of an optimizer's state, by parameter and name."""
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            for part, tensor in optimizers.split(torch.as_tensor(value)).items():
                yield f"{index}.{name}{part}", tensor


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
