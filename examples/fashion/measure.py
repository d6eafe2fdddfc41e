"""Measure the teacher by steps: the classes that it draws and their distance from real ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DModel
from edgedistill.evaluation.fidelity import Reference, frechet_distance

from fashion import classifier, data, teacher


@dataclass(frozen=True)
class Config:
    """What is drawn for the figures."""

    pictures: int = 2_000
    steps: tuple[int, ...] = (2, 3, 4, 9, 18)
    """Of Heun's method; N steps call the network 2 N - 1 times."""


def run(work: Path, pipeline: Path, config: Config) -> None:
    """Print the figures, write `figures.json` and a sheet of every number of steps."""
    judge = classifier.load(work)
    photographs, classes = data.load("t10k")
    agreed = (classifier.predict(judge, photographs) == classes).float().mean().item()
    train = Reference.of(classifier.features(judge, data.load("train")[0]))
    sample = classifier.features(judge, photographs[: config.pictures])
    figures = {
        "photographs": {
            "agreement": agreed,
            "distance": frechet_distance(Reference.of(sample), train),
        }
    }
    unet = UNet2DModel.from_pretrained(pipeline / "unet", torch_dtype=torch.float32)
    asked = torch.arange(len(data.CLASSES)).repeat(config.pictures // len(data.CLASSES))
    for steps in config.steps:
        drawn = teacher.sample(unet, asked, steps, seed=1)
        found = classifier.predict(judge, drawn)
        figures[f"{2 * steps - 1} calls"] = {
            "agreement": (found == asked).float().mean().item(),
            "distance": frechet_distance(Reference.of(classifier.features(judge, drawn)), train),
        }
        teacher.save_sheet(drawn[:80], work / f"calls-{2 * steps - 1}.png")
    for name, row in figures.items():
        print(f"measure: {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
    (work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
