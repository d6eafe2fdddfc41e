"""Fetch the emoji artwork and turn it into pictures, captions and a split.

Writes `pictures.npy` (N, 64, 64, 3) uint8 on white, and `pictures.json`, one `Picture` a row.
Every usable emoji becomes a picture, because the autoencoder learns from all of them. `chosen`
marks those the teacher learns, and `held_out` those of the chosen that the U-Net never sees, so
that it can be asked for a concept it knows in a style it knows, but never together.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from concepts import CHOSEN, GRID, STYLES

PACKAGES = (
    "emoji-datasource-google@16.0.0",
    "emoji-datasource-twitter@16.0.0",
    "emojilib@4.0.3",
)
FOLDERS = {"noto": "google", "twemoji": "twitter"}
SIZE = 64
HELD_OUT_PER_STYLE = 20

_DULL_SUBCATEGORIES = {"country-flag", "subdivision-flag", "family"}
_DULL_NAMES = ("FACING RIGHT", "CJK", "KATAKANA", "THIRTY", "FAMILY")
"""Flags, and pictures that differ from a neighbour by a mirror, a character or half an hour."""


@dataclass(frozen=True)
class Picture:
    """One emoji in one style, with the words people use for it, most common first."""

    name: str
    style: str
    alternatives: tuple[str, ...]
    keywords: tuple[str, ...]
    chosen: bool
    held_out: bool

    @property
    def caption(self) -> str:
        """The caption the teacher hears most, e.g. `red apple, noto`."""
        return f"{self.name}, {self.style}"


def grid_captions() -> list[str]:
    """The 64 captions of the sample grid; rows of eight alternate between the styles."""
    return [f"{name}, {STYLES[index // 8 % 2]}" for index, name in enumerate(GRID)]


def fetch(work: Path) -> None:
    """Download the packages with npm and unpack them, skipping what is already there."""
    folder = work / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        archive = folder / (package.replace("@", "-") + ".tgz")
        if not archive.exists():
            subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True)
        unpacked = _unpacked(work, package.split("@")[0])
        if not unpacked.exists():
            with tarfile.open(archive) as tar:
                members = [m for m in tar.getmembers() if _needed(m.name)]
                tar.extractall(unpacked.parent, members=members, filter="data")


def _unpacked(work: Path, package: str) -> Path:
    (version,) = (p.split("@")[1] for p in PACKAGES if p.split("@")[0] == package)
    return work / "npm" / f"{package}-{version}" / "package"


def _needed(member: str) -> bool:
    """The archives hold sprite sheets in four sizes too; only the 64-pixel pictures are read."""
    return "/img/" not in member or f"/{SIZE}/" in member


def prepare(work: Path) -> None:
    """Write `pictures.npy` and `pictures.json` from the unpacked packages."""
    google = _unpacked(work, "emoji-datasource-google")
    entries = json.loads((google / "emoji.json").read_text())
    words = json.loads((_unpacked(work, "emojilib") / "dist" / "emoji-en-US.json").read_text())
    held_out = _held_out(random.Random(0))
    images: list[npt.NDArray[np.uint8]] = []
    pictures: list[Picture] = []
    for entry in entries:
        if _is_dull(entry):
            continue
        name, alternatives, keywords = _words(entry, words)
        for style in STYLES:
            folder = FOLDERS[style]
            package = _unpacked(work, f"emoji-datasource-{folder}")
            path = package / "img" / folder / str(SIZE) / entry["image"]
            if not path.exists():
                continue
            images.append(_on_white(path))
            pictures.append(
                Picture(
                    name=name,
                    style=style,
                    alternatives=alternatives,
                    keywords=keywords,
                    chosen=name in CHOSEN,
                    held_out=(name, style) in held_out,
                )
            )
    missing = {(n, s) for n in CHOSEN for s in STYLES} - {(p.name, p.style) for p in pictures}
    if missing:
        raise ValueError(f"no picture for {sorted(missing)}: a name changed in the packages")
    np.save(work / "pictures.npy", np.stack(images))
    (work / "pictures.json").write_text(json.dumps([asdict(p) for p in pictures]))
    chosen = sum(p.chosen for p in pictures)
    print(f"{len(pictures)} pictures, {chosen} chosen, {len(held_out)} of them held out")


def _held_out(rng: random.Random) -> set[tuple[str, str]]:
    """Combinations kept from the U-Net: never a grid concept, never both styles of one concept."""
    names = sorted(set(CHOSEN) - set(GRID))
    drawn = rng.sample(names, HELD_OUT_PER_STYLE * len(STYLES))
    return {(name, STYLES[index % len(STYLES)]) for index, name in enumerate(drawn)}


def _is_dull(entry: dict[str, Any]) -> bool:
    return (
        entry["category"] == "Component"
        or entry["subcategory"] in _DULL_SUBCATEGORIES
        or any(word in entry["name"].upper() for word in _DULL_NAMES)
    )


def _words(
    entry: dict[str, Any], words: dict[str, list[str]]
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Name, alternatives and keywords of an emoji; emojilib's first word is the common name."""
    character = "".join(chr(int(code, 16)) for code in entry["unified"].split("-"))
    listed = words.get(character) or words.get(character.replace("\ufe0f", "")) or []
    name, *rest = [_clean(word) for word in listed] or [_clean(entry["name"])]
    others = [_clean(entry["name"]), *(_clean(word) for word in entry["short_names"])]
    alternatives = _unique(w for w in others if w != name and len(w) > 2)
    keywords = _unique(w for w in rest if w not in alternatives and w != name and len(w) > 2)
    return name, alternatives, keywords[:8]


def _clean(words: str) -> str:
    words = words.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return re.sub(r"\s+", " ", re.sub(r"[_\-:,“”\".()&/]", " ", words)).strip()


def _unique(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def _on_white(path: Path) -> npt.NDArray[np.uint8]:
    picture = Image.open(path).convert("RGBA")
    if picture.size != (SIZE, SIZE):
        raise ValueError(f"{path} is {picture.size}, not {SIZE} pixels square")
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return np.asarray(white.convert("RGB"))


def load(work: Path) -> tuple[torch.Tensor, list[Picture]]:
    """The pictures, (N, 64, 64, 3) uint8, and what is known of each."""
    rows = json.loads((work / "pictures.json").read_text())
    pictures = [
        Picture(
            **{
                **row,
                "alternatives": tuple(row["alternatives"]),
                "keywords": tuple(row["keywords"]),
            }
        )
        for row in rows
    ]
    return torch.from_numpy(np.load(work / "pictures.npy")), pictures


def chosen(pictures: list[Picture], held_out: bool | None = None) -> list[int]:
    """Places of the chosen pictures: all, the held-out ones or the others."""
    return [i for i, p in enumerate(pictures) if p.chosen and held_out in (None, p.held_out)]
