"""The step table: a few numbers a step, enough to sample a few-step student."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, pairwise, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Condition
from edgedistill.diffusion.prediction import Linear2, Prediction, to_eps, to_x0
from edgedistill.diffusion.reuse import as_reusing
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.sizes import check_sizes, resized, shape_at
from edgedistill.diffusion.solvers import init_scale

__all__ = [
    "MAX_PAST",
    "SAMPLERS",
    "SIGNAL",
    "Boundary",
    "Lander",
    "Landing",
    "Step",
    "TorchStepTable",
    "ddim",
    "few_step_table",
    "landed_table",
    "renoise",
]

MAX_PAST = 8
"""Largest number of earlier rows that a row uses."""

Boundary = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Boundary condition t -> (c_skip, c_out); the consistency function is c_skip x_t + c_out x0."""

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

    def call(
        self, net: nn.Module, x: Tensor, cond: Condition, deep: Tensor | None, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the row's f at x (N, ...), and the deep state for the next row.

        `deep` is that of the row before, and `keep` says whether the next row reuses this one's.
        ValueError for a network that has none.
        """
        if not (self.reuse or keep):
            return self.output(net, x, cond), None
        parts, time = as_reusing(net), torch.full((x.shape[0],), self.t, device=x.device)
        if not self.reuse:
            f, deep = parts.full(self.scale * x, time, **cond)
            return f.to(x.dtype), deep
        assert deep is not None
        return parts.shallow(self.scale * x, time, deep, **cond).to(x.dtype), deep

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

    Raises:
        ValueError: If sizes are invalid, a row enlarges x without adding noise, or uses or reuses
            a row that is not there or has another size.
    """

    rows: tuple[Step, ...]
    init_scale: float = 1.0

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

    @property
    def keeps(self) -> list[bool]:
        """Return for each row whether the next one reuses its deep state."""
        after = zip_longest(self.rows, self.rows[1:])
        return [row is not None and row.reuse for _, row in after]

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
        for (row, size), keep in zip(self.landings, self.keeps, strict=True):
            f, deep = row.call(net, x, cond, deep, keep)
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

    def reusing(self, rows: Sequence[int]) -> TorchStepTable:
        """Return the same steps, of which those at `rows` (from 0) alone reuse a deep state.

        Raises:
            ValueError: If there is no such row, or none before it.
        """
        if wrong := [index for index in rows if not 0 < index < len(self.rows)]:
            raise ValueError(f"row {wrong[0]} is not one of {len(self.rows)} with a row before it")
        marked = (replace(row, reuse=index in rows) for index, row in enumerate(self.rows))
        return replace(self, rows=tuple(marked))

    def to_json(self) -> dict[str, Any]:
        """Return {"init_scale", "rows": [{"t", "scale", "a", "b", "c"}, ...]}.

        Rows also have a size below 1, a `past` that is not empty, and `reuse` where it is true.
        """
        rows = [asdict(row) | {"past": [list(pair) for pair in row.past]} for row in self.rows]
        for row in rows:
            if row["size"] == 1:
                del row["size"]
            for name in ("past", "reuse"):
                if not row[name]:
                    del row[name]
        return {"init_scale": self.init_scale, "rows": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TorchStepTable:
        """Read `to_json`'s output; ValueError names an entry that is missing or not finite."""
        try:
            rows = [_read(row) for row in data["rows"]]
            first = float(data["init_scale"])
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ValueError(f"step_table: missing or not a number: {error}") from None
        numbers = chain([first], *(_numbers(row) for row in rows))
        if not rows or not all(abs(number) <= LARGEST for number in numbers):
            raise ValueError("step_table: needs at least one row, and finite float32 numbers only")
        try:
            return cls(tuple(rows), first)
        except ValueError as error:
            raise ValueError(f"step_table: {error}") from None


def _read(row: Mapping[str, Any]) -> Step:
    t, scale, a, b, c = (float(row[name]) for name in ("t", "scale", "a", "b", "c"))
    past = tuple((float(k), float(m)) for k, m in row.get("past", ()))
    if not isinstance(reuse := row.get("reuse", False), bool):
        raise ValueError(f"reuse: {reuse!r}, true or false expected")
    return Step(t, scale, a, b, c, float(row.get("size", 1)), past=past, reuse=reuse)


def _numbers(row: Step) -> list[float]:
    return [row.t, row.scale, row.a, row.b, row.c, row.size, *chain(*row.past)]


class Landing(NamedTuple):
    """End of a step: x_s = x0 * (estimated x0) + eps * (estimated eps) + noise * fresh noise.

    Each is a float64 scalar; `eps` is None where the estimate of eps is not used.
    """

    x0: Tensor
    eps: Tensor | None
    noise: Tensor


Lander = Callable[[Schedule, Tensor, Tensor, bool], Landing]
"""Function (schedule, t, s, whether this is the last step) -> Landing; s = 0 is clean data."""

SIGNAL = 1e-6
"""Smallest alpha at which x0 = (x_t - sigma eps) / alpha is more than rounding error."""


def renoise(schedule: Schedule, t: Tensor, s: Tensor, last: bool) -> Landing:
    """Land on x_s = alpha_s x0 + sigma_s noise: consistency models, LCM, DMD2, Turbo."""
    return Landing(schedule.alpha(s), None, schedule.sigma(s) * (s > 0))


def ddim(schedule: Schedule, t: Tensor, s: Tensor, last: bool) -> Landing:
    """Land on x_s = alpha_s x0 + sigma_s eps: DDIM, Euler, flow Euler."""
    sigma = schedule.sigma(s) * (s > 0)
    return Landing(schedule.alpha(s), sigma if sigma else None, torch.zeros_like(sigma))


SAMPLERS: dict[str, Lander] = {"renoise": renoise, "ddim": ddim}


def few_step_table(
    schedule: Schedule,
    prediction: Prediction,
    times: Tensor,
    sampler: str = "renoise",
    boundary: Boundary | None = None,
    sizes: Sequence[float] | None = None,
) -> TorchStepTable:
    """Make the step table of a student that visits `times` (decreasing, ending in 0).

    Args:
        schedule: Schedule of the student.
        prediction: Prediction of the student.
        times: Times (steps + 1,), as from `time_grid`.
        sampler: The rule by which a step lands on the next time; a key of `SAMPLERS`.
        boundary: The consistency boundary of students trained with one.
        sizes: Size of each step, where they are not all 1; only for the sampler renoise.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; choose from {', '.join(SAMPLERS)}")
    times = times.double().cpu()
    if times[-1] != 0 or not bool((times.diff() < 0).all()):
        raise ValueError(f"times must decrease and end in 0, got {times.tolist()}")
    rows = _rows(schedule, prediction, times, SAMPLERS[sampler], boundary)
    rows = [
        replace(row, size=size) for row, size in zip(rows, sizes or [1.0] * len(rows), strict=True)
    ]
    return TorchStepTable(tuple(rows), init_scale(schedule, times[0]))


def landed_table(
    schedule: Schedule,
    prediction: Prediction,
    times: Tensor,
    lander: Lander,
    *,
    end: float = 0.0,
    boundary: Boundary | None = None,
    scaled_start: bool = False,
) -> TorchStepTable:
    """Make the table of a student called at `times` whose steps end as a scheduler's do.

    Args:
        schedule: Schedule of the student.
        prediction: Prediction of the student.
        times: Decreasing times (steps,).
        lander: The rule by which a step lands on the next time.
        end: Time at which the last step ends: 0, or the first trained time where a scheduler stops
            there.
        boundary: The consistency boundary of LCM.
        scaled_start: Start from sigma noise in place of unit noise, as Euler's classes do.

    Raises:
        ValueError: If the network predicts eps at a time whose x_t is pure noise.
    """
    if prediction is Prediction.EPS and schedule.alpha(times[0]) < SIGNAL:
        raise ValueError(
            "a student that predicts noise cannot start where there is no signal "
            "(zero terminal SNR); this schedule is not the one it was made for"
        )
    stops = torch.cat([times.double(), torch.tensor([end], dtype=torch.float64)])
    rows = _rows(schedule, prediction, stops, lander, boundary)
    return TorchStepTable(tuple(rows), schedule.sigma(times[0]).item() if scaled_start else 1.0)


def _rows(
    schedule: Schedule,
    prediction: Prediction,
    stops: Tensor,
    lander: Lander,
    boundary: Boundary | None,
) -> list[Step]:
    """Make a row from each stop (steps + 1,) to the next: x0 and eps are linear in (x_t, f)."""
    rows = []
    for index, (t, s) in enumerate(pairwise(stops)):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = to_x0(prediction, alpha, sigma)
        if boundary is not None:
            skip, out = boundary(t)
            x0 = Linear2(skip + out * x0.x, out * x0.y)
        landing = lander(schedule, t, s, index == len(stops) - 2)
        a, b = landing.x0 * x0.x, landing.x0 * x0.y
        if landing.eps is not None:
            eps = to_eps(prediction, alpha, sigma)
            a, b = a + landing.eps * eps.x, b + landing.eps * eps.y
        numbers = [schedule.net_time(t), schedule.input_scale(t), a, b, landing.noise]
        rows.append(Step(*(float(number) for number in numbers)))
    return rows
