"""Judges of what the teachers of `examples/` draw: classifiers that their examples trained.

A judge knows what was asked for and tells whether a picture shows it. The features before the
classifier's last layer are those in which sets of pictures are compared.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))  # for common and the rest

from common.pictures import to_float, to_uint8
from fashion import classifier as fashion_classifier
from fashion import data as fashion_data
from portraits import classifier as portraits_classifier
from portraits import data as portraits_data
from portraits import measure as portraits_measure

ROOT = Path(__file__).resolve().parents[1]
"""Root of the repository."""

Pictures = NDArray[np.uint8]
"""Pictures (N, H, W, 3)."""


class Judge(Protocol):
    """Knows the pictures that a teacher was trained on, and reads what a picture shows."""

    def photographs(self) -> Path:
        """Return a folder of training pictures with captions, written there if it is missing."""
        ...

    def captions(self, count: int) -> Path | None:
        """Return a file of `count` training captions; None if the teacher has its own prompts."""
        ...

    def reference(self) -> Tensor:
        """Return features (M, D) of real pictures."""
        ...

    def held_out(self, count: int) -> tuple[Pictures, list[str]]:
        """Return at most `count` real pictures that nothing was trained on, and their prompts."""
        ...

    def asked(self, count: int) -> list[str]:
        """Return the prompts of `count` pictures; several pictures share one."""
        ...

    def features(self, pictures: Pictures) -> Tensor:
        """Return features (N, D) of pictures."""
        ...

    def right(self, pictures: Pictures, prompts: list[str]) -> Tensor:
        """Return for each picture the share (N,) of what its prompt names that it shows."""
        ...


@dataclass
class Fashion:
    """Judge of `examples/fashion`: the class of a picture.

    Args:
        work: Output folder of the example, in which its classifier is.
        pictures: Number of photographs in the folder that students are trained on.
    """

    work: Path
    pictures: int = 10_000

    @cached_property
    def judge(self) -> fashion_classifier.Classifier:
        """The trained classifier."""
        return fashion_classifier.load(self.work)

    def photographs(self) -> Path:
        folder = self.work / f"photographs-{self.pictures}"
        if not (folder / "done").exists():
            pictures, classes = fashion_data.load("train")
            grey = to_uint8(pictures[: self.pictures]).squeeze(-1).numpy()
            for number, kind in enumerate(classes[: self.pictures].tolist()):
                place = folder / fashion_data.CLASSES[kind] / f"{number:05}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(grey[number]).save(place)
            (folder / "done").touch()
        return folder

    def captions(self, count: int) -> None:
        return None

    def reference(self) -> Tensor:
        return fashion_classifier.features(self.judge, fashion_data.load("train")[0])

    def held_out(self, count: int) -> tuple[Pictures, list[str]]:
        pictures, classes = fashion_data.load("t10k")
        names = [fashion_data.CLASSES[kind] for kind in classes[:count].tolist()]
        return to_uint8(pictures[:count].expand(-1, 3, -1, -1)).numpy(), names

    def asked(self, count: int) -> list[str]:
        return [fashion_data.CLASSES[i % len(fashion_data.CLASSES)] for i in range(count)]

    def features(self, pictures: Pictures) -> Tensor:
        return fashion_classifier.features(self.judge, self._grey(pictures))

    def right(self, pictures: Pictures, prompts: list[str]) -> Tensor:
        found = fashion_classifier.predict(self.judge, self._grey(pictures))
        wanted = torch.tensor([fashion_data.CLASSES.index(prompt) for prompt in prompts])
        return (found == wanted).float()

    def _grey(self, pictures: Pictures) -> Tensor:
        return to_float(torch.from_numpy(pictures)).mean(1, keepdim=True)


@dataclass
class Portraits:
    """Judge of `examples/portraits`: the attributes that a caption names.

    The captions that pictures are asked by name two attributes, and four pictures share one.

    Args:
        work: Output folder of the example, with its classifier and its pictures.
        pictures: Number of portraits in the folder that students are trained on, from the first;
            as many, from the last, are what sets of pictures are compared with.
    """

    work: Path
    pictures: int = 10_000

    @cached_property
    def judge(self) -> portraits_classifier.Classifier:
        """The trained classifier."""
        return portraits_classifier.load(self.work)

    def photographs(self) -> Path:
        folder = self.work / f"portraits-{self.pictures}"
        if not (folder / "done").exists():
            folder.mkdir(parents=True, exist_ok=True)
            drawn, lines = portraits_data.load(self.work, portraits_data.TRAIN), []
            for number, picture in enumerate(drawn[: self.pictures]):
                name = f"{number:05}.png"
                Image.fromarray(picture).save(folder / name)
                text = portraits_data.caption(portraits_data.TRAIN, number)
                lines.append(json.dumps({"file_name": name, "text": text}))
            (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
            (folder / "done").touch()
        return folder

    def captions(self, count: int) -> Path:
        file = self.work / f"captions-{count}.txt"
        rows = range(count)
        lines = (portraits_data.caption(portraits_data.TRAIN, number) for number in rows)
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file

    def reference(self) -> Tensor:
        drawn = portraits_data.load(self.work, portraits_data.TRAIN)[-self.pictures :]
        starts = range(0, len(drawn), 1000)
        return torch.cat([self.features(np.array(drawn[i : i + 1000])) for i in starts])

    def held_out(self, count: int) -> tuple[Pictures, list[str]]:
        portraits, prompts = portraits_measure.asked_openly(count)
        npm = portraits_data.packages(self.work)
        return portraits_data.pictures_of(portraits, portraits_data.TEST, npm).numpy(), prompts

    def asked(self, count: int) -> list[str]:
        return portraits_measure.asked_openly(count)[1]

    def features(self, pictures: Pictures) -> Tensor:
        return portraits_measure.features(self.judge, to_float(torch.from_numpy(pictures)))

    def right(self, pictures: Pictures, prompts: list[str]) -> Tensor:
        shown = to_float(torch.from_numpy(pictures))
        return portraits_measure.right(self.judge, shown, prompts).nanmean(1)
