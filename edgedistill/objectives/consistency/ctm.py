"""Consistency trajectory models: maps from any time to any earlier one.

Kim et al. 2023, "Consistency Trajectory Models" (arXiv 2310.02279).

The student G(x_t, t, s) is the DDIM step from t to s with the x0 of a network g conditioned on s
(its Eq. 5, for any schedule). At s = t it is x_t itself, and g is trained to be the denoiser
there.
"""

from __future__ import annotations

import copy

import torch
from pydantic import Field
from torch import Tensor, nn

from edgedistill.common.settings import renamed
from edgedistill.diffusion.boundary import flow_map
from edgedistill.diffusion.denoiser import Condition, Denoiser
from edgedistill.diffusion.distances import Distance, distance
from edgedistill.diffusion.losses import gan_discriminator, gan_generator
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.solvers import ddim_step, time_grid
from edgedistill.diffusion.times import TimeSampling, sample_times, with_edges
from edgedistill.networks.ema import follow
from edgedistill.networks.heads import Tap, head_for
from edgedistill.networks.two_times import TwoTimes, steps_of
from edgedistill.objectives.base import Batch, Losses, Objective, Optim, Player, Settings, Setup

__all__ = ["CTM", "balance"]

CLEAN = 0.02
"""Time at which the discriminator's features are taken: nearly clean, as in its network's
training."""


class CTM(Objective):
    """Trains G_ema(G(x_t, t, s), s, 0) = G_ema(G_ema(x_u, u, s), s, 0).

    The teacher's path leads from x_t to x_u.
    """

    class Config(Settings):
        """Hyperparameters (the paper's for CIFAR-10, but DDIM for Heun's steps, l2 for LPIPS)."""

        old_keys = renamed(denoising="denoising_weight", adversarial="adversarial_weight")

        intervals: int = Field(18, ge=2, le=10_000)
        """Number of teacher steps that the time axis is divided into; t, u and s are edges."""
        solver_steps: int = Field(17, ge=1, le=10_000)
        """Largest number of them between t and u; the number is drawn for each batch."""
        ema: float = Field(0.999, ge=0, lt=1)
        """Decay of the target network."""
        distance: Distance = Distance()
        denoising_weight: float = Field(1.0, ge=0)
        """Weight of denoising score matching, after scaling its gradient to the length of
        consistency's."""
        denoising_times: TimeSampling = TimeSampling(kind="log-normal", mean=-1.2, std=1.2)
        """Times of denoising score matching, by default EDM's."""
        sigma_data: float = Field(0.5, gt=0)
        """Standard deviation of the data, for EDM's weight."""
        adversarial_weight: float = Field(0.0, ge=0)
        """Weight of the GAN term, balanced in the same way; 1 is the paper's, 0 builds no head."""
        adversarial_start: int = Field(50_000, ge=0)
        """First step with the GAN term."""
        discriminator: Optim = Optim(lr=2e-3)

    name = "ctm"

    def __init__(self, config: CTM.Config, setup: Setup) -> None:
        self.config, self.setup = config, setup
        self.teacher, self.student = setup.teacher, setup.student
        schedule, device = self.student.schedule, setup.example[0].device
        steps = steps_of(self.student, setup.times, to_end=setup.sampler == "renoise")
        self.student.net = TwoTimes(self.student.net, setup.time_layer, steps).to(device)
        self.target = copy.deepcopy(self.student).requires_grad_(False)
        self.grid = with_edges(time_grid(schedule, config.intervals), setup.times)
        self.discriminator: CtmDiscriminator | None = (
            CtmDiscriminator(setup) if config.adversarial_weight else None
        )

    def players(self) -> list[Player]:
        student = Player("student", self.student, self.setup.optim)
        if self.discriminator is None:
            return [student]
        start = self.config.adversarial_start
        head = self.discriminator.head
        return [Player("discriminator", head, self.config.discriminator, start=start), student]

    def followers(self) -> dict[str, nn.Module]:
        return {"target": self.target}

    def updated(self, player: str) -> None:
        if player == "student":
            follow(self.target, self.student, self.config.ema)

    def finished(self, student: Denoiser) -> Denoiser:
        net = student.net
        assert isinstance(net, TwoTimes)
        return student.with_net(net.folded(*self.setup.example))

    def jump(
        self, denoiser: Denoiser, x_t: Tensor, t: Tensor, s: Tensor, cond: Condition
    ) -> Tensor:
        """Return G(x_t, t, s), (N, ...)."""
        # At time 0 nothing moves and some predictions are infinite, so the network is called one
        # edge above.
        asked = t.clamp(min=float(self.grid[-2]))
        x0: Tensor = denoiser(x_t, asked, {**cond, "s": s})
        return flow_map(self.student.schedule, x_t, x0, t, s)

    def places(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return grid indices of t, u and s, (N,) each, from the most noise to the least."""
        count, last = len(batch.x0), len(self.grid) - 1
        most = min(self.config.solver_steps, last)
        steps = int(torch.randint(1, most + 1, (), generator=batch.shared))
        t = torch.randint(last - steps + 1, (count,), generator=batch.generator)
        left = last - t - steps
        s = t + steps + (torch.rand(count, generator=batch.generator) * (left + 1)).long()
        return t, t + steps, s

    def loss(self, player: str, batch: Batch) -> Losses:
        return {"student": self._student, "discriminator": self._discriminator}[player](batch)

    def _ends(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return both sides of the consistency loss, at time 0."""
        cond, grid, schedule = batch.cond, self.grid.to(batch.x0.device), self.student.schedule
        first, middle, last = (place.to(grid.device) for place in self.places(batch))
        t, u, s = grid[first], grid[middle], grid[last]
        zero = torch.zeros_like(t)
        x_t = self.student.noised(batch.x0, t, batch.noise())
        with torch.no_grad():
            x_u = x_t
            for k in range(int(middle[0] - first[0])):
                a, b = grid[first + k], grid[first + k + 1]
                x_u = ddim_step(schedule, x_u, self.teacher(x_u, a, cond), a, b)
            target = self.jump(self.target, x_u, u, s, cond)
            target = self.jump(self.target, target, s, zero, cond)
        ours = self.jump(self.student, x_t, t, s, cond)
        return self.jump(self.target, ours, s, zero, cond), target

    def _student(self, batch: Batch) -> Losses:
        config = self.config
        ours, target = self._ends(batch)
        total = consistency = distance(config.distance, ours, target).mean()
        logs = {"consistency": consistency.detach()}
        if config.denoising_weight:
            denoising = self._denoising(batch)
            scale = balance(consistency, denoising, self.student)
            total = total + config.denoising_weight * scale * denoising
            logs["denoising"] = denoising.detach()
        if self.discriminator is not None and batch.step >= config.adversarial_start:
            gan = gan_generator(self.discriminator(ours, batch.cond))
            total = (
                total + config.adversarial_weight * balance(consistency, gan, self.student) * gan
            )
            logs["gan"] = gan.detach()
        return Losses(total, logs)

    def _denoising(self, batch: Batch) -> Tensor:
        """Return EDM's loss of g(x_t, t, t) (Eq. 10, weights of Karras et al. 2022, Table 1)."""
        config, schedule, count = self.config, self.student.schedule, len(batch.x0)
        t = schedule.snap(sample_times(config.denoising_times, schedule, count, batch.generator))
        t = t.clamp(1e-4, 1 - 1e-4).to(batch.x0.device)
        x_t = self.student.noised(batch.x0, t, batch.noise())
        x0 = self.student(x_t, t, {**batch.cond, "s": t})
        weight = edm_weight(schedule, t, config.sigma_data).to(x0)
        error: Tensor = (x0 - batch.x0).square().flatten(1).mean(1)
        return (weight * error).mean()

    def _discriminator(self, batch: Batch) -> Losses:
        assert self.discriminator is not None
        with torch.no_grad():
            fake, _ = self._ends(batch)
        loss = gan_discriminator(
            self.discriminator(batch.x0, batch.cond), self.discriminator(fake, batch.cond)
        )
        return Losses(loss)


class CtmDiscriminator:
    """A discriminator of trainable heads on features of a frozen copy of the teacher's network.

    Args:
        setup: Setup with the network and the path of its features.
    """

    def __init__(self, setup: Setup) -> None:
        self.net = setup.spawn().requires_grad_(False)
        self.tap = Tap(self.net.net, setup.tap)
        x0, cond = setup.example
        self.head = head_for(self.features(x0, cond)).to(x0.device)

    def features(self, x0: Tensor, cond: Condition) -> Tensor:
        """Return features of clean data (N, ...)."""
        t = torch.full((len(x0),), CLEAN, device=x0.device, dtype=torch.float64)
        t = self.net.schedule.snap(t)
        self.net.output(self.net.schedule.at(t, like=x0)[0] * x0, t, cond)
        return self.tap.take()

    def __call__(self, x0: Tensor, cond: Condition) -> Tensor:
        """Return logits, (N, 1)."""
        logits: Tensor = self.head(self.features(x0, cond))
        return logits


def edm_weight(schedule: Schedule, t: Tensor, sigma_data: float) -> Tensor:
    """Return (r^2 + s^2) / (r s)^2 for r = sigma / alpha, (N,) (Karras et al. 2022, Table 1)."""
    ratio = schedule.sigma(t) / schedule.alpha(t)
    return (ratio.square() + sigma_data**2) / (ratio * sigma_data).square()


def balance(leading: Tensor, other: Tensor, net: nn.Module) -> Tensor:
    """Return the factor that makes `other`'s gradient as long as `leading`'s, a scalar.

    Gradients are compared in the last weight matrix of `net` only (Esser et al. 2021, arXiv
    2012.09841, Eq. 7, as in CTM's Eq. 12). The factor is at most 1e4.
    """
    last = [p for p in net.parameters() if p.requires_grad and p.ndim > 1][-1]
    lengths = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (leading, other)
    ]
    factor: Tensor = (lengths[0] / (lengths[1] + 1e-4)).clamp(max=1e4)
    return factor.detach()
