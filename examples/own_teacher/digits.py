"""Write scikit-learn's 1,797 handwritten digits as a folder of 8x8 pictures, a folder a class.

`python examples/own_teacher/digits.py FOLDER` makes FOLDER/0/0000.png, FOLDER/1/0001.png, ...:
the layout of an image folder. It needs scikit-learn: `pip install scikit-learn`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

LICENCE = "cc-by-4.0"
"""Of the data: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI."""


def write_digits(folder: Path) -> int:
    """Write the pictures; their number."""
    data = load_digits()
    for number, (picture, label) in enumerate(zip(data.images, data.target, strict=True)):
        place = folder / str(label)
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.round(picture * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:04d}.png")
    return len(data.images)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    print(f"{write_digits(folder)} pictures in {folder}, licence {LICENCE}")
