"""Put the trained parts together as a `StableDiffusionPipeline` folder.

Beside them lie the lists of captions, the trained latents and the statistics of the real pictures,
so that distilling and evaluating need no download.
"""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPTextModel

import captions
import clip
import concepts
import data
from common import text_to_image
from common.pictures import to_float
from common.storage import load_tensor
from tokenizer import load as load_tokenizer

PAIRS = 32
OPEN = 64
KEYWORD = 8
"""How much more frequent a keyword alone is in a student's training than in the teacher's."""
_PARTS = ("model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae", "clip")
_LISTS = (
    *("prompts.json", "captions.json", "data.safetensors", "originals.safetensors"),
    "reference.safetensors",
)


def pair_captions() -> list[str]:
    """Two-concept captions, half in each style: nothing of the kind was ever trained."""
    rng = random.Random(1)
    names = rng.sample(concepts.GRID, len(concepts.GRID))
    return [
        f"{first}, {second}, {concepts.STYLES[index % 2]}"
        for index, (first, second) in enumerate(zip(names[:PAIRS], names[PAIRS:], strict=True))
    ]


def open_captions(pictures: list[data.Picture]) -> list[str]:
    """The keywords that most of these pictures share, e.g. `animal, noto`.

    A name has one picture, which a memorizing teacher draws in one step; these have many, so a
    few-step student that draws their average is found out.
    """
    shared = Counter(f"{word}, {p.style}" for p in pictures for word in p.keywords)
    return [caption for caption, _ in shared.most_common(OPEN)]


def caption_variants(
    pictures: list[data.Picture], kept_out: Collection[str]
) -> list[dict[str, float]]:
    """For each picture its captions, but those kept out, with their shares for a student.

    They are those of the teacher's training, but a keyword alone, which many pictures answer, is
    `KEYWORD` times as frequent: a student has to learn most where the answer is open.
    """
    found = []
    for picture in pictures:
        alone = {f"{word}, {picture.style}" for word in picture.keywords}
        shares = {
            text: odd * (KEYWORD if text in alone else 1)
            for text, odd in captions.options(picture).items()
            if text not in kept_out
        }
        total = sum(shares.values())
        found.append({text: round(share / total, 4) for text, share in shares.items()})
    return found


def save_originals(images: torch.Tensor, file: Path) -> None:
    """Keep (N, 64, 64, 3) uint8 pictures as (N, 3, 64, 64), for decoders."""
    save_file({"pictures": images.permute(0, 3, 1, 2).contiguous()}, file)


@torch.no_grad()
def run(work: Path, destination: Path) -> None:
    """Write the folder beside its place and move its parts in; the model card there stays."""
    images, pictures = data.load(work)
    trained = data.chosen(pictures, held_out=False)
    unseen = data.chosen(pictures, held_out=True)
    partial = work / "assembled"
    shutil.rmtree(partial, ignore_errors=True)
    StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(work / "vae").half(),
        text_encoder=CLIPTextModel.from_pretrained(work / "teacher" / "text_encoder").half(),
        tokenizer=load_tokenizer(work),
        unet=UNet2DConditionModel.from_pretrained(work / "teacher" / "unet").half(),
        scheduler=text_to_image.build_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(partial)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(work / "tokenizer" / name, partial / "tokenizer" / name)
    shutil.copytree(work / "clip", partial / "clip")
    prompts = {
        "grid": data.grid_captions(),
        "train": [pictures[row].caption for row in trained],
        "unseen": [pictures[row].caption for row in unseen],
        "pairs": pair_captions(),
        "open": open_captions([pictures[row] for row in trained]),
    }
    (partial / "prompts.json").write_text(json.dumps(prompts, indent=1) + "\n")
    variants = caption_variants([pictures[row] for row in trained], prompts["unseen"])
    (partial / "captions.json").write_text(json.dumps({"variants": variants}, indent=0) + "\n")
    latents = load_tensor(work / "latents.safetensors")
    save_file({"latents": latents[trained].contiguous()}, partial / "data.safetensors")
    save_originals(images[trained], partial / "originals.safetensors")
    scorer = CLIPModel.from_pretrained(work / "clip", dtype=torch.float32)
    real = images[data.chosen(pictures)]
    features = clip.image_features(scorer, to_float(real))
    statistics = {
        "mean": features.mean(0),
        "cov": torch.cov(features.T),
        "count": torch.tensor(len(real)),
    }
    save_file(statistics, partial / "reference.safetensors")
    for file in partial.rglob("config.json"):
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)  # where it lay on this machine
        file.write_text(json.dumps(config, indent=2) + "\n")
    for file in partial.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors writes private files
    destination.mkdir(parents=True, exist_ok=True)
    for name in (*_PARTS, *_LISTS):
        target = destination / name
        if target.is_dir():
            shutil.rmtree(target)
        (partial / name).replace(target)
    size = sum(f.stat().st_size for f in destination.rglob("*") if f.is_file())
    counts = f"{len(trained)} trained and {len(unseen)} unseen captions"
    print(f"assemble: {counts}, {size / 2**20:.1f} MiB in {destination}")
