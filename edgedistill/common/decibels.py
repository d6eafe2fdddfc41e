"""PSNR in dB: numbers that JSON can hold, and their text for people."""

from __future__ import annotations

import math

__all__ = ["EQUAL_DB", "NOT_FINITE_DB", "decibels", "psnr"]

EQUAL_DB = 200.0
"""PSNR of equal tensors, since JSON has no infinity; the text for it is "identical"."""

NOT_FINITE_DB = -1.0
"""PSNR of a tensor that holds a NaN or an infinity; it lies below any floor."""


def psnr(rmse: float) -> float:
    """Return the PSNR of an RMS error for a peak of 1: 0 to `EQUAL_DB`, or `NOT_FINITE_DB`."""
    if not math.isfinite(rmse):
        return NOT_FINITE_DB
    return EQUAL_DB if rmse == 0 else min(EQUAL_DB, max(0.0, -20 * math.log10(rmse)))


def decibels(value: float, unit: str = "") -> str:
    """Return a PSNR as text, followed by the unit where it is a number."""
    if value < 0:
        return "not finite"
    return "identical" if value >= EQUAL_DB else f"{value:.1f}{unit}"
