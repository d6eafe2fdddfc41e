"""Memorization: nearest training pictures, and the share of samples that are too near."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["QUANTILE", "Nearness", "memorization", "nearest", "own_distances"]

QUANTILE = 0.05
"""Quantile of the training pictures' own nearest-neighbour distances below which a sample counts
as a copy.

New samples of the training pictures' distribution are below it about as often."""

BLOCK, OWN = 1024, 2000
"""Number of rows processed at once, and of training pictures whose own nearest neighbour is
sought."""


def nearest(samples: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Euclidean distance (N,) to the nearest training row and its index (N,), float64.

    Args:
        samples: Samples (N, D).
        training: Training rows (M, D).
    """
    distances, index = [], []
    for piece in torch.split(samples.double(), BLOCK):
        found = torch.cdist(piece, training.double()).min(1)
        distances.append(found.values)
        index.append(found.indices)
    return torch.cat(distances), torch.cat(index)


def own_distances(training: Tensor, seed: int = 0) -> Tensor:
    """Return distances of training rows (M, D) to the nearest other one; equal rows count once.

    From many rows, `OWN` are chosen by the seed.
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
    """Return the share of samples nearer to a training picture than a quantile of `own`.

    Args:
        distances: Distances of samples to their nearest training pictures.
        own: Distances from `own_distances`.
        quantile: Quantile in [0, 1].
    """
    return (distances <= torch.quantile(own, quantile)).double().mean().item()


@dataclass(frozen=True)
class Nearness:
    """Training pictures for finding the nearest ones of samples.

    Attributes:
        training: Features of the training pictures, (M, D).
        own: `own_distances` of the training pictures.
    """

    training: Tensor
    own: Tensor

    @classmethod
    def of(cls, training: Tensor) -> Nearness | None:
        """Prepare training rows; None for fewer than three different rows: no quantile."""
        own = own_distances(training)
        return cls(training, own) if len(own) > 2 else None

    @property
    def threshold(self) -> float:
        """Distance below which a sample counts as a copy."""
        return torch.quantile(self.own, QUANTILE).item()
