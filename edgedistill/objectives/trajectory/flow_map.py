"""Flow maps: from any time to any earlier one in a single step.

Boffi et al. 2025, "How to build a consistency model: learning flow maps via self-distillation"
(arXiv 2505.18825). Here the flow is the teacher's.

Any schedule is seen as a straight flow: y = x_t / (alpha + sigma) at tau = sigma / (alpha + sigma)
is (1 - tau) x0 + tau eps, moves at velocity v = eps - x0, and DDIM's step is Euler's. A student
for steps from t to s predicts the mean velocity u on the way, y_s = y_t - (tau_t - tau_s) u, and
each rule defines u by calls of teacher and student only:

- eulerian: u = v(y_t) - (tau_t - tau_s) du/dtau_t along the path (MeanFlow's identity, Geng et al.
  2025, arXiv 2505.13447, Eq. 6);
- lagrangian: u = v(y_s) + (tau_t - tau_s) du/dtau_s where the student's own step lands;
- progressive: two steps of half the way (shortcut models, Frans et al. 2024, arXiv 2410.12557,
  Eq. 4).

At s = t all three give u = v(y_t).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from edgedistill.common.settings import check_used, renamed
from edgedistill.diffusion.denoiser import Condition, Denoiser, Guided
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.schedules import Rectified
from edgedistill.diffusion.solvers import init_scale
from edgedistill.diffusion.tangents import DERIVATIVES, Derivative
from edgedistill.diffusion.tensors import expand_like
from edgedistill.diffusion.times import TimeSampling, sample_times
from edgedistill.networks.two_times import TwoTimes, steps_of
from edgedistill.objectives.base import Batch, Losses, Objective, Player, Settings, Setup

__all__ = ["UNUSED", "FlowMap", "MeanFlow", "slope_along"]

UNUSED = {"jvp": ("difference",)}
"""Settings that a derivative does not use."""

STRAIGHT = Rectified()
"""Schedule whose time is tau."""


def tau_of(schedule: Schedule, t: Tensor) -> Tensor:
    """Return sigma / (alpha + sigma), float64."""
    sigma = schedule.sigma(t.double())
    return sigma / (schedule.alpha(t.double()) + sigma)


def time_at(schedule: Schedule, tau: Tensor) -> Tensor:
    """Return the inverse of `tau_of`, clamped near the ends, where the noise ratio is finite."""
    tau = tau.double().clamp(1e-7, 1 - 1e-7)
    return schedule.time_of(2 * ((1 - tau) / tau).log())


class Path:
    """A denoiser in the coordinates of the straight flow.

    Args:
        denoiser: The teacher, or a student around a `TwoTimes`.
        cond: Condition of the rows.
    """

    def __init__(self, denoiser: Denoiser | Guided, cond: Condition) -> None:
        self.denoiser, self.schedule, self.cond = denoiser, denoiser.schedule, cond

    def __call__(self, y: Tensor, tau: Tensor, end: Tensor | None = None) -> Tensor:
        """Return the velocity at (y, tau), or with `end` the mean velocity from tau to `end`."""
        t = time_at(self.schedule, tau)
        cond = self.cond if end is None else {**self.cond, "s": time_at(self.schedule, end)}
        scale = self.schedule.alpha(t) + self.schedule.sigma(t)
        x0: Tensor = self.denoiser(over(scale, y) * y, t, cond)
        return (y - x0) / over(tau.clamp(min=1e-7), y)


def over(numbers: Tensor, like: Tensor) -> Tensor:
    """Reshape and cast numbers (N,) to multiply `like` (N, ...)."""
    return expand_like(numbers, like).to(like)


@dataclass(frozen=True)
class Legs:
    """Start points, times and velocities of the student's steps.

    Attributes:
        y: Start points (N, ...).
        tau: Time of y on the straight flow, (N,).
        end: Target time, (N,), at most tau.
        v: Velocity of the flow at (y, tau).
        ours: The student's mean velocity.
        theirs: Mean velocity for targets: the student's, or that of its average.
        flow: The teacher's velocity.
        derivative: A value of `tangents.DERIVATIVES`.
        step: Step of differences.
    """

    y: Tensor
    tau: Tensor
    end: Tensor
    v: Tensor
    ours: Path
    theirs: Path
    flow: Path
    derivative: Derivative
    step: Tensor

    @property
    def length(self) -> Tensor:
        return over(self.tau - self.end, self.y)


def slope_along(legs: Legs, velocity: Tensor) -> Tensor:
    """Return the student's du/dtau where y moves at `velocity` and the target time stays."""

    def mean(y: Tensor, tau: Tensor) -> Tensor:
        return legs.ours(y, tau, legs.end)

    one = torch.ones_like(legs.tau)
    return legs.derivative(mean, legs.y, legs.tau, velocity, one, legs.step)


def _eulerian(legs: Legs) -> Tensor:
    return legs.v - legs.length * slope_along(legs, legs.v)


def _lagrangian(legs: Legs) -> Tensor:
    def mean(y: Tensor, end: Tensor) -> Tensor:
        return legs.ours(y, legs.tau, end)

    y_s = legs.y - legs.length * mean(legs.y, legs.end)
    still, one = torch.zeros_like(legs.y), torch.ones_like(legs.end)
    slope = legs.derivative(mean, legs.y, legs.end, still, one, legs.step)
    return legs.flow(y_s, legs.end) + legs.length * slope


def _progressive(legs: Legs) -> Tensor:
    middle = (legs.tau + legs.end) / 2
    first = legs.theirs(legs.y, legs.tau, middle)
    y_s = legs.y - legs.length / 2 * first
    return (first + legs.theirs(y_s, middle, legs.end)) / 2


RULES: dict[str, Callable[[Legs], Tensor]] = {
    "eulerian": _eulerian,
    "lagrangian": _lagrangian,
    "progressive": _progressive,
}
"""Rules for the student's mean velocity on these steps."""


class FlowMap(Objective):
    """Trains the student's mean velocity to obey a rule, and to equal the flow's at s = t."""

    class Config(Settings):
        """Hyperparameters of flow maps."""

        old_keys = renamed(instant="instant_share")

        rule: Literal["eulerian", "lagrangian", "progressive"] = "lagrangian"
        velocity: Literal["teacher", "data"] = "teacher"
        """Velocity v: the teacher's, or eps - x0 of the data, whose mean is the teacher's."""
        instant_share: float = Field(0.25, ge=0, lt=1)
        """Share of the batch with s = t."""
        times: TimeSampling = TimeSampling()
        """Distribution of tau; the larger of two draws is the start of a step."""
        derivative: Literal["jvp", "difference"] = "jvp"
        """Derivative of the network: by forward differentiation, or by a central difference of two
        calls."""
        difference: float = Field(1e-2, gt=0, lt=1)
        """Step of the difference, as a share of the distance to the ends of the flow."""
        power: float = Field(0.0, ge=0)
        """Exponent p of the weight 1 / (e + c)^p, where e is the mean of the squared error
        (MeanFlow, Eq. 22, uses the sum)."""
        constant: float = Field(1e-3, gt=0)
        """Constant c of the weight."""

        @model_validator(mode="after")
        def _difference_is_used(self) -> FlowMap.Config:
            check_used(self, "derivative", UNUSED, "difference")
            return self

    name = "flow-map"

    def __init__(self, config: FlowMap.Config, setup: Setup) -> None:
        self.config, self.setup = config, setup
        self.teacher, self.student = setup.teacher, setup.student
        steps = steps_of(self.student, setup.times, to_end=setup.sampler == "renoise")
        device = setup.example[0].device
        self.student.net = TwoTimes(self.student.net, setup.time_layer, steps).to(device)
        self.target = self.student
        self.limit = float(tau_of(self.student.schedule, setup.times[0]))
        """Largest tau, since the network is not trained on more noise."""

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.setup.optim)]

    def finished(self, student: Denoiser) -> Denoiser:
        net = student.net
        assert isinstance(net, TwoTimes)
        x0, cond = self.setup.example
        return student.with_net(net.folded(x0, cond))

    def drawn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Draw start and end times of random steps on the straight flow, (N,) each."""
        first, second = (self.taus(batch) for _ in range(2))
        return torch.maximum(first, second), torch.minimum(first, second)

    def instant(self, count: int) -> Tensor:
        """Return which of `count` steps have length 0, (N,)."""
        return torch.arange(count) < self.config.instant_share * count

    def taus(self, batch: Batch) -> Tensor:
        """Draw random times on the straight flow, (N,)."""
        drawn = sample_times(self.config.times, STRAIGHT, len(batch.x0), batch.generator)
        return drawn.clamp(max=self.limit)

    def noise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return noise (N, ...) at the start of the straight flow, and its time, (N,)."""
        schedule, first = self.student.schedule, self.setup.times[0]
        scale = schedule.alpha(first.double()) + schedule.sigma(first.double())
        z = init_scale(schedule, first) / scale.to(batch.x0) * batch.noise()
        return z, torch.full((len(z),), self.limit, dtype=torch.float64, device=z.device)

    @torch.no_grad()
    def legs(self, batch: Batch) -> Legs:
        """Draw random steps of the flow."""
        config, device = self.config, batch.x0.device
        tau, end = self.drawn(batch)
        end = torch.where(self.instant(len(tau)), tau, end).to(device)
        tau = tau.to(device)
        eps = batch.noise()
        y = over(1 - tau, eps) * batch.x0 + over(tau, eps) * eps
        flow = Path(self.teacher, batch.cond)
        v = eps - batch.x0 if config.velocity == "data" else flow(y, tau)
        # The differences stay inside the flow's ends.
        place = end if config.rule == "lagrangian" else tau
        step = config.difference * torch.minimum(place, 1 - place).clamp(min=1e-3)
        derivative = DERIVATIVES[config.derivative]
        ours, theirs = (Path(net, batch.cond) for net in (self.student, self.target))
        return Legs(y, tau, end, v, ours, theirs, flow, derivative, step)

    def wanted(self, legs: Legs, batch: Batch) -> Tensor:
        """Return the mean velocity that the rule asks of the student on these steps."""
        return RULES[self.config.rule](legs)

    def weight(self, error: Tensor, legs: Legs, batch: Batch) -> Tensor:
        """Return the weights of the steps' mean squared errors, (N,) each."""
        return (error + self.config.constant) ** -self.config.power

    def loss(self, player: str, batch: Batch) -> Losses:
        legs = self.legs(batch)
        with torch.no_grad():
            target = self.wanted(legs, batch)
            target = torch.where(legs.length > 0, target, legs.v)
        error = (legs.ours(legs.y, legs.tau, legs.end) - target).square().flatten(1).mean(1)
        weight = self.weight(error.detach(), legs, batch)
        return Losses((weight * error).mean(), {"error": error.detach().mean()})


class MeanFlow(FlowMap):
    """MeanFlow (Geng et al. 2025, arXiv 2505.13447): the Eulerian rule, velocities of the data."""

    class Config(FlowMap.Config):
        """Hyperparameters (the paper's for ImageNet, Sec. 5.1 and Table 4)."""

        rule: Literal["eulerian", "lagrangian", "progressive"] = "eulerian"
        velocity: Literal["teacher", "data"] = "data"
        instant_share: float = Field(0.75, ge=0, lt=1)
        times: TimeSampling = TimeSampling(kind="logit-normal", mean=-0.4, std=1.0)
        power: float = Field(1.0, ge=0)

    name = "meanflow"
