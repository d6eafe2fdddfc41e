"""Feature networks that judge pictures: a vision model, the teacher's own network, or none.

`evaluate.features` (`--features`) names one: a folder or Hub id of a vision model of transformers
(CLIP, DINOv2, SigLIP, ViT, ...), `inception:FILE`, `teacher` or `pixels`. By default it is the
CLIP model in the teacher's folder, else the middle block of a pixel teacher's U-Net, else the
pixels. Figures in different features cannot be compared with each other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from edgedistill.evaluation.inception import Inception
from edgedistill.networks.clip import Features, model_type, open_model, preprocessing, shipped_clip
from edgedistill.networks.taps import Taps
from edgedistill.recipes.schema import INCEPTION
from edgedistill.teachers.base import Teacher

__all__ = ["Eye", "MiddleBlock", "PixelFeatures", "VisionModel", "open_features", "shrunk"]

SIDE = 16
"""Side in pixels of the pictures that `PixelFeatures` compares."""
BATCH = 128


class Eye(Protocol):
    """Interface of a feature network for pictures.

    Attributes:
        name: Name that is printed with every figure.
        words: Meaning of figures in these features.
    """

    name: str
    words: str

    def images(self, pictures: NDArray[np.uint8]) -> Tensor:
        """Return features (N, D), float32, of pictures (N, H, W, 3) bytes."""


class PixelFeatures:
    """Pixels as features: pictures averaged to at most 16x16."""

    name = "pixels"
    words = (
        "Features are the pixels of small versions of the pictures. They see colour and layout, "
        "not detail or content; name a vision model with evaluate.features for more."
    )

    def images(self, pictures: NDArray[np.uint8]) -> Tensor:
        small = shrunk(pictures, SIDE)
        self.name = f"pixels, {small.shape[3]}x{small.shape[2]}"
        return small.flatten(1)


class MiddleBlock:
    """Spatial mean of the middle block of a pixel teacher's own U-Net.

    The picture is shown with a little noise, the same for every picture, as the network was
    trained to see it (Baranchuk et al. 2021, arXiv 2112.03126); a class-conditional network gets
    its first class.

    Args:
        teacher: A teacher whose x0 is the picture.

    Raises:
        ValueError: If the teacher's x0 is not a picture, or its network has no such block.
    """

    NOISE = 0.25
    """Noise-to-signal ratio of the shown picture, sigma / alpha."""
    words = (
        "Features are the middle block of the teacher's own U-Net. They see what this teacher "
        "knows: figures compare students of it, and say nothing beside another teacher's."
    )

    def __init__(self, teacher: Teacher) -> None:
        if not _is_pixel_unet(teacher):
            raise ValueError(
                f"evaluate.features=teacher: {teacher.family} teachers have no U-Net that sees "
                "pictures; choose pixels, or a vision model"
            )
        self.name = f"middle block of {teacher.name}"
        self.teacher = teacher
        self._taps = Taps(teacher.net, [teacher.tap])
        times = torch.linspace(0.001, 1, 1000, dtype=torch.float64)
        schedule = teacher.denoiser.schedule
        gaps = (schedule.sigma(times) / schedule.alpha(times) - self.NOISE).abs()
        self._time = times[gaps.nan_to_num(torch.inf).argmin()]
        self._scale = float(teacher.describe()["scaling_factor"])
        self._noise = torch.randn(
            1, *teacher.sample_shape, generator=torch.Generator().manual_seed(0)
        )

    @torch.no_grad()
    def images(self, pictures: NDArray[np.uint8]) -> Tensor:
        found = []
        for start in range(0, len(pictures), BATCH):
            piece = _unit(pictures[start : start + BATCH]) * 2 - 1
            x0 = self._scale * piece[:, : self.teacher.sample_shape[0]]
            cond = self.teacher.encode([*self.teacher.prompts[:1]] * len(x0))
            denoiser = self.teacher.denoiser
            with self._taps:
                denoiser(denoiser.noised(x0, self._time, self._noise), self._time, cond)
                found.append(self._taps.take()[0].mean((-1, -2)))
        return torch.cat(found)


class VisionModel:
    """A vision model of transformers by its folder or Hub id, safetensors only.

    Features are its pooled output, or if it has none the mean of its last states.
    """

    words = "Features are the pooled output of a vision model, not of Inception: no FID."

    def __init__(self, path: str) -> None:
        model, missing = open_model("AutoModel", path)
        for name in missing:
            if ".pooler." not in f".{name}":
                raise ValueError(f"{path}: no weights for {name}; the file is not whole")
            model.pooler = None  # it would have random weights
        self.model = getattr(model, "vision_model", model)
        self.name = f"{type(model).__name__} {_short(path)}"
        self.mean, self.std, size = preprocessing(path)
        config = model.config
        config = getattr(config, "vision_config", config)
        self.size = int(size or _first(getattr(config, "image_size", 224)))

    @torch.no_grad()
    def images(self, pictures: NDArray[np.uint8]) -> Tensor:
        found = []
        for start in range(0, len(pictures), BATCH):
            x = _unit(pictures[start : start + BATCH])
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
            seen = (x - self.mean[:, None, None]) / self.std[:, None, None]
            found.append(_pooled(self.model(pixel_values=seen)))
        return torch.cat(found)


def open_features(teacher: Teacher, asked: str | None) -> Eye:
    """Open the feature network of an evaluation.

    Args:
        teacher: Teacher whose pictures are judged.
        asked: `pixels`, `teacher`, `inception:FILE`, or a folder or Hub id; None is the choice
            for the teacher.

    Raises:
        ValueError: If it cannot be opened; names the key and the choices.
    """
    if asked is None:
        clip = shipped_clip(teacher.path)
        asked = str(clip) if clip else "teacher" if _is_pixel_unet(teacher) else "pixels"
    if asked == "pixels":
        return PixelFeatures()
    if asked == "teacher":
        return MiddleBlock(teacher)
    if asked.startswith(INCEPTION):
        return Inception(asked.removeprefix(INCEPTION))
    return Features(asked) if model_type(asked) == "clip" else VisionModel(asked)


def shrunk(pictures: NDArray[np.uint8], side: int) -> Tensor:
    """Average pictures (N, H, W, 3) bytes to at most `side` pixels a side: (N, 3, h, w), [-1, 1].

    This is done in pieces, so that many large pictures are never in memory as floats at once.
    """
    sides = (min(pictures.shape[1], side), min(pictures.shape[2], side))
    pieces = np.split(pictures, range(BATCH, len(pictures), BATCH))
    return torch.cat([F.adaptive_avg_pool2d(_unit(piece), sides) for piece in pieces]) * 2 - 1


def _unit(pictures: NDArray[np.uint8]) -> Tensor:
    """Convert bytes (N, H, W, 3) to numbers (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def _is_pixel_unet(teacher: Teacher) -> bool:
    picture = len(teacher.sample_shape) == 3 and teacher.autoencoder is None
    return picture and bool(teacher.tap)


def _pooled(output: Any) -> Tensor:
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    states: Tensor = output.last_hidden_state
    return states.mean(1) if states.ndim == 3 else states.mean((-1, -2))


def _first(size: Any) -> Any:
    return size[0] if isinstance(size, list | tuple) else size


def _short(path: str) -> str:
    """Return the end of a path: the name people know a model by, without the machine's folders."""
    return "/".join(Path(path).parts[-2:])
