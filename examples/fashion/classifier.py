"""A small convolutional classifier: whether a drawn picture shows the class it was asked for.

Its features, before the last layer, are those that sets of pictures are compared in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from common.snapshots import CLASSIFIER
from common.training import Plan, Trainer
from fashion import data


@dataclass(frozen=True, kw_only=True)
class Config(Plan):
    """Shapes and training of the classifier."""

    channels: tuple[int, ...] = (32, 64, 128)
    features: int = 64
    samples: float = 900_000
    batch: int = 128
    matrix_rate: float = 3e-3
    other_rate: float = 2e-3
    warmup_steps: int = 100
    ema_decay: float = 0.998
    weight_decay: float = 0.05
    bf16: bool = True
    shift: int = 2
    """Pictures are moved by at most this many pixels in both directions."""


class Classifier(nn.Module):
    """(N, 1, 32, 32) pictures in [-1, 1] to (N, 10) logits.

    Args:
        config: Its shapes.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for channels in config.channels:
            for _ in range(2):
                layers += [
                    nn.Conv2d(before, channels, 3, padding=1),
                    nn.GroupNorm(8, channels),
                    nn.SiLU(),
                ]
                before = channels
            layers.append(nn.AvgPool2d(2))
        self.body = nn.Sequential(*layers)
        self.neck = nn.Linear(before * 16, config.features)
        self.head = nn.Linear(config.features, len(data.CLASSES))

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, features) before the last layer."""
        return F.silu(self.neck(self.body(pictures).flatten(1)))

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(pictures))
        return logits


@torch.no_grad()
def predict(classifier: Classifier, pictures: torch.Tensor) -> torch.Tensor:
    """The classes (N,) that pictures (N, 1, 32, 32) show."""
    return torch.cat([classifier(b).argmax(1) for b in torch.split(pictures, 500)])


@torch.no_grad()
def features(classifier: Classifier, pictures: torch.Tensor) -> torch.Tensor:
    """The features (N, features) of pictures (N, 1, 32, 32)."""
    return torch.cat([classifier.features(b) for b in torch.split(pictures, 500)])


def load(work: Path) -> Classifier:
    """Read back what `run` wrote."""
    classifier = Classifier(Config())
    classifier.load_state_dict(load_file(work / CLASSIFIER))
    return classifier.eval()


def train(work: Path, config: Config) -> None:
    """Train on the 60,000 and write `classifier.safetensors`."""
    torch.manual_seed(0)
    pictures, classes = data.load("train")
    classifier = Classifier(config)

    def loss(_share: float) -> tuple[torch.Tensor, dict[str, float]]:
        rows = torch.randint(len(pictures), (config.batch,))
        logits = classifier(_shifted(pictures[rows], config.shift)).float()
        error = F.cross_entropy(logits, classes[rows], label_smoothing=0.05)
        return error, {"right": (logits.argmax(1) == classes[rows]).float().mean().item()}

    Trainer(classifier, config, work / "classifier-state.safetensors").run(loss)
    save_file(classifier.state_dict(), work / CLASSIFIER)


def report(work: Path) -> None:
    """Print the accuracy on the 10,000."""
    seen, shown = data.load("t10k")
    right = (predict(load(work), seen) == shown).float().mean()
    print(f"classifier: accuracy {right:.4f} on the 10,000 photographs kept apart", flush=True)


def _shifted(pictures: torch.Tensor, most: int) -> torch.Tensor:
    """Pictures moved and mirrored at random, together by batch; what comes in is black."""
    right, down = (int(n) for n in torch.randint(-most, most + 1, (2,)))
    moved = F.pad(pictures, (right, -right, down, -down), value=-1.0)
    return moved.flip(-1) if torch.rand(()) < 0.5 else moved
