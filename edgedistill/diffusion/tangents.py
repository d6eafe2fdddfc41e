"""Derivatives of a network along a path, by forward differentiation or by differences."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from edgedistill.diffusion.tensors import expand_like

__all__ = ["DERIVATIVES", "Derivative", "Flow"]

Flow = Callable[[Tensor, Tensor], Tensor]
"""(x (N, ...), t (N,)) -> (N, ...)."""
Derivative = Callable[[Flow, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(flow, x, t, dx, dt, step) -> derivative of the flow where x moves at dx and t at dt."""


def _jvp(flow: Flow, x: Tensor, t: Tensor, dx: Tensor, dt: Tensor, step: Tensor) -> Tensor:
    # Fused attention kernels have no forward derivative.
    with sdpa_kernel(SDPBackend.MATH):
        derivative: Tensor = torch.func.jvp(flow, (x, t), (dx, dt))[1]
    return derivative


def _difference(flow: Flow, x: Tensor, t: Tensor, dx: Tensor, dt: Tensor, step: Tensor) -> Tensor:
    size = expand_like(step, x).to(x)
    ahead = flow(x + size * dx, t + step * dt)
    return (ahead - flow(x - size * dx, t - step * dt)) / (2 * size)


DERIVATIVES: dict[str, Derivative] = {"jvp": _jvp, "difference": _difference}
"""`difference` is central, of two calls, with `step` (N,) to each side; `jvp` takes no step."""
