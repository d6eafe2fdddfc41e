"""Exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["EMA", "follow"]


@torch.no_grad()
def follow(target: nn.Module, net: nn.Module, decay: float) -> None:
    """Set `target` to decay target + (1 - decay) `net`, weight by weight; buffers are copied."""
    torch._foreach_lerp_(list(target.parameters()), list(net.parameters()), 1 - decay)
    for mine, theirs in zip(target.buffers(), net.buffers(), strict=True):
        mine.copy_(theirs)


class EMA:
    """An average that follows a network: average <- decay average + (1 - decay) weights.

    Args:
        net: The network to follow; the average starts at its current weights.
        decay: Decay in [0, 1). During the first updates n, (1 + n) / (10 + n) is used while it is
            smaller, so that the first weights are forgotten.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay must be in [0, 1), not {decay}")
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    def update(self, net: nn.Module) -> None:
        """Update the average by the weights of `net`."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        follow(self.net, net, decay)
