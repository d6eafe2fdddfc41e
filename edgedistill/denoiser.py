"""A network with its schedule and prediction: x_t, t, condition -> x0.

The only place that casts or broadcasts time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgedistill.prediction import Prediction, to_x0
from edgedistill.schedule import Schedule

__all__ = ["Condition", "Denoiser", "Guided", "cat", "expand", "take"]

Condition = Mapping[str, Tensor]
"""Keyword tensors of a network, each with the batch first; empty when unconditional."""


def take(cond: Condition, index: Tensor | slice) -> dict[str, Tensor]:
    """Rows of a condition."""
    return {name: value[index] for name, value in cond.items()}


def cat(*conds: Condition) -> dict[str, Tensor]:
    """Conditions one after another along the batch."""
    return {name: torch.cat([cond[name] for cond in conds]) for name in conds[0]}


def expand(cond: Condition, count: int) -> dict[str, Tensor]:
    """A condition of one row, repeated `count` times without copying."""
    return {name: value.expand(count, *value.shape[1:]) for name, value in cond.items()}


class Denoiser(nn.Module):
    """`net(scale * x_t, net_time, **cond)` turned into an estimate of x0.

    Args:
        net: Called as net(x, time, **cond) with x (N, ...) and float32 time (N,).
        schedule: alpha and sigma of the data the network was trained on.
        prediction: What the network predicts.
    """

    def __init__(self, net: nn.Module, schedule: Schedule, prediction: Prediction) -> None:
        super().__init__()
        self.net = net
        self.schedule = schedule
        self.prediction = prediction

    def with_net(self, net: nn.Module) -> Denoiser:
        """The same schedule and prediction around another network."""
        return Denoiser(net, self.schedule, self.prediction)

    def output(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Raw network output in x_t's dtype; t is (N,) or a scalar in [0, 1]."""
        t = t.double().expand(len(x_t))
        scale = self.schedule.input_scale(t).reshape((-1,) + (1,) * (x_t.ndim - 1)).to(x_t)
        time = self.schedule.net_time(t).to(x_t.device, torch.float32)
        result: Tensor = self.net(scale * x_t, time, **cond)
        return result.to(x_t.dtype)

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Estimate of x0, shaped as x_t."""
        return self.x0_of(self.output(x_t, t, cond), x_t, t)

    def x0_of(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """Turn a raw output into x0."""
        alpha, sigma = self.schedule.at(t.double().expand(len(x_t)), like=x_t)
        linear = to_x0(self.prediction, alpha, sigma)
        return linear.x * x_t + linear.y * output

    def noised(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma eps."""
        alpha, sigma = self.schedule.at(t.double().expand(len(x0)), like=x0)
        return alpha * x0 + sigma * eps

    def target(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """What the network should output at x_t = noised(x0, t, eps)."""
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

    def forward(self, x_t: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """Guided estimate of x0, shaped as x_t."""
        if self.scale == 1 or not cond:
            result: Tensor = self.denoiser(x_t, t, cond)
            return result
        return torch.lerp(*self.both(x_t, t, cond), self.scale)

    def both(self, x_t: Tensor, t: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """x0 of the null condition and of `cond`."""
        t = t.double().expand(len(x_t))
        conds = cat(expand(self.null, len(x_t)), cond)
        null, wanted = self.denoiser(torch.cat([x_t, x_t]), torch.cat([t, t]), conds).chunk(2)
        return null, wanted
