"""Axes of charts."""

from __future__ import annotations

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

__all__ = ["log_scale"]


def log_scale(axes: Axes, which: Literal["x", "y"] = "x") -> None:
    """Make an axis logarithmic, with ticks at 1, 2 and 5 times the powers of ten.

    The default labels are formulas, which are not parsed here.
    """
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
