"""Frechet distance and text-image score of pictures, in the features of a CLIP model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel

from edgedistill.files import read_json
from edgedistill.finite import check_finite
from edgedistill.teachers.base import Teacher
from edgedistill.teachers.loading import check_pickles, whole_weights

__all__ = ["Features", "Reference", "features_of", "frechet_distance"]


def frechet_distance(a: Reference, b: Reference) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) (Heusel et al. 2017, Eq. 6), float64.

    tr (C_a C_b)^(1/2) is the sum of the square roots of the eigenvalues of
    C_a^(1/2) C_b C_a^(1/2), which is symmetric.
    """
    values, vectors = torch.linalg.eigh(a.cov.double())
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.cov.double() @ root).clamp(min=0).sqrt().sum()
    mean = (a.mean.double() - b.mean.double()).square().sum()
    return float(mean + a.cov.double().trace() + b.cov.double().trace() - 2 * cross)


class Reference:
    """Mean (D,) and covariance (D, D) of features."""

    def __init__(self, mean: Tensor, cov: Tensor) -> None:
        self.mean, self.cov = mean, cov

    @classmethod
    def of(cls, features: Tensor) -> Reference:
        """Statistics of features (N, D)."""
        if len(features) < 2:
            raise ValueError(f"at least 2 samples are needed, got {len(features)}")
        return cls(features.double().mean(0), features.double().T.cov())

    @classmethod
    def load(cls, path: Path) -> Reference:
        """Read a safetensors file with "mean" and "cov"."""
        tensors = load_file(path)
        return cls(tensors["mean"], tensors["cov"])


class Features:
    """A CLIPModel folder or Hub id as the eye of the evaluation.

    Pictures are resized bilinearly to the model's size and normalised as its
    preprocessor_config.json says.
    """

    def __init__(self, path: str) -> None:
        check_pickles(Path(path))
        with whole_weights(path):
            self.model = CLIPModel.from_pretrained(
                path, dtype=torch.float32, use_safetensors=True
            ).eval()
        check_finite(path, self.model.state_dict())
        self.model.requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(_tokenizer(path))
        self._settle(path)

    def _settle(self, path: str) -> None:
        """Size and scale of the pictures it is shown."""
        self.size = self.model.config.vision_config.image_size
        file = Path(path) / "preprocessor_config.json"
        config = read_json(file) if file.is_file() else {}
        self.mean = torch.tensor(config.get("image_mean", [0.48145466, 0.4578275, 0.40821073]))
        self.std = torch.tensor(config.get("image_std", [0.26862954, 0.26130258, 0.27577711]))

    @torch.no_grad()
    def images(self, pictures: NDArray[np.uint8], batch: int = 128) -> Tensor:
        """Projected image features (N, D) of pictures (N, H, W, 3) bytes, not normalised."""
        pieces = torch.split(torch.from_numpy(pictures), batch)
        return torch.cat([self._projected(_unit(piece)) for piece in pieces])

    def embed(self, pictures: Tensor) -> Tensor:
        """As `images`, of pictures (N, 3, H, W) in [-1, 1], with the gradient in them."""
        self.model.to(pictures.device)
        return self._projected(0.5 + 0.5 * pictures.float().clamp(-1, 1))

    def _projected(self, pictures: Tensor) -> Tensor:
        pooled = self.model.vision_model(pixel_values=self._pixels(pictures)).pooler_output
        features: Tensor = self.model.visual_projection(pooled)
        return features

    @torch.no_grad()
    def distance(self, a: NDArray[np.uint8], b: NDArray[np.uint8], batch: int = 128) -> float:
        """Mean perceptual distance of picture pairs (N, H, W, 3) bytes, 0 when equal.

        As LPIPS (Zhang et al. 2018, Eq. 1) with unit weights: at every layer each token's features
        are scaled to unit length; squared differences are averaged over tokens and layers.
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
        """What the model is shown of pictures (N, 3, H, W) in [0, 1]."""
        mean, std = (tensor.to(pictures)[:, None, None] for tensor in (self.mean, self.std))
        x = (pictures - mean) / std
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return x

    @torch.no_grad()
    def texts(self, captions: Sequence[str], batch: int = 256) -> Tensor:
        """Projected text features (N, D), not normalised; equal captions are encoded once."""
        unique = list(dict.fromkeys(captions))
        features = []
        for start in range(0, len(unique), batch):
            ids = self.tokens(unique[start : start + batch]).to(self.model.device)
            pooled = self.model.text_model(input_ids=ids).pooler_output
            features.append(self.model.text_projection(pooled))
        place = {caption: i for i, caption in enumerate(unique)}
        return torch.cat(features)[[place[caption] for caption in captions]]

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids (N, L) of captions."""
        ids: Tensor = self.tokenizer(
            list(captions),
            padding="max_length",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).input_ids
        return ids

    def score(self, images: Tensor, texts: Tensor) -> float:
        """Mean of 100 cosine(image, text), as CLIPScore without its clipping at 0."""
        return 100 * F.cosine_similarity(images, texts).mean().item()


def features_of(teacher: Teacher, path: str | None, keys: str) -> str:
    """Folder or Hub id of the CLIP model that judges a teacher's pictures.

    Args:
        teacher: Whose; the default is the model it ships.
        path: What was asked for.
        keys: Where to ask, for the message.

    Raises:
        ValueError: If nothing was asked for and none is shipped.
    """
    if path:
        return path
    shipped = Path(teacher.path) / "clip"
    if not shipped.is_dir():
        raise ValueError(f"teacher {teacher.name!r} ships no CLIP model; name one with {keys}")
    return str(shipped)


def _unit(pictures: Tensor) -> Tensor:
    """Bytes (N, H, W, 3) as numbers (N, 3, H, W) in [0, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 255


def _tokenizer(path: str) -> str:
    own = Path(path)
    shared = own.parent / "tokenizer"
    lacks = own.is_dir() and not (own / "tokenizer_config.json").is_file()
    return str(shared if lacks and shared.is_dir() else own if own.is_dir() else path)
