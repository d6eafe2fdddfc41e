"""Files of Gaussian mixtures: JSON with weights, means, scales, and classes of the modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgedistill.common.text import parse_json, read_text

__all__ = ["read_mixture"]

LARGEST, SMALLEST = 1e6, 1e-12
"""Bounds of a mixture's numbers, far beyond what networks and figures are made for."""


def read_mixture(file: Path) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Read weights (K,), means (K, D), scales (K,), and labels (K,) or None.

    Raises:
        ValueError: For a file that is no mixture; names the file, and the key if one is wrong.
    """
    try:
        data = parse_json(read_text(file), f"{file}:", strict=True)
    except OSError as error:
        raise ValueError(f"{file}: not a mixture file: {error.strerror or error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file}: not a mixture file: an object with weights, means and scales")
    weights, means, scales = (_numbers(file, data, key) for key in ("weights", "means", "scales"))
    if (
        weights.ndim != 1
        or scales.shape != weights.shape
        or means.shape[:1] != weights.shape
        or means.ndim != 2
        or not means.shape[1]
        or not len(weights)
    ):
        shapes = f"{tuple(weights.shape)}, {tuple(means.shape)}, {tuple(scales.shape)}"
        raise ValueError(f"{file}: weights [K], means [K][D], scales [K] expected, got {shapes}")
    largest = {"weights": weights, "means": means.abs(), "scales": scales}
    for key, values in largest.items():
        if bool((values > LARGEST).any()):
            raise ValueError(f"{file}: {key} must be at most {LARGEST:g}")
    if bool((weights <= 0).any()) or bool((scales <= 0).any()):
        raise ValueError(f"{file}: weights and scales must be positive")
    if float(weights.min() / weights.sum()) < SMALLEST or float(scales.min()) < SMALLEST:
        raise ValueError(f"{file}: scales and shares of the weights must be at least {SMALLEST:g}")
    return weights, means, scales, _labels(file, data, len(weights))


def _labels(file: Path, data: dict[str, Any], count: int) -> Tensor | None:
    if "labels" not in data:
        return None
    labels = data["labels"]
    whole = isinstance(labels, list) and all(type(label) is int for label in labels)
    if not whole or len(labels) != count or set(labels) != set(range(max(labels) + 1)):
        raise ValueError(
            f"{file}: labels: a class for each of the {count} modes expected, numbered from 0 on "
            "without a gap"
        )
    return torch.tensor(labels)


def _numbers(file: Path, data: dict[str, Any], key: str) -> Tensor:
    if key not in data:
        raise ValueError(f"{file}: no key {key!r}; needs weights, means and scales")
    try:
        values = torch.tensor(data[key], dtype=torch.float64)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{file}: not a mixture file: {key}: {error}") from None
    if not bool(values.isfinite().all()):
        raise ValueError(f"{file}: a number of {key} is not finite")
    return values
