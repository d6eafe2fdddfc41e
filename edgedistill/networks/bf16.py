"""Frozen weights kept in bfloat16, and whether a CPU computes in it.

Autocast rounds the weights of linear and convolutional layers to bfloat16 in every call. Stored in
bfloat16, they take half the memory and give the very same numbers. Layers that autocast computes
in float32, such as norms, keep float32 weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["cpu_has_bf16", "to_bf16", "to_fp32"]


def cpu_has_bf16() -> bool:
    """Whether this CPU has bfloat16 arithmetic; True where torch cannot tell.

    Without it, torch computes bfloat16 products one by one: training takes 10 to 12 times as long
    as in float32 (measured with AVX2).
    """
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return not known or any(there for name, there in known.items() if name.endswith("bf16"))


def _cast(layer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias for `x`: unchanged under autocast, otherwise in x's dtype."""
    # The meta device, which is only used for planning costs, has no autocast.
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
"""Layers whose weights autocast rounds, and the classes that replace them."""


def to_bf16(net: nn.Module) -> None:
    """Round the weights of linear and convolutional layers in `net` to bfloat16, in place.

    Parameters stay the same objects, so all users of the network share its rounded weights.
    """
    for module in net.modules():
        if type(module) in KINDS:
            module.__class__ = KINDS[type(module)]
            module.bfloat16()


def to_fp32(net: nn.Module) -> nn.Module:
    """Return `net` with plain layers and float32 weights again; rounded values stay rounded."""
    plain = {low: kind for kind, low in KINDS.items()}
    for module in net.modules():
        module.__class__ = plain.get(type(module), type(module))
    return net.float()
