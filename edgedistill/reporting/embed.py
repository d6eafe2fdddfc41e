"""Pictures embedded in a page, so that nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

__all__ = ["array_uri", "figure_uri", "image_uri"]

LARGEST = 256
"""Longer side in pixels of a sample in the page."""


def image_uri(image: Image.Image, largest: int | None = None) -> str:
    """Encode a picture as a PNG data: URI, shrunk if its longer side is above `largest`."""
    if largest is not None and max(image.size) > largest:
        image = image.copy()
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def array_uri(pixels: NDArray[Any]) -> str:
    """Encode a sample (H, W, 3), bytes, as a data: URI."""
    return image_uri(Image.fromarray(pixels), LARGEST)


def figure_uri(figure: Figure) -> str:
    """Encode a chart as a data: URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
