"""Types of network predictions, x0, eps, v or flow, and linear conversions between them.

Every prediction is y = p x0 + q eps. Together with x_t = alpha x0 + sigma eps this is a 2x2
linear system, so x0 and eps are linear in (x_t, y) and any prediction turns into any other.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Linear2", "Prediction", "to_eps", "to_x0"]


class Linear2(NamedTuple):
    """The linear map (x_t, y) -> x * x_t + y * y, with coefficients broadcastable to the data."""

    x: Tensor
    y: Tensor


class Prediction(str, Enum):
    """Kinds of network output; alpha and sigma are the schedule's at the network's time."""

    X0 = "x0"
    EPS = "eps"
    V = "v"
    """The velocity alpha eps - sigma x0 (Salimans & Ho 2022, arXiv 2202.00512, App. D)."""
    FLOW = "flow"
    """The flow eps - x0 (rectified flow)."""

    @classmethod
    def parse(cls, name: str) -> Prediction:
        """Return the prediction called `name`; ValueError names the choices."""
        try:
            return cls(name)
        except ValueError:
            choices = ", ".join(p.value for p in cls)
            raise ValueError(f"unknown prediction {name!r}; choose from {choices}") from None

    def combine(self, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the network output that stands for (x0, eps), which is the training target."""
        p, q = _mixture(self, alpha, sigma)
        return p * x0 + q * eps


def _mixture(kind: Prediction, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return (p, q) with y = p x0 + q eps."""
    return _MIXTURES[kind](alpha, sigma)


_MIXTURES: dict[Prediction, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    Prediction.X0: lambda alpha, sigma: (torch.ones_like(alpha), torch.zeros_like(alpha)),
    Prediction.EPS: lambda alpha, sigma: (torch.zeros_like(alpha), torch.ones_like(alpha)),
    Prediction.V: lambda alpha, sigma: (-sigma, alpha),
    Prediction.FLOW: lambda alpha, sigma: (-torch.ones_like(alpha), torch.ones_like(alpha)),
}


def to_x0(kind: Prediction, alpha: Tensor, sigma: Tensor) -> Linear2:
    """Return the coefficients of x0 in (x_t, y); infinite for EPS at alpha = 0 (x_t is noise)."""
    p, q = _mixture(kind, alpha, sigma)
    determinant = alpha * q - sigma * p
    return Linear2(q / determinant, -sigma / determinant)


def to_eps(kind: Prediction, alpha: Tensor, sigma: Tensor) -> Linear2:
    """Return the coefficients of eps in (x_t, y); infinite for X0 at sigma = 0 (x_t is clean)."""
    p, q = _mixture(kind, alpha, sigma)
    determinant = alpha * q - sigma * p
    return Linear2(-p / determinant, alpha / determinant)
