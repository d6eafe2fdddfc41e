"""Axes of charts."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

__all__ = ["log_scale"]


def log_scale(axes: Axes) -> None:
    """Make the x axis logarithmic, with ticks at 1, 2 and 5 times the powers of ten.

    The default labels are formulas, which are not parsed here.
    """
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
