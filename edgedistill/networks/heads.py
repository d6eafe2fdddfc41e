"""Discriminator heads on features of any network, taken at a named module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgedistill.diffusion.denoiser import Condition, Denoiser
from edgedistill.networks.taps import Taps

__all__ = ["HEADS", "Discriminator", "Shown", "Tap", "head_for"]

Shown = Sequence[tuple[Tensor, Tensor]]
"""Input of a discriminator: points (x_t (N, ...), t (N,)), the one to be judged first."""


class Tap:
    """A hook that keeps the last output of the module called `path` inside `net`.

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
        """Return the features of the last call; they can be taken once."""
        features, self.features = self.features, None
        if features is None:
            raise RuntimeError("the tapped module was not called")
        return features


def _point_head(features: Tensor) -> nn.Module:
    width = features.shape[1]
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))


def _map_head(features: Tensor) -> nn.Module:
    """Make strided convolutions down to one logit, as on DMD2's bottleneck features."""
    width, size = features.shape[1], min(features.shape[2:])
    layers: list[nn.Module] = []
    while size > 2:
        layers += [nn.Conv2d(width, width, 3, 2, 1), nn.GroupNorm(16, width), nn.SiLU()]
        size = (size + 1) // 2
    layers += [nn.Conv2d(width, width, 1), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


class _TokenHead(nn.Module):
    """A head with one logit for each token (N, L, C), averaged over the tokens."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.opinion = _point_head(features[:, 0])

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.opinion(features)
        return found.mean(1)


HEADS: dict[int, Callable[[Tensor], nn.Module]] = {2: _point_head, 3: _TokenHead, 4: _map_head}
"""Makers of heads by the number of dimensions of the features."""


def head_for(features: Tensor) -> nn.Module:
    """Make a head with (N, 1) logits for features shaped like these."""
    if features.ndim not in HEADS:
        raise ValueError(f"no discriminator head for features of shape {tuple(features.shape)}")
    return HEADS[features.ndim](features)


class Discriminator(nn.Module):
    """A discriminator of heads on features of a diffusion network, one for each tap.

    A conditional discriminator is given two points of a path. The network runs on each, and the
    heads see the features of both side by side (Lin et al. 2024, SDXL-Lightning, arXiv 2402.13929,
    Sec. 3.2).

    Args:
        denoiser: Network of the features; a copy that nothing else uses.
        paths: Paths of the taps inside its net.
        example: x0 (N, ...) and a condition, for shapes.
        frozen: Whether only the heads train; otherwise the network does too.
        places: Number of points in an input.
        groups: Number of heads at each tap; every sample is judged by those of its own group.
    """

    denoiser: Denoiser

    def __init__(
        self,
        denoiser: Denoiser,
        paths: Sequence[str],
        example: tuple[Tensor, Condition],
        *,
        frozen: bool,
        places: int = 1,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.groups = groups
        # Bypass nn.Module if frozen, so that its weights are in no checkpoint.
        self.__dict__["denoiser"] = denoiser
        self.body = nn.Identity() if frozen else denoiser.net
        denoiser.requires_grad_(not frozen)
        self.taps = Taps(denoiser.net, paths)
        x0, cond = example
        half = torch.full((len(x0),), 0.5, device=x0.device, dtype=torch.float64)
        with torch.no_grad():
            found = self.features([(x0, half)] * places, cond)
        self.heads = nn.ModuleList(
            head_for(features) for features in found for _ in range(groups)
        ).to(x0.device)

    def features(self, shown: Shown, cond: Condition) -> list[Tensor]:
        """Return the features at each tap; those of several points are joined along channels."""
        found = []
        for x_t, t in shown:
            with self.taps:
                self.denoiser.output(x_t, t, cond)
            found.append(self.taps.take())
        return [
            torch.cat(taps, dim=-1 if taps[0].ndim == 3 else 1)
            for taps in zip(*found, strict=True)
        ]

    def forward(self, shown: Shown, cond: Condition, group: Tensor | None = None) -> Tensor:
        """Return logits (N, taps).

        Args:
            shown: Points, each x_t (N, ...) and t (N,).
            cond: Condition of N rows.
            group: Group of each sample (N,), if there are several.
        """
        found = self.features(shown, cond)
        inputs = [features for features in found for _ in range(self.groups)]
        logits = torch.cat([head(f) for head, f in zip(self.heads, inputs, strict=True)], dim=1)
        if self.groups == 1 or group is None:
            return logits
        of_groups = logits.reshape(len(logits), len(found), self.groups)
        index = group[:, None, None].expand(-1, len(found), 1)
        return of_groups.gather(2, index)[:, :, 0]
