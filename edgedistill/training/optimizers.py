"""The optimizer of a player: AdamW with moments in float32 or 8 bits, or Muon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgedistill.common.compilers import check_compiler
from edgedistill.training.muon import Muon, is_matrix

if TYPE_CHECKING:
    from edgedistill.objectives.base import Optim

__all__ = ["BLOCK", "join", "make", "matrices", "moment_bytes", "set_lr", "split"]

BLOCK = 256
"""Number of values that share a scale in 8 bits."""

LEAST = 4096
"""Number of values below which a tensor keeps float32 moments, as do those that do not fill their
blocks."""

SIGNED = "exp_avg"
"""Name of the moment that may be negative."""


def make(net: nn.Module, optim: Optim, moments: str) -> torch.optim.Optimizer:
    """Make the optimizer of the trainable parameters of `net`, all on one device.

    Args:
        net: Network whose parameters are trained.
        optim: Settings of the optimizer.
        moments: Format of AdamW's moments, fp32 or 8bit.

    Raises:
        ValueError: If 8 bits are requested and torchao or its compiler is missing, or with Muon.
    """
    params = [p for p in net.parameters() if p.requires_grad]
    choices: dict[str, Any] = {
        "lr": optim.lr,
        "betas": optim.betas,
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
    }
    if optim.name == "muon":
        if moments != "fp32":
            raise ValueError(f"train.moments={moments} is AdamW's; optim.name=muon has fp32 only")
        chosen = matrices(net)
        mine = [p for p in params if id(p) in chosen]
        others = [p for p in params if id(p) not in chosen]
        return Muon(mine, others, momentum=optim.momentum, **choices)
    if moments == "fp32":
        return torch.optim.AdamW(params, **choices, fused=True)
    _check(params[0].device.type)
    from torchao.optim import AdamW8bit

    made: torch.optim.Optimizer = AdamW8bit(params, **choices, block_size=BLOCK)
    return made


def matrices(net: nn.Module) -> set[int]:
    """Return ids of the parameters that Muon trains: matrices, except embedding tables."""
    tables = (module for module in net.modules() if isinstance(module, nn.Embedding))
    embedded = {id(table.weight) for table in tables}
    return {id(p) for p in net.parameters() if is_matrix(p)} - embedded


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step; compiled steps keep theirs in a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def split(value: Tensor) -> dict[str, Tensor]:
    """Return the plain tensors of a state by suffix: one, or the several of an 8-bit state."""
    if not hasattr(value, "__tensor_flatten__"):
        return {"": value}
    names, _ = value.__tensor_flatten__()
    return {f".{name}": getattr(value, name) for name in names}


def join(name: str, parts: Mapping[str, Tensor]) -> Tensor:
    """Rebuild the state called `name` from the result of `split`."""
    if "" in parts:
        return parts[""]
    from torchao.optim.subclass_8bit import OptimState8bit

    inside = {key.removeprefix("."): tensor for key, tensor in parts.items()}
    made: Tensor = OptimState8bit(**inside, signed=name == SIGNED, dtype=torch.float32)
    return made


def moment_bytes(param: Tensor, moments: str, *, muon: bool = False) -> int:
    """Count bytes of both moments of `param`, kept as `moments` says, or of Muon's one."""
    count = param.numel()
    if muon:
        return 4 * count
    if moments == "fp32" or count < LEAST or count % BLOCK:
        return 2 * 4 * count
    # One byte for each value, a float32 scale for each block, and the table of the 256 values.
    return 2 * (count + 4 * count // BLOCK + 4 * 256)


def _check(device: str) -> None:
    """Raise a ValueError if 8-bit moments are not available here."""
    try:
        import torchao.optim  # noqa: F401
    except ImportError as error:
        raise ValueError("train.moments=8bit needs torchao: pip install torchao") from error
    check_compiler("train.moments=8bit", device)
