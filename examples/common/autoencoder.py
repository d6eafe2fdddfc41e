"""An autoencoder of small pictures: 64x64 pixels to 16 channels of 8x8 and back.

Eight times smaller with 16 channels holds as many numbers as the usual four times smaller with 4,
and the U-Net that works on it costs a quarter. `whiten` gives every latent channel mean 0 and
deviation 1; it is folded into the two 1x1 convolutions at the bottleneck, so that
`scaling_factor` is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from common.pictures import save_grid, to_float, to_uint8
from common.training import Plan


@dataclass(frozen=True, kw_only=True)
class Config(Plan):
    """Shapes and losses of the autoencoder."""

    size: int = 64
    channels: tuple[int, ...] = (16, 32, 64, 96)
    latent_channels: int = 16
    norm_groups: int = 8
    gradient_weight: float = 0.5
    """Weight of the error of neighbouring differences, which keeps outlines sharp."""
    kl_weight: float = 1e-4
    """Thirty times more nearly collapses channels."""
    kl_warmup: float = 0.2
    """Share of the budget over which the KL weight rises."""


def build(config: Config) -> AutoencoderKL:
    """An untrained autoencoder; its 16 channels at full size keep the decoder fast."""
    levels = len(config.channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
        sample_size=config.size,
        scaling_factor=1.0,
    )


def loss(
    vae: AutoencoderKL, batch: torch.Tensor, share: float, config: Config
) -> tuple[torch.Tensor, dict[str, float]]:
    """What to minimize on (N, 3, H, W) pictures, `share` of the budget being spent."""
    mean, log_variance = vae.quant_conv(vae.encoder(batch)).chunk(2, dim=1)
    log_variance = log_variance.clamp(-20, 4)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
    error = vae.decode(latents).sample - batch
    kl_weight = config.kl_weight * min(1.0, share / config.kl_warmup)
    total = picture_loss(error, config.gradient_weight) + kl_weight * kl
    return total, {"kl": kl.item(), "psnr": psnr(error)}


def picture_loss(error: torch.Tensor, gradient_weight: float) -> torch.Tensor:
    """Absolute error of the pixels and of the differences between neighbours."""
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + gradient_weight * edges


def psnr(error: torch.Tensor) -> float:
    """Decibels of an error of pictures in [-1, 1]."""
    return 10 * math.log10(4 / error.detach().square().mean().item())


@torch.no_grad()
def encode(vae: AutoencoderKL, images: torch.Tensor) -> torch.Tensor:
    """The means of the latents of (N, 64, 64, 3) uint8 pictures."""
    return torch.cat([vae.encode(to_float(b)).latent_dist.mean for b in torch.split(images, 64)])


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """(N, 3, 64, 64) pictures, clipped to [-1, 1]."""
    return torch.cat([vae.decode(b).sample.clamp(-1, 1) for b in torch.split(latents, 64)])


@torch.no_grad()
def whiten(vae: AutoencoderKL, latents: torch.Tensor) -> None:
    """Fold the latents' mean and deviation by channel into the bottleneck convolutions."""
    mean = latents.mean((0, 2, 3))
    deviation = latents.std((0, 2, 3))
    count = len(mean)
    into, out_of = vae.quant_conv, vae.post_quant_conv
    into.weight[:count] /= deviation.view(-1, 1, 1, 1)
    into.bias[:count] = (into.bias[:count] - mean) / deviation
    into.bias[count:] -= 2 * deviation.log()
    out_of.bias += out_of.weight[:, :, 0, 0] @ mean
    out_of.weight *= deviation.view(1, -1, 1, 1)


def report(vae: AutoencoderKL, images: torch.Tensor, latents: torch.Tensor, path: Path) -> None:
    """Print how close the pictures come back and write pairs of before and after."""
    rebuilt = decode(vae, latents)
    error = rebuilt - to_float(images)
    each = 10 * (4 / error.square().mean((1, 2, 3))).log10()
    print(
        f"autoencoder: {psnr(error):.2f} dB on these pictures, worst 5 % "
        f"{each.quantile(0.05):.2f} dB; latents deviate {latents.std():.3f}, "
        f"at most {latents.abs().max():.1f}",
        flush=True,
    )
    pairs = torch.stack([images, to_uint8(rebuilt)], dim=1).flatten(0, 1)
    save_grid(pairs[:256], path, columns=16)
