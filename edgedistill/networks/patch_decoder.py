"""A decoder that computes where there are few positions and unfolds the pixels at once.

At the picture's resolution a convolution costs sixty-four times what it costs at the latent's.
Here the layers are at the latent's and, if asked, the next ones; the last puts out all pixels of a
patch (sub-pixel convolution, Shi et al. 2016, arXiv 1609.05158). A 3 x 3 convolution looks around
and widens, a 1 x 1 convolution brings the width back: for the same cost that learns more than two
3 x 3 convolutions of one width, and what runs it fuses each rectifier into the layer before.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

__all__ = ["Block", "PatchDecoder", "blocks_of", "joints_of", "unfolding", "widths_of"]

EXPAND = 2
"""How much wider a block is inside."""


class Block(nn.Module):
    """x + conv 1 x 1 (relu(conv 3 x 3 (x))), at first x."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, EXPAND * channels, 3, padding=1)
        self.second = nn.Conv2d(EXPAND * channels, channels, 1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        moved: Tensor = x + self.second(self.first(x).relu())
        return moved


def widths_of(channels: Sequence[int], blocks: Sequence[int]) -> list[int]:
    """The channels before the first 0.

    Raises:
        ValueError: If there are none, channels return after a 0, or the lengths differ.
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
    """From each level to the next, which is twice as large."""
    return nn.ModuleList(
        nn.Sequential(nn.Conv2d(before, 4 * width, 1), nn.PixelShuffle(2))
        for before, width in pairwise(widths)
    )


def blocks_of(widths: Sequence[int], counts: Sequence[int]) -> nn.ModuleList:
    """The residual blocks of each level; `counts` may be longer."""
    return nn.ModuleList(
        nn.Sequential(*(Block(width) for _ in range(count)))
        for width, count in zip(widths, counts, strict=False)
    )


def unfolding(channels: int, patch: int) -> nn.Sequential:
    """From `channels` at each position to a patch of 3 x `patch` x `patch`."""
    values = 3 * patch**2
    return nn.Sequential(
        nn.Conv2d(channels, values, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(values, values, 1),
        nn.PixelShuffle(patch),
    )


class PatchDecoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Latents (N, C, h, w) -> pictures (N, 3, H, W) in about [-1, 1].

    Stands where diffusers expects an autoencoder to decode with; it has no encoder.

    Args:
        latent_channels: C.
        block_out_channels: Channels at each resolution from the latent's to the picture's, each
            twice the last. From the first 0 on there are no layers, and the pixels are unfolded.
        num_decoder_blocks: Residual blocks at each.
        scaling_factor: Latents are x0 divided by this.

    Raises:
        ValueError: If the two lists differ in length, or channels return after a 0, or there are
            none at the latent's resolution.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (64, 0, 0, 0),
        num_decoder_blocks: Sequence[int] = (3, 0, 0, 0),
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        widths = widths_of(block_out_channels, num_decoder_blocks)
        self.entry = nn.Conv2d(latent_channels, widths[0], 5, padding=2)
        self.joints = joints_of(widths)
        self.blocks = blocks_of(widths, num_decoder_blocks)
        self.last = unfolding(widths[-1], 2 ** (len(block_out_channels) - len(widths)))

    def forward(self, z: Tensor) -> Tensor:
        """Pictures of latents."""
        h = self.blocks[0](self.entry(z))
        for joint, blocks in zip(self.joints, self.blocks[1:], strict=True):
            h = blocks(joint(h))
        picture: Tensor = self.last(h)
        return picture

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Pictures of latents, as diffusers' autoencoders return them; nothing is random."""
        picture = self(z)
        return DecoderOutput(sample=picture) if return_dict else (picture,)
