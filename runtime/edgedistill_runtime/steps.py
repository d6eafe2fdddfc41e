"""The step table and its sampler: all a device needs to know about a diffusion schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Row", "StepTable", "sample"]

Array: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One step: f = net(scale * x, t); x <- a x + b f + c noise."""

    t: float
    scale: float
    a: float
    b: float
    c: float


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """A few-step sampler as numbers; x starts as init_scale * noise."""

    init_scale: float
    rows: tuple[Row, ...]

    @property
    def draws(self) -> int:
        """Noise tensors one sample consumes: x_T, then one for each step with c != 0."""
        return 1 + sum(row.c != 0 for row in self.rows)


def sample(
    net: Callable[[Array, Array], Array], table: StepTable, noise: Sequence[Array]
) -> Array:
    """Run the table's steps.

    Args:
        net: Called as net(x, t) with x (N, ...) and t (N,), both float32; returns f like x.
        table: The steps.
        noise: `table.draws` float32 tensors (N, ...): x_T, then the steps' own, in order.

    Returns:
        x after the last step, (N, ...) float32.

    Raises:
        ValueError: if the number of noise tensors is not `table.draws`.
    """
    if len(noise) != table.draws:
        raise ValueError(f"this step table consumes {table.draws} noise tensors, not {len(noise)}")
    draws = iter(noise)
    # Python floats keep float32 arrays float32 and round once, as torch does.
    x = next(draws) * table.init_scale
    t = np.empty(len(x), np.float32)
    for row in table.rows:
        t.fill(row.t)
        f = net(x if row.scale == 1 else x * row.scale, t)
        x *= row.a
        x += f * row.b
        if row.c != 0:
            x += next(draws) * row.c
    return x
