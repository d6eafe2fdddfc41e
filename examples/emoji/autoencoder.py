"""Train the autoencoder: 64x64 pictures to 16 channels of 8x8 and back.

Eight times smaller with 16 channels holds as many numbers as the usual four times smaller with 4,
and the U-Net that works on it costs a quarter. Afterwards every latent channel has mean 0 and
deviation 1 over the chosen pictures; that whitening is folded into the two 1x1 convolutions at
the bottleneck, so `scaling_factor` is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

import data
from common.pictures import save_grid, to_float, to_uint8
from common.storage import save_tensor
from common.training import Plan, Trainer


@dataclass(frozen=True, kw_only=True)
class Config(Plan):
    """Shapes and training of the autoencoder."""

    channels: tuple[int, ...] = (16, 32, 64, 96)
    latent_channels: int = 16
    norm_groups: int = 8
    seconds: float = 8 * 60
    threads: int = 2
    batch: int = 12
    matrix_rate: float = 3e-3
    other_rate: float = 3e-3
    warmup_steps: int = 100
    ema_decay: float = 0.998
    gradient_weight: float = 0.5
    """Weight of the error of neighbouring differences, which keeps outlines sharp."""
    kl_weight: float = 1e-4
    """Thirty times more nearly collapses channels."""
    kl_warmup: float = 0.2
    """Share of the budget over which the KL weight rises."""
    chosen_weight: float = 6.0
    """How much more often a picture the teacher learns is drawn than another."""


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
        sample_size=data.SIZE,
        scaling_factor=1.0,
    )


def run(work: Path, config: Config) -> None:
    """Train, whiten, write `vae/`, `latents.pt` of all pictures and `autoencoder.png`."""
    torch.manual_seed(0)
    images, pictures = data.load(work)
    chosen = data.chosen(pictures)
    odds = torch.ones(len(images))
    odds[chosen] = config.chosen_weight
    vae = build(config)
    vae.to(memory_format=torch.channels_last)

    def loss(share: float) -> tuple[torch.Tensor, dict[str, float]]:
        batch = to_float(images[torch.multinomial(odds, config.batch)])
        batch = batch.flip(-1) if torch.rand(()) < 0.5 else batch
        batch = batch.to(memory_format=torch.channels_last)
        mean, log_variance = vae.quant_conv(vae.encoder(batch)).chunk(2, dim=1)
        log_variance = log_variance.clamp(-20, 4)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        error = vae.decode(latents).sample - batch
        kl_weight = config.kl_weight * min(1.0, share / config.kl_warmup)
        total = picture_loss(error, config.gradient_weight) + kl_weight * kl
        return total, {"kl": kl.item(), "psnr": psnr(error)}

    Trainer(vae, config, work / "autoencoder-state.safetensors").run(loss)
    vae.to(memory_format=torch.contiguous_format)
    whiten(vae, encode(vae, images[chosen]))
    latents = encode(vae, images)
    save_tensor(latents.half(), work / "latents.safetensors")
    vae.save_pretrained(work / "vae")
    report(vae, images[chosen], latents[chosen], work / "autoencoder.png")


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
        f"autoencoder: {psnr(error):.2f} dB on the chosen pictures, worst 5 % "
        f"{each.quantile(0.05):.2f} dB; latents deviate {latents.std():.3f}, "
        f"at most {latents.abs().max():.1f}",
        flush=True,
    )
    pairs = torch.stack([images, to_uint8(rebuilt)], dim=1).flatten(0, 1)
    save_grid(pairs[:256], path, columns=16)
