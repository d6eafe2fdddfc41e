"""Distances between sets of pictures in a feature space: FD, KID, CMMD; intervals and floor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

__all__ = [
    "GROUPS",
    "Floor",
    "Reference",
    "clip_distance",
    "floor_of",
    "frechet_distance",
    "half_interval",
    "kernel_distance",
]

GROUPS = 10
"""Groups of samples that an interval leaves out in turn."""

QUANTILE = 2.262
"""The 97.5 % quantile of Student's t with `GROUPS` - 1 degrees of freedom."""

CLIP_WIDTH, CLIP_SCALE = 10.0, 1000.0
"""Width of the kernel of `clip_distance`, and factor of the figure (Jayasumana et al. 2024)."""

BLOCK = 2048
"""Number of rows of a kernel matrix that are in memory at once."""


class Reference:
    """Mean (D,) and covariance (D, D) of features."""

    def __init__(self, mean: Tensor, cov: Tensor) -> None:
        self.mean, self.cov = mean, cov

    @classmethod
    def of(cls, features: Tensor) -> Reference:
        """Compute the statistics of features (N, D)."""
        if len(features) < 2:
            raise ValueError(f"at least 2 samples are needed, got {len(features)}")
        return cls(
            features.double().mean(0), features.double().T.cov().reshape(2 * features.shape[1:])
        )

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read a safetensors file with "mean" and "cov"."""
        tensors = load_file(path)
        return cls(tensors["mean"], tensors["cov"])


def frechet_distance(a: Reference, b: Reference) -> float:
    """Return |mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017, Eq. 6).

    tr (C_a C_b)^(1/2) is the sum of the square roots of the eigenvalues of C_a^(1/2) C_b
    C_a^(1/2), which is symmetric. All is computed in float64. From few samples the estimate is too
    large.
    """
    values, vectors = torch.linalg.eigh(a.cov.double())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.cov.double() @ root).clamp(min=0).sqrt().sum()
    mean = (a.mean.double() - b.mean.double()).square().sum()
    return float(mean + a.cov.double().trace() + b.cov.double().trace() - 2 * cross)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Return the KID of features (N, D) and (M, D): the unbiased squared MMD, in float64.

    The kernel is k(x, y) = (x y / D + 1)^3, and sums leave out pairs of a sample with itself
    (Binkowski et al. 2018, arXiv 1801.01401, Sec. 4). All samples are used, in no subsets. It can
    be below 0 if both sets have the same distribution.

    Raises:
        ValueError: If a set has fewer than two samples.
    """
    n, m = len(a), len(b)
    if min(n, m) < 2:
        raise ValueError(f"at least 2 samples are needed, got {min(n, m)}")
    a, b = a.double(), b.double()
    within = _kernel_sum(a, a) - _own(a)
    other = _kernel_sum(b, b) - _own(b)
    across = _kernel_sum(a, b)
    return within / (n * (n - 1)) + other / (m * (m - 1)) - 2 * across / (n * m)


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    """Sum the kernel over all pairs of rows."""
    pieces = [
        (piece @ b.T / a.shape[1] + 1).pow(3).sum().item() for piece in torch.split(a, BLOCK)
    ]
    return math.fsum(pieces)


def _own(a: Tensor) -> float:
    """Sum the kernel over pairs of a row with itself."""
    return float((a.square().sum(1) / a.shape[1] + 1).pow(3).sum())


def clip_distance(a: Tensor, b: Tensor) -> float:
    """Return the CMMD of CLIP features (N, D) and (M, D), in float64.

    It is 1000 times the squared MMD of features at unit length, with the kernel
    k(x, y) = exp(-|x - y|^2 / (2 * 10^2)) (Jayasumana et al. 2024, arXiv 2401.09603, Eq. 4).
    As in the authors' program, sums include pairs of a sample with itself. Equal sets have 0.
    """
    a, b = (torch.nn.functional.normalize(each.double(), dim=-1) for each in (a, b))
    near = _gaussian_mean(a, a) + _gaussian_mean(b, b) - 2 * _gaussian_mean(a, b)
    return CLIP_SCALE * near


def _gaussian_mean(a: Tensor, b: Tensor) -> float:
    """Average k - 1 over all pairs of rows of unit length; expm1 keeps what is far below 1."""
    pieces = [
        torch.expm1((piece @ b.T - 1) / CLIP_WIDTH**2).sum().item()
        for piece in torch.split(a, BLOCK)
    ]
    return math.fsum(pieces) / (len(a) * len(b))


def half_interval(features: Tensor, figure: Callable[[Tensor], float]) -> float | None:
    """Return half the width of a figure's 95 % interval, from the samples (N, D) alone.

    It is the jackknife that leaves out one of `GROUPS` groups of samples in turn (Efron &
    Tibshirani 1993, Sec. 11.5), drawn at random with a fixed seed. A bootstrap would repeat
    samples, which by itself raises a Frechet distance.

    Args:
        features: Features of the samples.
        figure: Function of features, smooth in their distribution.

    Returns:
        The half width; None for fewer than two samples a group.
    """
    if len(features) < 2 * GROUPS:
        return None
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    group = order % GROUPS
    found = torch.tensor([figure(features[group != left]) for left in range(GROUPS)]).double()
    spread = (found - found.mean()).square().sum() * (GROUPS - 1) / GROUPS
    return QUANTILE * float(spread.sqrt())


@dataclass(frozen=True)
class Floor:
    """Distances between two halves of the reference, a lower limit for figures of other samples.

    Attributes:
        fd: Frechet distance.
        kid: Kernel distance, near 0.
        samples: Number of samples in each half.
    """

    fd: float
    kid: float
    samples: int


def floor_of(features: Tensor, most: int, seed: int) -> Floor | None:
    """Compute the floor of figures that compare with features (N, D).

    Args:
        features: Features of the reference.
        most: Largest number of samples in a half: as many as the figures have.
        seed: Seed of the split into halves.

    Returns:
        The floor; None for fewer than four samples.
    """
    half = min(len(features) // 2, most)
    if half < 2:
        return None
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))
    a, b = features[order[:half]], features[order[half : 2 * half]]
    return Floor(frechet_distance(Reference.of(a), Reference.of(b)), kernel_distance(a, b), half)
