"""Layers computed as if in low precision: what quantization will do, differentiable.

Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-
Only Inference" (arXiv 1712.05877), Sec. 3: values are rounded in the forward pass and gradients
pass straight through inside the range.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["SCHEMES", "FakeQuantScheme", "FakeQuantize", "Observe", "layers"]


@dataclass(frozen=True)
class FakeQuantScheme:
    """How many bits a weight and an activation get.

    Attributes:
        weight_bits: Symmetric, a scale an output channel (and block).
        activation_bits: One scale and zero point a tensor, of inputs and outputs; None leaves
            them in floating point.
        block: Inputs that share a weight scale; None shares one over the whole channel. Weights
            that blocks do not divide, convolutions among them, get 8 bits and a scale a channel.
    """

    weight_bits: int
    activation_bits: int | None = None
    block: int | None = None

    def blocked(self, weight: Tensor) -> bool:
        """Whether a weight (out, in, ...) is cut into blocks."""
        return self.block is not None and weight.ndim == 2 and weight.shape[1] % self.block == 0

    def bits(self, weight: Tensor) -> int:
        """How many bits a weight (out, in, ...) gets."""
        return self.weight_bits if self.block is None or self.blocked(weight) else 8


SCHEMES = {
    "int8": FakeQuantScheme(8, 8),
    "int8-weights": FakeQuantScheme(8),
    "int4-weights": FakeQuantScheme(4, block=32),
}


def layers(net: nn.Module) -> dict[str, nn.Module]:
    """Layers that can be quantized, by path: every Linear and Conv2d."""
    kinds = (nn.Linear, nn.Conv2d)
    return {path: module for path, module in net.named_modules() if isinstance(module, kinds)}


Range: TypeAlias = tuple[Tensor, Tensor]
"""The least and the greatest value of a tensor."""


class _Watch(TorchFunctionMode, ABC):
    """Takes over the calls of given layers, which it knows by their weights.

    The layers themselves stay as they are.

    Args:
        modules: Linear and Conv2d layers.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__()
        # The modules are kept so that no other tensor can take over an id.
        self._modules = list(modules)
        self._places = {id(module.weight): i for i, module in enumerate(self._modules)}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        place = self._places.get(id(args[1])) if func in _LAYERS else None
        if place is None:
            return func(*args, **(kwargs or {}))
        x, weight, *rest = args

        def layer(x: Tensor, weight: Tensor) -> Tensor:
            result: Tensor = func(x, weight, *rest, **(kwargs or {}))
            return result

        return self._call(place, layer, x, weight)

    @abstractmethod
    def _call(
        self, place: int, layer: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor
    ) -> Tensor:
        """What the layer at `place` puts out for x."""


class Observe(_Watch):
    """Inside this context the ranges of the layers' inputs and outputs are noted in `ranges`."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__(modules)
        self.ranges: dict[int, tuple[Range, Range]] = {}

    def _call(
        self, place: int, layer: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor
    ) -> Tensor:
        y = layer(x, weight)
        seen = (range_of(x), range_of(y))
        before = self.ranges.get(place, seen)
        self.ranges[place] = (_union(before[0], seen[0]), _union(before[1], seen[1]))
        return y


class FakeQuantize(_Watch):
    """Inside this context the given layers compute in low precision.

    Args:
        modules: Linear and Conv2d layers.
        scheme: Their precision.
        ranges: Of activations, from an `Observe` of the same layers (or of a copy's, in the same
            order); without them, each call's own.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        scheme: FakeQuantScheme,
        ranges: Mapping[int, tuple[Range, Range]] | None = None,
    ) -> None:
        super().__init__(modules)
        self.scheme, self.ranges = scheme, ranges or {}

    def _call(
        self, place: int, layer: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor
    ) -> Tensor:
        bits = self.scheme.activation_bits
        weight = quantized_weight(weight, self.scheme)
        if bits is None:
            return layer(x, weight)
        given = self.ranges.get(place)
        y = layer(quantized(x, bits, given and given[0]), weight)
        return quantized(y, bits, given and given[1])


def range_of(x: Tensor) -> Range:
    """Least and greatest value, 0 among them."""
    low, high = x.detach().aminmax()
    return low.clamp(max=0), high.clamp(min=0)


def _union(a: Range, b: Range) -> Range:
    return torch.minimum(a[0], b[0]), torch.maximum(a[1], b[1])


_LAYERS = (F.linear, F.conv2d)


def quantized(x: Tensor, bits: int, given: Range | None = None) -> Tensor:
    """Round x (any shape) to 2^bits values of its range, or of one given, which clips it."""
    low, high = given or range_of(x)
    top = 2**bits - 1
    scale = ((high - low) / top).clamp(min=1e-12).float()
    zero = (-low / scale).round().clamp(0, top).int()
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, top)


def quantized_weight(weight: Tensor, scheme: FakeQuantScheme) -> Tensor:
    """Round weight (out, in, ...) symmetrically, a scale an output channel or block."""
    if scheme.blocked(weight):
        return _quantized_blocks(weight, scheme)
    top = 2 ** (scheme.bits(weight) - 1) - 1
    rows = weight.flatten(1)
    scale = (rows.detach().abs().amax(1) / top).clamp(min=1e-12).float()
    zero = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)
    return torch.fake_quantize_per_channel_affine(rows, scale, zero, 0, -top, top).view_as(weight)


def _quantized_blocks(weight: Tensor, scheme: FakeQuantScheme) -> Tensor:
    """The largest of each block becomes -2^(bits-1), as in ONNX Runtime's MatMulNBits and NNCF."""
    low = -(2 ** (scheme.weight_bits - 1))
    with torch.no_grad():
        blocks = weight.detach().reshape(-1, scheme.block or 1)
        largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
        scale = largest / low
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        rounded = (blocks / scale).round().clamp(low, -low - 1) * scale
    # The value is the rounded one, the gradient goes straight through.
    return weight + (rounded.view_as(weight) - weight).detach()
