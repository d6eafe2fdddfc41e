"""Write pictures that the shipped emoji teacher knows as a folder of pictures with captions.

`python examples/own_teacher/known_emoji.py FOLDER [--count 40] [--ink]` makes
FOLDER/000.png, ... and FOLDER/metadata.jsonl, the layout of an image folder. With --ink the
pictures are drawn in blue ink, a style that the teacher has never seen, and their captions end in
"ink" in the place of "noto". The pictures are Noto Emoji, copyright Google LLC, Apache-2.0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from edgedistill.assets import ROOT
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

INK = np.array([20.0, 60.0, 150.0])


def in_ink(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (H, W, 3) bytes in shades of ink on white."""
    grey: NDArray[np.float64] = picture.astype(np.float64).mean(2, keepdims=True) / 255
    return np.round(INK + (255 - INK) * grey).astype(np.uint8)


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
        picture = in_ink(pictures[place]) if styled else pictures[place]
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
        text = captions[place]
        if styled:
            text = text.removesuffix("noto") + "ink"
        rows.append({"file_name": f"{number:03d}.png", "text": text})
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
    return len(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--ink", action="store_true")
    args = parser.parse_args()
    print(f"{write(args.folder, args.count, args.ink)} pictures in {args.folder}")
