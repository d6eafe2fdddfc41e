"""How far two predictions are apart: one number a sample, so that a method can weight them."""

from __future__ import annotations

import math
from collections.abc import Callable

from pydantic import Field
from torch import Tensor

from edgedistill.objectives.base import Settings

__all__ = ["DISTANCES", "Distance", "distance"]


class Distance(Settings):
    """A distance and its constant.

    `l2`: mean square. `l1`: mean absolute. `pseudo-huber`: mean of sqrt(d^2 + c^2) - c by element
    (as LCM's). `vector-huber`: sqrt(|d|^2 + c^2) - c of the whole sample with c times the root of
    its size (Song & Dhariwal 2023, arXiv 2310.14189, Eq. 4 and Sec. 3.3).
    """

    kind: str = Field("l2", pattern="^(l2|l1|pseudo-huber|vector-huber)$")
    c: float = Field(1e-3, gt=0)
    """Above 0: at 0 there is no gradient where both agree."""


def _l2(d: Tensor, c: float) -> Tensor:
    return d.square().mean(1)


def _l1(d: Tensor, c: float) -> Tensor:
    return d.abs().mean(1)


def _pseudo_huber(d: Tensor, c: float) -> Tensor:
    return ((d.square() + c * c).sqrt() - c).mean(1)


def _vector_huber(d: Tensor, c: float) -> Tensor:
    scale = c * math.sqrt(d.shape[1])
    return (d.square().sum(1) + scale * scale).sqrt() - scale


DISTANCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "l2": _l2,
    "l1": _l1,
    "pseudo-huber": _pseudo_huber,
    "vector-huber": _vector_huber,
}
"""(difference (N, size), c) -> (N,)."""


def distance(config: Distance, a: Tensor, b: Tensor) -> Tensor:
    """Distances of a and b, (N, ...) each, in float32 or better: (N,)."""
    difference = a - b
    if difference.dtype.itemsize < 4:
        difference = difference.float()
    return DISTANCES[config.kind](difference.flatten(1), config.c)
