"""Picture files made into bytes of one shape."""

from __future__ import annotations

import struct
import tarfile
import warnings
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

__all__ = ["FAULTS", "PICTURES", "SMALLEST", "read_picture"]

SMALLEST = 16
"""Pixels of the shorter side below which a picture is none, unless it is asked for as small."""

LARGEST = 64_000_000
"""Pixels of a picture above which it is not decoded: it would take over 1 GiB."""

PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp"),
    *(".bmp", ".gif", ".tif", ".tiff"),
)
"""Ends of picture files."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

FAULTS = (
    *(OSError, EOFError, SyntaxError, ValueError, struct.error),
    *(tarfile.TarError, Image.DecompressionBombError),
)
"""What reading a broken picture, caption or tar raises."""


def read_picture(data: bytes, channels: int, height: int, width: int) -> Tensor:
    """A picture (channels, height, width), uint8: cut at the centre to the shape, then scaled.

    It is turned as its EXIF says, and laid on white where it is transparent. Of an animation the
    first frame counts; of 16 bits a channel the upper 8; CMYK and palettes become RGB. A colour
    profile is not applied, as in diffusers and datasets.

    Args:
        data: A JPEG, PNG, WebP, BMP, GIF or TIFF file.
        channels: 1 (grey) or 3.
        height: Pixels.
        width: Pixels.

    Raises:
        ValueError: If its shorter side is below `SMALLEST` and that of the shape, or it is larger
            than `LARGEST`, which its header tells, or broken, or its numbers have no scale (32
            bits, or floating point).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF, and of sizes that are checked below
            return _read(data, channels, height, width)
    except UnidentifiedImageError:
        raise ValueError(f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
    except MemoryError:
        raise ValueError("it does not fit into memory") from None
    except Exception as error:  # Pillow's readers raise whatever the damage leads to
        said = str(error).strip() or type(error).__name__
        raise ValueError(said.splitlines()[0]) from error


def _read(data: bytes, channels: int, height: int, width: int) -> Tensor:
    with Image.open(BytesIO(data), formats=FORMATS) as file:
        small = min(file.size) < min(SMALLEST, height, width)
        if small or file.width * file.height > LARGEST:
            most = "" if small else f", over {LARGEST // 10**6} million"
            raise ValueError(f"{file.width} x {file.height} pixels{most}")
        picture: Any = ImageOps.exif_transpose(file)
    if picture.mode.startswith("I;16"):
        values = np.asarray(picture).astype(np.uint16)  # of either byte order
        picture = Image.fromarray((values >> 8).astype(np.uint8))
    elif picture.mode.startswith(("I", "F")):
        raise ValueError(f"numbers without a scale: mode {picture.mode}; save it as 8 or 16 bits")
    if "A" in picture.getbands() or "a" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    picture = picture.convert("L" if channels == 1 else "RGB")
    picture = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
    pixels = np.array(picture, dtype=np.uint8).reshape(height, width, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1)
