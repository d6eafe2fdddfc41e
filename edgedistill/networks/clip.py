"""Text-image scores and picture features from a CLIP model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer
from transformers.image_processing_base import ImageProcessingMixin

from edgedistill.common.files import read_json
from edgedistill.common.finite import check_finite
from edgedistill.common.pickles import check_pickles
from edgedistill.common.tokenizer_errors import named_errors
from edgedistill.networks.outline import build

__all__ = [
    "Features",
    "Outline",
    "features_of",
    "model_type",
    "open_model",
    "preprocessing",
    "shipped_clip",
]


class Features:
    """A CLIPModel, by folder or Hub id, as the feature network of an evaluation.

    Pictures are resized bilinearly to the model's size and normalised as its
    preprocessor_config.json says.
    """

    words = "Features are the picture embedding of a CLIP model, not of Inception: no FID."

    def __init__(self, path: str) -> None:
        self.name = f"CLIP model {'/'.join(Path(path).parts[-2:])}"
        self.model, missing = open_model("CLIPModel", path)
        if missing:
            raise ValueError(f"{path}: no weights for {missing[0]}; the file is not whole")
        with named_errors():
            self.tokenizer = AutoTokenizer.from_pretrained(_tokenizer(path))
        self._settle(path)

    def _settle(self, path: str) -> None:
        """Read the size and normalisation of the model's pictures."""
        self.size = self.model.config.vision_config.image_size
        file = Path(path) / "preprocessor_config.json"
        config = read_json(file) if file.is_file() else {}
        self.mean = torch.tensor(config.get("image_mean", [0.48145466, 0.4578275, 0.40821073]))
        self.std = torch.tensor(config.get("image_std", [0.26862954, 0.26130258, 0.27577711]))

    @torch.no_grad()
    def images(self, pictures: NDArray[np.uint8], batch: int = 128) -> Tensor:
        """Return projected image features (N, D) of pictures (N, H, W, 3) bytes, unnormalised."""
        pieces = torch.split(torch.from_numpy(pictures), batch)
        return torch.cat([self._projected(_unit(piece)) for piece in pieces])

    def embed(self, pictures: Tensor) -> Tensor:
        """Return features as `images`, of pictures (N, 3, H, W) in [-1, 1], with a gradient."""
        self.model.to(pictures.device)
        return self._projected(0.5 + 0.5 * pictures.float().clamp(-1, 1))

    def _projected(self, pictures: Tensor) -> Tensor:
        pooled = self.model.vision_model(pixel_values=self._pixels(pictures)).pooler_output
        features: Tensor = self.model.visual_projection(pooled)
        return features

    @torch.no_grad()
    def distance(self, a: NDArray[np.uint8], b: NDArray[np.uint8], batch: int = 128) -> float:
        """Return the mean perceptual distance of picture pairs (N, H, W, 3) bytes, 0 when equal.

        This is LPIPS (Zhang et al. 2018, Eq. 1) with unit weights: at every layer each token's
        features are scaled to unit length; squared differences are averaged over tokens and
        layers.
        """
        found = []
        for pieces in zip(
            *(np.split(p, range(batch, len(p), batch)) for p in (a, b)), strict=True
        ):
            layers = [
                self.model.vision_model(
                    pixel_values=self._pixels(_unit(torch.from_numpy(piece))),
                    output_hidden_states=True,
                ).hidden_states
                for piece in pieces
            ]
            gaps = [
                (F.normalize(x, dim=-1) - F.normalize(y, dim=-1)).square().sum(-1).mean(-1)
                for x, y in zip(*layers, strict=True)
            ]
            found.append(torch.stack(gaps).mean(0))
        return torch.cat(found).mean().item()

    def _pixels(self, pictures: Tensor) -> Tensor:
        """Resize and normalise pictures (N, 3, H, W) in [0, 1] for the model."""
        mean, std = (tensor.to(pictures)[:, None, None] for tensor in (self.mean, self.std))
        x = (pictures - mean) / std
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return x

    @torch.no_grad()
    def texts(self, captions: Sequence[str], batch: int = 256) -> Tensor:
        """Return projected text features (N, D), not normalised; encodes equal captions once."""
        unique = list(dict.fromkeys(captions))
        features = []
        for start in range(0, len(unique), batch):
            ids = self.tokens(unique[start : start + batch]).to(self.model.device)
            pooled = self.model.text_model(input_ids=ids).pooler_output
            features.append(self.model.text_projection(pooled))
        place = {caption: i for i, caption in enumerate(unique)}
        return torch.cat(features)[[place[caption] for caption in captions]]

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Return token ids (N, L) of captions."""
        ids: Tensor = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).input_ids
        return ids

    def score(self, images: Tensor, texts: Tensor) -> float:
        """Return the mean of 100 cosine(image, text), which is CLIPScore without clipping at 0."""
        return 100 * F.cosine_similarity(images, texts).mean().item()


class Outline(Features):
    """A CLIP model without weights.

    Args:
        folder: Folder with its config.json.
    """

    def __init__(self, folder: Path) -> None:
        self.model: Any = build(folder, "transformers", "CLIPModel")
        self._settle(str(folder))

    def tokens(self, captions: Sequence[str]) -> Tensor:
        length = self.model.config.text_config.max_position_embeddings
        return torch.empty(len(captions), length, dtype=torch.int64, device="meta")


def features_of(name: str, folder: str, path: str | None, keys: str) -> str:
    """Return folder or Hub id of the CLIP model that judges a teacher's pictures and prompts.

    Args:
        name: Name of the teacher, for the message.
        folder: Folder of the teacher; the default is the CLIP model inside it.
        path: The requested model, if any.
        keys: Keys and options that name one, for the message.

    Raises:
        ValueError: If none is requested and none is shipped.
    """
    shipped = shipped_clip(folder)
    if not path and shipped is None:
        raise ValueError(f"teacher {name!r} ships no CLIP model; name one with {keys}")
    return path or str(shipped)


def shipped_clip(teacher: str) -> Path | None:
    """Return the folder of the CLIP model shipped with a teacher, if there is one."""
    folder = Path(teacher) / "clip"
    return folder if folder.is_dir() else None


def open_model(kind: str, path: str) -> tuple[Any, list[str]]:
    """Load a model of transformers, frozen, in float32, from safetensors only.

    Args:
        kind: Name of its class.
        path: A folder or Hub id.

    Returns:
        The model, and the names of weights that the file lacks.

    Raises:
        ValueError: If there is no model, it is of another class, or it is incomplete; names the
            path.
    """
    options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    with _named(path):
        check_pickles(Path(path))
        model, info = getattr(transformers, kind).from_pretrained(path, **options)
    check_finite(path, model.state_dict())
    return model.eval().requires_grad_(False), sorted(info["missing_keys"])


def model_type(path: str) -> str:
    """Read the type of model that a folder or Hub id holds; ValueError names the path."""
    with _named(path):
        return str(transformers.AutoConfig.from_pretrained(path).model_type)


@contextmanager
def _named(path: str) -> Iterator[None]:
    """Turn errors of loading a model into one line with its path."""
    if os.path.lexists(path) and not Path(path).is_dir():
        raise ValueError(f"features={path}: a folder expected")
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"features={path}: no vision model there: {first}; choose a folder or Hub id of one, "
            "or for evaluate.features pixels or teacher"
        ) from None


def preprocessing(path: str) -> tuple[Tensor, Tensor, int | None]:
    """Return mean, deviation and size of a model's pictures; defaults are ImageNet's."""
    try:
        config, _ = ImageProcessingMixin.get_image_processor_dict(path)
    except (OSError, ValueError):
        config = {}
    size = config.get("crop_size") or config.get("size") or {}
    side = size if isinstance(size, int) else size.get("height") or size.get("shortest_edge")
    mean = torch.tensor(config.get("image_mean") or [0.485, 0.456, 0.406])
    return mean, torch.tensor(config.get("image_std") or [0.229, 0.224, 0.225]), side


def _unit(pictures: Tensor) -> Tensor:
    """Convert bytes (N, H, W, 3) to numbers (N, 3, H, W) in [0, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 255


def _tokenizer(path: str) -> str:
    own = Path(path)
    shared = own.parent / "tokenizer"
    lacks = own.is_dir() and not (own / "tokenizer_config.json").is_file()
    return str(shared if lacks and shared.is_dir() else own if own.is_dir() else path)
