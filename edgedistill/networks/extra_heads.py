"""A network with extra output heads that are only needed during training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Condition
from edgedistill.networks.adapters import Role

__all__ = ["Headed"]


class Headed(nn.Module):
    """A network with an unchanged output, whose extra heads are read by `take()`.

    The heads read the input of the network's last layer and start at zero.

    Args:
        net: Network called as net(x, time, **cond); its output must be its last layer's.
        heads: Number of heads, each with as many channels as the output.
        x: x of an example call, one row or more.
        time: Time of that call, (N,).
        cond: Condition of that call.

    Raises:
        ValueError: If the network's output is not exactly that of a linear or convolution layer.
    """

    def __init__(
        self, net: nn.Module, heads: int, x: Tensor, time: Tensor, cond: Condition
    ) -> None:
        super().__init__()
        if isinstance(net, Role):
            raise ValueError(
                "train.roles=adapters: a LoRA has no place for further heads; "
                "choose train.roles=copies"
            )
        self.net, self.count = net, heads
        self.path = _last_layer(net, x, time, cond)
        self.heads = _wider(net.get_submodule(self.path), heads)
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)
        self._features: list[Tensor] = []

    # torch.compile would compile the network anew at each call, for the new hook.
    @torch.compiler.disable  # type: ignore[untyped-decorator]  # torch types no decorator
    def forward(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        self._features.clear()
        hook = self.net.get_submodule(self.path).register_forward_pre_hook(
            lambda _, args: self._features.append(args[0])
        )
        try:
            result: Tensor = self.net(x, time, **cond)
        finally:
            hook.remove()
        return result

    def take(self) -> Tensor:
        """Return the heads' outputs of the last call, (heads, N, ...); each can be taken once."""
        out: Tensor = self.heads(self._features.pop())
        return out.reshape(len(out), self.count, -1, *out.shape[2:]).transpose(0, 1)


def _wider(layer: nn.Module, times: int) -> nn.Module:
    """Make a layer like this one with `times` as many outputs."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, times * layer.out_features).to(layer.weight)
    assert isinstance(layer, nn.Conv2d)
    size: Any = layer.kernel_size
    stride: Any = layer.stride
    padding: Any = layer.padding
    wide = nn.Conv2d(layer.in_channels, times * layer.out_channels, size, stride, padding)
    return wide.to(layer.weight)


@torch.no_grad()
def _last_layer(net: nn.Module, x: Tensor, time: Tensor, cond: Condition) -> str:
    """Return the path of the layer whose output is the network's."""
    made: list[tuple[str, Any]] = []
    hooks = [
        module.register_forward_hook(lambda _, args, out, name=name: made.append((name, out)))
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    result = net(x, time, **cond)
    for hook in hooks:
        hook.remove()
    for name, out in made:
        if out is result:
            return name
    raise ValueError(
        f"the output of {type(net).__name__} is not its last layer's, beside which this method "
        "needs further heads"
    )
