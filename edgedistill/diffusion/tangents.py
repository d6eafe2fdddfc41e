"""Derivatives of a network along a path, by forward differentiation or by differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from edgedistill.diffusion.compiling import as_they_are
from edgedistill.diffusion.tensors import expand_like

__all__ = ["DERIVATIVES", "Derivative", "Flow"]

Flow = Callable[[Tensor, Tensor], Tensor]
"""Function of x (N, ...) and t (N,) that returns (N, ...)."""
Derivative = Callable[[Flow, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Function (flow, x, t, dx, dt, step) -> derivative of the flow where x moves at dx and t at
dt."""


class _ContiguousNorms(TorchFunctionMode):
    """A mode in which group norms get contiguous inputs, the only ones that have a derivative.

    The attention blocks of diffusers' UNet2DModel normalize a transposed tensor.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.group_norm:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


def _jvp(flow: Flow, x: Tensor, t: Tensor, dx: Tensor, dt: Tensor, step: Tensor) -> Tensor:
    # Fused attention kernels and compiled networks have no forward derivative. Under autocast on a
    # CPU, a norm has a value in bfloat16 and a derivative in float32, which no convolution takes.
    plain = torch.autocast("cpu", enabled=False)
    with sdpa_kernel(SDPBackend.MATH), as_they_are(), plain, _ContiguousNorms():
        derivative: Tensor = torch.func.jvp(flow, (x, t), (dx, dt))[1]
    return derivative


def _difference(flow: Flow, x: Tensor, t: Tensor, dx: Tensor, dt: Tensor, step: Tensor) -> Tensor:
    size = expand_like(step, x).to(x)
    ahead = flow(x + size * dx, t + step * dt)
    return (ahead - flow(x - size * dx, t - step * dt)) / (2 * size)


DERIVATIVES: dict[str, Derivative] = {"jvp": _jvp, "difference": _difference}
"""Derivatives by name: `difference` is central, of two calls, `step` (N,) to each side; `jvp`
ignores `step`."""
