"""Discriminator heads on the features of any network, taken at a named module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["HEADS", "Tap", "head_for"]


class Tap:
    """Keeps the last output of the module called `path` inside `net`.

    Raises:
        ValueError: If `net` has no such module.
    """

    def __init__(self, net: nn.Module, path: str) -> None:
        modules = dict(net.named_modules())
        if not path or path not in modules:
            raise ValueError(f"no module {path!r} to take features from in {type(net).__name__}")
        self.features: Tensor | None = None
        modules[path].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.features = output

    def take(self) -> Tensor:
        """The features of the last call, handed out once."""
        features, self.features = self.features, None
        if features is None:
            raise RuntimeError("the tapped module was not called")
        return features


def _point_head(features: Tensor) -> nn.Module:
    width = features.shape[1]
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))


def _map_head(features: Tensor) -> nn.Module:
    """Strided convolutions down to one logit, as on DMD2's bottleneck features."""
    width, size = features.shape[1], min(features.shape[2:])
    layers: list[nn.Module] = []
    while size > 2:
        layers += [nn.Conv2d(width, width, 3, 2, 1), nn.GroupNorm(16, width), nn.SiLU()]
        size = (size + 1) // 2
    layers += [nn.Conv2d(width, width, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


class _TokenHead(nn.Module):
    """An opinion on each token (N, L, C), averaged."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.opinion = _point_head(features[:, 0])

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.opinion(features)
        return found.mean(1)


HEADS: dict[int, Callable[[Tensor], nn.Module]] = {2: _point_head, 3: _TokenHead, 4: _map_head}
"""By the number of dimensions of the features."""


def head_for(features: Tensor) -> nn.Module:
    """A head giving (N, 1) logits, shaped for features like these."""
    if features.ndim not in HEADS:
        raise ValueError(f"no discriminator head for features of shape {tuple(features.shape)}")
    return HEADS[features.ndim](features)
