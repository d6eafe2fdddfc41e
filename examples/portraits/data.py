"""Render the portraits: attributes by seed and number, pictures by node.

`pictures-SEED.npy` is (N, 64, 64, 3) uint8. The attributes are not stored: a number gives them
again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from common.chunks import fill
from portraits import attributes, captions
from portraits.attributes import Portrait

HERE = Path(__file__).resolve().parent
SIZE = 64
COUNT = 200_000
TRAIN, JUDGE, TEST = 0, 1, 2
"""Seeds: of what the teacher is trained on, the classifier's own, and what both are tested on."""


def portrait(seed: int, number: int) -> Portrait:
    """The attributes of one portrait. Only the teacher's training leaves held-out pairs out."""
    return attributes.draw(attributes.numbered(seed, number), trained=seed == TRAIN)


def caption(seed: int, number: int) -> str:
    """One of the captions of a portrait, always the same."""
    rng = attributes.numbered(seed, number)
    return captions.write(attributes.draw(rng, trained=seed == TRAIN), rng)


def _line(seed: int, number: int) -> str:
    rng = attributes.numbered(seed, number)
    found = attributes.draw(rng, trained=seed == TRAIN)
    return json.dumps(attributes.options(found, rng))


def packages(work: Path) -> Path:
    """The folder with the npm packages, installed there if they are missing."""
    folder = work / "npm"
    if not (folder / "node_modules" / "@dicebear" / "core").exists():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(HERE / "package.json", folder)
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
        subprocess.run(command, cwd=folder, check=True)
    return folder


def render(lines: Iterator[str], npm: Path) -> npt.NDArray[np.uint8]:
    """(N, 64, 64, 3) pictures of lines of options, by the packages in `npm`."""
    command = ["node", str(HERE / "render.mjs"), str(npm.resolve())]
    done = subprocess.run(
        command, input="\n".join(lines).encode(), stdout=subprocess.PIPE, check=True
    )
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, SIZE, SIZE, 3)


def pictures_of(portraits: list[Portrait], seed: int, npm: Path) -> torch.Tensor:
    """(N, 64, 64, 3) uint8 pictures of these attributes."""
    rows = enumerate(portraits)
    lines = (json.dumps(attributes.options(p, attributes.numbered(seed, i))) for i, p in rows)
    return torch.from_numpy(render(lines, npm).copy())


def prepare(work: Path, seed: int, count: int) -> None:
    """Write the pictures of a seed."""
    npm = packages(work)
    fill(
        _place(work, seed),
        (count, SIZE, SIZE, 3),
        np.uint8,
        lambda start, stop: render((_line(seed, n) for n in range(start, stop)), npm),
    )


def load(work: Path, seed: int) -> npt.NDArray[np.uint8]:
    """The pictures of a seed, (N, 64, 64, 3), read from the disk as they are used."""
    pictures: npt.NDArray[np.uint8] = np.load(_place(work, seed), mmap_mode="r")
    return pictures


def take(pictures: npt.NDArray[np.uint8], rows: torch.Tensor) -> torch.Tensor:
    """Some of the pictures, (n, 64, 64, 3) uint8."""
    return torch.from_numpy(pictures[rows.numpy()])


def _place(work: Path, seed: int) -> Path:
    return work / f"pictures-{seed}.npy"
