"""A decoder that computes at low resolution and unfolds all pixels at the end.

At the picture's resolution a convolution costs sixty-four times as much as at the latent's. Here
the layers are at the latent's resolution, the next, and the one below, where a convolution of
twice the width costs the same and has four times the weights. The last layer outputs all pixels of
a patch (sub-pixel convolution, Shi et al. 2016, arXiv 1609.05158).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

__all__ = ["PatchBlock", "PatchDecoder", "WideBlock", "blocks_of", "joints_of", "widths_of"]


class PatchBlock(nn.Module):
    """Residual block x + conv(relu(conv(relu(x)))), which starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = x + self.second(self.first(x.relu()).relu())
        return moved


class WideBlock(nn.Module):
    """Residual block x + conv(relu(conv(x))), which starts as the identity.

    The convolutions are 3 x 3 to more channels and 1 x 1 back. A runtime fuses each of them with
    the following ReLU or sum, so no other operation is left.
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, expansion * channels, 3, padding=1)
        self.second = nn.Conv2d(expansion * channels, channels, 1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = x + self.second(self.first(x).relu())
        return moved


def widths_of(channels: Sequence[int], blocks: Sequence[int]) -> list[int]:
    """Return the channels before the first 0.

    Raises:
        ValueError: If there are no channels, channels follow a 0, or the lengths differ.
    """
    widths = [width for width in channels if width]
    if not widths or list(channels[: len(widths)]) != widths:
        raise ValueError(f"channels={list(channels)}: widths, then zeros only at the end")
    if len(blocks) != len(channels):
        raise ValueError(
            f"channels={list(channels)}, blocks={list(blocks)}: one of each for every resolution"
        )
    return widths


def joints_of(widths: Sequence[int]) -> nn.ModuleList:
    """Make the upsampling layers from each level to the next, which is twice as large."""
    return nn.ModuleList(
        nn.Sequential(nn.Conv2d(before, 4 * width, 1), nn.PixelShuffle(2))
        for before, width in pairwise(widths)
    )


def blocks_of(widths: Sequence[int], counts: Sequence[int], expansion: int = 0) -> nn.ModuleList:
    """Make the residual blocks of each level; `counts` may be longer."""
    return nn.ModuleList(
        nn.Sequential(
            *(
                WideBlock(width, expansion) if expansion else PatchBlock(width)
                for _ in range(count)
            )
        )
        for width, count in zip(widths, counts, strict=False)
    )


class PatchDecoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """A decoder of latents (N, C, h, w) to pictures (N, 3, H, W) in about [-1, 1].

    It takes the place of an autoencoder in diffusers pipelines, but has no encoder.

    Args:
        latent_channels: Number C of latent channels.
        block_out_channels: Channels at each resolution up to the picture's; each resolution is
            twice the last. From the first 0 on there are no layers, and the pixels are unfolded.
        num_decoder_blocks: Number of residual blocks at each resolution.
        levels_below: Number of these resolutions below the latent's, whose height and width must
            then be divisible by 2**levels_below. The latents enter at each resolution up to their
            own.
        scaling_factor: Latents are x0 divided by this.
        expansion: 0 for `PatchBlock`s, otherwise `WideBlock`s of this many times their channels.
        last_channels: Channels of a layer with a ReLU before the last one, which is then 1 x 1; 0
            adds no layer.

    Raises:
        ValueError: If the two lists differ in length, channels follow a 0, or there are none at
            the latent's resolution.
    """

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers is untyped
    def __init__(
        self,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (128, 64, 0, 0),
        num_decoder_blocks: Sequence[int] = (2, 1, 0, 0),
        levels_below: int = 0,
        scaling_factor: float = 1.0,
        expansion: int = 0,
        last_channels: int = 0,
    ) -> None:
        super().__init__()
        widths = widths_of(block_out_channels, num_decoder_blocks)
        if not 0 <= levels_below < len(widths):
            raise ValueError(
                f"levels_below={levels_below}: from 0 to {len(widths) - 1}, one less than the "
                f"widths of block_out_channels={tuple(block_out_channels)}"
            )
        # As many latent positions as the level has; each position sees 3 x 3 of them.
        sizes = [2**below for below in range(levels_below, -1, -1)]
        self.entries = nn.ModuleList(
            nn.Conv2d(latent_channels, width, 3 * size, stride=size, padding=size)
            for width, size in zip(widths, sizes, strict=False)
        )
        self.joints = joints_of(widths)
        self.blocks = blocks_of(widths, num_decoder_blocks, expansion)
        patch = 2 ** (len(block_out_channels) - len(widths))
        # A PatchBlock leaves its ReLU to what comes after it, a WideBlock does not.
        layers: list[nn.Module] = [] if expansion else [nn.ReLU()]
        if last_channels:
            layers += [nn.Conv2d(widths[-1], last_channels, 3, padding=1), nn.ReLU()]
        size = 1 if last_channels else 3
        last = nn.Conv2d(last_channels or widths[-1], 3 * patch**2, size, padding=size // 2)
        self.last = nn.Sequential(*layers, last, nn.PixelShuffle(patch))

    def forward(self, z: Tensor) -> Tensor:
        """Return pictures of latents."""
        h = self.blocks[0](self.entries[0](z))
        for level, (joint, blocks) in enumerate(zip(self.joints, self.blocks[1:], strict=True), 1):
            h = joint(h)
            if level < len(self.entries):
                h = h + self.entries[level](z)
            h = blocks(h)
        picture: Tensor = self.last(h)
        return picture

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Return pictures of latents as diffusers' autoencoders do; nothing is random."""
        picture = self(z)
        return DecoderOutput(sample=picture) if return_dict else (picture,)
