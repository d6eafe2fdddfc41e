"""Axes of charts."""

from __future__ import annotations

import math
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

__all__ = ["log_scale"]


class _Ticks(LogLocator):
    """Ticks of a logarithmic axis, the fewer in each power of ten the more powers it has."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """Return the places of the ticks from `vmin` to `vmax`."""
        powers = math.log10(max(vmax, vmin) / min(vmax, vmin)) if vmin > 0 and vmax > 0 else 0.0
        self.set_params(subs=(1, 2, 5) if powers <= 2 else (1, 3) if powers <= 3 else (1,))
        return super().tick_values(vmin, vmax)


def log_scale(axes: Axes, which: Literal["x", "y"] = "x") -> None:
    """Make an axis logarithmic, with ticks at 1, 2 and 5 times the powers of ten.

    An axis of many powers has fewer, so that their labels stand apart. The default labels are
    formulas, which are not parsed here.
    """
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(_Ticks(subs=(1, 2, 5)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())
