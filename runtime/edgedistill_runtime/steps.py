"""The step table and its sampler, all that a device needs of a diffusion schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Row", "StepTable", "resized", "sample"]

Array: TypeAlias = NDArray[np.float32]

MAX_PAST = 8
"""Largest number of earlier rows that a row uses."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One step: f = net(scale * x, t); x <- a x + b f + past + c noise.

    `past` is the sum of k_j x_j + m_j f_j over the rows before this one, where x_j is the x that
    row j before it began with and f_j its output; the pairs (k_j, m_j), the nearest row's first.

    `size` is the fraction of the full height and width that x has there. Before the noise is
    added, x is enlarged to the next row's size.
    """

    t: float
    scale: float
    a: float
    b: float
    c: float
    size: float = 1.0
    past: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class StepTable:
    """A few-step sampler as numbers; x starts as init_scale * noise."""

    init_scale: float
    rows: tuple[Row, ...]

    @property
    def reach(self) -> int:
        """Number of earlier rows whose x and f are kept."""
        return max((len(row.past) for row in self.rows), default=0)

    @property
    def landings(self) -> list[tuple[Row, float]]:
        """Return each row with the size it lands at, which is the next row's."""
        return list(zip(self.rows, [*(row.size for row in self.rows[1:]), 1.0], strict=True))

    @property
    def draws(self) -> int:
        """Number of noise tensors for one sample: x_T, then one for each step with c != 0."""
        return 1 + sum(row.c != 0 for row in self.rows)

    def shapes(self, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the shapes of those tensors for samples of `shape` (..., height, width)."""
        sizes = [self.rows[0].size, *(size for row, size in self.landings if row.c != 0)]
        return [_at(shape, size) for size in sizes]

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """Describe what does not fit between rows for samples of `shape`; None if all does."""
        sizes = [row.size for row in self.rows]
        if all(size == 1 for size in sizes):
            return self._past_problem()
        if not all(size > 0 for size in sizes) or sizes != sorted(sizes) or sizes[-1] != 1:
            return "sizes must be above 0, not decrease, and end at 1"
        sides = [side * size for size in sizes for side in shape[-2:]]
        if len(shape) < 3 or any(abs(side - round(side)) > 1e-6 * side for side in sides):
            return f"sizes do not divide latent.shape {list(shape)} into whole numbers"
        if any(row.c == 0 for row, size in self.landings if size != row.size):
            return "a row that grows must draw noise"
        return self._past_problem()

    def _past_problem(self) -> str | None:
        for i, row in enumerate(self.rows):
            if len(row.past) > min(i, MAX_PAST) or any(len(pair) != 2 for pair in row.past):
                return f"past of row {i}: pairs of at most {MAX_PAST} rows before it expected"
            if any(each.size != row.size for each in self.rows[i - len(row.past) : i]):
                return f"past of row {i}: a row before it has another size"
        return None


def sample(
    net: Callable[[Array, Array], Array], table: StepTable, noise: Sequence[Array]
) -> Array:
    """Run the table's steps.

    Args:
        net: Called as net(x, t) with x (N, ...) and t (N,), both float32; returns f like x.
        table: The table of steps.
        noise: Noise tensors, float32 (N, ...), of `table.shapes`: x_T, then the steps' own, in
            order.

    Returns:
        x after the last step, (N, ...) float32.

    Raises:
        ValueError: If the number of noise tensors is not `table.draws`.
    """
    if len(noise) != table.draws:
        raise ValueError(f"this step table consumes {table.draws} noise tensors, not {len(noise)}")
    draws = iter(noise)
    # Python floats keep float32 arrays float32 and round once, as torch does.
    x = next(draws) * table.init_scale
    t = np.empty(len(x), np.float32)
    past: list[tuple[Array, Array]] = []
    for row, size in table.landings:
        t.fill(row.t)
        f = net(x if row.scale == 1 else x * row.scale, t)
        start = x.copy() if table.reach else x
        x *= row.a
        x += f * row.b
        for (k, m), (earlier_x, earlier_f) in zip(row.past, past, strict=False):
            x += earlier_x * k
            x += earlier_f * m
        past = [(start, f), *past][: table.reach]
        if size != row.size:
            x = resized(x, *_at(x.shape, size / row.size)[-2:])
        if row.c != 0:
            x += next(draws) * row.c
    return x


def resized(x: Array, height: int, width: int) -> Array:
    """Enlarge x (..., h, w) to (..., height, width), bicubic as torch's.

    It is computed in float64 and rounded once, so that every language arrives at the same numbers.
    """
    down, across = _cubic(x.shape[-2], height), _cubic(x.shape[-1], width)
    return (down @ x.astype(np.float64) @ across.T).astype(np.float32)


@cache
def _cubic(size: int, larger: int) -> NDArray[np.float64]:
    """Return the matrix (larger, size) of Keys' cubic convolution, A = -0.75, ends repeated."""
    matrix = np.zeros((larger, size))
    for row in range(larger):
        place = (row + 0.5) * (size / larger) - 0.5
        first = math.floor(place)
        for tap in range(first - 1, first + 3):
            x = abs(place - tap)
            near = (1.25 * x - 2.25) * x * x + 1
            far = ((-0.75 * x + 3.75) * x - 6) * x + 3
            matrix[row, min(max(tap, 0), size - 1)] += near if x <= 1 else far
    return matrix


def _at(shape: tuple[int, ...], size: float) -> tuple[int, ...]:
    """Return `shape` with height and width scaled by the fraction `size`."""
    return shape if size == 1 else (*shape[:-2], *(round(side * size) for side in shape[-2:]))
