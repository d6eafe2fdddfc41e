"""Quality and variety apart: precision, recall, density and coverage of a set of features.

Each sample of a set has a ball that reaches to its k-th nearest neighbour in its set; the balls
together stand for the set's manifold. Precision and density say whether samples look real, recall
and coverage whether they show all that is real.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

__all__ = ["NEIGHBOURS", "manifold_figures"]

NEIGHBOURS = 5
"""k: neighbours within a ball, as Naeem et al. choose."""

BLOCK = 2048
"""Number of rows of a distance matrix that are in memory at once."""


def manifold_figures(images: Tensor, reference: Tensor, k: int = NEIGHBOURS) -> dict[str, float]:
    """Return precision, recall, density and coverage of features (N, D) against others (M, D).

    precision and recall (Kynkaanniemi et al. 2019, arXiv 1904.06991, Eq. 2-3) are the share of
    samples in some ball of the reference, and of the reference in some ball of the samples.
    density and coverage (Naeem et al. 2020, arXiv 2002.09797, Eq. 3-4) are the mean number of the
    reference's balls that a sample is in, over k, and the share of the reference's balls that hold
    a sample. All are in [0, 1], but density may be above 1.

    Returns:
        The figures; none if a set has no more than k samples.
    """
    if min(len(images), len(reference)) <= k:
        return {}
    images, reference = images.double(), reference.double()
    real, made = _radii(reference, k), _radii(images, k)
    inside = _count(images, reference, lambda gaps: (gaps <= real).sum(1))
    found = _count(reference, images, lambda gaps: (gaps <= made).any(1))
    nearest = _count(reference, images, lambda gaps: gaps.min(1).values)
    return {
        "precision": (inside > 0).double().mean().item(),
        "recall": found.double().mean().item(),
        "density": inside.double().mean().item() / k,
        "coverage": (nearest <= real).double().mean().item(),
    }


def _radii(features: Tensor, k: int) -> Tensor:
    """Return the distance of each row to its k-th nearest other row."""
    return _count(features, features, lambda gaps: gaps.kthvalue(k + 1, dim=1).values)


def _count(rows: Tensor, others: Tensor, of: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function to distances (n, M) from blocks of rows to all others."""
    distances = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.cat([of(distances(piece, others)) for piece in torch.split(rows, BLOCK)])
