"""A decoder that is a flow from noise to pictures, conditioned on latents, used in one step.

Vallaeys et al. 2025, "SSDD: Single-Step Diffusion Decoder for Efficient Image Tokenization" (arXiv
2510.04961). Its layers are those of a `PatchDecoder`. A bundle takes one step, where noise and
time are constants, so the layers that read them are folded away and both decoders cost the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from edgedistill.networks.patch_decoder import blocks_of, joints_of, widths_of

__all__ = ["DiffusionDecoder"]


class DiffusionDecoder(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """A network of noisy pictures x_t (N, 3, H, W) and latents (N, C, h, w) -> eps - x0.

    Times t (N,) are in [0, 1].

    Args:
        latent_channels: Number C of latent channels.
        block_out_channels: As in `PatchDecoder`.
        num_decoder_blocks: As in `PatchDecoder`.
        scaling_factor: Latents are x0 divided by this.
        noise_size: Side in pixels of the noise that `decode` starts from, repeated as needed.

    Raises:
        ValueError: As in `PatchDecoder`.
    """

    noise: Tensor

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers is untyped
    def __init__(
        self,
        latent_channels: int = 4,
        block_out_channels: Sequence[int] = (128, 64, 0, 0),
        num_decoder_blocks: Sequence[int] = (2, 1, 0, 0),
        scaling_factor: float = 1.0,
        noise_size: int = 64,
    ) -> None:
        super().__init__()
        widths = widths_of(block_out_channels, num_decoder_blocks)
        levels = len(block_out_channels)
        self.times = Timesteps(64, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.embedding = TimestepEmbedding(64, 128)
        self.unshuffle = nn.ModuleList(
            nn.PixelUnshuffle(2 ** (levels - 1 - i)) for i in range(len(widths))
        )
        self.noisy = nn.ModuleList(
            nn.Conv2d(3 * 4 ** (levels - 1 - i), width, 1) for i, width in enumerate(widths)
        )
        self.timed = nn.ModuleList(nn.Linear(128, 2 * width) for width in widths)
        entry = nn.Conv2d(latent_channels, widths[0], 3, padding=1)
        self.joints = nn.ModuleList([entry, *joints_of(widths)])
        self.blocks = blocks_of(widths, num_decoder_blocks)
        patch = 2 ** (levels - len(widths))
        self.last = nn.Conv2d(widths[-1], 3 * patch**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(patch)
        generator = torch.Generator().manual_seed(0)
        shape = (1, 3, noise_size, noise_size)
        noise = torch.randn(shape, generator=generator, device="cpu")
        self.register_buffer("noise", noise.to(self.last.weight.device))

    def forward(self, x_t: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Return the velocity eps - x0 of x_t = (1 - t) x0 + t eps, shaped as x_t."""
        embedded = self.embedding(self.times(1000 * t).to(x_t.dtype))
        h = z
        levels = zip(self.joints, self.unshuffle, self.noisy, self.timed, self.blocks, strict=True)
        for joint, unshuffle, noisy, timed, blocks in levels:
            scale, shift = timed(embedded)[..., None, None].chunk(2, 1)
            h = blocks((joint(h) + noisy(unshuffle(x_t))) * (1 + scale) + shift)
        velocity: Tensor = self.shuffle(self.last(h.relu()))
        return velocity

    def start(self, z: Tensor) -> Tensor:
        """Return the noise that `decode` starts from, (1, 3, H, W) for latents `z`."""
        enlarged = 2 ** (len(self.config.block_out_channels) - 1)
        height, width = enlarged * z.shape[-2], enlarged * z.shape[-1]
        size = self.noise.shape[-1]
        tiles = self.noise.repeat(1, 1, math.ceil(height / size), math.ceil(width / size))
        return tiles[..., :height, :width]

    def solve(self, z: Tensor, steps: int) -> Tensor:
        """Return pictures of latents by Euler steps of equal length from `start`, (N, 3, H, W)."""
        x = self.start(z)
        for k in range(steps):
            t = torch.full((1,), 1 - k / steps, device=z.device, dtype=z.dtype)
            x = x - self(x, t, z) / steps
        return x

    def decode(self, z: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """Decode in one step, as diffusers' autoencoders do; the noise is always the same."""
        picture = self.solve(z, 1)
        return DecoderOutput(sample=picture) if return_dict else (picture,)
