"""Train the U-Net and its text encoder together, and keep snapshots of them.

A snapshot is the whole pipeline in float16; a later run that finds no checkpoint goes on from it.
"""

from __future__ import annotations

import copy
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from common import autoencoder, text_to_image, tokenizer
from common.pictures import save_grid, to_uint8
from common.snapshots import averaged, replace, restore
from common.training import Trainer
from portraits import attributes, captions, data, latents

POSITIONS = 48


@dataclass(frozen=True, kw_only=True)
class Config(text_to_image.Config):
    """Shapes and training of the teacher."""

    channels: tuple[int, ...] = (96, 128, 160)
    samples: float = 200_000
    batch: int = 64
    matrix_rate: float = 3e-3
    other_rate: float = 1.2e-3
    warmup_steps: int = 150
    hold: float = 0.5
    ema_decay: float = 0.9995
    weight_decay: float = 0.01
    bf16: bool = True
    dropped: float = 0.1
    """Share of captions left empty, which is what guidance extrapolates from."""
    sheet_seconds: float = 1200


def learn_words(work: Path) -> None:
    """Train the tokenizer on the captions of 5,000 portraits."""
    texts = [data.caption(data.TRAIN, number) for number in range(5_000)]
    trained = tokenizer.train(texts, 1024, POSITIONS, work / "tokenizer")
    longest = max(len(trained(text).input_ids) for text in texts)
    print(f"tokenizer: {len(trained)} entries, longest of 5,000 captions {longest} tokens")


def build(config: Config, words: CLIPTokenizer) -> torch.nn.ModuleDict:
    """An untrained U-Net and text encoder."""
    return torch.nn.ModuleDict(
        {
            "unet": text_to_image.build_unet(config),
            "text_encoder": text_to_image.build_text_encoder(config, words),
        }
    )


class Captions:
    """Token ids of the portraits of a seed, with other words every time.

    Args:
        words: The tokenizer.
        count: How many portraits there are.
    """

    def __init__(self, words: CLIPTokenizer, count: int) -> None:
        self.words = words
        self.portraits = [tuple(data.portrait(data.TRAIN, n).values()) for n in range(count)]

    def draw(self, rows: torch.Tensor, dropped: float) -> torch.Tensor:
        """(n, positions) ids of captions of these portraits, a share of them empty."""
        rng = random.Random(int(torch.randint(2**62, ())))
        texts = [
            ""
            if rng.random() < dropped
            else captions.write(
                dict(zip(attributes.ATTRIBUTES, self.portraits[row], strict=True)), rng
            )
            for row in rows.tolist()
        ]
        return torch.tensor(tokenizer.encode(self.words, texts))


def run(work: Path, config: Config, snapshot: Path | None = None) -> None:
    """Train; writes `pipeline/` and, now and then, `sheet-STEP.png`.

    Args:
        work: Folder of the tokenizer, the autoencoder and the latents, and of the checkpoint.
        config: How.
        snapshot: Where to start if there is no checkpoint.
    """
    torch.manual_seed(0)
    words = tokenizer.load(work / "tokenizer")
    networks = build(config, words)
    done = restore(dict(networks.items()), snapshot, config) if snapshot else 0
    trainer = Trainer(networks, config, work / "teacher-state.safetensors", done)
    unet, text_encoder = networks["unet"], networks["text_encoder"]
    stored = latents.load(work)
    texts = Captions(words, len(stored))
    vae = AutoencoderKL.from_pretrained(work / "vae")
    alpha_bars = text_to_image.build_schedule().alphas_cumprod
    drawn_at = trainer.budget.spent

    def loss(_share: float) -> tuple[torch.Tensor, dict[str, float]]:
        rows = torch.randint(len(stored), (config.batch,))
        states = text_encoder(texts.draw(rows, config.dropped)).last_hidden_state
        return text_to_image.loss(unet, stored[rows].float(), states, alpha_bars), {}

    def preview() -> None:
        nonlocal drawn_at
        if trainer.budget.spent - drawn_at > config.sheet_seconds:
            drawn_at = trainer.budget.spent
            trainer.ema.swap()
            ids = torch.tensor(tokenizer.encode(words, ["", *sheet_captions()]))
            found = text_to_image.sample(unet, text_encoder, ids[1:], ids[0], 16, guidance=2.0)
            pixels = to_uint8(autoencoder.decode(vae, found))
            save_grid(pixels, work / f"sheet-{trainer.budget.steps:06d}.png", scale=2)
            trainer.ema.swap()

    trainer.run(loss, preview)
    save(networks, work, work / "pipeline", trainer.budget.steps, config)


def sheet_captions() -> list[str]:
    """64 captions that name everything, the last 16 with a held-out pair each."""
    found = []
    for number in range(64):
        rng = attributes.numbered(data.TEST, number)
        pair = attributes.held_out_pairs[number % 20] if number >= 48 else ()
        portrait = attributes.draw(rng, dict(pair), trained=number < 48)
        found.append(captions.write(portrait, rng, set(attributes.ATTRIBUTES)))
    return found


def snapshot(work: Path, place: Path, config: Config) -> None:
    """Write the averaged weights of the last checkpoint as a pipeline in float16."""
    networks = build(config, tokenizer.load(work / "tokenizer"))
    steps = averaged(networks, work / "teacher-state.safetensors")
    save(networks, work, place, steps, config)


def save(
    networks: torch.nn.ModuleDict, work: Path, place: Path, steps: int, config: Config
) -> None:
    """Write a StableDiffusionPipeline in float16 with the autoencoder and tokenizer in `work`."""
    half = copy.deepcopy(networks).half()
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae").half(),
        text_encoder=half["text_encoder"],
        tokenizer=tokenizer.load(work / "tokenizer"),
        unet=half["unet"],
        scheduler=text_to_image.build_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    replace(pipeline, place, steps, config)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(work / "tokenizer" / name, place / "tokenizer" / name)
