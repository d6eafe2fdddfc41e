"""The interface of a network whose deep blocks need not run in every step.

Ma et al. 2023, "DeepCache: Accelerating Diffusion Models for Free" (arXiv 2312.00858), Sec. 3.2:
the state that the deep blocks pass to the outermost one changes little from step to step, so a
step may take it from the step before. Nothing is hidden in the network: the state is handed over.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

__all__ = ["Reusing", "as_reusing"]


@runtime_checkable
class Reusing(Protocol):
    """A network whose outer layers can also run alone, on an earlier call's deep state.

    Its last block has `outer_layers` layers. `layers`, a number from 1 to that, says how many of
    them are outer ones; None means the whole block.
    """

    @property
    def outer_layers(self) -> int:
        """Number of layers of the last block."""
        ...

    def full(
        self, x: Tensor, t: Tensor, layers: int | None, **cond: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the output that the network gives when it is called, and the deep state.

        Args:
            x: Input (N, ...).
            t: Times that the network reads, (N,).
            layers: Number of outer layers, before which the deep state is taken.
            cond: Condition of N rows.
        """
        ...

    def shallow(
        self, x: Tensor, t: Tensor, deep: Tensor, layers: int | None, **cond: Tensor
    ) -> Tensor:
        """Return the output with another call's deep state, which keeps its gradient.

        Args:
            x: Input (N, ...).
            t: Times that the network reads, (N,).
            deep: Deep state of `full` for N rows and these layers.
            layers: Number of outer layers, the same as in `full`.
            cond: Condition of N rows.
        """
        ...


def as_reusing(net: nn.Module) -> Reusing:
    """Return `net` if it can reuse a deep state; ValueError says that it cannot."""
    if not isinstance(net, Reusing):
        raise ValueError(
            f"{type(net).__name__} has no deep state that a step can reuse; only U-Nets have"
        )
    return net
