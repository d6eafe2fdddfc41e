"""A small classifier of a teacher's classes, which tells whether a sample shows its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from edgedistill.evaluation.features import shrunk

__all__ = ["Classifier", "agreement", "train_classifier"]

LEAST, LARGEST = 16, 32
"""Bounds of the side in pixels that the network sees: smaller pictures are enlarged, larger ones
averaged."""
STEPS, BATCH, RATE = 400, 64, 2e-3
FEWEST = 8
"""Smallest number of pictures of a class with which the classifier is trained."""
HELD = 5
"""Every HELD-th picture is held out to test the classifier."""


@dataclass(frozen=True)
class Classifier:
    """A trained classifier.

    Attributes:
        net: Network from pictures, as `_seen` makes them, to logits.
        classes: Class names in the order of the logits.
        samples: Number of pictures it was trained on.
        held_out: Number of pictures it was tested on.
        accuracy: Accuracy on the held-out pictures.
    """

    net: nn.Module
    classes: tuple[str, ...]
    samples: int
    held_out: int
    accuracy: float

    @torch.no_grad()
    def __call__(self, pictures: NDArray[np.uint8]) -> list[str]:
        """Return the class of each picture of (N, H, W, 3)."""
        found = [self.net(piece).argmax(1) for piece in torch.split(_seen(pictures), 256)]
        return [self.classes[i] for i in torch.cat(found).tolist()]


def agreement(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Return the share of positions at which two lists of classes are equal."""
    same = [a == b for a, b in zip(ours, theirs, strict=True)]
    return sum(same) / len(same)


def train_classifier(
    pictures: NDArray[np.uint8], labels: Sequence[str], seed: int
) -> Classifier | None:
    """Train a small convolutional network from scratch.

    Args:
        pictures: Training pictures (N, H, W, 3).
        labels: Class of each picture.
        seed: Seed of weights, batches and the choice of held-out pictures.

    Returns:
        The classifier; None for fewer than two classes, or fewer than `FEWEST` pictures of one.
    """
    classes = tuple(dict.fromkeys(labels))
    number = torch.tensor([classes.index(label) for label in labels])
    if len(classes) < 2 or int(torch.bincount(number).min()) < FEWEST:
        return None
    generator = torch.Generator().manual_seed(seed)
    x, order = _seen(pictures), torch.randperm(len(labels), generator=generator)
    test, train = order[::HELD], order[torch.arange(len(order)) % HELD != 0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # layers draw their weights from the global generator
        net = _net(len(classes))
    _fit(net, x[train], number[train], generator)
    with torch.no_grad():
        right = (net(x[test]).argmax(1) == number[test]).double().mean().item()
    return Classifier(net, classes, len(train), len(test), right)


def _net(classes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 3
    for wider, stride in ((32, 1), (64, 2), (128, 2)):
        layers += [nn.Conv2d(width, wider, 3, stride, 1), nn.GroupNorm(8, wider), nn.SiLU()]
        width = wider
    # Positions of strokes matter, so the map is not averaged over space.
    head = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.3), nn.Linear(16 * width, classes)]
    return nn.Sequential(*layers, *head)


def _fit(net: nn.Module, x: Tensor, number: Tensor, generator: torch.Generator) -> None:
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    net.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator.initial_seed())  # dropout draws from the global generator
        for _ in range(STEPS):
            rows = torch.randint(len(x), (BATCH,), generator=generator)
            loss = F.cross_entropy(net(x[rows]), number[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval().requires_grad_(False)


def _seen(pictures: NDArray[np.uint8]) -> Tensor:
    """Convert pictures (N, H, W, 3) bytes to (N, 3, h, w) in [-1, 1]."""
    x = shrunk(pictures, LARGEST)
    sides = [max(side, LEAST) for side in x.shape[2:]]
    return x if list(x.shape[2:]) == sides else F.interpolate(x, sides, mode="bilinear")
