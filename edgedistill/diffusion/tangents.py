"""Derivatives of a network along a path, by forward differentiation or by differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgedistill.diffusion.compiling import as_they_are
from edgedistill.diffusion.tensors import expand_like

__all__ = ["DERIVATIVES", "Derivative", "Flow"]

Flow = Callable[[Tensor, Tensor], Tensor]
"""Function of x (N, ...) and t (N,) that returns (N, ...)."""
Derivative = Callable[[Flow, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Function (flow, x, t, dx, dt, step) -> derivative of the flow where x moves at dx and t at
dt."""


def _jvp(flow: Flow, x: Tensor, t: Tensor, dx: Tensor, dt: Tensor, step: Tensor) -> Tensor:
    # Fused attention kernels and compiled networks have no forward derivative.
    with sdpa_kernel(SDPBackend.MATH), as_they_are():
        derivative: Tensor = torch.func.jvp(flow, (x, t), (dx, dt))[1]
    return derivative


def _difference(flow: Flow, x: Tensor, t: Tensor, dx: Tensor, dt: Tensor, step: Tensor) -> Tensor:
    size = expand_like(step, x).to(x)
    ahead = flow(x + size * dx, t + step * dt)
    return (ahead - flow(x - size * dx, t - step * dt)) / (2 * size)


DERIVATIVES: dict[str, Derivative] = {"jvp": _jvp, "difference": _difference}
"""Derivatives by name: `difference` is central, of two calls, `step` (N,) to each side; `jvp`
ignores `step`."""
