"""Train the features of `distance.kind=latent-lpips` on the shipped teacher's latents.

    python examples/emoji/latent_features.py [--seconds 120] [--out FILE]

A small convolutional network learns to name the concept and the style of a picture from its
latents (E-LatentLPIPS, Kang et al. 2024, arXiv 2405.05967, Sec. 3.2, has a VGG trained on the
latents of ImageNet). It sees the 542 shipped pictures moved, coloured, softened and with noise,
which the teacher's autoencoder encodes, and latents that the distance's own augmentations change.
The file has half-precision weights, under 2 MiB. At the end the script prints how often distances
of latents agree with the shipped CLIP, which sees the pictures, on which of two changed versions
is the nearer one. CLIP knows these emoji and nothing of these latents; people were not asked.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from edgedistill.assets import ROOT
from edgedistill.diffusion.distances import Distance, Ensemble, augmented, distance, ensembled
from edgedistill.diffusion.perceptual import LatentFeatures
from edgedistill.networks.clip import Features
from safetensors.torch import load_file
from torch import Tensor, nn

TEACHER = ROOT / "emoji"
WIDTHS, STRIDES = (64, 96, 128, 128, 128), (1, 1, 2, 1, 2)
VIEWS = 10
"""Changed versions of each picture."""
BATCH, RATE = 256, 2e-3


def changed(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Move, turn, colour and soften pictures (N, 3, H, W) in [-1, 1] on white, and add noise."""
    count = len(pictures)

    def draw(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    angle, scale = (draw() - 0.5) * 0.4, 1 + (draw() - 0.5) * 0.4
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale * angle.cos()
    matrix[:, 0, 1], matrix[:, 1, 0] = -scale * angle.sin(), scale * angle.sin()
    matrix[:, :, 2] = (draw(2) - 0.5) * 0.3
    places = F.affine_grid(matrix, list(pictures.shape), align_corners=False)
    moved = 1 - F.grid_sample(1 - pictures, places, align_corners=False)
    coloured = 1 - (1 - moved) * (1 + (draw(3, 1, 1) - 0.5) * 0.4)
    soft = F.avg_pool2d(F.pad(coloured, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    softened = coloured.lerp(soft, draw(1, 1, 1) * (draw(1, 1, 1) < 0.5))
    grain = torch.randn(pictures.shape, generator=generator) * 0.3
    return (softened + grain * draw(1, 1, 1) * (draw(1, 1, 1) < 0.5)).clamp(-1, 1)


@torch.no_grad()
def encoded(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Return the latents of pictures, as the teacher has them."""
    scale: float = vae.config.scaling_factor
    pieces = [vae.encode(piece).latent_dist.mode() for piece in pictures.split(64)]
    return torch.cat(pieces) * scale


def labels() -> Tensor:
    """Concept and style of each shipped picture, (542, 2)."""
    captions = json.loads((TEACHER / "prompts.json").read_text("utf-8"))["train"]
    pairs = [caption.rsplit(", ", 1) for caption in captions]
    numbers = [
        {word: i for i, word in enumerate(sorted(set(words)))}
        for words in zip(*pairs, strict=True)
    ]
    return torch.tensor([[numbers[k][pair[k]] for k in (0, 1)] for pair in pairs])


class Namer(nn.Module):
    """Names what latents show, from the last features."""

    def __init__(self, features: LatentFeatures, classes: list[int]) -> None:
        super().__init__()
        self.features = features
        self.heads = nn.ModuleList(nn.Linear(WIDTHS[-1] * 4, count) for count in classes)

    def forward(self, latents: Tensor) -> list[Tensor]:
        last = self.features(latents)[-1].flatten(1)
        return [head(last) for head in self.heads]


def train(bank: Tensor, names: Tensor, seconds: float) -> LatentFeatures:
    """Train on latents (views, pictures, C, H, W) for so many seconds of the processor."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    features = LatentFeatures(bank.shape[2], WIDTHS, STRIDES)
    namer = Namer(features, (names.amax(0) + 1).tolist())
    optimizer = torch.optim.AdamW(namer.parameters(), RATE, weight_decay=0.05)
    begin, step, views = time.process_time(), 0, len(bank)
    while (share := (time.process_time() - begin) / seconds) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50) * (1 - share)
        rows = torch.randint(bank.shape[1], (BATCH,), generator=generator)
        latents = bank[torch.randint(views, (BATCH,), generator=generator), rows]
        half = torch.rand(BATCH, 1, 1, 1, generator=generator) < 0.5
        latents = torch.where(half, augmented(latents, generator), latents)
        amount = 0.5 * torch.rand(BATCH, 1, 1, 1, generator=generator)
        latents = latents + amount * torch.randn(latents.shape, generator=generator)
        logits = namer(latents)
        losses = [
            F.cross_entropy(logit, names[rows, k], label_smoothing=0.1)
            for k, logit in enumerate(logits)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        step += 1
        if step % 100 == 0:
            right = (logits[0].argmax(1) == names[rows, 0]).float().mean()
            print(f"{step:5} {share:5.0%} concepts named {right:.3f}", flush=True)
    return features


DISTANCES: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "l2": lambda a, b, file: distance(Distance(), a, b),
    "features": lambda a, b, file: distance(Distance(kind="features"), a, b),
    "latent-lpips": lambda a, b, file: distance(Distance(kind="latent-lpips", network=file), a, b),
    "features, 8 augmentations": lambda a, b, file: ensembled(
        Ensemble(kind="features", ensemble=8), a, b, torch.Generator().manual_seed(3)
    ),
    "latent-lpips, 8 augmentations": lambda a, b, file: ensembled(
        Ensemble(kind="latent-lpips", network=file, ensemble=8),
        a,
        b,
        torch.Generator().manual_seed(3),
    ),
}


@torch.no_grad()
def agreement(vae: AutoencoderKL, pictures: Tensor, file: str) -> dict[str, float]:
    """Share of pairs of distortions that a distance of latents orders as CLIP does, by name."""
    generator = torch.Generator().manual_seed(2)
    clip = Features(str(TEACHER / "clip"))
    seen = [pictures, changed(pictures, generator), changed(pictures, generator)]
    embedded = [F.normalize(clip.embed(each), dim=1) for each in seen]
    latents = [encoded(vae, each) for each in seen]
    apart = [1 - (embedded[0] * other).sum(1) for other in embedded[1:]]
    found = {}
    for name, measure in DISTANCES.items():
        ours = [measure(latents[0], other, file) for other in latents[1:]]
        found[name] = ((ours[0] < ours[1]) == (apart[0] < apart[1])).float().mean().item()
    return found


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120, help="of the processor, to train")
    parser.add_argument("--out", type=Path, default=ROOT / "features" / "emoji.safetensors")
    args = parser.parse_args()
    shipped = load_file(TEACHER / "originals.safetensors")["pictures"]
    pictures = shipped.float() / 127.5 - 1
    vae = AutoencoderKL.from_pretrained(TEACHER / "vae", torch_dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    views = [encoded(vae, changed(pictures, generator)) for _ in range(VIEWS)]
    clean = load_file(TEACHER / "data.safetensors")["latents"].float()
    print(f"encoded in {time.process_time():.0f} s of the processor")
    features = train(torch.stack([clean, *views]), labels(), args.seconds)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    features.save(args.out, {"latents": "edgedistill/assets/emoji", "licence": "apache-2.0"})
    print(f"{args.out}: {args.out.stat().st_size / 2**20:.2f} MiB")
    for name, share in agreement(vae, pictures, str(args.out)).items():
        print(f"{name:32} agrees with CLIP in {share:.3f} of {len(pictures)} pairs")


if __name__ == "__main__":
    main()
