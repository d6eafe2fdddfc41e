"""PSNR in dB: numbers that JSON can hold, and how people are told them."""

from __future__ import annotations

import math

__all__ = ["EQUAL_DB", "NOT_FINITE_DB", "decibels", "psnr"]

EQUAL_DB = 200.0
"""PSNR of equal tensors, since JSON has no infinity; people are told "identical"."""

NOT_FINITE_DB = -1.0
"""Stands for the PSNR of what holds a NaN or an infinity: below any floor."""


def psnr(rmse: float) -> float:
    """PSNR of a root mean square error, the peak being 1: 0 to `EQUAL_DB`, or `NOT_FINITE_DB`."""
    if not math.isfinite(rmse):
        return NOT_FINITE_DB
    return EQUAL_DB if rmse == 0 else min(EQUAL_DB, max(0.0, -20 * math.log10(rmse)))


def decibels(value: float, unit: str = "") -> str:
    """A PSNR as text, followed by the unit where it is a number."""
    if value < 0:
        return "not finite"
    return "identical" if value >= EQUAL_DB else f"{value:.1f}{unit}"
