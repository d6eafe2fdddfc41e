"""Measure the teacher by steps and guidance: does a picture show what its caption says?

Trained captions name everything about portraits without held-out pairs, unseen ones about
portraits with one. Open captions name two attributes and leave the rest to the teacher. Renders
and what the autoencoder makes of them say what the best could be.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from edgedistill.evaluation.fidelity import Reference, frechet_distance

from common import autoencoder, text_to_image, tokenizer
from common.pictures import save_grid, to_float, to_uint8
from portraits import attributes, captions, classifier, data
from portraits.attributes import ATTRIBUTES, Portrait


@dataclass(frozen=True)
class Config:
    """What is drawn for the figures."""

    pictures: int = 500
    """Of trained, of unseen and of open captions each."""
    samplers: tuple[tuple[int, float], ...] = ((25, 1), (25, 2), (25, 3), (8, 2), (4, 1), (4, 2))
    """DDIM steps and guidance."""


def asked(unseen: bool, count: int) -> tuple[list[Portrait], list[str]]:
    """Portraits and captions that name everything about them."""
    portraits, texts = [], []
    pairs = attributes.held_out_pairs
    for number in range(count):
        rng = attributes.numbered(data.TEST, 10_000_000 + number)
        wanted = dict(pairs[number % len(pairs)]) if unseen else None
        portraits.append(attributes.draw(rng, wanted, trained=not unseen))
        texts.append(captions.write(portraits[-1], rng, set(ATTRIBUTES)))
    return portraits, texts


def asked_openly(count: int, each: int = 4) -> tuple[list[Portrait], list[str]]:
    """Portraits and captions that name two attributes of them; `each` in a row share a caption.

    Which attributes are named does not depend on the portrait, so that the portraits are spread as
    those that nothing was asked of. A hair's colour is not asked for, since covered hair has none.
    """
    portraits, texts = [], []
    names = [name for name in ATTRIBUTES if name != "hair colour"]
    for number in range(count):
        rng = attributes.numbered(data.TEST, 20_000_000 + number // each)
        named = set(rng.sample(names, 2))
        text = captions.write(attributes.draw(rng), rng, named)
        own = attributes.numbered(data.TEST, 30_000_000 + number)
        portraits.append(attributes.draw(own, captions.read(text)))
        texts.append(text)
    return portraits, texts


def agreement(
    judge: classifier.Classifier, pictures: torch.Tensor, texts: list[str]
) -> dict[str, float]:
    """Shares of the values that captions name and (N, 3, 64, 64) pictures show."""
    shows = right(judge, pictures, texts)
    each = dict(zip(ATTRIBUTES, shows.nanmean(0).tolist(), strict=True))
    return {
        "attributes": shows.nanmean().item(),
        "all at once": shows.nan_to_num(1.0).prod(1).mean().item(),
        **each,
    }


def right(judge: classifier.Classifier, pictures: torch.Tensor, texts: list[str]) -> torch.Tensor:
    """Whether (N, 3, 64, 64) pictures show each attribute as their caption says, (N, attributes).

    1 where they do and 0 where not; NaN where the caption does not name the attribute.
    """
    said = classifier.labels([captions.read(text) for text in texts])
    shows = (classifier.predict(judge, pictures) == said).float()
    return shows.masked_fill(said == classifier.OPEN, torch.nan)


def run(work: Path, folder: Path, config: Config) -> None:
    """Print the figures, write `figures.json` and sheets of what was drawn."""
    judge = classifier.load(work)
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    real = to_float(torch.from_numpy(data.load(work, data.TEST).copy()))
    reference = Reference.of(features(judge, real))
    npm, figures = data.packages(work), {}
    kinds = {
        "trained": asked(False, config.pictures),
        "unseen": asked(True, config.pictures),
        "open": asked_openly(config.pictures),
    }
    for kind, (portraits, texts) in kinds.items():
        shown = data.pictures_of(portraits, data.TEST, npm)
        rebuilt = autoencoder.decode(pipe.vae, autoencoder.encode(pipe.vae, shown))
        sets = {"renders": to_float(shown), "autoencoder": rebuilt}
        for steps, guidance in config.samplers:
            drawn = draw(pipe, texts, steps, guidance)
            sets[f"{steps} steps, guidance {guidance:g}"] = drawn
            save_grid(to_uint8(drawn[:64]), work / f"{kind}-{steps}-{guidance:g}.png", scale=2)
        for name, pictures in sets.items():
            row = agreement(judge, pictures, texts)
            row["distance"] = frechet_distance(Reference.of(features(judge, pictures)), reference)
            figures[f"{kind}, {name}"] = row
            shown_row = ", ".join(f"{key} {value:.3f}" for key, value in row.items())
            print(f"measure: {kind}, {name}: {shown_row}", flush=True)
    (work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


@torch.no_grad()
def features(judge: classifier.Classifier, pictures: torch.Tensor) -> torch.Tensor:
    """(N, D) features of (N, 3, 64, 64) pictures."""
    return torch.cat([judge.features(batch) for batch in torch.split(pictures, 200)])


def draw(
    pipe: StableDiffusionPipeline, texts: list[str], steps: int, guidance: float
) -> torch.Tensor:
    """(N, 3, 64, 64) pictures in [-1, 1]."""
    ids = torch.tensor(tokenizer.encode(pipe.tokenizer, ["", *texts]))
    found = text_to_image.sample(
        pipe.unet, pipe.text_encoder, ids[1:], ids[0], steps, guidance, seed=1
    )
    return autoencoder.decode(pipe.vae, found)
