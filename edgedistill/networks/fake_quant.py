"""Layers computed as if in low precision: what quantization will do, differentiable.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
Only Inference" (arXiv 1712.05877), Sec. 3: values are rounded in the forward pass and gradients
pass straight through inside the range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["SCHEMES", "FakeQuantize", "Scheme", "layers"]


@dataclass(frozen=True)
class Scheme:
    """How many bits a weight and an activation get.

    Attributes:
        weight_bits: Symmetric, a scale an output channel (and block).
        activation_bits: One scale and zero point a tensor, of inputs and outputs; None leaves
            them in floating point.
        block: Inputs that share a weight scale; None shares one over the whole channel.
    """

    weight_bits: int
    activation_bits: int | None = None
    block: int | None = None


SCHEMES = {
    "int8": Scheme(8, 8),
    "int8-weights": Scheme(8),
    "int4-weights": Scheme(4, block=32),
}


def layers(net: nn.Module) -> dict[str, nn.Module]:
    """Layers that can be quantized, by path: every Linear and Conv2d."""
    kinds = (nn.Linear, nn.Conv2d)
    return {path: module for path, module in net.named_modules() if isinstance(module, kinds)}


class FakeQuantize(TorchFunctionMode):
    """Inside this context the given layers compute in low precision.

    The layers themselves stay as they are: they are recognised by their weights. The range of an
    activation is the one it takes in the call at hand.

    Args:
        modules: Linear and Conv2d layers.
        scheme: Their precision.
    """

    def __init__(self, modules: Iterable[nn.Module], scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        # The modules are kept so that no other tensor can take over an id.
        self._modules = list(modules)
        self._ids = {id(module.weight) for module in self._modules}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _LAYERS and id(args[1]) in self._ids:
            x, weight, *rest = args
            bits = self.scheme.activation_bits
            weight = quantized_weight(weight, self.scheme)
            if bits is None:
                return func(x, weight, *rest, **(kwargs or {}))
            y = func(quantized(x, bits), weight, *rest, **(kwargs or {}))
            return quantized(y, bits)
        return func(*args, **(kwargs or {}))


_LAYERS = (F.linear, F.conv2d)


def quantized(x: Tensor, bits: int) -> Tensor:
    """Round x (any shape) to 2^bits values between its least and its greatest, 0 among them."""
    low, high = x.detach().aminmax()
    low, high = low.clamp(max=0), high.clamp(min=0)
    top = 2**bits - 1
    scale = ((high - low) / top).clamp(min=1e-12).float()
    zero = (-low / scale).round().clamp(0, top).int()
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, top)


def quantized_weight(weight: Tensor, scheme: Scheme) -> Tensor:
    """Round weight (out, in, ...) symmetrically, a scale an output channel or block."""
    top = 2 ** (scheme.weight_bits - 1) - 1
    rows = weight.flatten(1)
    if scheme.block and rows.shape[1] % scheme.block == 0:
        rows = rows.reshape(-1, scheme.block)
    scale = (rows.detach().abs().amax(1) / top).clamp(min=1e-12).float()
    zero = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)
    return torch.fake_quantize_per_channel_affine(rows, scale, zero, 0, -top, top).view_as(weight)
