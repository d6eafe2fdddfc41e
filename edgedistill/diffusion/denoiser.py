"""A denoiser: a network with its schedule and prediction, x_t, t, condition -> x0.

This is the only module that casts or broadcasts time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from edgedistill.diffusion.compiling import compile_once
from edgedistill.diffusion.prediction import Prediction, to_eps, to_x0
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.tensors import expand_like

__all__ = ["Bound", "Condition", "Denoise", "Denoiser", "Guided", "cat", "expand", "take"]

Condition = Mapping[str, Tensor]
"""Keyword tensors of a network, each with the batch first; empty when unconditional."""


def take(cond: Condition, index: Tensor | slice) -> dict[str, Tensor]:
    """Select rows of a condition."""
    return {name: value[index] for name, value in cond.items()}


def cat(*conds: Condition) -> dict[str, Tensor]:
    """Concatenate conditions along the batch."""
    return {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]}


def expand(cond: Condition, count: int) -> dict[str, Tensor]:
    """Repeat a condition of one row `count` times without copying."""
    return {name: value.expand(count, *value.shape[1:]) for name, value in cond.items()}


@dataclass(frozen=True)
class Bound:
    """The bound that a teacher's scheduler puts on its estimate of x0: clipping or thresholding.

    Dynamic thresholding is that of Saharia et al. 2022, "Imagen" (arXiv 2205.11487), Sec. 2.3, as
    in diffusers: each sample is clipped at a quantile of its absolute values, which lies between 1
    and `limit`, and divided by it.

    Attributes:
        limit: The largest absolute value of x0; with a quantile, the largest threshold.
        quantile: The quantile of dynamic thresholding in (0, 1]; None clips at `limit`.
        keeps_eps: Whether a DDIM step uses the network's own noise with the bounded x0, as
            diffusers' DDIM does, instead of the noise that x_t and the bounded x0 imply.
        below: Signal level alpha below which x0 is bounded; by default everywhere.
    """

    limit: float = 1.0
    quantile: float | None = None
    keeps_eps: bool = True
    below: float = math.inf

    def __call__(self, x0: Tensor) -> Tensor:
        """Bound x0, (N, ...); the shape stays."""
        if self.quantile is None:
            return x0.clamp(-self.limit, self.limit)
        sizes = x0.abs().flatten(1).float()
        threshold = sizes.quantile(self.quantile, dim=1).clamp(1, self.limit).to(x0.dtype)
        threshold = expand_like(threshold, x0)
        return x0.clamp(-threshold, threshold) / threshold


def clip_x0(bound: Bound | None, schedule: Schedule, x0: Tensor, t: Tensor) -> Tensor:
    """Apply a bound, if there is one, to an estimate of x0 (N, ...) at t, (N,) or a scalar."""
    if bound is None:
        return x0
    if bound.below == math.inf:
        return bound(x0)
    alpha, _ = schedule.at(t.double().expand(len(x0)), like=x0)
    return torch.where(alpha < bound.below, bound(x0), x0)


class Denoiser(nn.Module):
    """A network, called as `net(scale * x_t, net_time, **cond)`, whose output is turned into x0.

    Args:
        net: Called as net(x, time, **cond) with x (N, ...) and float32 time (N,).
        schedule: alpha and sigma of the data the network was trained on.
        prediction: Prediction type of the network.
        bound: Bound on its estimate of x0; only teachers have one.

    Attributes:
        compiled: Whether torch.compile compiles the network at its first call. Copies, and
            denoisers made by `with_net` or `with_bound`, are as this one.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        prediction: Prediction,
        bound: Bound | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.schedule = schedule
        self.prediction = prediction
        self.bound = bound
        self.compiled = False

    def with_bound(self, bound: Bound | None) -> Denoiser:
        """Return a denoiser of the same network with another bound."""
        return self._like(self.net, bound)

    def with_net(self, net: nn.Module) -> Denoiser:
        """Return a denoiser of another network, same schedule and prediction, without a bound."""
        return self._like(net, None)

    def _like(self, net: nn.Module, bound: Bound | None) -> Denoiser:
        made = Denoiser(net, self.schedule, self.prediction, bound)
        made.compiled = self.compiled
        return made

    def output(
        self, x_t: Tensor, t: Tensor, cond: Condition, net_time: Tensor | None = None
    ) -> Tensor:
        """Return the raw network output in x_t's dtype.

        Args:
            x_t: Noisy data (N, ...).
            t: Times in [0, 1], (N,) or a scalar.
            cond: Condition of N rows.
            net_time: Time for the network in place of the schedule's, (N,) or a scalar.
        """
        t = t.double().expand(len(x_t))
        scale = expand_like(self.schedule.input_scale(t), x_t).to(x_t)
        time = self.schedule.net_time(t) if net_time is None else net_time.expand(len(x_t))
        time = time.to(x_t.device, torch.float32)
        if self.compiled:
            compile_once(self.net)
        result: Tensor = self.net(scale * x_t, time, **cond)
        return result.to(x_t.dtype)

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Condition, net_time: Tensor | None = None
    ) -> Tensor:
        """Return the estimate of x0, shaped as x_t; the arguments are those of `output`."""
        return self.clip_x0(self.x0_of(self.output(x_t, t, cond, net_time), x_t, t), t)

    def x0_of(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Turn a raw output into x0, without the bound."""
        alpha, sigma = self.schedule.at(t.double().expand(len(x_t)), like=x_t)
        linear = to_x0(self.prediction, alpha, sigma)
        return linear.x * x_t + linear.y * output

    def eps_of(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Turn a raw output into eps."""
        alpha, sigma = self.schedule.at(t.double().expand(len(x_t)), like=x_t)
        linear = to_eps(self.prediction, alpha, sigma)
        return linear.x * x_t + linear.y * output

    def clip_x0(self, x0: Tensor, t: Tensor) -> Tensor:
        """Return an estimate of x0 at t with the bound applied, if there is one."""
        return clip_x0(self.bound, self.schedule, x0, t)

    def x0_and_eps(
        self, x_t: Tensor, t: Tensor, cond: Condition, net_time: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the bounded estimate of x0, and the network's own eps, each shaped as x_t."""
        output = self.output(x_t, t, cond, net_time)
        return self.clip_x0(self.x0_of(output, x_t, t), t), self.eps_of(output, x_t, t)

    def noised(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return x_t = alpha x0 + sigma eps."""
        alpha, sigma = self.schedule.at(t.double().expand(len(x0)), like=x0)
        return alpha * x0 + sigma * eps

    def target(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """Return the training target, the wanted network output at x_t = noised(x0, t, eps)."""
        alpha, sigma = self.schedule.at(t.double().expand(len(x0)), like=x0)
        return self.prediction.combine(x0, eps, alpha, sigma)


class Guided(nn.Module):
    """Classifier-free guidance around a denoiser (Ho & Salimans 2022, arXiv 2207.12598).

    x0 = x0(null) + scale (x0(cond) - x0(null)), the convention in which 1 is no guidance. Both
    calls run as one batch.

    Args:
        denoiser: The conditional network.
        null: The null condition, one row.
        scale: Guidance scale; at exactly 1 the null call is left out.
    """

    def __init__(self, denoiser: Denoiser, null: Condition, scale: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.null = null
        self.scale = scale

    @property
    def schedule(self) -> Schedule:
        """The schedule of the network inside."""
        return self.denoiser.schedule

    def with_bound(self, bound: Bound | None) -> Guided:
        """Return the guided network with another bound."""
        return Guided(self.denoiser.with_bound(bound), self.null, self.scale)

    @property
    def bound(self) -> Bound | None:
        """The bound of the network inside, which is applied to the guided x0."""
        return self.denoiser.bound

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Condition, net_time: Tensor | None = None
    ) -> Tensor:
        """Return the guided estimate of x0, shaped as x_t."""
        if self.scale == 1 or not cond:
            result: Tensor = self.denoiser(x_t, t, cond, net_time)
            return result
        return self.clip_x0(torch.lerp(*self.both(x_t, t, cond, net_time), self.scale), t)

    def clip_x0(self, x0: Tensor, t: Tensor) -> Tensor:
        """Return an estimate of x0 at t with the bound applied, if there is one."""
        return self.denoiser.clip_x0(x0, t)

    def x0_and_eps(
        self, x_t: Tensor, t: Tensor, cond: Condition, net_time: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the bounded guided x0, and the guided eps, each shaped as x_t."""
        if self.scale == 1 or not cond:
            return self.denoiser.x0_and_eps(x_t, t, cond, net_time)
        output = torch.lerp(*self._outputs(x_t, t, cond, net_time), self.scale)
        x0 = self.clip_x0(self.denoiser.x0_of(output, x_t, t), t)
        return x0, self.denoiser.eps_of(output, x_t, t)

    def both(
        self, x_t: Tensor, t: Tensor, cond: Condition, net_time: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return x0 of the null condition and of `cond`, without the bound."""
        null, wanted = self._outputs(x_t, t, cond, net_time)
        return self.denoiser.x0_of(null, x_t, t), self.denoiser.x0_of(wanted, x_t, t)

    def _outputs(
        self, x_t: Tensor, t: Tensor, cond: Condition, net_time: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        t = t.double().expand(len(x_t))
        conds = cat(expand(self.null, len(x_t)), cond)
        if net_time is not None:
            net_time = net_time.expand(len(x_t)).repeat(2)
        joint = self.denoiser.output(torch.cat([x_t, x_t]), torch.cat([t, t]), conds, net_time)
        null, wanted = joint.chunk(2)
        return null, wanted


class Denoise(Protocol):
    """Interface of a solver's teacher: a `Denoiser`, or a `Guided` one."""

    @property
    def schedule(self) -> Schedule: ...

    @property
    def bound(self) -> Bound | None: ...

    def __call__(
        self, x_t: Tensor, t: Tensor, cond: Condition, net_time: Tensor | None = None
    ) -> Tensor: ...

    def x0_and_eps(
        self, x_t: Tensor, t: Tensor, cond: Condition, net_time: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...
