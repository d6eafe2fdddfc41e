"""A classifier of every attribute at once: whether a picture shows what its caption says.

It is trained on renders of its own seed, held-out pairs included, some of them through the
autoencoder with noise on the latents, so that slightly wrong pictures are read sensibly. Its
features, before the heads, are those that sets of pictures are compared in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn

from common.pictures import to_float
from common.snapshots import CLASSIFIER
from common.training import Plan, Trainer
from portraits import data
from portraits.attributes import ATTRIBUTES, Portrait

VALUES = {name: list(values) for name, values in ATTRIBUTES.items()}
OPEN = -1
"""Label of an attribute that nothing is said of."""


@dataclass(frozen=True, kw_only=True)
class Config(Plan):
    """Shapes and training of the classifier."""

    pictures: int = 30_000
    channels: tuple[int, ...] = (24, 48, 96, 128)
    features: int = 192
    samples: float = 80_000
    batch: int = 64
    matrix_rate: float = 3e-3
    other_rate: float = 2e-3
    warmup_steps: int = 100
    hold: float = 0.2
    ema_decay: float = 0.998
    weight_decay: float = 0.05
    bf16: bool = True
    rebuilt: float = 0.3
    """Share of pictures that come from the autoencoder instead, if there is one."""
    latent_noise: float = 0.3
    """Largest deviation of the noise on their latents."""


class Classifier(nn.Module):
    """(N, 3, 64, 64) pictures in [-1, 1] to logits of every attribute.

    Args:
        config: Its shapes.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, *rest = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, first, 4, 2, 1), nn.GroupNorm(8, first), nn.SiLU()]
        before = first
        for channels in rest:
            layers += [
                *(nn.Conv2d(before, channels, 3, 1, 1), nn.GroupNorm(8, channels), nn.SiLU()),
                *(nn.Conv2d(channels, channels, 3, 1, 1), nn.GroupNorm(8, channels), nn.SiLU()),
                nn.AvgPool2d(2),
            ]
            before = channels
        self.body = nn.Sequential(*layers)
        self.neck = nn.Linear(before * 16, config.features)
        self.heads = nn.ModuleList(
            nn.Linear(config.features, len(values)) for values in VALUES.values()
        )

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, features) before the heads."""
        return F.silu(self.neck(self.body(pictures).flatten(1)))

    def forward(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        found = self.features(pictures)
        return [head(found) for head in self.heads]


@torch.no_grad()
def predict(classifier: Classifier, pictures: torch.Tensor) -> torch.Tensor:
    """The place of every attribute's value, (N, attributes), in (N, 3, 64, 64) pictures."""
    parts = [classifier(batch) for batch in torch.split(pictures, 200)]
    return torch.cat([torch.stack([g.argmax(1) for g in part], dim=1) for part in parts])


def labels(portraits: list[Portrait]) -> torch.Tensor:
    """(N, attributes) places of the values; `OPEN` where a portrait has none."""
    rows = [
        [values.index(p[name]) if name in p else OPEN for name, values in VALUES.items()]
        for p in portraits
    ]
    return torch.tensor(rows)


def load(work: Path) -> Classifier:
    """Read back what `run` wrote."""
    classifier = Classifier(Config())
    classifier.load_state_dict(load_file(work / CLASSIFIER))
    return classifier.eval()


def train(work: Path, config: Config) -> None:
    """Train on renders of its own seed and write `classifier.safetensors`."""
    torch.manual_seed(0)
    data.prepare(work, data.JUDGE, config.pictures)
    pictures = data.load(work, data.JUDGE)
    known = labels([data.portrait(data.JUDGE, n) for n in range(len(pictures))])
    vae = AutoencoderKL.from_pretrained(work / "vae")
    classifier = Classifier(config)
    nn.utils.convert_conv2d_weight_memory_format(classifier, torch.channels_last)

    def loss(_share: float) -> tuple[torch.Tensor, dict[str, float]]:
        rows = torch.randint(len(pictures), (config.batch,))
        shown = to_float(data.take(pictures, rows))
        count = round(config.rebuilt * config.batch)
        shown[:count] = _rebuilt(vae, shown[:count], config.latent_noise)
        guesses = classifier(shown.to(memory_format=torch.channels_last))
        pairs = list(zip(guesses, known[rows].T, strict=True))
        errors = torch.stack([F.cross_entropy(g.float(), asked) for g, asked in pairs])
        right = torch.stack([g.argmax(1) == asked for g, asked in pairs])
        return errors.sum(), {"right": right.float().mean().item()}

    Trainer(classifier, config, work / "classifier-state.safetensors").run(loss)
    nn.utils.convert_conv2d_weight_memory_format(classifier, torch.contiguous_format)
    save_file(classifier.state_dict(), work / CLASSIFIER)


def report(work: Path) -> None:
    """Print the accuracy by attribute on the test's renders, as they are and rebuilt."""
    classifier, vae = load(work), AutoencoderKL.from_pretrained(work / "vae")
    pictures = to_float(torch.from_numpy(data.load(work, data.TEST).copy()))
    asked = labels([data.portrait(data.TEST, n) for n in range(len(pictures))])
    for name, shown in (("renders", pictures), ("autoencoder", _rebuilt(vae, pictures, 0.0))):
        right = (predict(classifier, shown) == asked).float()
        each = ", ".join(f"{n} {r:.3f}" for n, r in zip(VALUES, right.mean(0), strict=True))
        whole = right.prod(1).mean()
        print(f"classifier: {name}: {right.mean():.4f} ({each}); all at once {whole:.3f}")


@torch.no_grad()
def _rebuilt(vae: AutoencoderKL, pictures: torch.Tensor, noise: float) -> torch.Tensor:
    parts = []
    for batch in torch.split(pictures, 64):
        latents = vae.encode(batch).latent_dist.mean.float()
        level = noise * torch.rand(len(latents), 1, 1, 1)
        noisy = latents + level * torch.randn_like(latents)
        parts.append(vae.decode(noisy).sample.float().clamp(-1, 1))
    return torch.cat(parts)
