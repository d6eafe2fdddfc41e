"""PixArt: any folder or Hub id in PixArtAlphaPipeline's or PixArtSigmaPipeline's layout.

Chen et al. 2023 (arXiv 2310.00426) and Chen et al. 2024 (arXiv 2403.04692): a transformer that
reads T5's tokens under a mask. It also predicts a variance, which no sampler here needs. Alpha's
network for 1024 pixels also reads the picture's height, width and height / width.

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

__all__ = ["MaskedEncoder", "PixArt", "bias", "lowercase"]

LENGTHS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
"""Number of tokens of a prompt, by pipeline."""


LARGE = 128
"""Side of the latents of networks that get the picture's size from Alpha's pipeline."""


class PixArtNet(nn.Module):
    """A PixArtTransformer2DModel as net(x, t, encoder_hidden_states, encoder_attention_mask).

    Args:
        transformer: The network.
        size: Height and width of a whole picture in pixels, if the network reads them; else None.
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
        # The variance channels follow eps.
        return result[:, : x.shape[1]]


class MaskedEncoder(nn.Module):
    """A text encoder under a mask.

    It maps input_ids, attention_mask (N, L) -> encoder_hidden_states (N, L, D), and the mask in
    float.
    """

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        states: Tensor = self.text_encoder(
            input_ids, attention_mask=attention_mask
        ).last_hidden_state
        return states, attention_mask.to(states.dtype)


class PixArt(PipelineTeacher):
    """A teacher in PixArtAlphaPipeline's or PixArtSigmaPipeline's layout."""

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
        lowercase(pipeline.tokenizer)
        return pipeline

    def parametrization(self) -> tuple[Schedule, Prediction]:
        return discrete_border(self.pipeline.scheduler, self.path)

    def as_denoiser(self, core: nn.Module) -> PixArtNet:
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
    """Turn a mask (N, L) into attention bias (N, 1, L) as diffusers does: 0, or -10000 if masked.

    diffusers would compute the same; but taking the shape from `x` tells torch.export that both
    have the same batch size, which it cannot infer from the reshapes of its attention.
    """
    return (1 - mask).reshape(x.shape[0], 1, mask.shape[1]) * -10000.0


def lowercase(tokenizer: Any) -> None:
    """Make a tokenizer lowercase and strip its prompts first, in a bundle too."""
    backend = tokenizer.backend_tokenizer
    own = [backend.normalizer] if backend.normalizer else []
    backend.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase(), *own])
