"""Teacher solvers, and the few-step table a student runs by.

Solvers are functions of (denoise, x, times, cond), where `denoise(x_t, t, cond)` returns x0 and
`times` decreases from the noisiest time to 0. Coefficients are float64, data keeps its dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, pairwise, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Condition, Denoise
from edgedistill.diffusion.prediction import Linear2, Prediction, to_eps, to_x0
from edgedistill.diffusion.schedule import Discrete, Schedule
from edgedistill.diffusion.sizes import check_sizes, resized, shape_at

__all__ = [
    "SAMPLERS",
    "SOLVERS",
    "SPACINGS",
    "Boundary",
    "Denoise",
    "Step",
    "StepTable",
    "TimeGrid",
    "ddim_step",
    "few_step_table",
    "one_step_x0",
    "solve",
    "solver_table",
    "student_times",
    "time_grid",
]

Boundary = Callable[[Tensor], tuple[Tensor, Tensor]]
"""t -> (c_skip, c_out): the consistency function is c_skip x_t + c_out x0."""


# --- Time grids ---------------------------------------------------------------------------------


def _trailing(n: int, steps: int) -> Tensor:
    return n - torch.arange(steps, dtype=torch.float64) * (n / steps)


def _leading(n: int, steps: int) -> Tensor:
    return torch.arange(steps, dtype=torch.float64).flip(0) * (n // steps) + 1


def _linspace(n: int, steps: int) -> Tensor:
    return torch.linspace(n - 1, 0, steps, dtype=torch.float64).round() + 1


SPACINGS: dict[str, Callable[[int, int], Tensor]] = {
    "trailing": _trailing,
    "leading": _leading,
    "linspace": _linspace,
}
"""Where N steps stand among n timesteps 1 .. n (Lin et al. 2023, arXiv 2305.08891, Table 2)."""


def time_grid(schedule: Schedule, steps: int, spacing: str = "trailing") -> Tensor:
    """Decreasing times (steps + 1,), float64, from the noisiest step to 0.

    Raises:
        ValueError: If `steps` is below 1 or `spacing` is not in `SPACINGS`.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}; choose from {', '.join(SPACINGS)}")
    if isinstance(schedule, Discrete):
        n = schedule.num_timesteps
        # Rounded before the division: halves must go to even, as diffusers' do.
        times = SPACINGS[spacing](n, steps).round() / n
    else:
        times = SPACINGS[spacing](1000, steps) / 1000
    return torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def student_times(schedule: Schedule, steps: int, spacing: str, sampler: str) -> Tensor:
    """`time_grid` of a few-step student.

    With `renoise` and trailing spacing, discrete times round up as in diffusers' LCMScheduler, so
    that it walks the student's steps for every number of them.
    """
    times = time_grid(schedule, steps, spacing)
    if sampler == "renoise" and spacing == "trailing" and isinstance(schedule, Discrete):
        n = schedule.num_timesteps
        times[:-1] = (n - torch.arange(steps) * n // steps).double() / n
    return times


@dataclass(frozen=True)
class TimeGrid:
    """Where a teacher's sampler calls its network, and where each of its steps lands.

    A step usually lands where the next one starts. diffusers' DDIM does not when its number of
    timesteps is no multiple of the number of steps, or with linspace spacing.

    Attributes:
        starts: Decreasing times of the calls, (steps,), float64.
        ends: Times of the landings, (steps,), float64; 0 is clean data.
        init_scale: Standard deviation of x at the first start.
        net_times: What the network reads at the starts, (steps,), where that is not the
            schedule's own time, as with timesteps that a scheduler rounds.
    """

    starts: Tensor
    ends: Tensor
    init_scale: float = 1.0
    net_times: Tensor | None = None

    @classmethod
    def of(cls, schedule: Schedule, times: Tensor) -> TimeGrid:
        """The grid of steps from each of `times` (steps + 1,) to the next."""
        return cls(times[:-1], times[1:], init_scale(schedule, times[0]))

    @property
    def times(self) -> Tensor:
        """The starts and the last end, (steps + 1,)."""
        return torch.cat([self.starts, self.ends[-1:]])


# --- Solvers of the probability-flow ODE --------------------------------------------------------


def ddim_step(schedule: Schedule, x_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """x_s = alpha_s x0 + sigma_s eps, with eps from (x_t, x0) (DDIM, Song et al. 2021, Eq. 12).

    Args:
        schedule: Gives alpha and sigma.
        x_t: Noisy data (N, ...).
        x0: Estimate of the clean data.
        t: Times of x_t, (N,) or a scalar, with sigma(t) > 0.
        s: Times to land on.
    """
    shape = (-1,) + (1,) * (x_t.ndim - 1)
    t, s = t.double().reshape(shape), s.double().reshape(shape)
    ratio = schedule.sigma(s) / schedule.sigma(t)
    keep = schedule.alpha(s) - ratio * schedule.alpha(t)
    return ratio.to(x_t) * x_t + keep.to(x_t) * x0


def one_step_x0(schedule: Schedule, x_t: Tensor, x_s: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The x0 with which one DDIM step from x_t at t lands on x_s at s < t, (N, ...)."""
    shape = (-1,) + (1,) * (x_t.ndim - 1)
    t, s = t.double().reshape(shape), s.double().reshape(shape)
    ratio = schedule.sigma(s) / schedule.sigma(t)
    keep = schedule.alpha(s) - ratio * schedule.alpha(t)
    return (x_s - ratio.to(x_t) * x_t) / keep.to(x_t)


def _ddim(denoise: Denoise, x: Tensor, times: Tensor, cond: Condition) -> Tensor:
    for t, s in pairwise(times):
        x = _ddim_call(denoise, x, t, s, cond)
    return x


def _ddim_call(
    denoise: Denoise,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    cond: Condition,
    net_time: Tensor | None = None,
) -> Tensor:
    """One call and its DDIM step, which keeps the network's eps beside an x0 that was bounded."""
    schedule, bound = denoise.schedule, denoise.bound
    if bound is None or not bound.keeps_eps:
        return ddim_step(schedule, x, denoise(x, t, cond, net_time), t, s)
    x0, eps = denoise.x0_and_eps(x, t, cond, net_time)
    return schedule.alpha(s).to(x) * x0 + schedule.sigma(s).to(x) * eps


MAX_HEUN_RATIO = 1e3
"""Above this sigma / alpha Heun's correction is rounding error; the first-order step is taken."""


def _heun(denoise: Denoise, x: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """Karras et al. 2022 (arXiv 2206.00364), Alg. 1, in x / alpha against sigma / alpha."""
    schedule = denoise.schedule
    for t, s in pairwise(times):
        alpha_t, sigma_t = schedule.alpha(t), schedule.sigma(t)
        alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
        x0 = denoise(x, t, cond)
        x_s = ddim_step(schedule, x, x0, t, s)
        if s > 0 and sigma_t < MAX_HEUN_RATIO * alpha_t:
            eps_t = (x - alpha_t.to(x) * x0) / sigma_t.to(x)
            eps_s = (x_s - alpha_s.to(x) * denoise(x_s, s, cond)) / sigma_s.to(x)
            slope = sigma_s - sigma_t * alpha_s / alpha_t
            x_s = x_s + (0.5 * slope).to(x) * (eps_s - eps_t)
        x = x_s
    return x


def _dpmpp_2m(denoise: Denoise, x: Tensor, times: Tensor, cond: Condition) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, Alg. 2); first order at both ends."""
    schedule = denoise.schedule
    previous: tuple[Tensor, float] | None = None
    for t, s in pairwise(times):
        x0 = denoise(x, t, cond)
        step = 0.5 * (schedule.log_snr(s) - schedule.log_snr(t)).item()
        estimate = x0
        if previous is not None and s > 0:
            last_x0, last_step = previous
            estimate = x0 + 0.5 * (step / last_step) * (x0 - last_x0)
        # alpha_s (1 - exp(-h)) and sigma_s / sigma_t are exactly the DDIM coefficients.
        x = ddim_step(schedule, x, estimate, t, s)
        previous = (x0, step)
    return x


SOLVERS: dict[str, Callable[[Denoise, Tensor, Tensor, Condition], Tensor]] = {
    "ddim": _ddim,
    # Euler in x / alpha against sigma / alpha is DDIM (Song et al. 2021, Eq. 14), and so is Euler
    # in t on a rectified flow.
    "euler": _ddim,
    "heun": _heun,
    "dpm++2m": _dpmpp_2m,
}


FIRST_ORDER = ("ddim", "euler")
"""Solvers whose steps need not start where the last one landed."""


@torch.no_grad()
def solve(
    denoise: Denoise,
    noise: Tensor,
    times: Tensor | TimeGrid,
    cond: Condition,
    solver: str = "ddim",
) -> Tensor:
    """Follow the teacher's ODE from standard normal noise to x0.

    Args:
        denoise: The teacher.
        noise: Standard normal, (N, ...).
        times: Decreasing times (steps + 1,) that end in 0, or a teacher's own grid, whose last
            step gives x0 itself where it lands on 0.
        cond: Condition of N rows.
        solver: A key of `SOLVERS`.

    Returns:
        x0 (N, ...).

    Raises:
        ValueError: If `solver` is not in `SOLVERS`.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; choose from {', '.join(SOLVERS)}")
    if isinstance(times, Tensor):
        x = noise * init_scale(denoise.schedule, times[0])
        return SOLVERS[solver](denoise, x, times.to(noise.device), cond)
    x, grid = noise * times.init_scale, times
    starts, ends = grid.starts.to(noise.device), grid.ends.to(noise.device)
    if solver not in FIRST_ORDER:
        return SOLVERS[solver](denoise, x, torch.cat([starts, ends[-1:]]), cond)
    told = [None] * len(starts) if grid.net_times is None else list(grid.net_times)
    for t, s, time in zip(starts, ends, told, strict=True):
        x = _ddim_call(denoise, x, t, s, cond, time) if s > 0 else denoise(x, t, cond, time)
    return x


def init_scale(schedule: Schedule, t: Tensor) -> float:
    """Standard deviation of x at the first step: sigma(t) without decay of the signal, else 1."""
    return max(1.0, schedule.sigma(t).item())


LARGEST = torch.finfo(torch.float32).max
"""Networks and devices run a step table in float32."""


# --- The step table -----------------------------------------------------------------------------


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
class StepTable:
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

    def at_one_size(self) -> StepTable:
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
    def from_json(cls, data: Mapping[str, Any]) -> StepTable:
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


def _renoise(x0: Linear2, eps: Linear2, alpha: Tensor, sigma: Tensor) -> list[Tensor]:
    """x_s = alpha_s x0 + sigma_s noise: consistency models, LCM, DMD2, Turbo."""
    return [alpha * x0.x, alpha * x0.y, sigma]


def _deterministic(x0: Linear2, eps: Linear2, alpha: Tensor, sigma: Tensor) -> list[Tensor]:
    """x_s = alpha_s x0 + sigma_s eps: DDIM, Euler, flow Euler."""
    zero = torch.zeros_like(sigma)
    if sigma == 0:
        return [alpha * x0.x, alpha * x0.y, zero]
    return [alpha * x0.x + sigma * eps.x, alpha * x0.y + sigma * eps.y, zero]


SAMPLERS: dict[str, Callable[[Linear2, Linear2, Tensor, Tensor], list[Tensor]]] = {
    "renoise": _renoise,
    "ddim": _deterministic,
}


def few_step_table(
    schedule: Schedule,
    prediction: Prediction,
    times: Tensor,
    sampler: str = "renoise",
    boundary: Boundary | None = None,
    sizes: Sequence[float] | None = None,
) -> StepTable:
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
    rows = []
    for (t, s), size in zip(pairwise(times), sizes or [1.0] * (len(times) - 1), strict=True):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = to_x0(prediction, alpha, sigma)
        if boundary is not None:
            skip, out = boundary(t)
            x0 = Linear2(skip + out * x0.x, out * x0.y)
        eps = to_eps(prediction, alpha, sigma)
        scale = schedule.input_scale(t)
        a, b, c = SAMPLERS[sampler](x0, eps, schedule.alpha(s), schedule.sigma(s) * (s > 0))
        numbers = [schedule.net_time(t), scale, a, b, c]
        rows.append(replace(Step(*(float(number) for number in numbers)), size=size))
    return StepTable(tuple(rows), init_scale(schedule, times[0]))


def solver_table(
    schedule: Schedule,
    prediction: Prediction,
    times: Tensor,
    moves: Tensor,
    told: Tensor | None = None,
) -> StepTable:
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
    return StepTable(tuple(rows), init_scale(schedule, times[0]))
