"""Train a tiny CLIP that knows these emoji, to score pictures and to compare sets of them.

Pictures are augmented, and some pass through the autoencoder with noise on the latents, so that a
slightly wrong picture gets slightly different features rather than arbitrary ones. The temperature
is bounded and the labels are smoothed for the same reason.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

import data
from captions import Captions
from common import autoencoder
from common.pictures import to_float, to_uint8
from common.storage import load_tensor
from common.training import Plan, Trainer
from tokenizer import POSITIONS, encode
from tokenizer import load as load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Config(Plan):
    """Shapes and training of the scorer."""

    patch: int = 8
    image_width: int = 128
    image_layers: int = 3
    text_width: int = 96
    text_layers: int = 2
    heads: int = 4
    features: int = 128
    seconds: float = 14 * 60
    batch: int = 128
    matrix_rate: float = 2e-3
    other_rate: float = 1e-3
    warmup_steps: int = 50
    ema_decay: float = 0.998
    weight_decay: float = 0.1
    label_smoothing: float = 0.1
    largest_scale: float = 20.0
    """Bound on the factor from cosine to logit; CLIP's own is 100."""
    chosen_weight: float = 4.0
    rebuilt: float = 0.3
    """Share of pictures that come from the autoencoder instead."""
    latent_noise: float = 0.5
    """Largest deviation of the noise on their latents."""


def build(config: Config, tokenizer: CLIPTokenizer) -> CLIPModel:
    """CLIP's two towers, small, for 64-pixel pictures."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.text_width,
        "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": config.image_width,
        "intermediate_size": 4 * config.image_width,
        "num_hidden_layers": config.image_layers,
        "num_attention_heads": config.heads,
        "image_size": data.SIZE,
        "patch_size": config.patch,
    }
    return CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config=vision,
            projection_dim=config.features,
            attn_implementation="eager",
        )
    )


def augment(pictures: torch.Tensor) -> torch.Tensor:
    """Small shifts, scales and turns, colour, blur and noise, on a white ground.

    Takes and gives (N, 3, H, W) in [-1, 1].
    """
    count = len(pictures)
    angle = (torch.rand(count) - 0.5) * 0.3
    scale = 1 + (torch.rand(count) - 0.5) * 0.3
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale * angle.cos()
    matrix[:, 0, 1] = -scale * angle.sin()
    matrix[:, 1, 0] = scale * angle.sin()
    matrix[:, :, 2] = (torch.rand(count, 2) - 0.5) * 0.25
    places = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    moved = 1 - F.grid_sample(1 - pictures, places, align_corners=False)
    gain = 1 + (torch.rand(count, 3, 1, 1) - 0.5) * 0.3
    coloured = 1 - (1 - moved) * gain
    blurred = F.avg_pool2d(F.pad(coloured, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    softness = torch.rand(count, 1, 1, 1) * (torch.rand(count, 1, 1, 1) < 0.5)
    softened = coloured.lerp(blurred, softness)
    noise = torch.rand(count, 1, 1, 1) * 0.25 * (torch.rand(count, 1, 1, 1) < 0.5)
    return (softened + noise * torch.randn_like(softened)).clamp(-1, 1)


def image_features(model: CLIPModel, pictures: torch.Tensor) -> torch.Tensor:
    """Projected, not normalized features of (N, 3, 64, 64) pictures in [-1, 1]."""
    pooled = model.vision_model(pixel_values=pictures).pooler_output
    return model.visual_projection(pooled)  # type: ignore[no-any-return]


def text_features(model: CLIPModel, ids: torch.Tensor) -> torch.Tensor:
    """Projected, not normalized features of (N, positions) token ids."""
    pooled = model.text_model(input_ids=ids).pooler_output
    return model.text_projection(pooled)  # type: ignore[no-any-return]


@torch.no_grad()
def scores(model: CLIPModel, pictures: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """100 x cosine of every picture with every caption, (pictures, captions)."""
    images = F.normalize(
        torch.cat([image_features(model, b) for b in torch.split(pictures, 64)]), dim=-1
    )
    return 100 * images @ F.normalize(text_features(model, ids), dim=-1).T


def run(work: Path, config: Config) -> None:
    """Train on all pictures and write `clip/`; prints how well it retrieves the chosen ones."""
    torch.manual_seed(0)
    images, pictures = data.load(work)
    chosen = data.chosen(pictures)
    odds = torch.ones(len(images))
    odds[chosen] = config.chosen_weight
    tokenizer = load_tokenizer(work)
    captions = Captions(tokenizer, pictures)
    versions = torch.stack([images, _rebuilt(work, config)])
    version_odds = torch.tensor([1 - config.rebuilt, config.rebuilt])
    model = build(config, tokenizer)
    own = torch.arange(config.batch)
    largest = math.log(config.largest_scale)

    def loss(_share: float) -> tuple[torch.Tensor, dict[str, float]]:
        rows = torch.multinomial(odds, config.batch)
        version = torch.multinomial(version_odds, config.batch, replacement=True)
        seen = image_features(model, augment(to_float(versions[version, rows])))
        read = text_features(model, captions.draw(rows, dropped=0.0))
        scale = model.logit_scale.clamp(max=largest).exp()
        logits = scale * F.normalize(seen, dim=-1) @ F.normalize(read, dim=-1).T
        by_picture, by_caption = (
            F.cross_entropy(side, own, label_smoothing=config.label_smoothing)
            for side in (logits, logits.T)
        )
        return (by_picture + by_caption) / 2, {"scale": scale.item()}

    Trainer(model, config, work / "clip-state.safetensors").run(loss)
    model.logit_scale.data.clamp_(max=largest)
    _report(model, tokenizer, to_float(images[chosen]), [pictures[i].caption for i in chosen])
    folder = work / "clip"
    model.half().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PREPROCESSOR, indent=2) + "\n")


_PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"height": data.SIZE, "width": data.SIZE},
    "resample": 3,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def _rebuilt(work: Path, config: Config) -> torch.Tensor:
    """Every picture through the autoencoder, with more or less noise; (N, 64, 64, 3) uint8."""
    vae = AutoencoderKL.from_pretrained(work / "vae")
    latents = load_tensor(work / "latents.safetensors").float()
    deviation = config.latent_noise * torch.rand(len(latents), 1, 1, 1)
    noisy = latents + deviation * torch.randn_like(latents)
    return to_uint8(autoencoder.decode(vae, noisy))


def _report(
    model: CLIPModel, tokenizer: CLIPTokenizer, pictures: torch.Tensor, captions: list[str]
) -> None:
    ids = torch.tensor(encode(tokenizer, captions))
    own = torch.arange(len(captions))
    for name, shown in (("clean", pictures), ("augmented", augment(pictures))):
        table = scores(model, shown, ids)
        right = (table.argmax(1) == own).float().mean()
        found = (table.argmax(0) == own).float().mean()
        print(
            f"clip: {name}: caption of a picture {right:.3f}, picture of a caption {found:.3f}, "
            f"own score {table.diag().mean():.1f}, others {table.mean():.1f}"
        )
