"""Train the autoencoder on every picture there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

import data
from common import autoencoder
from common.autoencoder import encode, report, whiten
from common.pictures import to_float
from common.storage import save_tensor
from common.training import Trainer


@dataclass(frozen=True, kw_only=True)
class Config(autoencoder.Config):
    """Training of the autoencoder."""

    seconds: float = 8 * 60
    threads: int = 2
    batch: int = 12
    matrix_rate: float = 3e-3
    other_rate: float = 3e-3
    warmup_steps: int = 100
    ema_decay: float = 0.998
    chosen_weight: float = 6.0
    """How much more often a picture the teacher learns is drawn than another."""


def run(work: Path, config: Config) -> None:
    """Train, whiten, write `vae/`, `latents.pt` of all pictures and `autoencoder.png`."""
    torch.manual_seed(0)
    images, pictures = data.load(work)
    chosen = data.chosen(pictures)
    odds = torch.ones(len(images))
    odds[chosen] = config.chosen_weight
    vae = autoencoder.build(config)
    vae.to(memory_format=torch.channels_last)

    def loss(share: float) -> tuple[torch.Tensor, dict[str, float]]:
        batch = to_float(images[torch.multinomial(odds, config.batch)])
        batch = batch.flip(-1) if torch.rand(()) < 0.5 else batch
        batch = batch.to(memory_format=torch.channels_last)
        return autoencoder.loss(vae, batch, share, config)

    Trainer(vae, config, work / "autoencoder-state.safetensors").run(loss)
    vae.to(memory_format=torch.contiguous_format)
    whiten(vae, encode(vae, images[chosen]))
    latents = encode(vae, images)
    save_tensor(latents.half(), work / "latents.safetensors")
    vae.save_pretrained(work / "vae")
    report(vae, images[chosen], latents[chosen], work / "autoencoder.png")
