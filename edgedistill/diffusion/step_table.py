"""The step table: five numbers a step, which are all that a few-step student is sampled by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, pairwise, zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Condition
from edgedistill.diffusion.prediction import Linear2, Prediction, to_eps, to_x0
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.sizes import check_sizes, resized, shape_at
from edgedistill.diffusion.solvers import init_scale

__all__ = [
    "SAMPLERS",
    "Boundary",
    "Lander",
    "Landing",
    "Step",
    "TorchStepTable",
    "ddim",
    "few_step_table",
    "landed_table",
    "renoise",
    "solver_table",
]

Boundary = Callable[[Tensor], tuple[Tensor, Tensor]]
"""t -> (c_skip, c_out): the consistency function is c_skip x_t + c_out x0."""

LARGEST = torch.finfo(torch.float32).max
"""Networks and devices run a step table in float32."""


@dataclass(frozen=True)
class Step:
    """One row: f = net(scale x, t, cond); x <- a x + b f + c noise.

    `size` is the fraction of the full height and width that x has there. Before the noise x grows
    to the next row's.
    """

    t: float
    scale: float
    a: float
    b: float
    c: float
    size: float = 1.0

    def mean(self, net: nn.Module, x: Tensor, cond: Condition) -> Tensor:
        """Where the row leads from x (N, ...) before it grows: a x + b f."""
        time = torch.full((x.shape[0],), self.t, device=x.device)
        f: Tensor = net(self.scale * x, time, **cond).to(x.dtype)
        return self.a * x + self.b * f


@dataclass(frozen=True)
class TorchStepTable:
    """How a few-step student is sampled: x = init_scale noise, then the rows.

    Raises:
        ValueError: For sizes that are none, or a row that grows without noise of its own.
    """

    rows: tuple[Step, ...]
    init_scale: float = 1.0

    def __post_init__(self) -> None:
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
        """Whether some rows are of less than the full height and width."""
        return any(row.size != 1 for row in self.rows)

    @property
    def landings(self) -> list[tuple[Step, float]]:
        """Each row, and the size at which it lands: the next one's, of the last one the full."""
        return [
            (row, after.size if after else 1.0)
            for row, after in zip_longest(self.rows, self.rows[1:])
        ]

    @property
    def draws(self) -> int:
        """Noise tensors one sample takes: the first, and one for each row with c != 0."""
        return 1 + sum(row.c != 0 for row in self.rows)

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Shape of each of those tensors for samples of `shape` (..., height, width).

        Raises:
            ValueError: If it cannot be that of samples that grow so.
        """
        if not self.grows:
            return [tuple(shape)] * self.draws
        sizes = [self.rows[0].size, *(size for row, size in self.landings if row.c)]
        return [shape_at(shape, size) for size in sizes]

    def sample(self, net: nn.Module, noise: Sequence[Tensor], cond: Condition) -> Tensor:
        """Run the table.

        Args:
            net: Called as net(x, t, **cond), t float32 (N,).
            noise: Standard normal tensors (N, ...) of the shapes of `shapes`, in order of use.
            cond: Condition of N rows.

        Returns:
            x0 (N, ...).
        """
        if len(noise) != self.draws:
            raise ValueError(f"this table takes {self.draws} noise tensors, got {len(noise)}")
        fresh = iter(noise)
        x = self.init_scale * next(fresh)
        for row, size in self.landings:
            x = row.mean(net, x, cond)
            if size != row.size:
                x = resized(x, *(round(side * size / row.size) for side in x.shape[-2:]))
            if row.c:
                x = x + row.c * next(fresh)
        return x

    def draw(
        self, shape: Sequence[int], generator: torch.Generator, device: torch.device | None = None
    ) -> list[Tensor]:
        """The noise of `sample`s of `shape` (N, ...), drawn in the order diffusers draws it."""
        return [torch.randn(each, generator=generator).to(device) for each in self.shapes(shape)]

    def at_one_size(self) -> TorchStepTable:
        """The same steps, all of them at the full size."""
        return replace(self, rows=tuple(replace(row, size=1.0) for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """{"init_scale", "rows": [{"t", "scale", "a", "b", "c"}, ...]}, and a size below 1."""
        rows = [asdict(row) for row in self.rows]
        for row in rows:
            if row["size"] == 1:
                del row["size"]
        return {"init_scale": self.init_scale, "rows": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TorchStepTable:
        """Read `to_json`; ValueError names what is missing or is no finite number."""
        names = ("t", "scale", "a", "b", "c")
        try:
            rows = [
                [*(float(row[name]) for name in names), float(row.get("size", 1))]
                for row in data["rows"]
            ]
            first = float(data["init_scale"])
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise ValueError(f"step_table: missing or not a number: {error}") from None
        if not rows or not all(abs(number) <= LARGEST for number in chain([first], *rows)):
            raise ValueError("step_table: needs at least one row, and finite float32 numbers only")
        try:
            return cls(tuple(Step(*row) for row in rows), first)
        except ValueError as error:
            raise ValueError(f"step_table: {error}") from None


class Landing(NamedTuple):
    """How a step ends: x_s = x0 * (estimated x0) + eps * (estimated eps) + noise * fresh noise.

    Each is a float64 scalar; `eps` is None where the estimate of eps has no part in it.
    """

    x0: Tensor
    eps: Tensor | None
    noise: Tensor


Lander = Callable[[Schedule, Tensor, Tensor, bool], Landing]
"""(schedule, t, s, whether this is the last step) -> Landing; s = 0 is clean data."""

SIGNAL = 1e-6
"""Least alpha at which x0 = (x_t - sigma eps) / alpha is more than rounding error."""


def renoise(schedule: Schedule, t: Tensor, s: Tensor, last: bool) -> Landing:
    """x_s = alpha_s x0 + sigma_s noise: consistency models, LCM, DMD2, Turbo."""
    return Landing(schedule.alpha(s), None, schedule.sigma(s) * (s > 0))


def ddim(schedule: Schedule, t: Tensor, s: Tensor, last: bool) -> Landing:
    """x_s = alpha_s x0 + sigma_s eps: DDIM, Euler, flow Euler."""
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
    """The step table of a student that visits `times` (decreasing, ending in 0).

    Args:
        schedule: Of the student.
        prediction: Of the student.
        times: (steps + 1,), as from `time_grid`.
        sampler: How a step lands on the next time; a key of `SAMPLERS`.
        boundary: The consistency boundary of students trained with one.
        sizes: Of each step, where they are not all 1; for sampler renoise alone.
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
    """The table of a student called at `times` whose steps end as a scheduler's do.

    Args:
        schedule: Of the student.
        prediction: What it predicts.
        times: (steps,), decreasing.
        lander: How a step ends on the next time.
        end: Where the last step ends: 0, or the first trained time where a scheduler stops there.
        boundary: The consistency boundary of LCM.
        scaled_start: Start from sigma noise in place of unit noise, as Euler's classes do.

    Raises:
        ValueError: If the noise alone is predicted at a time that holds nothing else.
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
    """A row from each of the stops (steps + 1,) to the next: x0 and eps are linear in (x_t, f)."""
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


def solver_table(
    schedule: Schedule,
    prediction: Prediction,
    times: Tensor,
    moves: Tensor,
    told: Tensor | None = None,
) -> TorchStepTable:
    """The step table of a single-step solver with coefficients of its own: x_s = p x_t + q x0.

    With (p, q) = (sigma_s / sigma_t, alpha_s - p alpha_t) it is DDIM's.

    Args:
        schedule: Of the network.
        prediction: Of the network.
        times: (steps + 1,), decreasing to 0.
        moves: (p, q) of each step, (steps, 2).
        told: Times that the network is told instead, (steps,).
    """
    times, moves = times.double().cpu(), moves.double().cpu()
    told = times[:-1] if told is None else told.double().cpu()
    rows = []
    for t, (p, q), time in zip(times[:-1], moves, told, strict=True):
        x0 = to_x0(prediction, schedule.alpha(t), schedule.sigma(t))
        scale = schedule.input_scale(time)
        numbers = [schedule.net_time(time), scale, p + q * x0.x, q * x0.y, 0.0]
        rows.append(Step(*(float(number) for number in numbers)))
    return TorchStepTable(tuple(rows), init_scale(schedule, times[0]))
