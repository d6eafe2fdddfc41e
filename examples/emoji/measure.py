"""Measure the assembled teacher: does a caption give the picture it names?

The same figures for real pictures and for the autoencoder's say what the best could be.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import CLIPModel

import clip
import data
from common import autoencoder, text_to_image
from common.pictures import save_grid, to_float, to_uint8
from tokenizer import encode


@dataclass(frozen=True)
class Config:
    """What is drawn for the figures."""

    captions: int = 128
    """Trained captions for retrieval, half of them in each style."""
    samplers: tuple[tuple[int, float], ...] = ((20, 1), (20, 2), (20, 3), (20, 4), (4, 1), (4, 2))
    """DDIM steps and guidance; the one closest to the real pictures draws the grid."""
    threads: int = 1


def retrieval(
    drawn: torch.Tensor, captions: list[str], real: torch.Tensor, names: list[str]
) -> tuple[float, float]:
    """Share of pictures whose nearest, or five nearest, real ones bear their caption.

    Only real pictures of the same style count, compared by L2 between RGB pooled to 16x16; `names`
    are their captions.
    """
    styles = [name.rpartition(", ")[2] for name in names]
    pooled = F.avg_pool2d(real, 4).flatten(1)
    distances = torch.cdist(F.avg_pool2d(drawn, 4).flatten(1), pooled)
    first = among = 0
    for row, caption in zip(distances, captions, strict=True):
        style = caption.rpartition(", ")[2]
        other = torch.tensor([s != style for s in styles])
        nearest = row.masked_fill(other, float("inf")).argsort()[:5].tolist()
        first += names[nearest[0]] == caption
        among += caption in [names[i] for i in nearest]
    return first / len(captions), among / len(captions)


@torch.no_grad()
def distance(scorer: CLIPModel, drawn: torch.Tensor, reference: dict[str, torch.Tensor]) -> float:
    """Frechet distance between the features of these pictures and of the real ones."""
    features = clip.image_features(scorer, drawn).double()
    mean, cov = features.mean(0), torch.cov(features.T)
    real_mean, real_cov = reference["mean"].double(), reference["cov"].double()
    roots = torch.linalg.eigvals(cov @ real_cov).real.clamp(min=0).sqrt()
    apart = (mean - real_mean).square().sum()
    return float(apart + cov.trace() + real_cov.trace() - 2 * roots.sum())


def run(work: Path, assembled: Path, picture: Path, config: Config) -> None:
    """Print the figures of the model card, write `output/figures.json` and the sample grid."""
    torch.set_num_threads(config.threads)
    pipe = StableDiffusionPipeline.from_pretrained(assembled, dtype=torch.float32)
    scorer = CLIPModel.from_pretrained(assembled / "clip", dtype=torch.float32)
    images, pictures = data.load(work)
    rows = data.chosen(pictures)
    images = images[rows]
    real = to_float(images)
    names = [pictures[row].caption for row in rows]
    prompts = json.loads((assembled / "prompts.json").read_text())
    sets = {
        "trained": random.Random(0).sample(prompts["train"], config.captions),
        "unseen": prompts["unseen"],
        "pairs": prompts["pairs"],
        "open": prompts["open"] * 2,
    }
    reference = load_file(assembled / "reference.safetensors")
    figures: dict[str, dict[str, float]] = {}
    for name, captions in sets.items():
        known = [i for i, caption in enumerate(names) if caption in captions]
        if known:
            own = [names[i] for i in known]
            rebuilt = autoencoder.decode(pipe.vae, autoencoder.encode(pipe.vae, images[known]))
            figures[f"{name}, real"] = _scores(scorer, pipe, real[known], own)
            figures[f"{name}, autoencoder"] = {
                **_scores(scorer, pipe, rebuilt, own),
                **_retrieved(rebuilt, own, real, names),
            }
        for steps, guidance in config.samplers:
            drawn = draw(pipe, captions, steps, guidance, seed=1)
            figures[f"{name}, {steps} steps, guidance {guidance:g}"] = {
                **_scores(scorer, pipe, drawn, captions),
                **(_retrieved(drawn, captions, real, names) if known else {}),
                **({"distance": distance(scorer, drawn, reference)} if name == "open" else {}),
            }
    for name, row in figures.items():
        print(f"measure: {name}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    (work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    steps, guidance = min(
        config.samplers,
        key=lambda sampler: figures[f"open, {sampler[0]} steps, guidance {sampler[1]:g}"][
            "distance"
        ],
    )
    grid = draw(pipe, prompts["grid"], steps, guidance, seed=0)
    save_grid(to_uint8(grid), picture, scale=2)
    print(f"measure: {steps} steps, guidance {guidance:g} come closest; grid in {picture.name}")


def draw(
    pipe: StableDiffusionPipeline, captions: list[str], steps: int, guidance: float, seed: int
) -> torch.Tensor:
    """(N, 3, 64, 64) pictures in [-1, 1]."""
    ids = torch.tensor(encode(pipe.tokenizer, ["", *captions]))
    latents = text_to_image.sample(
        pipe.unet, pipe.text_encoder, ids[1:], ids[0], steps, guidance, seed
    )
    return autoencoder.decode(pipe.vae, latents)


def _scores(
    scorer: CLIPModel, pipe: StableDiffusionPipeline, drawn: torch.Tensor, captions: list[str]
) -> dict[str, float]:
    ids = torch.tensor(encode(pipe.tokenizer, captions))
    return {"clip score": clip.scores(scorer, drawn, ids).diag().mean().item()}


def _retrieved(
    drawn: torch.Tensor, captions: list[str], real: torch.Tensor, names: list[str]
) -> dict[str, float]:
    first, among = retrieval(drawn, captions, real, names)
    return {"top 1": first, "top 5": among}
