"""Numbers that are none, found where they enter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["check_finite"]


def check_finite(place: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if a tensor holds NaN or infinity; names the first and counts them.

    It reads each tensor once and allocates nothing while all is well.

    Args:
        place: File or folder the tensors came from, for the message.
        tensors: By name. Integers and tensors on the meta device always pass.
    """
    odd = [name for name, tensor in tensors.items() if not _finite(tensor)]
    if odd:
        others = f", and so do {len(odd) - 1} others" if len(odd) > 1 else ""
        raise ValueError(
            f"{place}: {odd[0]} holds numbers that are not finite{others}; "
            "take another copy of the file, or the weights from before they diverged"
        )


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.is_meta or not tensor.numel():
        return True
    values = tensor.detach()
    if values.element_size() == 1:  # fp8 has no arithmetic of its own
        values = values.float()
    # A sum is finite only if every number is; one of huge numbers may be infinite all the same.
    if bool(
        values.sum(
            dtype=torch.float64 if values.dtype == torch.float64 else torch.float32
        ).isfinite()
    ):
        return True
    return bool(values.isfinite().all())
