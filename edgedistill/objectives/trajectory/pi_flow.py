"""The student predicts a policy: velocities along its whole step, integrated in closed form.

Chen et al. 2025, "pi-Flow: Policy-Based Few-Step Generation via Imitation Distillation" (arXiv
2510.14974). From (x_t, t) the network predicts the velocity on the whole way to the next step's
time, and the teacher is imitated along the policy's own path (Alg. 1): at the point that the fixed
policy reaches at a random time of the step, its velocity must be the teacher's. The batch's data
is not used; steps start on the student's own path.

The policy here is the paper's DX: x0 at equal points of the step's time, linear in between, where
time is tau below, of which its teachers' is a shifted form. The paper also starts from states of
the teacher's path (`teacher_ratio` of its code), which is left out. The policy lands on

    y_s = (tau_s / tau_t) y_t + (1 - tau_s / tau_t) sum_k w_k x0_k,  y = x / (alpha + sigma),

tau = sigma / (alpha + sigma), with weights w_k that depend on the two times alone: DDIM's step
with the mean of the x0_k. So the network's own output is that mean, and further heads give the
deviation of each x0_k from it. A finished student does not need these heads: it has exactly the
teacher's architecture and DDIM's step table. (The paper's other policy, a Gaussian mixture, is not
linear in the network's output and gives no such student.)
"""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from edgedistill.diffusion.denoiser import Denoiser
from edgedistill.diffusion.solvers import ddim_step, init_scale
from edgedistill.diffusion.times import stratified
from edgedistill.networks.extra_heads import Headed
from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Player,
    Settings,
    Setup,
    check_deterministic,
)
from edgedistill.objectives.trajectory.flow_map import Path, over, tau_of

__all__ = ["Imitation", "PiFlow", "Policy", "PolicyConfig"]

MARGIN = 1e-2
"""Smallest tau at which a policy is compared, since x0 has no velocity at 0."""


class Policy(Protocol):
    """Interface of a policy: velocities from (y_t, tau_t) on, with tau decreasing."""

    def at(self, tau: Tensor) -> Tensor:
        """Return the point of the policy's path at tau (N,): (N, ...)."""

    def velocity(self, y: Tensor, tau: Tensor) -> Tensor:
        """Return the velocity at (y, tau), (N, ...)."""


def hats(nodes: Tensor, tau: Tensor) -> Tensor:
    """Return linear interpolation weights (N, K) at tau (N,) for increasing nodes (K,)."""
    left = (torch.searchsorted(nodes, tau, right=True) - 1).clamp(0, len(nodes) - 2)
    share = ((tau - nodes[left]) / (nodes[left + 1] - nodes[left])).clamp(0, 1)
    rows, weights = torch.arange(len(tau)), tau.new_zeros(len(tau), len(nodes))
    weights[rows, left], weights[rows, left + 1] = 1 - share, share
    return weights


def hat_integrals(nodes: Tensor, tau: Tensor) -> Tensor:
    """Return tau times the integral of each of `hats` / u^2 from tau to the last node, (N, K)."""
    low, high = nodes[:-1], nodes[1:]
    begin = torch.minimum(torch.maximum(low, tau.reshape(-1, 1)), high)
    once, twice = (high / begin).log(), 1 / begin - 1 / high
    width = high - low
    weights = tau.new_zeros(len(tau), len(nodes))
    weights[:, :-1] += (high * twice - once) / width
    weights[:, 1:] += (once - low * twice) / width
    return tau.reshape(-1, 1) * weights


class Lines:
    """The DX policy: x0 is piecewise linear in time.

    Args:
        x0: Output of the network, the mean over the points, (N, ...).
        leaves: Deviation of each point from the mean, up to a common offset, (K, N, ...).
        y: Start point of the step.
        tau: Start time, the same for all rows; times are float64 on the CPU.
        end: End time.
    """

    def __init__(self, x0: Tensor, leaves: Tensor, y: Tensor, tau: Tensor, end: Tensor) -> None:
        self.y, self.tau = y, tau
        begin = end.clamp(min=MARGIN)
        fractions = torch.linspace(0, 1, len(leaves), dtype=torch.float64)
        self.nodes = torch.lerp(begin, tau, fractions)
        # Below the first point, the rest of the step uses this point alone.
        share = end / begin
        weights = share * hat_integrals(self.nodes, begin.reshape(1))[0]
        weights[0] += 1 - share
        weights = (weights / (1 - end / tau)).to(y)
        self.points = x0 + leaves - torch.einsum("k,k...->...", weights, leaves)

    def at(self, tau: Tensor) -> Tensor:
        weights = hat_integrals(self.nodes, tau).to(self.y)
        moved = torch.einsum("nk,kn...->n...", weights, self.points)
        return over(tau / self.tau, self.y) * self.y + moved

    def velocity(self, y: Tensor, tau: Tensor) -> Tensor:
        weights = hats(self.nodes, tau).to(y)
        return (y - torch.einsum("nk,kn...->n...", weights, self.points)) / over(tau, y)


class PolicyConfig(Settings):
    """Hyperparameters of imitation."""

    compare: Literal["velocity", "x0"] = "velocity"
    """Error that is squared: the velocity's (the paper's loss), or tau times it, the error of x0.
    A velocity's error is 1 / tau times that of x0. In one step, where tau runs from 1 to near 0,
    nine tenths of the velocities' loss come from tau below 0.1, where the teacher only pulls to
    the nearest data."""
    states: int = Field(2, ge=1, le=1_024)
    """Number of times on the policy's path at which a batch is compared with the teacher (ArcFlow
    uses 4)."""


class Imitation(Objective):
    """Trains a policy whose velocity along its own path is the teacher's."""

    def __init__(self, config: PolicyConfig, setup: Setup, heads: int) -> None:
        check_deterministic(self.name, setup)
        self.states, self.compare, self.setup = config.states, config.compare, setup
        self.teacher, self.student = setup.teacher, setup.student
        (x0, cond), schedule = setup.example, self.student.schedule
        time = schedule.net_time(setup.times[:1].double()).to(x0).expand(len(x0))
        self.headed = Headed(self.student.net, heads, x0, time, cond).to(x0.device)
        self.student.net = self.headed

    @abstractmethod
    def policy(self, x0: Tensor, extra: Tensor, y: Tensor, tau: Tensor, end: Tensor) -> Policy:
        """Return the policy of a step.

        Args:
            x0: Output of the network, with which the DDIM step lands where the policy must, (N,
                ...).
            extra: Outputs of the heads, (heads, N, ...).
            y: Start of the step on the straight flow.
            tau: Start time, a scalar.
            end: End time.
        """

    def players(self) -> list[Player]:
        return [Player("student", self.student, self.setup.optim)]

    def finished(self, student: Denoiser) -> Denoiser:
        assert isinstance(student.net, Headed)
        return student.with_net(student.net.net)

    @torch.no_grad()
    def begin(self, index: int, batch: Batch) -> Tensor:
        """Return the student's own x_t at times[index]."""
        schedule, times = self.student.schedule, self.setup.times
        x_t = batch.noise() * init_scale(schedule, times[0])
        for t, s in pairwise(times[: index + 1]):
            x_t = ddim_step(schedule, x_t, self.student(x_t, t, batch.cond), t, s)
        return x_t

    def loss(self, player: str, batch: Batch) -> Losses:
        schedule = self.student.schedule
        index = int(torch.randint(len(self.setup.times) - 1, (), generator=batch.shared))
        t, s = self.setup.times[index : index + 2]
        x_t = self.begin(index, batch)
        x0 = self.student(x_t, t, batch.cond)
        tau, end = tau_of(schedule, t), tau_of(schedule, s) * (s > 0)
        y = x_t / (schedule.alpha(t) + schedule.sigma(t)).to(x_t)
        policy = self.policy(x0, self.headed.take(), y, tau, end)
        flow, errors = Path(self.teacher, batch.cond), []
        for _ in range(self.states):
            low = max(float(end), MARGIN)
            when = stratified(len(x_t), batch.generator, low, float(tau))
            with torch.no_grad():
                state = policy.at(when)
                wanted = flow(state, when)
            error = policy.velocity(state, when) - wanted
            errors.append(over(when, error) * error if self.compare == "x0" else error)
        loss = torch.stack(errors).square().mean()
        return Losses(loss, {self.compare: loss.detach()})


class PiFlow(Imitation):
    """Trains a student by the DX policy."""

    class Config(PolicyConfig):
        """Hyperparameters of the DX policy."""

        points: int = Field(10, ge=2, le=1_024)
        """Number of points of x0 on a step (the paper's N)."""

    name = "pi-flow"

    def __init__(self, config: PiFlow.Config, setup: Setup) -> None:
        super().__init__(config, setup, config.points)

    def policy(self, x0: Tensor, extra: Tensor, y: Tensor, tau: Tensor, end: Tensor) -> Lines:
        return Lines(x0, extra, y, tau, end)
