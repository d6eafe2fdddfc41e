"""Checks for NaN and infinity in tensors, weights and files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

__all__ = ["all_finite", "bad_row", "bad_tensor", "bad_weight", "check_finite"]


def check_finite(place: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if a tensor holds NaN or infinity; names the first and counts them.

    It reads each tensor once and allocates nothing while all is well.

    Args:
        place: File or folder the tensors came from, for the message.
        tensors: Tensors by name. Integers and tensors on the meta device always pass.
    """
    odd = [name for name, tensor in tensors.items() if not all_finite(tensor)]
    if odd:
        others = f", and so do {len(odd) - 1} others" if len(odd) > 1 else ""
        raise ValueError(
            f"{place}: {odd[0]} holds numbers that are not finite{others}; "
            "take another copy of the file, or the weights from before they diverged"
        )


def all_finite(tensor: Tensor) -> bool:
    """Whether every number of a tensor is finite; computed in one pass and without a copy."""
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    values = tensor.detach()
    if values.element_size() == 1:  # fp8 has no arithmetic of its own
        values = values.float()
    low, high = values.aminmax()  # either is NaN if any number is
    return bool(low.isfinite() and high.isfinite())


def bad_row(rows: Tensor) -> int | None:
    """Return the index of the first of some rows (n, ...) that is not finite; None if all are."""
    if all_finite(rows):
        return None
    return int((~rows.flatten(1).isfinite().all(1)).nonzero()[0])


def bad_weight(net: nn.Module) -> str:
    """Return the name of a network's first parameter that is not finite; "" if all are."""
    return next((name for name, value in net.named_parameters() if not all_finite(value)), "")


def bad_tensor(file: Path) -> str:
    """Return the name of the first tensor in a safetensors file that is not finite; "" if all are.

    Raises:
        ValueError: If the file cannot be read; names it.
    """
    try:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  no mapping
                if not all_finite(tensors.get_tensor(name)):
                    return str(name)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: {str(error).strip().splitlines()[0]}") from None
    return ""
