"""The step table: a few numbers a step, enough to sample a few-step student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Condition
from edgedistill.diffusion.reuse import as_reusing
from edgedistill.diffusion.sizes import check_sizes, resized, shape_at

__all__ = ["MAX_PAST", "Step", "TorchStepTable"]

MAX_PAST = 8
"""Largest number of earlier rows that a row uses."""

LARGEST = torch.finfo(torch.float32).max
"""Largest number in a step table, since networks and devices run it in float32."""


@dataclass(frozen=True)
class Step:
    """One row of the table, a step of a linear multistep method.

    In row i, f_i = net(scale x_i, t, cond), and

        x_{i+1} = a x_i + b f_i + sum_j (k_j x_{i-j} + m_j f_{i-j}) + c noise.

    `past` holds the pairs (k_j, m_j) of the rows before, j = 1, 2, ..., the nearest first. Solvers
    keep an earlier x0 or eps; as each is linear in the x and f of its row, a pair holds it exactly
    for every prediction. m alone would do only for what is kept as the network gives it.

    `size` is the fraction of the full height and width that x has there. Before the noise is
    added, x is enlarged to the next row's size.

    A row with `reuse` runs the outer blocks of the network alone, on the deep state that the row
    before made or reused itself (see `diffusion.reuse`).
    """

    t: float
    scale: float
    a: float
    b: float
    c: float
    size: float = 1.0
    past: tuple[tuple[float, float], ...] = field(default=(), kw_only=True)
    reuse: bool = field(default=False, kw_only=True)

    def output(self, net: nn.Module, x: Tensor, cond: Condition) -> Tensor:
        """Return the network's output f at x (N, ...)."""
        time = torch.full((x.shape[0],), self.t, device=x.device)
        f: Tensor = net(self.scale * x, time, **cond).to(x.dtype)
        return f

    def land(self, x: Tensor, f: Tensor, past: Sequence[tuple[Tensor, Tensor]] = ()) -> Tensor:
        """Return the row's mean from x and f (N, ...), before x is enlarged.

        `past` holds x and f of the rows before, the nearest first.
        """
        mean = self.a * x + self.b * f
        for (k, m), (earlier_x, earlier_f) in zip(self.past, past, strict=False):
            mean = mean + k * earlier_x + m * earlier_f
        return mean

    def mean(self, net: nn.Module, x: Tensor, cond: Condition) -> Tensor:
        """Return the mean of a row that uses no earlier one, from x (N, ...)."""
        return self.land(x, self.output(net, x, cond))


@dataclass(frozen=True)
class TorchStepTable:
    """Sampling table of a few-step student: x = init_scale noise, then the rows.

    `reuse_layers` is the number of layers of the network's last block that run in a row that
    reuses (see `diffusion.reuse`); None for all of them.

    Raises:
        ValueError: If sizes are invalid, a row enlarges x without adding noise, or uses or reuses
            a row that is not there or has another size.
    """

    rows: tuple[Step, ...]
    init_scale: float = 1.0
    reuse_layers: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            earlier = self.rows[max(0, index - len(row.past)) : index]
            if len(earlier) < len(row.past) or len(row.past) > MAX_PAST:
                raise ValueError(
                    f"row {index} uses {len(row.past)} earlier rows; at most {MAX_PAST}, and only "
                    "those there are"
                )
            if any(each.size != row.size for each in earlier):
                raise ValueError(f"row {index} uses an earlier row of another size")
            if row.reuse and (index == 0 or self.rows[index - 1].size != row.size):
                raise ValueError(f"row {index} reuses a deep state, and no row before it has one")
        if not self.grows:
            return
        check_sizes([row.size for row in self.rows])
        if any(row.c == 0 for row, size in self.landings if size != row.size):
            raise ValueError(
                "a step that grows draws noise, which makes the larger x right; "
                "choose student.sampler=renoise"
            )

    @property
    def grows(self) -> bool:
        """Whether some rows have less than the full height and width."""
        return any(row.size != 1 for row in self.rows)

    @property
    def reach(self) -> int:
        """Number of earlier rows whose x and f must be kept; 0 for single-step tables."""
        return max((len(row.past) for row in self.rows), default=0)

    @property
    def reuses(self) -> bool:
        """Whether some rows reuse the deep state of the row before."""
        return any(row.reuse for row in self.rows)

    def beyond(self, other: TorchStepTable) -> list[str]:
        """Return in words what these steps do and those of `other` do not."""
        kinds = {
            "reuse deep blocks": (self.reuses, other.reuses),
            "grow in size": (self.grows, other.grows),
            "use outputs of earlier steps": (self.reach, other.reach),
        }
        return [words for words, (ours, theirs) in kinds.items() if ours and not theirs]

    @property
    def landings(self) -> list[tuple[Step, float]]:
        """Return each row with the size it lands at: the next row's, or 1 for the last."""
        return [
            (row, after.size if after else 1.0)
            for row, after in zip_longest(self.rows, self.rows[1:])
        ]

    @property
    def draws(self) -> int:
        """Number of noise tensors for one sample: the first, and one for each row with c != 0."""
        return 1 + sum(row.c != 0 for row in self.rows)

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the shape of each of those tensors for samples of `shape` (..., height, width).

        Raises:
            ValueError: If `shape` cannot be scaled to the sizes of the rows.
        """
        if not self.grows:
            return [tuple(shape)] * self.draws
        sizes = [self.rows[0].size, *(size for row, size in self.landings if row.c)]
        return [shape_at(shape, size) for size in sizes]

    def call(
        self, index: int, net: nn.Module, x: Tensor, cond: Condition, deep: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the f of row `index` at x (N, ...), and the deep state for the next row.

        Args:
            index: Place of the row, from 0.
            net: The network; a `Reusing` one if the row or the next one reuses.
            x: x of the row.
            cond: Condition of N rows.
            deep: Deep state that the row before returned.
        """
        row, after = self.rows[index], self.rows[index + 1 : index + 2]
        if not row.reuse and not any(each.reuse for each in after):
            return row.output(net, x, cond), None
        parts, layers = as_reusing(net), self.reuse_layers
        scaled, time = row.scale * x, torch.full((x.shape[0],), row.t, device=x.device)
        if not row.reuse:
            f, deep = parts.full(scaled, time, layers, **cond)
            return f.to(x.dtype), deep
        assert deep is not None
        return parts.shallow(scaled, time, deep, layers, **cond).to(x.dtype), deep

    def sample(self, net: nn.Module, noise: Sequence[Tensor], cond: Condition) -> Tensor:
        """Run the table.

        Args:
            net: Called as net(x, t, **cond), t float32 (N,); a `Reusing` one if rows reuse.
            noise: Standard normal tensors (N, ...) of the shapes of `shapes`, in order of use.
            cond: Condition of N rows.

        Returns:
            x0 (N, ...).
        """
        if len(noise) != self.draws:
            raise ValueError(f"this table takes {self.draws} noise tensors, got {len(noise)}")
        fresh = iter(noise)
        x = self.init_scale * next(fresh)
        past: list[tuple[Tensor, Tensor]] = []
        deep: Tensor | None = None
        for index, (row, size) in enumerate(self.landings):
            f, deep = self.call(index, net, x, cond, deep)
            start, x = x, row.land(x, f, past)
            past = [(start, f), *past][: self.reach]
            if size != row.size:
                x = resized(x, *(round(side * size / row.size) for side in x.shape[-2:]))
            if row.c:
                x = x + row.c * next(fresh)
        return x

    def draw(
        self, shape: Sequence[int], generator: torch.Generator, device: torch.device | None = None
    ) -> list[Tensor]:
        """Draw the noise for `sample`, for samples of `shape` (N, ...), in diffusers' order."""
        return [torch.randn(each, generator=generator).to(device) for each in self.shapes(shape)]

    def at_one_size(self) -> TorchStepTable:
        """Return the same steps, all at the full size."""
        return replace(self, rows=tuple(replace(row, size=1.0) for row in self.rows))

    def reusing(self, rows: Sequence[int], layers: int | None = None) -> TorchStepTable:
        """Return the same steps, of which those at `rows` (from 0) alone reuse a deep state.

        Args:
            rows: Their places.
            layers: `reuse_layers` of the new table.

        Raises:
            ValueError: If there is no such row, or none before it.
        """
        if wrong := [index for index in rows if not 0 < index < len(self.rows)]:
            raise ValueError(f"row {wrong[0]} is not one of {len(self.rows)} with a row before it")
        marked = (replace(row, reuse=index in rows) for index, row in enumerate(self.rows))
        return replace(self, rows=tuple(marked), reuse_layers=layers)

    def to_json(self) -> dict[str, Any]:
        """Return {"init_scale", "rows": [{"t", "scale", "a", "b", "c"}, ...]}.

        Rows also have a size below 1, a `past` that is not empty, and `reuse` where it is true.
        The table also has `reuse_layers` where it is not None.
        """
        rows = [asdict(row) | {"past": [list(pair) for pair in row.past]} for row in self.rows]
        for row in rows:
            if row["size"] == 1:
                del row["size"]
            for name in ("past", "reuse"):
                if not row[name]:
                    del row[name]
        cut = {} if self.reuse_layers is None else {"reuse_layers": self.reuse_layers}
        return {"init_scale": self.init_scale, **cut, "rows": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TorchStepTable:
        """Read `to_json`'s output; ValueError names an entry that is missing or not finite."""
        try:
            rows = [_read(row) for row in data["rows"]]
            first = float(data["init_scale"])
            layers = _layers(data.get("reuse_layers"))
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ValueError(f"step_table: missing or not a number: {error}") from None
        numbers = chain([first], *(_numbers(row) for row in rows))
        if not rows or not all(abs(number) <= LARGEST for number in numbers):
            raise ValueError("step_table: needs at least one row, and finite float32 numbers only")
        try:
            return cls(tuple(rows), first, reuse_layers=layers)
        except ValueError as error:
            raise ValueError(f"step_table: {error}") from None


def _read(row: Mapping[str, Any]) -> Step:
    t, scale, a, b, c = (float(row[name]) for name in ("t", "scale", "a", "b", "c"))
    past = tuple((float(k), float(m)) for k, m in row.get("past", ()))
    if not isinstance(reuse := row.get("reuse", False), bool):
        raise ValueError(f"reuse: {reuse!r}, true or false expected")
    return Step(t, scale, a, b, c, float(row.get("size", 1)), past=past, reuse=reuse)


def _layers(found: object) -> int | None:
    if found is not None and (type(found) is not int or found < 1):
        raise ValueError(f"reuse_layers: {found!r}, a whole number above 0 expected")
    return found


def _numbers(row: Step) -> list[float]:
    return [row.t, row.scale, row.a, row.b, row.c, row.size, *chain(*row.past)]
