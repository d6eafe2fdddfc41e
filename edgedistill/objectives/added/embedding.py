"""Embedding loss, added to any method: mean features of samples and data in random networks.

Ying et al. 2026, "Efficient Diffusion Distillation via Embedding Loss" (arXiv 2604.22379): the
maximum mean discrepancy between the student's samples and data in the features of networks with
random weights, new ones at each update. No discriminator trains, no pairs are needed. The kernel
is linear in the features, and the estimate is unbiased, so that it vanishes on average where the
two distributions are equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from edgedistill.objectives.added.on_samples import Beside
from edgedistill.objectives.base import Batch, Losses, Objective, Settings, Setup

__all__ = ["Embedded", "Embedding", "features", "mmd"]


class Embedding(Settings):
    """The `embedding` section of a recipe."""

    weight: float = Field(1.0, gt=0)
    """Weight of this loss, added to the method's own."""
    networks: int = Field(4, ge=1, le=64)
    """Number of random networks drawn at each update."""
    width: int = Field(128, ge=1, le=8_192)
    """Number of features of a layer."""
    sigma_data: float = Field(1.0, gt=0)
    """Standard deviation of the data, by which samples are divided: the networks are nearly linear
    where their inputs are far larger than their biases, which are of deviation 1."""


def mmd(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared maximum mean discrepancy of features (N, F) and (M, F), a scalar.

    This is the unbiased estimate (Gretton et al. 2012, "A Kernel Two-Sample Test", Eq. 3) with a
    linear kernel, which may be below 0 by chance. N and M are 2 or more.
    """
    within = [
        (f.sum(0).square().sum() - f.square().sum()) / (len(f) * (len(f) - 1)) for f in (a, b)
    ]
    return within[0] + within[1] - 2 * a.mean(0) @ b.mean(0)


def _weight(shape: tuple[int, ...], x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw normal weights that keep the scale of values through a ReLU (He et al. 2015)."""
    fan = math.prod(shape[1:])
    return (torch.randn(shape, generator=generator) * math.sqrt(2 / fan)).to(x)


def _of_points(x: Tensor, width: int, generator: torch.Generator) -> Tensor:
    found = []
    for _ in range(2):
        bias = torch.randn(width, generator=generator).to(x)
        x = F.relu(F.linear(x, _weight((width, x.shape[1]), x, generator), bias))
        found.append(x)
    return torch.cat(found, 1)


def _of_maps(x: Tensor, width: int, generator: torch.Generator) -> Tensor:
    found = []
    for stride in (1, 2, 2):
        weight = _weight((width, x.shape[1], 3, 3), x, generator)
        x = F.relu(F.conv2d(x, weight, stride=stride, padding=1))
        found.append(x.mean((2, 3)))
    return torch.cat(found, 1)


NETWORKS: dict[int, Callable[[Tensor, int, torch.Generator], Tensor]] = {
    2: _of_points,
    4: _of_maps,
}
"""Random networks by the number of dimensions of x0."""


def features(x: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Return features (N, F) of x (N, ...) in a network of random weights, scaled by F^-1/2.

    Raises:
        ValueError: Unless x is (N, D) or (N, C, H, W).
    """
    if x.ndim not in NETWORKS:
        raise ValueError(
            f"embedding: x0 of shape {tuple(x.shape[1:])}; points (D,) and maps (C, H, W) have "
            "random networks"
        )
    found = NETWORKS[x.ndim](x.float(), width, generator)
    return found / math.sqrt(found.shape[1])


class Embedded(Beside):
    """A method whose student's samples are also trained to have the mean features of data.

    The samples come from the student's own steps, with the gradient of one of them.
    """

    name = "embedded"

    def __init__(self, method: Objective, config: Embedding, setup: Setup) -> None:
        super().__init__("embedding", method, setup)
        self.config = config
        features(setup.example[0], config.width, torch.Generator())

    def loss(self, player: str, batch: Batch) -> Losses:
        losses = super().loss(player, batch)
        if player != "student":
            return losses
        apart = self.apart(batch)
        logs = {**losses.logs, "embedding": apart.detach()}
        return Losses(losses.total + self.config.weight * apart, logs)

    def apart(self, batch: Batch) -> Tensor:
        """Return the mean of `mmd` over fresh networks, the same on all ranks."""
        config = self.config
        both = torch.cat([self.sample(batch), batch.x0]) / config.sigma_data
        drawn = [features(both, config.width, batch.shared) for _ in range(config.networks)]
        return torch.stack([mmd(*found.chunk(2)) for found in drawn]).mean()
