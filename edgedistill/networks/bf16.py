"""Frozen weights kept in bfloat16.

Autocast rounds the weights of linear and convolutional layers to bfloat16 in every call. Kept so,
they take half the memory and give the very same numbers; what autocast computes in float32, such
as norms, keeps float32 weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["lower", "raised"]


def _cast(layer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Weight and bias for `x`: as they are under autocast, which rounds x, else in its dtype."""
    # The meta device, which only costs are planned on, knows no autocast.
    if x.is_meta or torch.is_autocast_enabled(x.device.type):
        return layer.weight, layer.bias
    return layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype)


class LowLinear(nn.Linear):
    """A Linear that also works outside of autocast."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, *_cast(self, input))


class LowConv2d(nn.Conv2d):
    """A Conv2d that also works outside of autocast."""

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self._conv_forward(input, *_cast(self, input))
        return result


class LowConv3d(nn.Conv3d):
    """A Conv3d that also works outside of autocast."""

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = self._conv_forward(input, *_cast(self, input))
        return result


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: LowLinear,
    nn.Conv2d: LowConv2d,
    nn.Conv3d: LowConv3d,
}
"""Layers whose weights autocast rounds, and what they become."""


def lower(net: nn.Module) -> None:
    """Round the weights of linear and convolutional layers in `net` to bfloat16, in place.

    Parameters stay the same objects, so all who share the network share its rounded weights.
    """
    for module in net.modules():
        if type(module) in KINDS:
            module.__class__ = KINDS[type(module)]
            module.bfloat16()


def raised(net: nn.Module) -> nn.Module:
    """`net` itself, its layers plain ones again with float32 weights; rounded ones stay so."""
    plain = {low: kind for kind, low in KINDS.items()}
    for module in net.modules():
        module.__class__ = plain.get(type(module), type(module))
    return net.float()
