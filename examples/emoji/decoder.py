"""Sharpen the decoder while the U-Net trains.

The encoder is frozen, so the latents stay what the U-Net learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

import data
from common import autoencoder
from common.pictures import to_float
from common.training import Plan, Trainer


@dataclass(frozen=True, kw_only=True)
class Config(Plan):
    """Training of the decoder alone."""

    seconds: float = 20 * 60
    batch: int = 12
    matrix_rate: float = 2e-3
    other_rate: float = 2e-3
    warmup_steps: int = 50
    hold: float = 0.2
    ema_decay: float = 0.998
    gradient_weight: float = 0.5
    noise: float = 0.05
    """Deviation of noise on the latents (theirs is 1), for latents that come from a sampler."""
    chosen_weight: float = 6.0


def run(work: Path, config: Config) -> None:
    """Train on the frozen latents of all pictures and their mirror images; replaces `vae/`."""
    torch.manual_seed(0)
    images, pictures = data.load(work)
    chosen = data.chosen(pictures)
    odds = torch.ones(len(images))
    odds[chosen] = config.chosen_weight
    odds = odds.repeat(2)
    targets = torch.cat([images, images.flip(2)])
    vae = AutoencoderKL.from_pretrained(work / "vae")
    latents = autoencoder.encode(vae, targets)
    trained = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder])
    vae.to(memory_format=torch.channels_last)

    def loss(_share: float) -> tuple[torch.Tensor, dict[str, float]]:
        rows = torch.multinomial(odds, config.batch)
        noisy = latents[rows] + config.noise * torch.randn_like(latents[rows])
        drawn = vae.decode(noisy.to(memory_format=torch.channels_last)).sample
        error = drawn - to_float(targets[rows])
        total = autoencoder.picture_loss(error, config.gradient_weight)
        return total, {"psnr": autoencoder.psnr(error)}

    Trainer(trained, config, work / "decoder-state.safetensors").run(loss)
    vae.to(memory_format=torch.contiguous_format)
    vae.save_pretrained(work / "vae")
    autoencoder.report(vae, images[chosen], latents[chosen], work / "decoder.png")
