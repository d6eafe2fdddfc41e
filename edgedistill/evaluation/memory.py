"""Is a sample a memory? Nearest training pictures, and the share of samples that are too near."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["QUANTILE", "Nearness", "memorization", "nearest", "own_distances"]

QUANTILE = 0.05
"""Of the training pictures' own nearest-neighbour distances: below it a sample counts as a copy.

Samples of the same law as the training pictures, but no copies, are below it about as often."""

BLOCK, OWN = 1024, 2000
"""Rows at once; training pictures whose own nearest neighbour is looked for."""


def nearest(samples: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Euclidean distance (N,) to the nearest training row, and its index (N,), in float64.

    Args:
        samples: (N, D).
        training: (M, D).
    """
    distances, index = [], []
    for piece in torch.split(samples.double(), BLOCK):
        found = torch.cdist(piece, training.double()).min(1)
        distances.append(found.values)
        index.append(found.indices)
    return torch.cat(distances), torch.cat(index)


def own_distances(training: Tensor, seed: int = 0) -> Tensor:
    """Distance of training rows (M, D) to the nearest other one, equal rows taken as one.

    Of many rows that of `OWN`, chosen by the seed.
    """
    training = torch.unique(training.double(), dim=0)
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))[:OWN]
    found = []
    for piece in torch.split(order, BLOCK):
        distance = torch.cdist(training[piece], training)
        distance[torch.arange(len(piece)), piece] = torch.inf
        found.append(distance.min(1).values)
    return torch.cat(found)


def memorization(distances: Tensor, own: Tensor, quantile: float = QUANTILE) -> float:
    """Share of samples nearer to a training picture than a quantile of `own_distances`.

    Args:
        distances: Of samples to their nearest training pictures.
        own: As from `own_distances`.
        quantile: In [0, 1].
    """
    return (distances <= torch.quantile(own, quantile)).double().mean().item()


@dataclass(frozen=True)
class Nearness:
    """Training pictures, to find what samples are near to.

    Attributes:
        training: Their features (M, D).
        own: Their `own_distances`.
    """

    training: Tensor
    own: Tensor

    @classmethod
    def of(cls, training: Tensor) -> Nearness | None:
        """None of fewer than three different rows, which have no quantile to speak of."""
        own = own_distances(training)
        return cls(training, own) if len(own) > 2 else None

    @property
    def threshold(self) -> float:
        """Below it a sample counts as a copy."""
        return torch.quantile(self.own, QUANTILE).item()
