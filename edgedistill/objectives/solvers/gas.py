"""A solver whose times and coefficients are learned; no network is trained.

Oganov et al. 2025, "GAS: Improving Discretization of Diffusion ODEs via Generalized Adversarial
Solver" (arXiv 2510.17699). A step of order k is

    x_{i+1} = sum_{j < k} (p_j + a_j) x_{i-j} + (q_j + c_j) x0_{i-j},  x0_i = x0(x_i, t_i + xi_i)

with a, c and xi of each step added to a known solver's p and q: DPM-Solver++(2M)'s, or DDIM's at
order 1. The times come from a stick-breaking transform (its Eq. 14, from the other end), and at
first are the student's own. The end of all steps is compared with the end of the teacher's path,
and optionally adversarially, on features of the teacher's network. The steps are rows of a step
table, which keep what earlier rows started from and gave. No diffusers scheduler has such
coefficients.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.common.settings import renamed
from edgedistill.diffusion.denoiser import Condition, Denoiser
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.losses import gan_relative
from edgedistill.diffusion.multistep import MULTISTEP, solver_table
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.diffusion.times import TimeSampling, sample_times
from edgedistill.networks.heads import Tap, head_for
from edgedistill.objectives.base import (
    Batch,
    Losses,
    Objective,
    Optim,
    Player,
    Settings,
    Setup,
    check_deterministic,
)

__all__ = ["GAS", "Solver"]


class Solver(nn.Module):
    """A frozen network net(x, time, **cond) with trainable sampling steps.

    Args:
        net: Network of the teacher.
        times: Initial times (steps + 1,), decreasing to 0.
        order: Number of steps, with the present one, that a step uses.
    """

    first: Tensor

    def __init__(self, net: nn.Module, times: Tensor, order: int = 2) -> None:
        super().__init__()
        self.net = net.requires_grad_(False)
        times, steps = times.double(), len(times) - 1
        self.register_buffer("first", times[0].clone())
        self.logits = nn.Parameter((times[1:-1] / times[:-2]).logit())
        """Logits of each next time's share of the one before."""
        self.shifts = nn.Parameter(torch.zeros(steps, dtype=torch.float64))
        self.added = nn.Parameter(torch.zeros(steps, order, 2, dtype=torch.float64))
        self.base = MULTISTEP["ddim" if order == 1 else "dpm++2m"]

    def forward(self, x: Tensor, time: Tensor, **cond: Tensor) -> Any:
        return self.net(x, time, **cond)

    def times(self) -> Tensor:
        """Return the times (steps + 1,), decreasing to 0, float64."""
        # The first time has no gradient, which would not be finite where there is no signal.
        first, shares = self.first.reshape(1), self.logits.sigmoid().cumprod(0)
        return torch.cat([first, first * shares, torch.zeros_like(first)])

    def net_times(self) -> Tensor:
        """Return the times that the network reads, (steps,)."""
        return (self.times()[:-1] + self.shifts).clamp(1e-6, 1)

    def moves(self, denoiser: Denoiser) -> Tensor:
        """Return the pairs for `multistep.solver_table`, (steps, order, 2)."""
        times, zero = self.times(), torch.zeros_like(self.first)
        steps, order, _ = self.added.shape
        moves = []
        for index in range(steps):
            p, weights = self.base.weights(denoiser.schedule, times, index)
            numbers = [p, weights[0], *(n for q in weights[1:] for n in (zero, q))]
            moves.append(torch.stack(numbers + [zero] * (2 * order - len(numbers))))
        return torch.stack(moves).reshape(steps, order, 2) + self.added


def walk(denoiser: Denoiser, x: Tensor, cond: Condition) -> Tensor:
    """Return the end of the steps of a denoiser's `Solver` from x, (N, ...), with gradient."""
    solver = denoiser.net
    assert isinstance(solver, Solver)
    kept: list[tuple[Tensor, Tensor]] = []
    for t, net_time, pairs in zip(
        solver.times()[:-1], solver.net_times(), solver.moves(denoiser), strict=True
    ):
        kept.insert(0, (x, denoiser.x0_of(denoiser.output(x, net_time, cond), x, t)))
        terms = [
            p * start + q * x0
            for (p, q), (start, x0) in zip(pairs.to(x), kept[: len(pairs)], strict=False)
        ]
        x = torch.stack(terms).sum(0)
    return x


class GAS(Objective):
    """Trains the solver to end where the teacher does, and to look like it."""

    class Config(Settings):
        """Hyperparameters of the solver."""

        old_keys = renamed(adversarial="adversarial_weight", level="times.high")

        order: int = Field(2, ge=1, le=4)
        """Number of steps, with the present one, whose x and x0 a step uses."""
        distance: Distance = Distance()
        """Distance of the two ends (the paper's LPIPS for pictures, l1 or l2 for latents)."""
        adversarial_weight: float = Field(0.0, ge=0)
        """Weight of the adversarial term; 0 is the paper's GS."""
        discriminator: Optim = Optim(lr=1e-3, betas=(0.0, 0.99))
        times: TimeSampling = TimeSampling(high=0.1)
        """Distribution of the times to which ends are noised for the discriminator. Keys of it
        that are not given are those of the default."""

    name = "gas"
    needs_paths = True
    own_coefficients = True

    def __init__(self, config: GAS.Config, setup: Setup) -> None:
        check_deterministic(self.name, setup)
        self.config, self.optim, self.student = config, setup.optim, setup.student
        self.student.net = Solver(self.student.net, setup.times, config.order)
        self.student.net.to(setup.example[0].device)
        self.kept = self.student.net
        if config.adversarial_weight:
            self.feature_net = setup.spawn().requires_grad_(False)
            self.tap = Tap(self.feature_net.net, setup.tap)
            x0, cond = setup.example
            self.feature_net.output(x0, torch.tensor(config.times.high), cond)
            self.head = head_for(self.tap.take()).to(x0.device)

    def players(self) -> list[Player]:
        players = [Player("student", self.student, self.optim)]
        if self.config.adversarial_weight:
            players.append(Player("discriminator", self.head, self.config.discriminator))
        return players

    def finished(self, student: Denoiser) -> Denoiser:
        assert isinstance(student.net, Solver)
        self.kept = student.net
        return student.with_net(student.net.net)

    def table(self) -> TorchStepTable:
        student, solver = self.student, self.kept
        with torch.no_grad():
            times, moves, net_times = solver.times(), solver.moves(student), solver.net_times()
        return solver_table(student.schedule, student.prediction, times, moves, net_times)

    def loss(self, player: str, batch: Batch) -> Losses:
        return {"student": self._student, "discriminator": self._discriminator}[player](batch)

    def _logits(self, x0: Tensor, batch: Batch) -> Tensor:
        schedule = self.feature_net.schedule
        t = sample_times(self.config.times, schedule, len(x0), batch.generator)
        t = schedule.snap(t).to(x0.device)
        self.feature_net.output(self.feature_net.noised(x0, t, batch.noise()), t, batch.cond)
        logits: Tensor = self.head(self.tap.take())
        return logits

    def _student(self, batch: Batch) -> Losses:
        assert batch.path is not None
        real, config = batch.path[:, -1], self.config
        ours = walk(self.student, batch.path[:, 0], batch.cond)
        loss = distance(config.distance, ours, real).mean()
        logs = {"end": loss.detach()}
        if config.adversarial_weight:
            term = gan_relative(self._logits(ours, batch), self._logits(real, batch))
            loss, logs["gan"] = loss + config.adversarial_weight * term, term.detach()
        return Losses(loss, logs)

    def _discriminator(self, batch: Batch) -> Losses:
        assert batch.path is not None
        with torch.no_grad():
            ours = walk(self.student, batch.path[:, 0], batch.cond)
        loss = gan_relative(self._logits(batch.path[:, -1], batch), self._logits(ours, batch))
        return Losses(loss, {"gan": loss.detach()})
