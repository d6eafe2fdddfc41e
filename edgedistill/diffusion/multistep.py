"""Linear multistep solvers as step tables: DPM-Solver++(2M), UniPC, DEIS, Adams-Bashforth.

A solver keeps an estimate d of each step: x0, eps or the flow eps - x0. Its steps are

    x_{i+1} = p x_i + q_0 d_i + q_1 d_{i-1} + q_2 d_{i-2} + ...

d_i = u_i x_i + v_i f_i is linear in what row i starts from and its network's output, with
coefficients of row i's own time, so

    x_{i+1} = (p + q_0 u_i) x_i + q_0 v_i f_i + sum_j (q_j u_{i-j} x_{i-j} + q_j v_{i-j} f_{i-j})

is a row of a step table, exact for every prediction. The term in x_{i-j} vanishes only if the
network's output is d itself. It cannot be had from x_i instead: x_i = p x_{i-1} + q_0 d_{i-1} +
q_1 d_{i-2} also holds the estimate before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgedistill.common.plugins import unknown
from edgedistill.diffusion.few_step import SIGNAL
from edgedistill.diffusion.prediction import Linear2, Prediction, to_eps, to_x0
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import TimeGrid, init_scale
from edgedistill.diffusion.step_table import Step, TorchStepTable

__all__ = [
    "MULTISTEP",
    "Multistep",
    "estimate",
    "find_multistep",
    "multistep_table",
    "solver_table",
    "step_of",
]

Weights = Callable[[Schedule, Tensor, int], tuple[Tensor, list[Tensor]]]
"""Function (schedule, times (steps + 1,), index i of the step) -> (p, [q_0, q_1, ...])."""


@dataclass(frozen=True)
class Multistep:
    """A linear multistep solver.

    Attributes:
        keeps: The estimate that it keeps, as the prediction of that name.
        weights: Coefficients of its steps.
    """

    keeps: Prediction
    weights: Weights


# --- Coefficients -------------------------------------------------------------------------------


def estimate(network: Prediction, wanted: Prediction, alpha: Tensor, sigma: Tensor) -> Linear2:
    """Return the coefficients of the estimate `wanted` in (x_t, the network's output)."""
    if network is wanted:
        return Linear2(torch.zeros_like(alpha), torch.ones_like(alpha))
    x0, eps = to_x0(network, alpha, sigma), to_eps(network, alpha, sigma)
    return Linear2(
        wanted.combine(x0.x, eps.x, alpha, sigma), wanted.combine(x0.y, eps.y, alpha, sigma)
    )


def step_of(schedule: Schedule, keeps: Prediction, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Return (p, q) of DDIM's step x_s = p x_t + q d for an estimate d of any kind."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, eps = to_x0(keeps, alpha, sigma), to_eps(keeps, alpha, sigma)
    alpha, sigma = schedule.alpha(s), schedule.sigma(s) * (s > 0)
    if keeps is Prediction.X0:  # finite at alpha = 0, and exact at s = 0
        return sigma * eps.x, alpha + sigma * eps.y
    return alpha * x0.x + sigma * eps.x, alpha * x0.y + sigma * eps.y


def _half_log_snr(schedule: Schedule, t: Tensor) -> Tensor:
    return schedule.log_snr(t) / 2


def _lengths(schedule: Schedule, times: Tensor, index: int) -> Tensor:
    """Return the lengths of the steps before `index` and `index` in log(alpha / sigma), (2,)."""
    return _half_log_snr(schedule, times[index - 1 : index + 2]).diff()


def _ends(times: Tensor, index: int) -> bool:
    """Whether the step is the first or the last one, which take the first order."""
    return index in (0, len(times) - 2)


def _ddim(schedule: Schedule, times: Tensor, index: int) -> tuple[Tensor, list[Tensor]]:
    p, q = step_of(schedule, Prediction.X0, times[index], times[index + 1])
    return p, [q]


def _dpmpp_2m(schedule: Schedule, times: Tensor, index: int) -> tuple[Tensor, list[Tensor]]:
    """Return DPM-Solver++(2M)'s coefficients (Lu et al. 2022, arXiv 2211.01095, Alg. 2)."""
    p, (q,) = _ddim(schedule, times, index)
    if _ends(times, index):
        return p, [q]
    before, now = _lengths(schedule, times, index)
    share = 0.5 * now / before
    return p, [q * (1 + share), -q * share]


def _unipc(schedule: Schedule, times: Tensor, index: int) -> tuple[Tensor, list[Tensor]]:
    """Return UniPC's coefficients, of order 2 with B(h) = e^h - 1, in x0.

    Zhao et al. 2023 (arXiv 2302.04867). Its predictor UniP-2 is DPM-Solver++(2M). Its corrector
    UniC moves x_i once the estimate there is known, without a call of its own, so that the next
    step starts from

        x_i + q (c_0 d_i + c_1 d_{i-1} + c_2 d_{i-2}),

    q being that of the step before; both become one step here.
    """
    p, weights = _dpmpp_2m(schedule, times, index)
    if index == 0:
        return p, weights
    _, (q,) = _ddim(schedule, times, index - 1)
    moved = [p * q * c for c in _corrector(schedule, times, index - 1)]
    missing = [torch.zeros_like(p)] * (len(moved) - len(weights))
    return p, [old + new for old, new in zip([*weights, *missing], moved, strict=True)]


def _corrector(schedule: Schedule, times: Tensor, index: int) -> list[Tensor]:
    """Return c_0, c_1 and, at the second order, c_2 of UniC on the end of a step."""
    half = torch.full_like(times[0], 0.5)
    if index == 0:
        return [half, -half]
    before, h = _lengths(schedule, times, index)
    ratio = -before / h
    # The first two phi functions at -h, over B(h) = e^-h - 1.
    first = 1 / -h - 1 / torch.expm1(-h)
    second = 2 * (first / -h - 0.5 / torch.expm1(-h))
    older = (first - second) / (1 - ratio)
    own, older = first - older, (older - 0.5) / ratio
    return [own, -own - older, older]


def _deis(schedule: Schedule, times: Tensor, index: int) -> tuple[Tensor, list[Tensor]]:
    """Return DEIS's coefficients, of order 2 in log rho, in eps.

    Zhang & Chen 2022 (arXiv 2204.13902): eps is interpolated in log(sigma / alpha).
    """
    t, s = times[index], times[index + 1]
    p, q = step_of(schedule, Prediction.EPS, t, s)
    if index == 0 or s == 0 or (_ends(times, index) and len(times) <= 15):
        return p, [q]
    log_before, log_t, log_s = (-_half_log_snr(schedule, times[index - 1 : index + 2])).unbind()

    def integral(one: Tensor, zero: Tensor) -> Tensor:
        """Integrate the weight that is 1 and 0 at these logarithms, from rho_t to rho_s."""
        ends = [log.exp() * (log - 1 - zero) for log in (log_t, log_s)]
        return (ends[1] - ends[0]) / (one - zero)

    alpha = schedule.alpha(s)
    return p, [alpha * integral(log_t, log_before), alpha * integral(log_before, log_t)]


def _ab2(schedule: Schedule, times: Tensor, index: int) -> tuple[Tensor, list[Tensor]]:
    """Return the coefficients of Adams and Bashforth's method of order 2, in eps - x0.

    With y = x / (alpha + sigma) and tau = sigma / (alpha + sigma), every schedule's equation is a
    rectified flow's, dy = (eps - x0) dtau, which is regular at both ends.
    """
    p, q = step_of(schedule, Prediction.FLOW, times[index], times[index + 1])
    if index == 0:
        return p, [q]
    sigma, alpha = schedule.sigma(times) * (times > 0), schedule.alpha(times)
    before, now = (sigma / (alpha + sigma))[index - 1 : index + 2].diff()
    share = 0.5 * now / before
    return p, [q * (1 + share), -q * share]


MULTISTEP = {
    "ddim": Multistep(Prediction.X0, _ddim),
    "dpm++2m": Multistep(Prediction.X0, _dpmpp_2m),
    "unipc": Multistep(Prediction.X0, _unipc),
    "deis": Multistep(Prediction.EPS, _deis),
    "ab2": Multistep(Prediction.FLOW, _ab2),
}
"""Solvers by name."""


def find_multistep(name: str) -> Multistep:
    """Return the solver called `name`; ValueError names the nearest and all."""
    if name not in MULTISTEP:
        raise unknown("solver", name, MULTISTEP)
    return MULTISTEP[name]


# --- Tables -------------------------------------------------------------------------------------


def multistep_table(
    schedule: Schedule, prediction: Prediction, times: Tensor | TimeGrid, solver: str
) -> TorchStepTable:
    """Make the table of a network that a multistep solver samples.

    Args:
        schedule: Schedule of the network.
        prediction: Prediction of the network.
        times: Times (steps + 1,), decreasing to 0, or a grid whose steps end where the next begin.
        solver: A key of `MULTISTEP`.

    Raises:
        ValueError: If the solver is unknown, or has no finite coefficients from pure noise.
    """
    found = find_multistep(solver)
    grid = times if isinstance(times, TimeGrid) else TimeGrid.of(schedule, times)
    stops = grid.times.double().cpu()
    if Prediction.EPS in (found.keeps, prediction) and schedule.alpha(stops[0]) < SIGNAL:
        raise ValueError(
            f"{solver}: no x0 follows from noise that is predicted where there is no signal (zero "
            "terminal SNR); choose ab2 with another prediction, or times that begin below"
        )
    steps = [found.weights(schedule, stops, index) for index in range(len(stops) - 1)]
    order = max(len(weights) for _, weights in steps)
    moves = torch.zeros(len(steps), order, 2, dtype=torch.float64)
    for index, (p, weights) in enumerate(steps):
        moves[index, 0, 0] = p
        moves[index, : len(weights), 1] = torch.stack(weights)
    return solver_table(schedule, prediction, stops, moves, keeps=found.keeps, start=grid)


def solver_table(
    schedule: Schedule,
    prediction: Prediction,
    times: Tensor,
    moves: Tensor,
    told: Tensor | None = None,
    *,
    keeps: Prediction = Prediction.X0,
    start: TimeGrid | None = None,
) -> TorchStepTable:
    """Make the table of a deterministic solver with its own coefficients.

    Its steps are x_{i+1} = sum_j (p_ij x_{i-j} + q_ij d_{i-j}), j = 0, 1, ...; with the one pair
    (p, q) = (sigma_s / sigma_t, alpha_s - p alpha_t) this is DDIM's table.

    Args:
        schedule: Schedule of the network.
        prediction: Prediction of the network.
        times: Times (steps + 1,), decreasing.
        moves: Pairs (p, q) of each step, (steps, order, 2); (steps, 2) for order 1.
        told: Times that the network reads instead, (steps,).
        keeps: The estimate d.
        start: Scale of the first x, and the network's own times, if not the schedule's.
    """
    times, moves = times.double().cpu(), moves.double().cpu().reshape(len(moves), -1, 2)
    told = times[:-1] if told is None else told.double().cpu()
    levels = zip(schedule.alpha(times[:-1]), schedule.sigma(times[:-1]), strict=True)
    seen = [estimate(prediction, keeps, alpha, sigma) for alpha, sigma in levels]
    net_times = schedule.net_time(told)
    if start is not None and start.net_times is not None:
        net_times = start.net_times
    rows = []
    for index, (time, net_time, pairs) in enumerate(zip(told, net_times, moves, strict=True)):
        past = seen[: index + 1][::-1]
        (a, b), *older = (
            (float(p + q * d.x), float(q * d.y)) for (p, q), d in zip(pairs, past, strict=False)
        )
        while older and older[-1] == (0, 0):
            older.pop()
        scale = float(schedule.input_scale(time))
        rows.append(Step(float(net_time), scale, a, b, 0.0, past=tuple(older)))
    first = start.init_scale if start else init_scale(schedule, times[0])
    return TorchStepTable(tuple(rows), first)
