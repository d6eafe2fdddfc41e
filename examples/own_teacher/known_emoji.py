"""Write pictures that the shipped emoji teacher knows as a folder of pictures with captions.

`python examples/own_teacher/known_emoji.py FOLDER [--count 40] [--blueprint]` makes
FOLDER/000.png, ... and FOLDER/metadata.jsonl, the layout of an image folder. With --blueprint the
pictures are drawn in white on blue, a style that the teacher has never seen, and their captions
begin with "blueprint". The pictures are Noto Emoji, copyright Google LLC, Apache-2.0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from edgedistill.assets import ROOT
from PIL import Image
from safetensors.numpy import load_file

INK, PAPER = np.array([235.0, 245.0, 255.0]), np.array([20.0, 60.0, 150.0])


def blueprint(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) bytes whose dark parts are ink and whose white is paper."""
    grey = picture.astype(np.float64).mean(2, keepdims=True) / 255
    return np.round(INK + (PAPER - INK) * grey).astype(np.uint8)


def write(folder: Path, count: int, styled: bool) -> int:
    """Write pictures and captions; their number."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped = ROOT / "emoji"
    captions = json.loads((shipped / "prompts.json").read_text(encoding="utf-8"))["train"]
    pictures = load_file(shipped / "originals.safetensors")["pictures"].transpose(0, 2, 3, 1)
    noto = [i for i, caption in enumerate(captions) if caption.endswith(", noto")]
    chosen = [noto[i * len(noto) // count] for i in range(count)]
    rows = []
    for number, place in enumerate(chosen):
        picture = blueprint(pictures[place]) if styled else pictures[place]
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
        name = captions[place].removesuffix(", noto")
        text = f"blueprint {name}" if styled else captions[place]
        rows.append({"file_name": f"{number:03d}.png", "text": text})
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    return len(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--blueprint", action="store_true")
    args = parser.parse_args()
    print(f"{write(args.folder, args.count, args.blueprint)} pictures in {args.folder}")
