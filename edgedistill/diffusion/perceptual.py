"""Networks whose features make a perceptual distance: random ones, and ones trained on latents."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgedistill.assets import find

__all__ = ["NETWORKS", "LatentFeatures", "Network", "Pyramid", "feature_distance", "trained"]

Network = Callable[[Tensor], list[Tensor]]
"""Function from pictures or latents (N, C, H, W) to features (N, F, H', W') of several layers."""


class Pyramid(nn.Module):
    """Features at ever coarser scales from convolutions with fixed random weights.

    An untrained network still ranks distortions as people do, and better than pixels (Zhang et al.
    2018, arXiv 1801.03924, Fig. 4). It needs no published weights and takes latents with any
    number of channels.

    Args:
        channels: Channels of the input.
    """

    WIDTHS = (32, 64, 128, 128)

    def __init__(self, channels: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList()
        for width, stride in zip(self.WIDTHS, (1, 2, 2, 2), strict=True):
            layer = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            self.layers.append(layer)
            channels = width
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of x (N, C, H, W), from fine to coarse."""
        found = []
        for layer in self.layers:
            x = nn.functional.relu(layer(x))
            found.append(x)
        return found


class LatentFeatures(nn.Module):
    """Features of latents from convolutions that were trained to recognise what latents show.

    LatentLPIPS (Kang et al. 2024, arXiv 2405.05967, Sec. 3.2) has VGG's layers without the first
    poolings, since latents are small already. These are fewer layers, for the latents of one
    autoencoder; `examples/emoji/latent_features.py` trains the shipped ones.

    Args:
        channels: Channels of the latents.
        widths: Channels of each layer.
        strides: Stride of each layer.
    """

    def __init__(self, channels: int, widths: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.channels, self.strides = channels, tuple(strides)
        sizes = zip((channels, *widths[:-1]), widths, strides, strict=True)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride, 1) for a, b, stride in sizes)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of x (N, C, H, W), from fine to coarse.

        Raises:
            ValueError: If x has other channels than the latents of the training.
        """
        if x.shape[1] != self.channels:
            raise ValueError(
                f"distance.kind=latent-lpips: the features of distance.network are of latents of "
                f"{self.channels} channels, not of {x.shape[1]}; choose distance.kind=features, "
                "or another distance.network"
            )
        found = []
        for layer in self.layers:
            x = nn.functional.relu(layer(x))
            found.append(x)
        return found

    def save(self, path: Path, about: Mapping[str, str]) -> None:
        """Write a safetensors file in half precision, from which `open` makes the network again.

        Args:
            path: Path of the file.
            about: Further metadata: what the network was trained on.
        """
        weights = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, path, {**about, "strides": json.dumps(self.strides)})
        path.chmod(0o644)  # safetensors makes its files readable for their owner alone

    @classmethod
    def open(cls, path: Path) -> LatentFeatures:
        """Read a file of `save`, without a gradient in its weights.

        Raises:
            ValueError: If the file is not one of `save`.
        """
        try:
            with safe_open(path, "pt") as file:
                strides = json.loads((file.metadata() or {})["strides"])
                weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118  no dict
            kernels = [weights[f"layers.{i}.weight"] for i in range(len(strides))]
            net = cls(kernels[0].shape[1], [len(kernel) for kernel in kernels], strides)
            net.load_state_dict(weights)
        except (SafetensorError, OSError, KeyError, IndexError, TypeError, RuntimeError) as error:
            raise ValueError(_no_features(path)) from error
        except ValueError:
            raise ValueError(_no_features(path)) from None
        return net.requires_grad_(False)


def _no_features(path: Path) -> str:
    return (
        f"{path}: no features of latents; a file of them is made by "
        "examples/emoji/latent_features.py"
    )


@functools.cache
def _cached(
    make: Callable[..., nn.Module], key: tuple[Any, ...], device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """Make a network once; constructors draw weights that are replaced."""
    with torch.random.fork_rng(devices=[]):
        return make(*key).to(device, dtype)


def _opened(file: str, changed: int) -> LatentFeatures:
    return LatentFeatures.open(Path(file))


def untrained(network: str, x: Tensor) -> Network:
    """Return the `Pyramid` for tensors such as x (N, C, H, W)."""
    return _cached(Pyramid, (x.shape[1],), x.device, x.dtype)


def trained(network: str, x: Tensor) -> Network:
    """Return `LatentFeatures` of a file, or shipped ones by name, for tensors such as x.

    Args:
        network: Path of a safetensors file, or the name of a shipped one.
        x: Latents (N, C, H, W).

    Raises:
        ValueError: If there is no such file, or it is none of `LatentFeatures`.
    """
    file = find("features", network, ".safetensors")
    return _cached(_opened, (str(file), file.stat().st_mtime_ns), x.device, x.dtype)


NETWORKS: dict[str, Callable[[str, Tensor], Network]] = {
    "features": untrained,
    "latent-lpips": trained,
}
"""Networks by kind of distance: functions of `Distance.network` and x."""


def feature_distance(net: Network, a: Tensor, b: Tensor) -> Tensor:
    """Return LPIPS (Zhang et al. 2018, Eq. 1) without its learnt weights, (N,).

    It is the mean over layers and positions of |u - v|^2, where u and v are the features there,
    normalised to length 1.

    Args:
        net: Network of the features.
        a: First pictures or latents, (N, C, H, W).
        b: Others, (N, C, H, W).
    """
    unit = functools.partial(nn.functional.normalize, dim=1, eps=1e-6)
    layers = [
        (unit(u) - unit(v)).square().sum(1).mean((1, 2))
        for u, v in zip(net(a), net(b), strict=True)
    ]
    return torch.stack(layers).mean(0)
