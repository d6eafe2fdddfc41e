"""Train the autoencoder on the portraits and keep the latents of all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL

from common import autoencoder
from common.chunks import fill
from common.pictures import to_float
from common.training import Trainer
from portraits import data


@dataclass(frozen=True, kw_only=True)
class Config(autoencoder.Config):
    """Training of the autoencoder."""

    pictures: int = 16_000
    """How many of the portraits it sees."""
    samples: float = 60_000
    batch: int = 16
    matrix_rate: float = 3e-3
    other_rate: float = 3e-3
    warmup_steps: int = 100
    hold: float = 0.3
    ema_decay: float = 0.998
    bf16: bool = True


def train(work: Path, config: Config) -> None:
    """Train, whiten the latents, write `vae/` and `autoencoder.png`."""
    torch.manual_seed(0)
    pictures = data.load(work, data.TRAIN)[: config.pictures]
    vae = autoencoder.build(config)

    def loss(share: float) -> tuple[torch.Tensor, dict[str, float]]:
        batch = to_float(data.take(pictures, torch.randint(len(pictures), (config.batch,))))
        return autoencoder.loss(vae, batch, share, config)

    Trainer(vae, config, work / "autoencoder-state.safetensors").run(loss)
    some = data.take(pictures, torch.arange(min(4096, len(pictures))))
    autoencoder.whiten(vae, autoencoder.encode(vae, some))
    vae.save_pretrained(work / "vae")
    test = torch.from_numpy(data.load(work, data.TEST)[:512].copy())
    autoencoder.report(vae, test, autoencoder.encode(vae, test), work / "autoencoder.png")


def encode(work: Path) -> None:
    """Write the means of all latents, (N, 16, 8, 8) float16, to `latents.npy`."""
    vae = AutoencoderKL.from_pretrained(work / "vae")
    pictures = data.load(work, data.TRAIN)

    def make(start: int, stop: int) -> npt.NDArray[np.float16]:
        chunk = torch.from_numpy(np.array(pictures[start:stop]))
        return autoencoder.encode(vae, chunk).half().numpy()

    fill(_place(work), (len(pictures), *_SHAPE), np.float16, make, chunk=500)


def load(work: Path) -> torch.Tensor:
    """All latents, (N, 16, 8, 8) float16."""
    return torch.from_numpy(np.load(_place(work)))


def _place(work: Path) -> Path:
    return work / "latents.npy"


_SHAPE = (16, 8, 8)
