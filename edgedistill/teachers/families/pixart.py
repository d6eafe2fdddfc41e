"""PixArt: any folder or Hub id in PixArtAlphaPipeline's or PixArtSigmaPipeline's layout.

Chen et al. 2023 (arXiv 2310.00426) and Chen et al. 2024 (arXiv 2403.04692): a transformer that
reads T5's tokens under a mask. It also predicts a variance, which no sampler needs here. That for
1024 pixels in Alpha reads the picture's height, width and height / width besides.

The pipelines lower and strip the prompt; so does the tokenizer here. They clean it further (links,
punctuation in a row) where ftfy and beautifulsoup4 are installed, which is not done here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers import PixArtAlphaPipeline
from tokenizers import normalizers
from torch import Tensor, nn

from edgedistill.diffusion.prediction import Prediction
from edgedistill.diffusion.schedule import Schedule
from edgedistill.diffusion.step_table import TorchStepTable
from edgedistill.teachers.pipeline import PipelineTeacher
from edgedistill.teachers.schedulers import discrete_border
from edgedistill.teachers.student_schedulers import discrete_schedulers

__all__ = ["MaskedEncoder", "PixArt", "bias", "lower"]

LENGTHS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
"""Tokens of a prompt."""


LARGE = 128
"""Size of the latents of networks that Alpha's pipeline tells the picture's size."""


class PixArtNet(nn.Module):
    """PixArtTransformer2DModel called as net(x, t, encoder_hidden_states, encoder_attention_mask).

    Args:
        transformer: The network.
        size: Height and width of a whole picture in pixels, which it reads; None if it does not.
    """

    resolution: Tensor
    aspect_ratio: Tensor

    def __init__(self, transformer: nn.Module, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.transformer, self.sized = transformer, size is not None
        if size is None:
            return
        height, width = size
        numbers = {"resolution": [[height, width]], "aspect_ratio": [[height / width]]}
        for name, value in numbers.items():
            tensor = torch.tensor(value, dtype=torch.float32)
            self.register_buffer(name, tensor, persistent=False)

    def forward(
        self, x: Tensor, t: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> Tensor:
        added: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if self.sized:
            added["resolution"] = self.resolution.expand(x.shape[0], -1)
            added["aspect_ratio"] = self.aspect_ratio.expand(x.shape[0], -1)
        result: Tensor = self.transformer(
            x,
            timestep=t,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=bias(encoder_attention_mask, x),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        # The variance stands behind eps.
        return result[:, : x.shape[1]]


class MaskedEncoder(nn.Module):
    """input_ids, attention_mask (N, L) -> encoder_hidden_states (N, L, D), the mask in float."""

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        states: Tensor = self.text_encoder(
            input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return states, attention_mask.to(states.dtype)


class PixArt(PipelineTeacher):
    """A PixArtAlphaPipeline or PixArtSigmaPipeline."""

    family = "pixart"
    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    core = "transformer"
    tap = "transformer.norm_out"
    time_layer = "transformer.adaln_single.emb.timestep_embedder.linear_2"
    masks = {"tokenizer": "attention_mask"}  # noqa: RUF012
    conditions = ("encoder_hidden_states", "encoder_attention_mask")

    @classmethod
    def open(cls, name: str, index: dict[str, Any], where: str) -> Any:
        pipeline = super().open(name, index, where)
        lower(pipeline.tokenizer)
        return pipeline

    def border(self) -> tuple[Schedule, Prediction]:
        return discrete_border(self.pipeline.scheduler, self.path)

    def wrap(self, core: nn.Module) -> PixArtNet:
        height, width = (size * self.pipeline.vae_scale_factor for size in self.shape()[1:])
        alpha = isinstance(self.pipeline, PixArtAlphaPipeline)
        sized = alpha and self.pipeline.transformer.config.sample_size == LARGE
        return PixArtNet(core, (height, width) if sized else None)

    def encoder(self) -> MaskedEncoder:
        return MaskedEncoder(self.pipeline.text_encoder)

    def longest(self, tokenizer: str) -> int | None:
        return LENGTHS[type(self.pipeline).__name__]

    def schedulers(self, table: TorchStepTable) -> Iterator[Any]:
        return discrete_schedulers(self.pipeline.scheduler, table)


def bias(mask: Tensor, x: Tensor) -> Tensor:
    """A mask (N, L) as diffusers adds it to attention, (N, 1, L): 0 for a token, -10000 for none.

    diffusers would do the same; the shape taken from `x` tells torch.export that both are of one
    batch, which it does not find out from the reshapes of its attention.
    """
    return (1 - mask).reshape(x.shape[0], 1, mask.shape[1]) * -10000.0


def lower(tokenizer: Any) -> None:
    """Make a tokenizer lower and strip its prompts first, in a bundle too."""
    backend = tokenizer.backend_tokenizer
    own = [backend.normalizer] if backend.normalizer else []
    backend.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase(), *own])
