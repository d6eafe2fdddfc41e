"""Train the U-Net and its text encoder together on the latents of the pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL

import data
from captions import Captions
from common import autoencoder, text_to_image
from common.pictures import save_grid, to_uint8
from common.storage import load_tensor
from common.text_to_image import build_schedule, build_text_encoder, build_unet, sample
from common.training import Trainer
from tokenizer import encode
from tokenizer import load as load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Config(text_to_image.Config):
    """Training of the teacher."""

    seconds: float = 57 * 60
    batch: int = 64
    matrix_rate: float = 3e-3
    other_rate: float = 1.2e-3
    warmup_steps: int = 150
    hold: float = 0.25
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    dropped: float = 0.1
    """Share of captions left empty, which is what guidance extrapolates from."""
    grid_seconds: float = 600


def run(work: Path, config: Config) -> None:
    """Train; writes `teacher/` and, now and then, `grid-SECONDS.png`."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(work)
    unet = build_unet(config)
    text_encoder = build_text_encoder(config, tokenizer)
    trainer = Trainer(
        torch.nn.ModuleList([unet, text_encoder]), config, work / "teacher-state.safetensors"
    )
    _, pictures = data.load(work)
    rows = data.chosen(pictures, held_out=False)
    latents = load_tensor(work / "latents.safetensors")[rows].float()
    captions = Captions(tokenizer, [pictures[i] for i in rows])
    vae = AutoencoderKL.from_pretrained(work / "vae")
    alpha_bars = build_schedule().alphas_cumprod
    drawn_at = trainer.budget.spent

    def loss(_share: float) -> tuple[torch.Tensor, dict[str, float]]:
        rows = torch.randint(len(latents), (config.batch,))
        x0 = latents[rows]
        states = text_encoder(captions.draw(rows, config.dropped)).last_hidden_state
        return text_to_image.loss(unet, x0, states, alpha_bars), {}

    def save() -> None:
        unet.save_pretrained(work / "teacher" / "unet")
        text_encoder.save_pretrained(work / "teacher" / "text_encoder")
        ids = torch.tensor(encode(tokenizer, ["", *data.grid_captions()]))
        sampled = sample(unet, text_encoder, ids[1:], ids[0], steps=16, guidance=3.0)
        pixels = to_uint8(autoencoder.decode(vae, sampled))
        save_grid(pixels, work / f"grid-{trainer.budget.spent:04.0f}.png", scale=2)

    def preview() -> None:
        nonlocal drawn_at
        if trainer.budget.spent - drawn_at > config.grid_seconds:
            drawn_at = trainer.budget.spent
            trainer.ema.swap()
            save()
            trainer.ema.swap()

    trainer.run(loss, preview)
    save()
